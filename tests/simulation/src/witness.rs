//! Whoever sees everything: each commit and each call of every process, in order. What must never be ends the run.
//!
//! It knows the truth at the providers, which no control plane does, and it keeps a copy of the rows of its own.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use provisioner_core::{
    Error, Result,
    memory::MemoryProvisioner,
    store::{Change, Committed, DataState, IncarnationState, InstanceRow, InstanceWrite, StoreError},
    types::{CellName, ControlPlaneId, DataDisposition, DataId, DataSource, Incarnation, InstanceId, Phase, Target},
};
use sha2::{Digest, Sha256};
use tokio::time::Instant;

use crate::budget::Budget;

/// How many calls of a cell are no instance's work: its identity, its listing, its upkeep, a remnant.
const CALLS_BESIDE_MAX: usize = 4;
/// How long a process whose session was lost may go on with what it had begun.
const STOPPING_MAX: Duration = Duration::from_secs(1);

/// What one process is known to do at this moment.
#[derive(Debug, Default)]
struct Process {
    /// Calls under way that are an instance's work, by cell, and those that are not.
    calls: BTreeMap<CellName, (usize, usize)>,
    /// Makings that a verb is being called for.
    verbs: BTreeSet<Incarnation>,
    /// When it was told that its session is over.
    lost_at: Option<Instant>,
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
    data: BTreeMap<DataId, DataState>,
    /// Data that was seen in use.
    made: BTreeSet<DataId>,
    budget: Budget,
    counts: Counts,
}

/// Whoever sees everything.
#[derive(Debug)]
pub struct Witness {
    owner: ControlPlaneId,
    providers: BTreeMap<CellName, MemoryProvisioner>,
    calls_max: usize,
    began: Instant,
    state: Mutex<State>,
}

