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
    /// A process was told that its session is over.
    pub fn session_lost(&self, process: u64) {
        self.state().processes.entry(process).or_default().lost_at.get_or_insert_with(Instant::now);
    }

    /// The store is asked for something that is no commit: to read something, or to write by itself.
    pub fn asks_the_store(&self, what: &str) {
        let mut state = self.state();
        *state.counts.entry(what.into()).or_default() += 1;
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
        let violation =
            outcome.as_ref().ok().and_then(|committed| self.check_commit(&mut state, process, change, committed));
        drop(state);
        if let Some(violation) = violation {
            self.violated(violation);
        }
    }

    /// Checks a change that was taken, and takes it in.
    fn check_commit(&self, state: &mut State, process: u64, change: &Change, committed: &Committed) -> Option<String> {
        let mut violation = state.sessions.committed(self.now_ms(), process, change, committed);
        let one_at_a_time = !state.sessions.are_shared();
        let stale = (one_at_a_time && process != state.newest)
            .then(|| format!("a write of process {process} was taken when {} had the session", state.newest));
        violation = violation.or(stale);
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
        let before = change.instance.as_ref().and_then(|write| state.rows.get(write.id()).cloned());
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
        let lost = state.intents.check(before.as_deref(), change);
        let mut violation = violation.or(found).or(lost);
        let of_change = change.instance.iter().map(InstanceWrite::id);
        let mut of_change = of_change.chain(change.incarnations.iter().map(|row| &row.instance));
        violation = violation.or_else(|| of_change.find_map(|id| state.check_makings(id)));
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
        let making = Making {
            instance: instance.clone(),
            cell: cell.clone(),
            ended: false,
            absent_at: 0,
            late_at: 0,
            late_since: None,
        };
        if let Some(known) = self.makings.get(&incarnation) {
            return Some(format!("making {incarnation} of {} is used again for {instance}", known.instance));
        }
        self.makings.insert(incarnation, making);
        self.makings_of.entry(instance.clone()).or_default().push(incarnation);
        None
    }

    /// Of an instance's makings none but the row's own has not ended.
    fn check_makings(&self, id: &InstanceId) -> Option<String> {
        let begun = self.makings_of.get(id).into_iter().flatten().copied();
        let open: Vec<_> = begun.filter(|incarnation| !self.makings[incarnation].ended).collect();
        let live = self.rows.get(id).and_then(|row| row.live.as_ref()).map(|live| live.incarnation);
        (open != live.as_slice())
            .then(|| format!("{id} has the makings {open:?} that have not ended, and {live:?} is its"))
    }
}

#[cfg(test)]
mod tests {
    use provisioner_core::{
        memory::{MemoryConfig, MemoryProvisioner},
        store::{EventKind, IncarnationRow, Lane, LiveIncarnation, NewEvent, Verb, Worker},
        types::{DataId, Generation, Hold, InstanceSpec, Intent, OperationId, Power, Revision, Timestamp},
    };

    use super::*;
    use crate::{
        customers::{id, spec, tenant},
        world::owner,
    };

    const NOW: Timestamp = Timestamp::from_unix_ms(1);

    fn witness() -> Arc<Witness> {
        let cells = [(CellName::new("cell").unwrap(), MemoryProvisioner::new(MemoryConfig::default()))];
        let witness = Witness::new(owner(), cells.into(), 4);
        witness.session_opened(1, 1);
        witness
    }

    fn operation() -> OperationId {
        OperationId::from_parts(1, 1)
    }

    /// A row that sleeps, held once.
    fn row() -> InstanceRow {
        let holds = [Hold::new("unpaid").unwrap()].into();
        InstanceRow {
            id: id(1),
            tenant: tenant(1),
            cell: CellName::new("cell").unwrap(),
            intent: Intent { holds, power: Power::Zero, gone: None },
            revision: Revision(3),
            wanted: Generation(2),
            in_force: Generation(2),
            applied: Some(Generation(1)),
            live: None,
            incarnations: 0,
            data: DataId::from_random(1),
            data_made: true,
            settled: false,
            settled_at: None,
            phase: None,
            endpoint: None,
            reason: None,
            parked: false,
            attempts: 0,
            busy: 0,
            retry_at: None,
            moving_since: Some(NOW),
            due_at: Some(NOW),
            lane: Lane::Background,
            operation: None,
            created_by: operation(),
            created_at: NOW,
            expires_at: None,
            taken_over_at: None,
        }
    }

    fn specs() -> Vec<(Generation, Arc<InstanceSpec>)> {
        [(1, "1.0"), (2, "2.0")].map(|(number, version)| (Generation(number), Arc::new(spec(version)))).into()
    }

    fn event(what: EventKind) -> NewEvent {
        NewEvent { instance: Some(id(1)), at: NOW, revision: None, actor: None, reason: None, what }
    }

    fn accepts(verb: Verb, hold: Option<&str>) -> Vec<NewEvent> {
        let hold = hold.map(|hold| Hold::new(hold).unwrap());
        vec![event(EventKind::Accepted { verb, operation: operation(), hold })]
    }

