//! Volumes on the node's disk, for the claims of tests on a cluster that makes none by itself.

use std::{
    fmt, fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use futures::StreamExt;
use k8s_openapi::{
    api::{
        core::v1::{
            HostPathVolumeSource, ObjectReference, PersistentVolume, PersistentVolumeClaim, PersistentVolumeSpec,
        },
        storage::v1::StorageClass,
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{
    Api, Client, Config, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
    runtime::{WatchStreamExt, watcher},
};

use super::{Cluster, Origin, folder};

/// The class of the claims that get a volume here.
pub const CLASS: &str = "provisioner-tests";

impl Cluster {
    /// Reads the way to it, with all rights.
    ///
    /// # Errors
    /// Where its kubeconfig cannot be used.
    pub async fn config(&self) -> Result<Config, String> {
        let kubeconfig = Kubeconfig::read_from(PathBuf::from(self.kubeconfig())).map_err(|error| error.to_string())?;
        let options = KubeConfigOptions::default();
        Config::from_custom_kubeconfig(kubeconfig, &options).await.map_err(|error| error.to_string())
    }
}

/// Makes volumes on a cluster of the scripts. Several may, also of several processes.
#[derive(Clone)]
pub struct Volumes {
    admin: Client,
    /// Where they lie.
    folder: PathBuf,
}

impl fmt::Debug for Volumes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Volumes").field("folder", &self.folder).finish_non_exhaustive()
    }
}

impl Volumes {
    /// Prepares them, for claims of [`CLASS`]; `None` where the cluster has a class of its own that makes volumes.
    ///
    /// # Errors
    /// Where its kubeconfig cannot be used, and what it answers.
    pub async fn prepare(cluster: &Cluster) -> Result<Option<Self>, String> {
        if cluster.origin() != Origin::Scripts {
            return Ok(None);
        }
        let admin = Client::try_from(cluster.config().await?).map_err(|error| error.to_string())?;
        let class = StorageClass {
            metadata: named(CLASS),
            provisioner: "provisioner.internal/tests".into(),
            volume_binding_mode: Some("Immediate".into()),
            ..StorageClass::default()
        };
        let parameters = PatchParams::apply(CLASS).force();
        let classes = Api::<StorageClass>::all(admin.clone());
        classes.patch(CLASS, &parameters, &Patch::Apply(class)).await.map_err(|error| error.to_string())?;
        Ok(Some(Self { admin, folder: folder()?.join("volumes") }))
    }

    /// Makes a volume for every claim of the class and removes it with the claim, for as long as this runs.
    pub async fn make(self) {
        let claims = Api::<PersistentVolumeClaim>::all(self.admin.clone());
        let mut events = watcher(claims, watcher::Config::default()).default_backoff().boxed();
        while let Some(event) = events.next().await {
            match event {
                Ok(watcher::Event::Apply(claim) | watcher::Event::InitApply(claim)) => {
                    if let Err(error) = self.make_one(&claim).await {
                        eprintln!("no volume for {}: {error}", claim.name_any());
                    }
                }
                Ok(watcher::Event::Delete(claim)) => self.remove(&claim).await,
                _ => {}
            }
        }
    }

    /// Waits until no volume is left of the claims in these namespaces. Something has to [`make`](Self::make) meanwhile.
    ///
    /// # Errors
    /// What the cluster answers, and where one is left after that long.
    pub async fn until_gone(&self, namespaces: &[String], within: Duration) -> Result<(), String> {
        let deadline = Instant::now() + within;
        let is_of_them = |volume: &PersistentVolume| {
            let claim = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref());
            claim.and_then(|claim| claim.namespace.as_ref()).is_some_and(|namespace| namespaces.contains(namespace))
        };
        loop {
            let volumes = Api::<PersistentVolume>::all(self.admin.clone()).list(&ListParams::default()).await;
            match volumes.map_err(|error| error.to_string())?.into_iter().find(is_of_them) {
                None => return Ok(()),
                Some(left) if Instant::now() > deadline => {
                    return Err(format!("the volume {} is left after {within:?}", left.name_any()));
                }
                Some(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    }

    async fn make_one(&self, claim: &PersistentVolumeClaim) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let spec = claim.spec.as_ref().ok_or("a claim without a spec")?;
        let is_bound = claim.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Bound");
        if !is_ours(claim) || is_bound || spec.volume_name.is_some() || claim.metadata.deletion_timestamp.is_some() {
            return Ok(());
        }
        let folder = self.folder.join(volume_name(claim));
        make_folder(&folder)?;
        let requests = spec.resources.as_ref().and_then(|resources| resources.requests.clone());
        let volume = PersistentVolume {
            metadata: named(&volume_name(claim)),
            spec: Some(PersistentVolumeSpec {
                access_modes: spec.access_modes.clone(),
                capacity: requests,
                storage_class_name: Some(CLASS.to_owned()),
                persistent_volume_reclaim_policy: Some("Retain".into()),
                host_path: Some(HostPathVolumeSource {
                    path: folder.to_string_lossy().into_owned(),
                    type_: Some("Directory".into()),
                }),
                claim_ref: Some(ObjectReference {
                    namespace: claim.namespace(),
                    name: claim.metadata.name.clone(),
                    uid: claim.uid(),
                    ..ObjectReference::default()
                }),
                ..PersistentVolumeSpec::default()
            }),
            status: None,
        };
        match Api::<PersistentVolume>::all(self.admin.clone()).create(&PostParams::default(), &volume).await {
            Err(kube::Error::Api(status)) if status.is_already_exists() => Ok(()),
            done => Ok(done.map(drop)?),
        }
    }

    /// Another one of us may have done it.
    async fn remove(&self, claim: &PersistentVolumeClaim) {
        if !is_ours(claim) {
            return;
        }
        // Whoever waits until the volume is gone may end then: its folder first.
        let _ = fs::remove_dir_all(self.folder.join(volume_name(claim)));
        let volumes = Api::<PersistentVolume>::all(self.admin.clone());
        let _ = volumes.delete(&volume_name(claim), &DeleteParams::default()).await;
    }
}

fn is_ours(claim: &PersistentVolumeClaim) -> bool {
    claim.spec.as_ref().and_then(|spec| spec.storage_class_name.as_deref()) == Some(CLASS)
}

fn make_folder(folder: &Path) -> std::io::Result<()> {
    fs::create_dir_all(folder)?;
    // Nobody gives folders of the node's disk to the group of a pod.
    fs::set_permissions(folder, fs::Permissions::from_mode(0o777))
}

fn volume_name(claim: &PersistentVolumeClaim) -> String {
    format!("test-{}", claim.uid().unwrap_or_default())
}

fn named(name: &str) -> ObjectMeta {
    ObjectMeta { name: Some(name.into()), ..ObjectMeta::default() }
}