/// A call under way.
#[derive(Debug)]
pub struct Call {
    process: u64,
    cell: CellName,
    operation: &'static str,
    instance: Option<InstanceId>,
    incarnation: Option<Incarnation>,
    verb: bool,
    /// Whether it is an instance's work, of which a cell has a bound.
    counts: bool,
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
            data: BTreeMap::new(),
            made: BTreeSet::new(),
            budget: Budget::default(),
            counts: Counts::new(),
        };
        Arc::new(Self { owner, providers, calls_max, began: Instant::now(), state: Mutex::new(state) })
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

    /// The most calls that one instance had in one second, and in one hour.
    #[must_use]
    pub fn busiest(&self) -> (u32, u32) {
        self.state().budget.busiest()
    }

    /// What the store holds of an instance.
    #[must_use]
    pub fn row(&self, id: &InstanceId) -> Option<Arc<InstanceRow>> {
        self.state().rows.get(id).cloned()
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

    // The store

    /// A session was opened: earlier ones are over.
    pub fn session_opened(&self, process: u64) {
        let mut state = self.state();
        state.newest = process;
        state.note(self.began.elapsed(), &format!("{process} opens a session"));
    }

    /// A process was told that its session is over.
    pub fn session_lost(&self, process: u64) {
        self.state().processes.entry(process).or_default().lost_at.get_or_insert_with(Instant::now);
    }

    /// Something was read from the store.
    pub fn reads(&self, what: &str) {
        let mut state = self.state();
        *state.counts.entry(format!("read {what}")).or_default() += 1;
    }

    /// A change was committed, or refused.
    pub fn committed(&self, process: u64, change: &Change, outcome: &Result<Committed, StoreError>) {
        let mut state = self.state();
        state.steps += 1;
        let id = change.instance.as_ref().map_or("-", |write| write.id().as_str());
        let shown = match outcome {
            Ok(committed) => format!("{} at {}", committed.version, committed.position),
            Err(error) => error.to_string(),
        };
        let line = format!("{process} commits {id}: {shown}");
        state.note(self.began.elapsed(), &line);
        let name = if outcome.is_ok() { "commit" } else { "commit refused" };
        *state.counts.entry(name.into()).or_default() += 1;
        if outcome.is_ok() {
            for event in &change.events {
                let event = serde_json::to_vec(event).unwrap_or_default();
                state.history.update(event);
            }
        } else if matches!(outcome, Err(StoreError::SessionLost)) {
            state.processes.entry(process).or_default().lost_at.get_or_insert_with(Instant::now);
        }
        let violation = outcome.is_ok().then(|| self.check_commit(&mut state, process, change)).flatten();
        drop(state);
        if let Some(violation) = violation {
            self.violated(violation);
        }
    }

    /// Checks a change that was taken, and takes it in.
    fn check_commit(&self, state: &mut State, process: u64, change: &Change) -> Option<String> {
        let mut violation = (process != state.newest)
            .then(|| format!("a write of process {process} was taken when {} had the session", state.newest));
        for row in &change.incarnations {
            let found = match row.state {
                IncarnationState::Live => state.begin(row.incarnation, &row.instance, &row.cell),
                IncarnationState::Ended | IncarnationState::Ending => self.end(state, row.incarnation),
            };
            violation = violation.or(found);
        }
        for data in &change.data {
            state.data.insert(data.id.clone(), data.state);
        }
        for data in &change.drop_data {
            state.data.remove(data);
        }
        let found = match &change.instance {
            None => None,
            Some(InstanceWrite::Insert(row)) => {
                state.rows.insert(row.id.clone(), Arc::clone(row)).map(|_| format!("{} was inserted twice", row.id))
            }
            Some(InstanceWrite::Update { row, .. }) => {
                let before = state.rows.insert(row.id.clone(), Arc::clone(row));
                before.and_then(|before| turned_back(&before, row))
            }
            Some(InstanceWrite::Delete { id, .. }) => {
                let gone = state.rows.remove(id).is_some_and(|row| row.intent.gone.is_some());
                (!gone).then(|| format!("{id} was forgotten, and nobody had asked for its removal"))
            }
        };
        if let Some(row) = change.instance.as_ref().and_then(InstanceWrite::row)
            && row.data_made
        {
            state.made.insert(row.data.clone());
        }
        violation.or(found)
    }

    /// A making ends in the store: then it must have been looked for since the last call for it arrived, and not be there.
    fn end(&self, state: &mut State, incarnation: Incarnation) -> Option<String> {
        let making = state.makings.get_mut(&incarnation)?;
        if std::mem::replace(&mut making.ended, true) {
            return None;
        }
        let there = self.providers[&making.cell].thing(&self.owner, incarnation)?;
        let came_late = making.absent_at > 0 && making.late_at > making.absent_at;
        (!came_late && there.phase != Phase::Destroying).then(|| {
            format!("making {incarnation} of {} was given up, and it is there: {:?}", making.instance, there.phase)
        })
    }

    // The providers

    /// A process is about to call a provider for an instance.
    pub fn calls(&self, process: u64, cell: &CellName, operation: &'static str, target: &Target) -> Call {
        let mut state = self.state();
        let verb = matches!(operation, "create" | "suspend" | "scale to zero" | "resume" | "destroy");
        let counts = state.is_live(target);
        state.begin_call(
            self.began.elapsed(),
            process,
            (cell, counts),
            operation,
            Some((&target.id, target.incarnation)),
        );
        let is_newest = process == state.newest;
        let mut found = state.budget.spend(&target.id).or_else(|| self.check_bounds(&state, process, cell));
        if is_newest {
            found = found.or_else(|| state.check_call(operation, target, verb));
            if matches!(operation, "create" | "resume") {
                found = found.or_else(|| self.check_alone(&state, operation, target));
            }
        }
        if verb && !state.processes.entry(process).or_default().verbs.insert(target.incarnation) {
            found = found.or_else(|| Some(format!("two verbs at once for {} {}", target.id, target.incarnation)));
        }
        drop(state);
        if let Some(found) = found {
            self.violated(found);
        }
        Call {
            process,
            cell: cell.clone(),
            operation,
            instance: Some(target.id.clone()),
            incarnation: Some(target.incarnation),
            verb,
            counts,
        }
    }

    /// Removal must be asked for, and data must go only when that was asked for too.
    pub fn removes(&self, process: u64, target: &Target, data: DataDisposition) {
        let state = self.state();
        if process != state.newest {
            return;
        }
        let row = state
            .rows
            .get(&target.id)
            .filter(|row| row.live.as_ref().is_some_and(|live| live.incarnation == target.incarnation));
        let asked = match row {
            Some(row) => row.intent.gone == Some(data),
            // A remnant: it goes, and its data when nobody has a right to it any more.
            None => data == DataDisposition::Retain || !state.data.contains_key(target.data.id()),
        };
        drop(state);
        if !asked {
            self.violated(format!(
                "{} was removed with its data to {data:?}, and nobody had asked for that",
                target.id
            ));
        }
    }

    /// Data that is removed by itself must be that of an instance whose removal asked for it.
    pub fn removes_data(&self, process: u64, data: &DataId) {
        let state = self.state();
        let delete = Some(DataDisposition::Delete);
        let asked = state.rows.values().any(|row| row.data == *data && row.intent.gone == delete);
        let stale = process != state.newest;
        drop(state);
        if !asked && !stale {
            self.violated(format!("data {data} was removed, and nobody had asked for that"));
        }
    }

    /// A process is about to call a provider for no instance.
    pub fn calls_cell(&self, process: u64, cell: &CellName, operation: &'static str) -> Call {
        let mut state = self.state();
        // Data is deleted in the course of an instance's work.
        let counts = operation == "delete data";
        state.begin_call(self.began.elapsed(), process, (cell, counts), operation, None);
        let found = self.check_bounds(&state, process, cell);
        drop(state);
        if let Some(found) = found {
            self.violated(found);
        }
        Call { process, cell: cell.clone(), operation, instance: None, incarnation: None, verb: false, counts }
    }

    /// A call was answered, or is given up.
    pub fn answered(&self, call: &Call, answer: Result<Answer, &Error>) {
        let mut state = self.state();
        let process = state.processes.entry(call.process).or_default();
        if let Some((work, beside)) = process.calls.get_mut(&call.cell) {
            let calls = if call.counts { work } else { beside };
            *calls = calls.saturating_sub(1);
        }
        if let (true, Some(incarnation)) = (call.verb, &call.incarnation) {
            process.verbs.remove(incarnation);
        }
        let step = state.steps;
        if let (Ok(Answer::Absent), "observe" | "destroy", Some(incarnation)) =
            (&answer, call.operation, call.incarnation)
            && let Some(making) = state.makings.get_mut(&incarnation)
        {
            making.absent_at = step;
        }
        let shown = match answer {
            Ok(answer) => format!("{answer:?}"),
            Err(error) => error.kind().to_string(),
        };
        let id = call.instance.as_ref().map_or("-", InstanceId::as_str);
        let line = format!("{} is answered on {} of {id}: {shown}", call.process, call.operation);
        state.note(self.began.elapsed(), &line);
    }

    /// A call that makes or wakes a thing arrives at the provider: at once, or long after it was sent.
    pub fn landed(&self, operation: &'static str, target: &Target) {
        let mut state = self.state();
        let line = format!("{operation} of {} {} arrives", target.id, target.incarnation);
        state.note(self.began.elapsed(), &line);
        state.steps += 1;
        let step = state.steps;
        let newest = state.newest;
        let waited_for =
            state.processes.get(&newest).is_some_and(|process| process.verbs.contains(&target.incarnation));
        if let (false, Some(making)) = (waited_for, state.makings.get_mut(&target.incarnation)) {
            making.late_at = step;
        }
    }

    fn check_bounds(&self, state: &State, process: u64, cell: &CellName) -> Option<String> {
        let process_state = state.processes.get(&process)?;
        let (work, beside) = process_state.calls.get(cell).copied().unwrap_or_default();
        // What is whose work, only the process at work knows.
        if process == state.newest && (work > self.calls_max || beside > CALLS_BESIDE_MAX) {
            return Some(format!("{work} and {beside} calls at once in {cell}, whose bound is {}", self.calls_max));
        }
        let late = process_state.lost_at.is_some_and(|at| at.elapsed() > STOPPING_MAX);
        late.then(|| format!("process {process} goes on calling after it lost its session"))
    }

    /// Nothing is made or woken while another making of the same instance is there, unless that came too late to be known.
    fn check_alone(&self, state: &State, operation: &str, target: &Target) -> Option<String> {
        let others = state.makings_of.get(&target.id)?.iter().filter(|other| **other != target.incarnation);
        others.into_iter().find_map(|other| {
            let making = &state.makings[other];
            let there = self.providers[&making.cell].thing(&self.owner, *other)?;
            let came_late = making.ended && making.absent_at > 0 && making.late_at > making.absent_at;
            let known = there.phase != Phase::Destroying && !came_late;
            known.then(|| {
                format!("{operation} of making {} of {}, while {other} is there", target.incarnation, target.id)
            })
        })
    }
}