    /// What the witness says of this change of that row.
    fn told(change: Change, edit: impl FnOnce(&mut InstanceRow)) -> Option<String> {
        let witness = witness();
        let commit =
            |change| witness.committed(1, &change, &Ok(Committed { version: 1, position: 1, worker: Worker::Here }));
        let mut row = row();
        let instance = Some(InstanceWrite::Insert(Arc::new(row.clone())));
        commit(Change { instance, specs: specs(), ..Change::default() });
        assert_eq!(witness.violation(), None);
        edit(&mut row);
        commit(Change { instance: Some(InstanceWrite::Update { row: Arc::new(row), expected: 1 }), ..change });
        witness.violation()
    }

    #[tokio::test(start_paused = true)]
    async fn an_intent_that_nobody_asked_to_change_is_told_as_lost() {
        let edits: [fn(&mut InstanceRow); 4] = [
            |row| row.intent.power = Power::Running,
            |row| row.intent.holds.clear(),
            |row| row.intent.holds.extend([Hold::new("expired").unwrap()]),
            // Whatever the revision says.
            |row| (row.revision, row.intent.power) = (row.revision.next(), Power::Running),
        ];
        for edit in edits {
            let told = told(Change::default(), edit);
            assert!(told.as_ref().is_some_and(|told| told.contains("lost an intent")), "{told:?}");
        }
        assert_eq!(told(Change::default(), |row| row.settled = true), None);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_accepted_changes_what_it_asks_for_and_nothing_else() {
        let wakes = || Change { events: accepts(Verb::Wake, None), ..Change::default() };
        let lifts = || Change { events: accepts(Verb::Lift, Some("unpaid")), ..Change::default() };
        let awake = |row: &mut InstanceRow| (row.revision, row.intent.power) = (row.revision.next(), Power::Running);
        assert_eq!(told(wakes(), awake), None);
        let told_of = told(lifts(), awake).unwrap();
        assert!(told_of.contains("lost an intent"), "{told_of}");
        let both = |row: &mut InstanceRow| {
            awake(row);
            row.intent.holds.clear();
        };
        let told_of = told(wakes(), both).unwrap();
        assert!(told_of.contains("lost an intent"), "{told_of}");
        // It is accepted, and not in force.
        assert!(told(wakes(), |row| row.revision = row.revision.next()).is_some());
        assert!(told(wakes(), |row| row.intent.power = Power::Running).is_some(), "under no revision of its own");
    }

    #[tokio::test(start_paused = true)]
    async fn an_expiry_holds_and_an_update_is_wanted_until_another_is_accepted() {
        let expires =
            Change { events: vec![event(EventKind::Drifted { found: "expired".into() })], ..Change::default() };
        let held = |row: &mut InstanceRow| {
            row.revision = row.revision.next();
            row.intent.holds.insert(Hold::new("expired").unwrap());
        };
        assert_eq!(told(expires, held), None);
        let put = |version| Change { specs: vec![(Generation(3), Arc::new(spec(version)))], ..Change::default() };
        // After a failed update a copy of what was applied is in force, and the update stays wanted.
        assert_eq!(told(put("1.0"), |row| row.in_force = Generation(3)), None);
        let back = |row: &mut InstanceRow| (row.wanted, row.in_force) = (Generation(3), Generation(3));
        assert!(told(put("1.0"), back).unwrap().contains("lost an intent"));
        // The same spec goes on above a generation that a provider was found at.
        assert_eq!(told(put("2.0"), back), None);
        let updates = Change { events: accepts(Verb::Update, None), ..put("3.0") };
        let updated = |row: &mut InstanceRow| {
            back(row);
            row.revision = row.revision.next();
        };
        assert_eq!(told(updates, updated), None);
        let drops = Change { keep_specs: Some(vec![Generation(1)]), ..Change::default() };
        assert!(told(drops, |_| {}).unwrap().contains("lost an intent"));
    }

    fn making(number: u32, state: IncarnationState) -> IncarnationRow {
        let row = row();
        let (instance, tenant, cell, data) = (row.id, row.tenant, row.cell, row.data);
        let incarnation = Incarnation::new(number, number.into());
        IncarnationRow { incarnation, instance, tenant, cell, data, state, ended_at: None, due_at: None }
    }

    fn lives(number: u32) -> impl FnOnce(&mut InstanceRow) {
        move |row| {
            let incarnation = Incarnation::new(number, number.into());
            row.live = Some(LiveIncarnation { incarnation, seen: false, absent_since: None, last_call: None });
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_instance_has_one_making_at_most_that_has_not_ended() {
        use IncarnationState::{Ended, Live};
        let makes = |makings: &[(u32, IncarnationState)]| Change {
            incarnations: makings.iter().map(|(number, state)| making(*number, *state)).collect(),
            ..Change::default()
        };
        assert_eq!(told(makes(&[(1, Live)]), lives(1)), None);
        assert_eq!(told(makes(&[(1, Live), (1, Ended), (2, Live)]), lives(2)), None);
        let bad = [
            told(makes(&[(1, Live), (2, Live)]), lives(2)),
            told(makes(&[(1, Live)]), lives(2)),
            told(makes(&[(1, Live)]), |_| {}),
            told(makes(&[(1, Live), (1, Ended)]), lives(1)),
        ];
        for told in bad {
            assert!(told.as_ref().is_some_and(|told| told.contains("that have not ended")), "{told:?}");
        }
    }
}
