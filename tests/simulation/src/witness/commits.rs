//! What must hold at each commit.

use std::sync::Arc;

use provisioner_core::{
    Result,
    store::{Change, Committed, IncarnationState, InstanceRow, InstanceWrite, StoreError},
    types::{CellName, Incarnation, InstanceId, Phase},
};
use sha2::Digest;
use tokio::time::Instant;

use super::{Making, State, Witness};

impl Witness {
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
        for operation in &change.operations {
            let step = state.steps;
            state.operations.entry(operation.id.clone()).or_insert(step);
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
        let mut violation = violation.or(found);
        if let Some(row) = change.instance.as_ref().and_then(InstanceWrite::row) {
            violation = violation.or_else(|| self.check_blank(state, row));
            let too_early = state.deadlines.check(row);
            violation = violation.or(too_early);
            if row.data_made {
                state.made.insert(row.data.clone());
            }
        }
        violation
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
}
