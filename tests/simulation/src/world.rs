//! One run's world: the providers, the store, and the control plane's processes, of which one after the other is started,
//! killed, or left behind.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use provisioner_core::{
    Cell, ControlPlane,
    layers::{Chaos, RandomFaults},
    memory::{MemoryConfig, MemoryProvisioner},
    seams::{Clock, KillPoints, Random, Seams, SettableClock},
    store::{CommitMode, MemoryStore, SqliteStore, Store},
    types::{CellName, ControlPlaneId, Timestamp},
};
use tempfile::TempDir;

use crate::{
    gate::{Gate, Life},
    provider::{Arrivals, SeenProvisioner},
    scenario::{Request, Scenario},
    signal::Signal,
    store::SeenStore,
    trouble::{self, Trouble},
    witness::Witness,
};

/// The wall clock at the beginning of every run.
const BEGINNING: Timestamp = Timestamp::from_unix_ms(1_750_000_000_000);

/// A provider and what lies between it and every process.
type Provider = Chaos<Arrivals<MemoryProvisioner>>;

/// A control plane at work, until it is killed.
#[derive(Debug, Clone)]
pub struct Process {
    /// What it stands behind.
    pub gate: Arc<Gate>,
    /// It.
    pub plane: ControlPlane,
}

/// Where decisions are kept from process to process.
#[derive(Debug)]
enum Kept {
    Memory(Arc<MemoryStore>),
    /// In a folder that is removed with the world.
    File(PathBuf, #[expect(dead_code, reason = "removes the folder when dropped")] TempDir),
}

/// One run's world.
#[derive(Debug)]
pub struct World {
    /// What the seed decided.
    pub scenario: Scenario,
    /// Where choices come from.
    pub random: Random,
    /// Whoever sees everything.
    pub witness: Arc<Witness>,
    /// The providers, for the outsider.
    pub providers: BTreeMap<CellName, MemoryProvisioner>,
    /// Where the operator's choices about strangers come from; none when there are no strangers in this run.
    pub operators_dice: Option<Random>,
    /// The process at work; none while there is none.
    pub current: Signal<Option<Process>>,
    #[cfg(feature = "planted-bugs")]
    planted: Option<provisioner_core::engine::PlantedBug>,
    between: BTreeMap<CellName, Provider>,
    kept: Kept,
    /// Of the control plane's machine; providers and the witness go by the true time.
    clock: Arc<SettableClock>,
    processes: AtomicU64,
    /// How many go on by themselves and will end: customers who wait, troubles that last a while, processes left behind.
    pending: Arc<AtomicUsize>,
    /// Whether the operator is adopting strangers, and whether nothing goes wrong any more.
    adopting: AtomicBool,
    calm: AtomicBool,
}

/// The control plane of every run.
#[must_use]
pub fn owner() -> ControlPlaneId {
    ControlPlaneId::new("simulated").expect("a DNS label")
}

impl World {
    /// The world of this seed, without a control plane. Call it inside the runtime.
    #[must_use]
    pub fn new(request: &Request) -> Self {
        let random = Random::from_seed(request.seed);
        let scenario = Scenario::of(request, &random);
        let providers: BTreeMap<_, _> =
            (0..scenario.cells).map(|number| provider(number, &scenario, &random)).collect();
        let witness = Witness::new(owner(), providers.clone(), scenario.calls_max);
        witness.expect_deadlines(scenario.config.move_deadline);
        let between = providers.iter().map(|(name, provider)| {
            let chaos = Chaos::new(Arrivals::new(provider.clone(), Arc::clone(&witness)));
            let mut faults = RandomFaults::new(random.bits(), scenario.fault_percent);
            faults.late_max = Duration::from_secs(3);
            (name.clone(), chaos.with_random(faults))
        });
        let between = between.collect();
        let kept = match scenario.on_disk {
            true => {
                let folder = tempfile::Builder::new().prefix("simulation-").tempdir_in(folder()).expect("a folder");
                Kept::File(folder.path().join("store.db"), folder)
            }
            false => Kept::Memory(MemoryStore::new(owner())),
        };
        Self {
            scenario,
            random,
            witness,
            providers,
            operators_dice: request.troubles.has(Trouble::Stranger).then(|| trouble::stream(request.seed, "operator")),
            current: Signal::new(None),
            #[cfg(feature = "planted-bugs")]
            planted: request.planted,
            between,
            kept,
            clock: Arc::new(SettableClock::starting_at(BEGINNING)),
            processes: AtomicU64::new(0),
            pending: Arc::default(),
            adopting: AtomicBool::new(false),
            calm: AtomicBool::new(false),
        }
    }

