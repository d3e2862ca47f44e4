//! A folder and an address for one control plane and its instances.

use std::{
    collections::BTreeSet,
    fs,
    hash::{DefaultHasher, Hash, Hasher},
    net::Ipv4Addr,
    ops::{Deref, RangeInclusive},
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
};

use backend_process::ProcessConfig;
use provisioner_core::{
    control_plane::{NewInstance, Request},
    types::{
        Actor, CellName, ControlPlaneId, IdempotencyKey, InstanceId, InstanceSpec, TenantId, VariableName, Workload,
    },
};
use tempfile::TempDir;
use test_reserved::ports::Ports;

use crate::processes;

/// The control plane of every place.
#[must_use]
pub fn control_plane() -> ControlPlaneId {
    ControlPlaneId::new("plane").expect("a DNS label")
}

/// The one cell.
#[must_use]
pub fn cell() -> CellName {
    CellName::new("here").expect("a DNS label")
}

/// The owner of all instances.
#[must_use]
pub fn tenant() -> TenantId {
    TenantId::new("Acme Inc.").expect("a name")
}

/// An instance's name.
///
/// # Panics
/// When it is none.
#[must_use]
pub fn id(name: &str) -> InstanceId {
    InstanceId::new(name).expect("a DNS label")
}

/// A request, without a key.
#[must_use]
pub fn by() -> Request {
    Request::by(Actor::new("somebody").expect("a name"))
}

/// A request under this key.
///
/// # Panics
/// When it is none.
#[must_use]
pub fn keyed(key: &str) -> Request {
    by().with_key(IdempotencyKey::new(key).expect("visible"))
}

/// The ports of most places.
pub const PORTS: RangeInclusive<u16> = 20_000..=29_999;

/// What a control plane is told of where it lives.
#[derive(Debug, Clone)]
pub struct Site {
    /// The store's file.
    pub store: PathBuf,
    /// The backend's root.
    pub root: PathBuf,
    /// Where instances listen: no other site has it, so none can take another one's ports.
    pub address: Ipv4Addr,
    /// The ports that instances get there.
    pub ports: RangeInclusive<u16>,
    /// The program that instances run.
    pub product: PathBuf,
    /// Whether instances are users of their own, where that can be. Then they must be let through to all they need.
    pub users: bool,
    /// Whether instances have control groups, where that can be.
    pub groups: bool,
}

impl Site {
    /// The backend's configuration.
    #[must_use]
    pub fn backend(&self) -> ProcessConfig {
        let mut config = ProcessConfig::new(&self.root).with_ports(self.ports.clone());
        config.cgroup = self.groups.then(|| test_reserved::groups::name(&self.root));
        if !self.users {
            config.users = None;
        }
        config.address = self.address.into();
        config
    }

    /// A spec of the product that starts and stops at once.
    #[must_use]
    pub fn spec(&self, version: &str) -> InstanceSpec {
        let mut workload = Workload::new(version).with_command([self.product.to_str().expect("a path of ours")]);
        workload.health_path = "/healthz".into();
        workload.start_timeout_seconds = 20;
        let mut spec = InstanceSpec::new(workload);
        set(&mut spec, "ADDRESS", &self.address.to_string());
        set(&mut spec, "VERSION", version);
        spec
    }

    /// An instance of it.
    #[must_use]
    pub fn new_instance(&self, name: &str) -> NewInstance {
        NewInstance::new(id(name), tenant(), self.spec("1.0"))
    }

    /// The live processes of instances, leaders and what they started.
    #[must_use]
    pub fn products(&self) -> Vec<i32> {
        let mut pids = processes::mentioning(&self.root);
        pids.retain(|pid| {
            processes::variable(*pid, "DATA_PATH").is_some_and(|path| Path::new(&path).starts_with(&self.root))
        });
        pids
    }

