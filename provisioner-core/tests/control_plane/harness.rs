//! A control plane to try things on.

use std::{sync::Arc, time::Duration};

use provisioner_core::{
    Cell, ControlPlane, ControlPlaneBuilder, ErrorKind,
    control_plane::{Instance, NewInstance, OperationHandle, Request},
    engine::EngineConfig,
    memory::{MemoryConfig, MemoryProvisioner, Thing},
    seams::{Random, Seams, TokioClock},
    store::{CommitMode, Operation, OperationState, SqliteStore, Store},
    types::{
        Actor, CellName, ControlPlaneId, DataDisposition, Hold, InstanceId, InstanceSpec, Phase, TenantId, Timestamp,
        Workload,
    },
};
use tempfile::TempDir;

pub(crate) struct World {
    pub(crate) plane: ControlPlane,
    pub(crate) provider: MemoryProvisioner,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) clock: TokioClock,
    /// Removed with the world.
    pub(crate) _folder: TempDir,
}

pub(crate) fn plane_id() -> ControlPlaneId {
    ControlPlaneId::new("test").unwrap()
}

pub(crate) fn id(name: &str) -> InstanceId {
    InstanceId::new(name).unwrap()
}

pub(crate) fn tenant() -> TenantId {
    TenantId::new("Acme Inc.").unwrap()
}

pub(crate) fn cell() -> CellName {
    CellName::new("memory").unwrap()
}

pub(crate) fn spec(version: &str) -> InstanceSpec {
    InstanceSpec::new(Workload::new(version))
}

pub(crate) fn new(name: &str) -> NewInstance {
    NewInstance::new(id(name), tenant(), spec("1.0"))
}

pub(crate) fn by() -> Request {
    Request::by(Actor::new("somebody").unwrap())
}

pub(crate) fn hold(name: &str) -> Hold {
    Hold::new(name).unwrap()
}

/// Timings for tests: a move has a minute, and three failures in a row park.
pub(crate) fn config() -> EngineConfig {
    let mut config = EngineConfig::default();
    config.move_deadline = Duration::from_secs(60);
    config.call_timeout = Duration::from_secs(5);
    config.attempts_max = 3;
    config
}

/// The store's file is opened for this control plane.
pub(crate) async fn open_store(folder: &TempDir) -> Arc<dyn Store> {
    SqliteStore::open(folder.path().join("store.db"), plane_id(), CommitMode::Inline).await.unwrap()
}

impl World {
    pub(crate) async fn new() -> Self {
        Self::with(MemoryConfig::default(), config()).await
    }

    pub(crate) async fn with(provider: MemoryConfig, config: EngineConfig) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = open_store(&folder).await;
        let clock = TokioClock::starting_at(Timestamp::from_unix_ms(1_750_000_000_000));
        let provider = MemoryProvisioner::new(provider);
        let plane = Self::builder(&store, &provider, clock).config(config).start().await.unwrap();
        Self { plane, provider, store, clock, _folder: folder }
    }

    pub(crate) fn builder(
        store: &Arc<dyn Store>,
        provider: &MemoryProvisioner,
        clock: TokioClock,
    ) -> ControlPlaneBuilder {
        let seams = Seams { clock: Arc::new(clock), random: Random::from_os(), ..Seams::default() };
        ControlPlane::builder(Arc::clone(store)).cell(Cell::new(cell(), Arc::new(provider.clone()))).seams(seams)
    }

    /// Another control plane on the same store and provider, as after a restart. Whatever the one before was doing is
    /// fenced off.
    pub(crate) async fn start_again(&mut self) {
        self.plane = Self::builder(&self.store, &self.provider, self.clock).config(config()).start().await.unwrap();
    }

    /// Creates an instance and waits until it runs.
    pub(crate) async fn create(&self, name: &str) -> Instance {
        done(&self.plane.create(new(name), by()).await.unwrap()).await;
        self.get(name).await
    }

    pub(crate) async fn get(&self, name: &str) -> Instance {
        self.plane.get(&id(name)).await.unwrap()
    }

    pub(crate) async fn update(&self, name: &str, version: &str) -> OperationHandle {
        self.plane.update(&id(name), spec(version), by()).await.unwrap()
    }

    pub(crate) async fn sleep(&self, name: &str) {
        done(&self.plane.sleep(&id(name), by()).await.unwrap()).await;
    }

    pub(crate) async fn wake(&self, name: &str) {
        done(&self.plane.wake(&id(name), by()).await.unwrap()).await;
    }

    pub(crate) async fn destroy(&self, name: &str) {
        done(&self.plane.destroy(&id(name), DataDisposition::Delete, by()).await.unwrap()).await;
        assert_eq!(self.plane.get(&id(name)).await.unwrap_err().kind(), ErrorKind::NotFound);
    }

    pub(crate) fn things(&self) -> Vec<Thing> {
        self.provider.things(&plane_id())
    }

    pub(crate) fn calls(&self) -> u64 {
        self.provider.calls().values().sum()
    }

    /// Waits until the instance is as asked; fails with how it is after ten minutes of paused time.
    pub(crate) async fn until(&self, name: &str, what: impl Fn(&Instance) -> bool) -> Instance {
        for _ in 0..6000 {
            let instance = self.get(name).await;
            if what(&instance) {
                return instance;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("still {:#?}", self.get(name).await);
    }

    pub(crate) async fn until_phase(&self, name: &str, phase: Phase) -> Instance {
        self.until(name, |instance| instance.phase == Some(phase) && instance.settled).await
    }
}

/// Waits for an operation, which must succeed.
pub(crate) async fn done(operation: &OperationHandle) -> Operation {
    let ended = ended(operation).await;
    assert_eq!(ended.state, OperationState::Done, "{ended:?}");
    ended
}

/// Waits for an operation, however it ends.
pub(crate) async fn ended(operation: &OperationHandle) -> Operation {
    tokio::time::timeout(Duration::from_secs(3600), operation.wait()).await.expect("an end within an hour").unwrap()
}