    /// Starts a control plane that is to die at its n-th kill point; 0: at none. It may die before it is up.
    ///
    /// # Panics
    /// When it does not start for another reason.
    pub async fn start(&self, dies_at: u64) {
        let number = self.processes.fetch_add(1, Ordering::SeqCst) + 1;
        self.witness.note(&format!("{number} starts, to die at {dies_at}"));
        let store = self.open().await;
        let gate = Gate::new(number, Arc::clone(&store), dies_at);
        let failures = self.scenario.store_failures_per_mille;
        let dice = Random::from_seed(self.random.bits());
        let seen = SeenStore::new(&store, Arc::clone(&gate), Arc::clone(&self.witness), dice, failures);
        drop(store);
        let mut builder = ControlPlane::builder(seen).config(self.scenario.config.clone());
        for (name, between) in &self.between {
            let seen =
                SeenProvisioner::new(between.clone(), name.clone(), Arc::clone(&gate), Arc::clone(&self.witness));
            let cell = Cell::new(name.clone(), Arc::new(seen)).with_calls_max(self.scenario.calls_max);
            builder = builder.cell(cell);
        }
        let seams = Seams {
            clock: Arc::clone(&self.clock) as Arc<dyn Clock>,
            random: Random::from_seed(self.random.bits()),
            kill_points: Arc::clone(&gate) as Arc<dyn KillPoints>,
            #[cfg(feature = "planted-bugs")]
            planted: self.planted,
        };
        let started = tokio::select! {
            biased;
            started = builder.seams(seams).holder(format!("process {number}")).start() => started,
            () = gate.died() => return,
        };
        let plane = started.unwrap_or_else(|error| panic!("process {number} does not start: {error}"));
        self.current.replace(Some(Process { gate, plane }));
    }

    async fn open(&self) -> Arc<dyn Store> {
        match &self.kept {
            Kept::Memory(store) => Arc::clone(store) as Arc<dyn Store>,
            Kept::File(path, _) => {
                SqliteStore::open(path, owner(), CommitMode::Inline).await.expect("a store that nobody has open")
            }
        }
    }

    /// The process at work is dead: nothing of it happens any more.
    pub fn bury(&self) {
        let Some(process) = self.current.replace(None) else { return };
        self.witness.note(&format!("{} is dead", process.gate.process));
        process.gate.kill();
        self.end(process);
    }

    /// Lets the loops of a control plane end that is dead or was replaced.
    pub fn end(&self, process: Process) {
        // Of a dead one this never returns, as its session is never closed.
        tokio::spawn(async move {
            let _ = process.plane.shutdown().await;
        });
    }

    /// Has something go on by itself that will end.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let pending = Arc::clone(&self.pending);
        pending.fetch_add(1, Ordering::SeqCst);
        tokio::spawn(async move {
            task.await;
            pending.fetch_sub(1, Ordering::SeqCst);
        });
    }

    /// How many go on by themselves and will end.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.pending.load(Ordering::SeqCst)
    }

    /// The process at work, once there is one that is alive.
    pub async fn process(&self) -> Process {
        loop {
            let process = self.current.wait_for(Option::is_some).await.expect("waited for");
            if process.gate.life() == Life::Alive {
                return process;
            }
            // It stands still, or nobody has found it dead yet.
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Whether the store's file belongs to one process at a time.
    #[must_use]
    pub fn is_on_disk(&self) -> bool {
        self.scenario.on_disk
    }

    /// Has nothing go wrong any more.
    pub fn calm(&self) {
        self.witness.note("calm");
        self.calm.store(true, Ordering::SeqCst);
        self.between.values().for_each(Chaos::stop);
        self.providers.values().for_each(MemoryProvisioner::calm);
    }

    /// Whether nothing goes wrong any more.
    #[must_use]
    pub fn is_calm(&self) -> bool {
        self.calm.load(Ordering::SeqCst)
    }

    /// Begins adopting strangers; false: that is going on already.
    #[must_use]
    pub fn begin_adopting(&self) -> bool {
        !self.adopting.swap(true, Ordering::SeqCst)
    }

    /// All that were to be adopted have been asked for.
    pub fn end_adopting(&self) {
        self.adopting.store(false, Ordering::SeqCst);
    }

    /// Sets the clock of the control plane's machine forward or back.
    pub fn set_clock(&self, forward: bool, by: Duration) {
        self.witness.note(&format!("the clock is set {} by {by:?}", if forward { "forward" } else { "back" }));
        self.witness.clock_is_set();
        match forward {
            true => self.clock.set_forward(by),
            false => self.clock.set_back(by),
        }
    }

    /// How many processes there were.
    #[must_use]
    pub fn processes(&self) -> u64 {
        self.processes.load(Ordering::SeqCst)
    }

    /// How many calls are still to have their effect, long after their callers gave up.
    #[must_use]
    pub fn late_effects(&self) -> usize {
        self.between.values().map(Chaos::late_effects).sum()
    }
}

/// Where stores in files lie: in memory where there is such a place, as nobody cuts the power of this machine.
fn folder() -> PathBuf {
    let shared = PathBuf::from("/dev/shm");
    if shared.is_dir() { shared } else { std::env::temp_dir() }
}

fn provider(number: usize, scenario: &Scenario, random: &Random) -> (CellName, MemoryProvisioner) {
    let config = MemoryConfig {
        identity: format!("memory-{number}"),
        start: scenario.start,
        stop: scenario.stop,
        lag: scenario.lag,
        blink_percent: scenario.blink_percent,
        watch: scenario.watch,
        calls_per_second: scenario.calls_per_second,
        lifetime: scenario.lifetime,
        page: scenario.page,
        random: Random::from_seed(random.bits()),
        ..MemoryConfig::default()
    };
    let name = CellName::new(format!("cell-{number}")).expect("a DNS label");
    (name, MemoryProvisioner::new(config))
}
