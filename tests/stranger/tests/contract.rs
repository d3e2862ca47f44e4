//! The contract on a backend that the project does not know.
#![allow(missing_docs)]

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
};

use provisioner_contract::{Ability, Outsider, Profile, Refusal, Setup, Sight, Told, async_trait};
use provisioner_core::types::{ControlPlaneId, DataId, InstanceSpec, Target, Workload};
use stranger::Sites;

fn main() -> ExitCode {
    provisioner_contract::main(Site)
}

struct Site;

impl Setup for Site {
    fn name(&self) -> String {
        "stranger".to_owned()
    }

    fn profile(&self) -> Profile {
        let folder = tempfile::tempdir().expect("a folder");
        let backend = Arc::new(Sites::new(folder.path()));
        let path = folder.path().to_owned();
        let spec = |version: &str| InstanceSpec::new(Workload::new(version));
        let mut profile = Profile::new(backend, spec).with_outsider(Visitor(folder.path().to_owned()));
        profile.reopen = Some(Box::new(move || Arc::new(Sites::new(&path)) as _));
        profile.keep = Some(Box::new(folder));
        profile
    }
}

/// Looks at the folders.
struct Visitor(PathBuf);

impl Visitor {
    fn own(&self, folder: &str, owner: &ControlPlaneId, target: &Target) -> Vec<PathBuf> {
        let mut paths = entries(&self.0.join(owner.as_str()).join(folder));
        paths.retain(|path| path.to_string_lossy().contains(&target.incarnation.to_string()));
        paths
    }

    /// The file that visitors of a running site see.
    fn note(&self, owner: &ControlPlaneId, target: &Target) -> Told<PathBuf> {
        let link = self.own("live", owner, target).pop().ok_or("it is not served")?;
        Ok(link.join("note"))
    }
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

fn told<T>(done: std::io::Result<T>) -> Told<T> {
    done.map_err(|error| error.to_string())
}

#[async_trait]
impl Outsider for Visitor {
    fn abilities(&self) -> &[Ability] {
        use Ability::*;
        &[Sight, Inventory, Notes, Ask, Name, Kill, Stop, Delete, DeleteData, Unreachable]
    }

    async fn sight(&self, owner: &ControlPlaneId, target: &Target) -> Told<Sight> {
        let count = |folder| self.own(folder, owner, target).len();
        Ok(Sight { made: count("sites"), awake: count("live") })
    }

    async fn inventory(&self, owner: &ControlPlaneId) -> Told<Vec<String>> {
        let own = self.0.join(owner.as_str());
        let all = ["sites", "live", "data"].into_iter().flat_map(|folder| entries(&own.join(folder)));
        Ok(all.map(|path| path.display().to_string()).collect())
    }

    async fn write_note(&self, owner: &ControlPlaneId, target: &Target, note: &str) -> Told<()> {
        told(fs::write(self.note(owner, target)?, note))
    }

    async fn read_note(&self, owner: &ControlPlaneId, target: &Target) -> Told<Option<String>> {
        Ok(fs::read_to_string(self.note(owner, target)?).ok())
    }

    async fn ask(&self, endpoint: &str) -> Told<()> {
        told(fs::read_dir(endpoint.strip_prefix("file://").ok_or("not a folder")?)).map(drop)
    }

    async fn name(&self, owner: &ControlPlaneId, target: &Target) -> Told<String> {
        let site = self.own("sites", owner, target).pop().ok_or("there is no such site")?;
        Ok(site.display().to_string())
    }

    async fn kill(&self, owner: &ControlPlaneId, target: &Target) -> Told<()> {
        self.own("live", owner, target).into_iter().try_for_each(|link| told(fs::remove_file(link)))
    }

    async fn stop(&self, owner: &ControlPlaneId, target: &Target) -> Told<()> {
        self.kill(owner, target).await
    }

    async fn delete(&self, owner: &ControlPlaneId, target: &Target) -> Told<()> {
        self.kill(owner, target).await?;
        self.own("sites", owner, target).into_iter().try_for_each(|site| told(fs::remove_dir_all(site)))
    }

    async fn delete_data(&self, owner: &ControlPlaneId, data: &DataId) -> Told<()> {
        told(fs::remove_dir_all(self.0.join(owner.as_str()).join("data").join(data.as_str())))
    }

    async fn refuse(&self, refusal: Option<Refusal>) -> Told<()> {
        let away = self.0.with_extension("away");
        if away.exists() {
            told(fs::remove_file(&self.0).and_then(|()| fs::rename(&away, &self.0)))?;
        }
        match refusal {
            None => Ok(()),
            // A file is where the folder was.
            Some(Refusal::Unreachable) => told(fs::rename(&self.0, &away).and_then(|()| fs::write(&self.0, ""))),
            Some(other) => Err(format!("a folder cannot refuse by {other:?}")),
        }
    }
}
