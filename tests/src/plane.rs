//! A control plane at work on a site.

use std::{collections::BTreeMap, fmt, sync::Arc, sync::Mutex, time::Duration};

use backend_process::ProcessBackend;
use futures::{FutureExt, StreamExt};
use provisioner_core::{
    Cell, ControlPlane, OpContext, Provisioner, Result,
    control_plane::{Instance, OperationHandle},
    engine::EngineConfig,
    seams::{Clock, KillPoints, NoKillPoints, Seams, SystemClock},
    secret::{LocalSecrets, SecretResolver},
    store::{CommitMode, Event, EventKind, InstanceRow, Operation, OperationState, SqliteStore, Store, StoreError},
    types::{InstanceId, Owned, Timestamp},
};
use tokio::time::{Instant, timeout};

use crate::{
    PATIENCE,
    place::{Site, cell, control_plane, id},
    until,
    watched::{Watch, WatchedBackend, WatchedStore},
};

/// How a control plane is started.
#[derive(Debug, Clone)]
pub struct Options {
    /// How it goes about its work.
    pub config: EngineConfig,
    /// Where it is killed.
    pub kill_points: Arc<dyn KillPoints>,
    /// Its vault.
    pub secrets: Arc<dyn SecretResolver>,
    /// Its clock.
    pub clock: Arc<dyn Clock>,
    /// What watches its writes and calls, if anything does.
    pub watch: Option<Arc<Watch>>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            config: quick(),
            kill_points: Arc::new(NoKillPoints),
            secrets: Arc::new(LocalSecrets::none()),
            clock: Arc::new(SystemClock),
            watch: None,
        }
    }
}

/// Timings for tests: three failures in a row park, and delays are short.
#[must_use]
pub fn quick() -> EngineConfig {
    let mut config = EngineConfig::default();
    config.move_deadline = Duration::from_secs(20);
    config.call_timeout = Duration::from_secs(10);
    config.backoff_min = Duration::from_millis(20);
    config.backoff_max = Duration::from_millis(200);
    config.attempts_max = 3;
    config
}

/// The machine's clock, set forward.
#[derive(Debug, Clone, Copy)]
pub struct AheadClock(pub Duration);

impl Clock for AheadClock {
    fn now(&self) -> Timestamp {
        SystemClock.now().after(self.0)
    }
}

/// Counts the places passed, by name, and kills nobody: how many commits and calls there were.
#[derive(Debug, Default)]
pub struct Counter(Mutex<BTreeMap<&'static str, u64>>);

impl Counter {
    /// How often the place of this name was passed so far.
    ///
    /// # Panics
    /// When somebody panicked while counting.
    #[must_use]
    pub fn passed(&self, place: &str) -> u64 {
        self.0.lock().expect("nobody panics while counting").get(place).copied().unwrap_or(0)
    }

    /// How many places were passed so far, whatever their names.
    ///
    /// # Panics
    /// When somebody panicked while counting.
    #[must_use]
    pub fn all(&self) -> u64 {
        self.0.lock().expect("nobody panics while counting").values().sum()
    }
}

impl KillPoints for Counter {
    fn pass(&self, place: &'static str) {
        *self.0.lock().expect("nobody panics while counting").entry(place).or_default() += 1;
    }
}

/// A control plane on a store in a file and the process backend.
pub struct Plane {
    /// The control plane.
    pub plane: ControlPlane,
    /// Its store.
    pub store: Arc<SqliteStore>,
    /// Its one cell.
    pub backend: ProcessBackend,
    stopped: bool,
}

impl fmt::Debug for Plane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {:?} {:?}", self.plane, self.store, self.backend)
    }
}

impl Plane {
    /// Starts one.
    ///
    /// # Panics
    /// When it does not start.
    pub async fn start(site: &Site, options: Options) -> Self {
        Self::try_start(site, options).await.expect("a start")
    }

    /// Starts one, which may be refused.
    ///
    /// # Errors
    /// What the control plane answers.
    ///
    /// # Panics
    /// When the store cannot be opened or the backend not built.
    pub async fn try_start(site: &Site, options: Options) -> Result<Self> {
        let store = open(site).await;
        let backend = site.backend().build().expect("a valid configuration");
        let seams = Seams { clock: options.clock, kill_points: options.kill_points, ..Seams::default() };
        let mut used: (Arc<dyn Store>, Arc<dyn Provisioner>) =
            (Arc::<SqliteStore>::clone(&store), Arc::new(backend.clone()));
        if let Some(watch) = options.watch {
            used.0 = Arc::new(WatchedStore::new(used.0, Arc::clone(&watch)));
            used.1 = Arc::new(WatchedBackend::new(used.1, watch));
        }
        let plane = ControlPlane::builder(used.0)
            .cell(Cell::new(cell(), used.1))
            .secrets(options.secrets)
            .config(options.config)
            .seams(seams)
            .start();
        Ok(Self { plane: plane.await?, store, backend, stopped: false })
    }