/// What a call was answered with, as far as the witness cares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// Nothing is there.
    Absent,
    /// Something is there, in this phase.
    Present(Phase),
    /// Look again.
    Unknown,
    /// Something else.
    Done,
}

/// What of a row turned back that never may.
fn turned_back(before: &InstanceRow, after: &InstanceRow) -> Option<String> {
    let id = &after.id;
    if before.intent.gone.is_some() && after.intent.gone != before.intent.gone {
        return Some(format!("{id} was to be gone for ever, and was revived"));
    }
    if after.revision < before.revision {
        return Some(format!("{id} went back from revision {} to {}", before.revision, after.revision));
    }
    if after.in_force < before.in_force || after.wanted < before.wanted {
        return Some(format!("{id} went back to an older generation"));
    }
    if before.data != after.data || (before.data_made && !after.data_made) {
        return Some(format!("{id} lost its data"));
    }
    (before.incarnations > after.incarnations).then(|| format!("{id} counts its makings anew"))
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

    /// A making begins: it is none that there ever was.
    fn begin(&mut self, incarnation: Incarnation, instance: &InstanceId, cell: &CellName) -> Option<String> {
        let making = Making { instance: instance.clone(), cell: cell.clone(), ended: false, absent_at: 0, late_at: 0 };
        if let Some(known) = self.makings.get(&incarnation) {
            return Some(format!("making {incarnation} of {} is used again for {instance}", known.instance));
        }
        self.makings.insert(incarnation, making);
        self.makings_of.entry(instance.clone()).or_default().push(incarnation);
        None
    }

    fn begin_call(
        &mut self,
        at: Duration,
        process: u64,
        (cell, counts): (&CellName, bool),
        operation: &'static str,
        instance: Option<(&InstanceId, Incarnation)>,
    ) {
        self.steps += 1;
        *self.counts.entry(format!("call {operation}")).or_default() += 1;
        let (work, beside) = self.processes.entry(process).or_default().calls.entry(cell.clone()).or_default();
        *(if counts { work } else { beside }) += 1;
        let line = match instance {
            Some((id, incarnation)) => format!("{process} calls {operation} of {id} {incarnation}"),
            None => format!("{process} calls {operation} in {cell}"),
        };
        self.note(at, &line);
    }

    /// Whether a call is about the instance's own making.
    fn is_live(&self, target: &Target) -> bool {
        let live = self.rows.get(&target.id).and_then(|row| row.live.as_ref());
        live.is_some_and(|live| live.incarnation == target.incarnation)
    }

    /// What is on disk must allow the call.
    fn check_call(&self, operation: &str, target: &Target, verb: bool) -> Option<String> {
        let id = &target.id;
        let making = self.makings.get(&target.incarnation);
        let row = self.rows.get(id);
        if !self.is_live(target) {
            // Whatever is not the instance's making may be looked at and removed, and nothing else.
            let is_remnant = making.is_none_or(|making| making.ended) && matches!(operation, "destroy" | "observe");
            return (!is_remnant).then(|| format!("{operation} of {id} for a making that is not on disk"));
        }
        let row = row?;
        if row.parked {
            return Some(format!("{operation} of {id}, which is parked"));
        }
        if verb && row.settled {
            return Some(format!("{operation} of {id}, which is settled on disk"));
        }
        let blank = matches!(target.data, DataSource::Fresh(_)) && self.made.contains(target.data.id());
        (blank && operation != "destroy" && verb).then(|| format!("{operation} of {id} may start it on blank data"))
    }
}
