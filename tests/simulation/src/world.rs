//! One run's world: the providers, the store, and the control plane's processes, of which one after the other is started,
//! killed, or left behind, at one place or at several.

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
    Cell, ControlPlane, ErrorKind, Provisioner,
    layers::{Chaos, RandomFaults},
    memory::{MemoryConfig, MemoryProvisioner},
    seams::{Clock, KillPoints, Random, Seams, SettableClock},
    store::{CommitMode, MemoryStore, SqliteStore, Store, Submitted},
    types::{CellName, ControlPlaneId, Timestamp},
};
use tempfile::TempDir;
use tokio::time::Instant;

use crate::{
    gate::{Cut, Gate, Life},
    provider::{Arrivals, SeenProvisioner},
    scenario::{Request, Scenario},
    signal::Signal,
    store::{Positions, SeenStore},
    trouble::{self, Trouble},
    witness::Witness,
};

/// The wall clock at the beginning of every run.
pub(crate) const BEGINNING: Timestamp = Timestamp::from_unix_ms(1_750_000_000_000);

/// How long it takes until a control plane that did not start is started again, at least.
const START_AGAIN: Duration = Duration::from_secs(5);

/// How long nobody is at work until somebody who waits for it starts a control plane: much longer than it takes the driver.
const LEFT_ALONE: Duration = Duration::from_secs(600);

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