    /// Ends it as at a planned restart. Instances go on.
    ///
    /// # Panics
    /// When it does not end.
    pub async fn stop(self) {
        self.try_stop().await.expect("an end of the session");
    }

    /// Ends it as at a planned restart, when the store may fail.
    ///
    /// # Errors
    /// What the store answers to the end of the session.
    ///
    /// # Panics
    /// When engine or backend do not end.
    pub async fn try_stop(mut self) -> Result<()> {
        self.stopped = true;
        let ended = timeout(PATIENCE, self.plane.shutdown()).await.expect("an end of the engine");
        timeout(PATIENCE, self.backend.shutdown()).await.expect("an end of the backend");
        ended
    }

    /// One instance.
    ///
    /// # Panics
    /// When there is none.
    pub async fn get(&self, name: &str) -> Instance {
        self.plane.get(&id(name)).await.unwrap_or_else(|error| panic!("{error}"))
    }

    /// Where an instance answers.
    ///
    /// # Panics
    /// When it answers nowhere.
    pub async fn endpoint(&self, name: &str) -> String {
        let instance = self.get(name).await;
        instance.endpoint.as_ref().unwrap_or_else(|| panic!("no endpoint: {instance:#?}")).to_string()
    }

    /// What the store keeps of an instance.
    ///
    /// # Panics
    /// When there is none.
    pub async fn row(&self, name: &str) -> Arc<InstanceRow> {
        self.store.instance(&id(name)).await.expect("a read").expect("an instance").row
    }

    /// Waits until an instance is as asked.
    ///
    /// # Panics
    /// With what it is when it never is as asked.
    pub async fn until(&self, name: &str, what: impl Fn(&Instance) -> bool) -> Instance {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let instance = self.get(name).await;
            if what(&instance) {
                return instance;
            }
            assert!(Instant::now() < deadline, "still {instance:#?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// All events, which must be without gaps; of one instance or of all.
    ///
    /// # Panics
    /// When there is a gap.
    pub async fn events(&self, instance: Option<&InstanceId>) -> Vec<Event> {
        let events = self.store.events(None, 0, 100_000).await.expect("a read");
        assert!(events.iter().zip(1..).all(|(event, position)| event.position == position), "gaps: {events:#?}");
        events.into_iter().filter(|event| instance.is_none() || event.event.instance.as_ref() == instance).collect()
    }

    /// How many events of an instance are so.
    pub async fn count(&self, name: &str, is: impl Fn(&EventKind) -> bool) -> usize {
        self.events(Some(&id(name))).await.iter().filter(|event| is(&event.event.what)).count()
    }

    /// Everything that the backend says it has.
    ///
    /// # Panics
    /// When it cannot say.
    pub async fn listed(&self) -> Vec<Owned> {
        let listed: Vec<_> = self.backend.list(&OpContext::new(control_plane())).collect().await;
        listed.into_iter().map(|owned| owned.expect("a listing")).collect()
    }

    /// Waits until nothing of a site runs.
    ///
    /// # Panics
    /// With what runs when that does not end.
    pub async fn until_nothing_runs(site: &Site) {
        until("nothing runs", || async { site.products().is_empty().then_some(()) }).await;
    }
}

impl Drop for Plane {
    /// A test that fails stops here: both begin to end at the first poll, and from then on start nothing.
    fn drop(&mut self) {
        if self.stopped {
            return;
        }
        let _ = self.plane.shutdown().now_or_never();
        let _ = self.backend.shutdown().now_or_never();
    }
}

/// Waits for an operation, however it ends.
///
/// # Panics
/// When it does not end.
pub async fn ended(operation: &OperationHandle) -> Operation {
    let ended = timeout(PATIENCE, operation.wait()).await;
    ended.unwrap_or_else(|_| panic!("no end of {:?}", operation.operation())).expect("a read")
}

/// Waits for an operation, which must succeed.
///
/// # Panics
/// When it does not.
pub async fn done(operation: &OperationHandle) -> Operation {
    let ended = ended(operation).await;
    assert_eq!(ended.state, OperationState::Done, "{ended:?}");
    ended
}

/// Opens a site's store. A process that was being started at the moment its control plane ended holds a copy of the
/// store's lock until it runs its program: for a moment, or longer on a busy machine.
async fn open(site: &Site) -> Arc<SqliteStore> {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        match SqliteStore::open(&site.store, control_plane(), CommitMode::Grouped).await {
            Ok(store) => return store,
            Err(StoreError::Refused(why)) if why.contains("in use") && Instant::now() < deadline => {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            Err(error) => panic!("{error:?}"),
        }
    }
}
