//! What must hold at each call, when it is sent, when it arrives, and when it is answered.

use std::time::Duration;

use provisioner_core::{
    Error, Provisioner, Result,
    types::{CellName, DataDisposition, DataId, DataSource, Incarnation, InstanceId, Phase, Target},
};

use tokio::time::Instant;

use super::{State, Witness};

/// How many calls of a cell are no instance's work: its identity, its listing, its upkeep, a remnant, a stranger to
/// be adopted.
const CALLS_BESIDE_MAX: usize = 5;
/// How long a process whose session was lost may go on with what it had begun.
const STOPPING_MAX: Duration = Duration::from_secs(1);

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
        let strange = state.check_stranger(operation, target, verb);
        let now = self.now_ms();
        let mut found = strange.or(state.budget.spend(&target.id)).or_else(|| self.check_bounds(&state, process, cell));
        found = found.or_else(|| state.check_caller(now, process, operation, target, verb));
        if state.is_at_work(now, process, target) {
            found = found.or_else(|| state.check_call(operation, target, verb));
            if matches!(operation, "create" | "resume") {
                found = found.or_else(|| self.check_alone(&state, operation, target));
            }
        }
        let epoch = state.works_under(now, process, target);
        let verbs = &mut state.processes.entry(process).or_default().verbs;
        if verb && verbs.insert(target.incarnation, epoch).is_some() {
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
        if !state.is_at_work(self.now_ms(), process, target) {
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
        let stale = match state.sessions.are_shared() {
            true => state.goes_on_now(process),
            false => process != state.newest,
        };
        let has_session = state.has_session(self.now_ms(), process);
        drop(state);
        if !has_session && !stale {
            self.violated(format!("process {process} removes data {data} without a session"));
        }
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
        let mut found = self.check_bounds(&state, process, cell);
        let works = matches!(operation, "maintain" | "delete data");
        if works && !state.has_session(self.now_ms(), process) && !state.goes_on_now(process) {
            found = found.or(Some(format!("process {process} calls {operation} in {cell} without a session")));
        }
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
        let shared = state.sessions.are_shared();
        let lag = self.providers[&call.cell].capabilities().settling;
        if let (Ok(Answer::Absent), "observe" | "destroy", Some(incarnation)) =
            (&answer, call.operation, call.incarnation)
            && let Some(making) = state.makings.get_mut(&incarnation)
            // What came so late a moment ago is not seen yet.
            && making.late_since.is_none_or(|since| !shared || since.elapsed() > lag)
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
        self.data_is_made(&mut state, target);
        let step = state.steps;
        let waited_for = state.is_waited_for(self.now_ms(), target.incarnation);
        if let (false, Some(making)) = (waited_for, state.makings.get_mut(&target.incarnation)) {
            making.late_at = step;
            making.late_since = Some(Instant::now());
        }
    }

    fn check_bounds(&self, state: &State, process: u64, cell: &CellName) -> Option<String> {
        let process_state = state.processes.get(&process)?;
        let (work, beside) = process_state.calls.get(cell).copied().unwrap_or_default();
        // What is whose work, only the process at work knows.
        let knows = state.sessions.are_shared() || process == state.newest;
        if knows && (work > self.calls_max || beside > CALLS_BESIDE_MAX) {
            return Some(format!("{work} and {beside} calls at once in {cell}, whose bound is {}", self.calls_max));
        }
        // Where it may have another session meanwhile, it is judged call by call.
        let one_at_a_time = !state.sessions.are_shared();
        let late = one_at_a_time && process_state.lost_at.is_some_and(|at| at.elapsed() > STOPPING_MAX);
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

impl State {
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
    pub(super) fn is_live(&self, target: &Target) -> bool {
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
            let is_remnant = making.is_some_and(|making| making.ended) && matches!(operation, "destroy" | "observe");
            // Who adopts a stranger looks at it first.
            let is_looked_at = self.is_strange(target.incarnation) && operation == "observe";
            return (!is_remnant && !is_looked_at)
                .then(|| format!("{operation} of {id} for a making that is not on disk"));
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