    /// The names in a folder of the backend: `instances`, `data`, `removed`.
    #[must_use]
    pub fn names(&self, folder: &str) -> BTreeSet<String> {
        names(&self.root.join(control_plane().as_str()).join(folder))
    }

    /// The ports that are somebody's.
    #[must_use]
    pub fn ports(&self) -> BTreeSet<String> {
        names(&self.root.join(".ports"))
    }

    /// A file in an instance's data, if it is there.
    #[must_use]
    pub fn data_file(&self, data: &str, name: &str) -> Option<String> {
        let data = self.root.join(control_plane().as_str()).join("data").join(data);
        fs::read_to_string(data.join("files").join(name)).ok()
    }
}

/// Sets a variable of the product's environment.
///
/// # Panics
/// When the name is none.
pub fn set(spec: &mut InstanceSpec, name: &str, value: &str) {
    spec.environment.insert(VariableName::new(name).expect("a name"), value.into());
}

fn names(folder: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// A site in a folder of its own. When dropped, whatever still runs there is killed.
#[derive(Debug)]
pub struct Place {
    site: Site,
    folder: TempDir,
    /// Where the address is not its own.
    ports: Option<Ports>,
}

impl Place {
    /// An empty one, for instances that run this program.
    ///
    /// # Panics
    /// When no folder can be made.
    #[must_use]
    pub fn new(product: impl Into<PathBuf>) -> Self {
        let folder = tempfile::Builder::new().prefix("provisioner-").tempdir().expect("a folder");
        let store = folder.path().join("store.db");
        Self::with_store(product, folder, store)
    }

    /// One whose instances are users of their own, and listen where products listen that were told nothing else. The program
    /// is one that everybody may execute.
    ///
    /// # Panics
    /// When no folder can be made.
    #[must_use]
    pub fn for_users(product: impl Into<PathBuf>) -> Self {
        let mut place = Self::new(product);
        fs::set_permissions(place.folder(), fs::Permissions::from_mode(0o755)).expect("a folder of ours");
        place.site.users = true;
        let ports = Ports::take();
        (place.site.address, place.site.ports) = (Ipv4Addr::LOCALHOST, ports.range());
        place.ports = Some(ports);
        place
    }

    /// One whose store is elsewhere.
    ///
    /// # Panics
    /// When no folder can be made.
    #[must_use]
    pub fn with_store_at(product: impl Into<PathBuf>, store: impl Into<PathBuf>) -> Self {
        let folder = tempfile::Builder::new().prefix("provisioner-").tempdir().expect("a folder");
        Self::with_store(product, folder, store.into())
    }

    fn with_store(product: impl Into<PathBuf>, folder: TempDir, store: PathBuf) -> Self {
        let mut hasher = DefaultHasher::new();
        folder.path().hash(&mut hasher);
        let [a, b, c, ..] = hasher.finish().to_be_bytes();
        // All of 127/8 is this machine; its first addresses are used by others.
        let address = Ipv4Addr::new(127, a.clamp(1, 254), b, c.clamp(1, 254));
        let site = Site {
            store,
            root: folder.path().join("root"),
            address,
            ports: PORTS,
            product: product.into(),
            users: false,
            groups: true,
        };
        Self { site, folder, ports: None }
    }

    /// A new file beside store and root.
    ///
    /// # Panics
    /// When it cannot be written.
    #[must_use]
    pub fn file(&self, name: &str, content: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        fs::write(&path, content).expect("a file");
        path
    }

    /// Gives it a way to the product of its own, which can be taken away and given back.
    ///
    /// # Panics
    /// When no link can be made.
    pub fn link_product(&mut self) {
        let link = self.folder.path().join("product");
        symlink(&self.site.product, &link).expect("a link");
        self.site.product = link;
    }

    /// The folder of it all.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }
}

impl Deref for Place {
    type Target = Site;

    fn deref(&self) -> &Site {
        &self.site
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        processes::kill_all_mentioning(self.folder.path());
        test_reserved::groups::remove(&self.root);
    }
}
