//! Whoever sees everything: each commit and each call of every process, in order. What must never be ends the run.
//!
//! It knows the truth at the providers, which no control plane does, and it keeps a copy of the rows of its own. What is
//! checked at a commit is in `commits` and `intents`, what at a call in `calls`; who may work on what is kept in `sessions`,
//! what others did in `outsiders`.

mod calls;
mod commits;
mod deadlines;
mod intents;
mod outsiders;
mod sessions;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use provisioner_core::{
    memory::MemoryProvisioner,
    seams::SettableClock,
    store::{DataState, InstanceRow},
    types::{CellName, ControlPlaneId, DataId, Incarnation, InstanceId, OperationId, Target},
};
use sha2::{Digest, Sha256};
use tokio::time::Instant;

pub use self::calls::{Answer, Call};
use self::{deadlines::Deadlines, intents::Intents, sessions::Sessions};
use crate::budget::Budget;

/// What one process is known to do at this moment.
#[derive(Debug, Default)]
struct Process {
    /// Calls under way that are an instance's work, by cell, and those that are not.
    calls: BTreeMap<CellName, (usize, usize)>,
    /// Makings that a verb is being called for, and under which session.
    verbs: BTreeMap<Incarnation, u64>,
    /// When it was told that its session is over.
    lost_at: Option<Instant>,
    /// When its machine last went on after it stood still.
    went_on_at: Option<Instant>,
}

/// One making, and what was seen of it.
#[derive(Debug)]
struct Making {
    instance: InstanceId,
    cell: CellName,
    ended: bool,
    /// The step at which it was last looked for and not there.
    absent_at: u64,
    /// The step at which a call that makes or wakes it last arrived at the provider when the process at work was not waiting
    /// for one: sent by one that gave up, or that was replaced.
    late_at: u64,
    /// When that was: reads that lag behind do not tell of it for a while.
    late_since: Option<Instant>,
}

/// Calls and commits by name.
pub type Counts = BTreeMap<String, u64>;

#[derive(Debug)]
struct State {
    steps: u64,
    history: Sha256,
    line: String,
    /// What to print of the history as it happens: the lines that mention this.
    trace: Option<String>,
    violation: Option<String>,
    newest: u64,
    processes: BTreeMap<u64, Process>,
    rows: BTreeMap<InstanceId, Arc<InstanceRow>>,
    makings: BTreeMap<Incarnation, Making>,
    makings_of: BTreeMap<InstanceId, Vec<Incarnation>>,
    /// The step of the commit that each operation was accepted with.
    operations: BTreeMap<OperationId, u64>,
    data: BTreeMap<DataId, DataState>,
    /// Data that was seen in use.
    made: BTreeSet<DataId>,
    /// Data that an outsider deleted.
    lost: BTreeSet<DataId>,
    /// What others made under the control plane's mark, as they made it.
    strangers: BTreeMap<Incarnation, Target>,
    budget: Budget,
    deadlines: Deadlines,
    intents: Intents,
    sessions: Sessions,
    counts: Counts,
}

/// Whoever sees everything.
#[derive(Debug)]
pub struct Witness {
    owner: ControlPlaneId,
    providers: BTreeMap<CellName, MemoryProvisioner>,
    calls_max: usize,
    began: Instant,
    /// The clock by which sessions lapse; none: the true time.
    store_clock: OnceLock<Arc<SettableClock>>,
    state: Mutex<State>,
}

impl Witness {
    /// A witness of what this control plane does at these providers, whose cells run so many instances' work at once.
    #[must_use]
    pub fn new(owner: ControlPlaneId, providers: BTreeMap<CellName, MemoryProvisioner>, calls_max: usize) -> Arc<Self> {
        let state = State {
            steps: 0,
            history: Sha256::new(),
            line: String::new(),
            trace: std::env::var("SIMULATION_TRACE").ok(),
            violation: None,
            newest: 0,
            processes: BTreeMap::new(),
            rows: BTreeMap::new(),
            makings: BTreeMap::new(),
            makings_of: BTreeMap::new(),
            operations: BTreeMap::new(),
            data: BTreeMap::new(),
            made: BTreeSet::new(),
            lost: BTreeSet::new(),
            strangers: BTreeMap::new(),
            budget: Budget::default(),
            deadlines: Deadlines::default(),
            intents: Intents::default(),
            sessions: Sessions::default(),
            counts: Counts::new(),
        };
        Arc::new(Self {
            owner,
            providers,
            calls_max,
            began: Instant::now(),
            store_clock: OnceLock::new(),
            state: Mutex::new(state),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What must never be, and was: the first of it.
    #[must_use]
    pub fn violation(&self) -> Option<String> {
        self.state().violation.clone()
    }

    /// Says what must never be, and is.
    pub fn violated(&self, what: String) {
        let at = self.began.elapsed();
        let mut state = self.state();
        let step = state.steps;
        state.violation.get_or_insert_with(|| format!("step {step}, {:.3} s: {what}", at.as_secs_f64()));
    }

    /// How long the run has lasted.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    /// How many commits and calls there were.
    #[must_use]
    pub fn steps(&self) -> u64 {
        self.state().steps
    }

    /// Calls and commits by name.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.state().counts.clone()
    }

    /// One more of this name.
    pub fn count(&self, name: &str) {
        *self.state().counts.entry(name.into()).or_default() += 1;
    }

    /// How many there were of this name.
    #[must_use]
    pub fn count_of(&self, name: &str) -> u64 {
        self.state().counts.get(name).copied().unwrap_or_default()
    }

    /// The most calls that one instance had in one second, and in one hour.
    #[must_use]
    pub fn busiest(&self) -> (usize, usize) {
        self.state().budget.busiest()
    }

    /// What the store holds of an instance.
    #[must_use]
    pub fn row(&self, id: &InstanceId) -> Option<Arc<InstanceRow>> {
        self.state().rows.get(id).cloned()
    }

    /// The step of the commit that this operation was accepted with.
    ///
    /// # Panics
    /// When it never was, or not in this run.
    #[must_use]
    pub fn accepted_with(&self, operation: &OperationId) -> u64 {
        self.state().operations[operation]
    }

    /// Whether this data was ever seen in use.
    #[must_use]
    pub fn was_made(&self, data: &DataId) -> bool {
        self.state().made.contains(data)
    }

    /// Adds words to the history.
    pub fn note(&self, words: &str) {
        self.state().note(self.began.elapsed(), words);
    }

    /// The hash of everything so far.
    #[must_use]
    pub fn history(&self) -> String {
        let hash = self.state().history.clone().finalize();
        hash.iter().take(16).fold(String::new(), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
    }
}

impl State {
    fn note(&mut self, at: Duration, words: &str) {
        self.line.clear();
        let _ = writeln!(self.line, "{} {words}", at.as_micros());
        self.history.update(self.line.as_bytes());
        if self.trace.as_ref().is_some_and(|wanted| words.contains(wanted)) {
            eprint!("{}", self.line);
        }
    }
}