/// A machine with a control plane on it, now and then.
#[derive(Debug)]
pub struct Place {
    /// The process at work; none while there is none.
    pub current: Signal<Option<Process>>,
    /// Somebody sets it. Providers and the witness go by the true time, and a shared store by a clock of its own.
    clock: Arc<SettableClock>,
    /// Whether somebody sees to it that there is a process soon.
    is_seen_to: AtomicBool,
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
    /// The machines: one, or one for each of the control planes that share the store.
    pub places: Vec<Place>,
    /// That of a store that several share, which somebody sets too.
    store_clock: Option<Arc<SettableClock>>,
    /// How requests to the store end while it answers nobody.
    pub outage: Arc<Signal<Option<Cut>>>,
    #[cfg(feature = "planted-bugs")]
    planted: Option<provisioner_core::engine::PlantedBug>,
    between: BTreeMap<CellName, Provider>,
    kept: Kept,
    positions: Arc<Positions>,
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
        let store_clock = scenario.sharing.as_ref().map(|_| Arc::new(SettableClock::starting_at(BEGINNING)));
        let kept = match scenario.on_disk {
            true => {
                let folder = tempfile::Builder::new().prefix("simulation-").tempdir_in(folder()).expect("a folder");
                Kept::File(folder.path().join("store.db"), folder)
            }
            false => Kept::Memory(match (&scenario.sharing, &store_clock) {
                (Some(sharing), Some(clock)) => {
                    witness.expect_replicas(sharing.lapses_after, longest_call(&scenario, &providers));
                    witness.go_by(Arc::clone(clock));
                    MemoryStore::shared(owner(), Arc::clone(clock) as Arc<dyn Clock>, sharing.lapses_after)
                }
                _ => MemoryStore::new(owner()),
            }),
        };
        let places = (0..scenario.sharing.as_ref().map_or(1, |sharing| sharing.replicas)).map(|_| Place {
            current: Signal::new(None),
            clock: Arc::new(SettableClock::starting_at(BEGINNING)),
            is_seen_to: AtomicBool::new(false),
        });
        let places = places.collect();
        Self {
            scenario,
            random,
            witness,
            providers,
            operators_dice: request.troubles.has(Trouble::Stranger).then(|| trouble::stream(request.seed, "operator")),
            places,
            store_clock,
            outage: Arc::new(Signal::new(None)),
            #[cfg(feature = "planted-bugs")]
            planted: request.planted,
            between,
            kept,
            positions: Arc::default(),
            processes: AtomicU64::new(0),
            pending: Arc::default(),
            adopting: AtomicBool::new(false),
            calm: AtomicBool::new(false),
        }
    }

    /// Starts a control plane at a place that is to die at its n-th kill point; 0: at none. It may die before it is up, and where
    /// it cannot reach a store that others share, it does not start.
    ///
    /// # Panics
    /// When it does not start for another reason.
    pub async fn start(&self, place: usize, dies_at: u64) {
        let number = self.processes.fetch_add(1, Ordering::SeqCst) + 1;
        self.witness.note(&format!("{number} starts, to die at {dies_at}"));
        let store = self.open().await;
        let gate = Gate::of_replica(number, Arc::clone(&store), dies_at, Arc::clone(&self.outage));
        let seen = self.store_of(&store, &gate);
        drop(store);
        let mut builder = ControlPlane::builder(seen).config(self.scenario.config.clone());
        for (name, between) in &self.between {
            let mut seen =
                SeenProvisioner::new(between.clone(), name.clone(), Arc::clone(&gate), Arc::clone(&self.witness));
            if self.is_shared() {
                seen = seen.calling_late();
            }
            let cell = Cell::new(name.clone(), Arc::new(seen)).with_calls_max(self.scenario.calls_max);
            builder = builder.cell(cell);
        }
        let place = &self.places[place];
        let seams = Seams {
            clock: Arc::clone(&place.clock) as Arc<dyn Clock>,
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
        match started {
            Ok(plane) => drop(place.current.replace(Some(Process { gate, plane }))),
            Err(error) if self.is_shared() && error.kind() == ErrorKind::Unavailable => {
                self.witness.note(&format!("{number} does not start: {error}"));
                gate.bury();
                tokio::time::sleep(START_AGAIN).await;
            }
            Err(error) => panic!("process {number} does not start: {error}"),
        }
    }

    fn store_of(&self, store: &Arc<dyn Store>, gate: &Arc<Gate>) -> Arc<SeenStore> {
        let failures = self.scenario.store_failures_per_mille;
        let dice = Random::from_seed(self.random.bits());
        let (gate, witness) = (Arc::clone(gate), Arc::clone(&self.witness));
        match &self.scenario.sharing {
            Some(sharing) => {
                let shared = (sharing.clone(), &self.positions);
                SeenStore::of_replica(store, gate, witness, dice, failures, shared)
            }
            None => SeenStore::new(store, gate, witness, dice, failures),
        }
    }

    async fn open(&self) -> Arc<dyn Store> {
        match &self.kept {
            Kept::Memory(store) => Arc::clone(store) as Arc<dyn Store>,
            Kept::File(path, _) => {
                SqliteStore::open(path, owner(), CommitMode::Inline).await.expect("a store that nobody has open")
            }
        }
    }

    /// Puts a request into the store's inbox, as a customer's own transaction does, and tells its place there; nothing while the
    /// store answers nobody.
    #[must_use]
    pub fn submit(&self, request: Submitted) -> Option<u64> {
        match &self.kept {
            Kept::Memory(store) if self.outage.get().is_none() => {
                let operation = request.operation.clone();
                let number = store.submit(request);
                self.witness.submitted(number, &operation);
                Some(number)
            }
            _ => None,
        }
    }

    /// Whether several control planes share the store.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        self.scenario.sharing.is_some()
    }

    /// The true time.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        BEGINNING.after(self.witness.elapsed())
    }

    /// The process at this place is dead: nothing of it happens any more.
    pub fn bury(&self, place: usize) {
        let Some(process) = self.places[place].current.replace(None) else { return };
        self.witness.note(&format!("{} is dead", process.gate.process));
        process.gate.kill();
        if self.is_shared() {
            process.gate.bury();
        }
        self.end(process);
    }

    /// Begins to see to it that there is a process at this place soon; false: somebody does already.
    #[must_use]
    pub fn begin_seeing_to(&self, place: usize) -> bool {
        !self.places[place].is_seen_to.swap(true, Ordering::SeqCst)
    }

    /// There is a process at this place, or it could not be started.
    pub fn end_seeing_to(&self, place: usize) {
        self.places[place].is_seen_to.store(false, Ordering::SeqCst);
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

    /// The process at work; of several, one of those that are alive.
    #[must_use]
    pub fn somebody(&self) -> Option<Process> {
        if !self.is_shared() {
            return self.places[0].current.get();
        }
        let alive = |process: &Process| process.gate.life() == Life::Alive;
        let mut alive: Vec<_> = self.places.iter().filter_map(|place| place.current.get().filter(alive)).collect();
        let number = usize::try_from(self.random.bits() % alive.len().max(1) as u64).unwrap_or(0);
        (!alive.is_empty()).then(|| alive.swap_remove(number))
    }

    /// A process at work, once there is one that is alive.
    pub async fn process(&self) -> Process {
        let mut since = Instant::now();
        loop {
            if !self.is_shared() {
                self.places[0].current.wait_for(Option::is_some).await;
            }
            if let Some(process) = self.somebody().filter(|process| process.gate.life() == Life::Alive) {
                return process;
            }
            // It stands still, or nobody has found it dead yet.
            tokio::time::sleep(Duration::from_millis(100)).await;
            if self.is_shared() && since.elapsed() > LEFT_ALONE {
                self.start_where_nobody_is().await;
                since = Instant::now();
            }
        }
    }

    /// Starts a control plane at the first place that has none, or a dead one, and that nobody sees to. Whoever waits for one would wait
    /// for ever where the driver waits as well: the last one died, or did not start as the store answered nobody.
    async fn start_where_nobody_is(&self) {
        let is_empty = |place: &usize| {
            let process = self.places[*place].current.get();
            process.is_none_or(|process| matches!(process.gate.life(), Life::Dead | Life::Buried))
        };
        if let Some(place) = (0..self.places.len()).filter(is_empty).find(|place| self.begin_seeing_to(*place)) {
            self.bury(place);
            self.start(place, 0).await;
            self.end_seeing_to(place);
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

    /// Sets the clock of this place's machine forward or back.
    pub fn set_clock(&self, place: usize, forward: bool, by: Duration) {
        let to = if forward { "forward" } else { "back" };
        self.witness.note(&format!("the clock of machine {place} is set {to} by {by:?}"));
        // Who shares a store goes by the store's clock.
        if !self.is_shared() {
            self.witness.clock_is_set();
        }
        let clock = &self.places[place].clock;
        match forward {
            true => clock.set_forward(by),
            false => clock.set_back(by),
        }
    }

    /// Sets the clock of a store that several share: it is ahead of the truth by this from now on.
    pub fn set_store_clock(&self, ahead: Duration) {
        let Some(clock) = &self.store_clock else { return };
        self.witness.note(&format!("the store's clock is {ahead:?} ahead"));
        self.witness.store_clock_is_set();
        let before = clock.now().since(self.now());
        clock.set_forward(ahead);
        clock.set_back(before);
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

/// After so long no call can be under way any more.
fn longest_call(scenario: &Scenario, providers: &BTreeMap<CellName, MemoryProvisioner>) -> Duration {
    let longest = providers.values().map(|provider| provider.capabilities().call_max).min();
    longest.map_or(scenario.config.call_timeout, |longest| longest.max(scenario.config.call_timeout))
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
