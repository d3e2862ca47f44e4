//! A change of one instance in the making: the row as it will be, and all that is written with it.

use std::{collections::BTreeMap, sync::Arc};

use crate::{
    store::{
        Change, Claiming, DataRow, DataState, EventKind, IncarnationRow, IncarnationState, InstanceRow, InstanceWrite,
        Lane, NewEvent, Operation, OperationEnd, OperationState, Record, Reservation,
    },
    types::{DataId, Generation, InstanceSpec, Observed, Phase, Reason, Timestamp},
};

/// A change of one instance in the making.
#[derive(Debug)]
pub(crate) struct Draft {
    pub(crate) row: InstanceRow,
    pub(crate) specs: BTreeMap<Generation, Arc<InstanceSpec>>,
    before: Arc<InstanceRow>,
    /// The version in the store; none: not there yet.
    version: Option<u64>,
    change: Change,
    now: Timestamp,
}

impl Draft {
    /// A change of what is in the store.
    pub(crate) fn of(record: &Record, now: Timestamp) -> Self {
        Self {
            row: record.row.as_ref().clone(),
            specs: record.specs.clone(),
            before: Arc::clone(&record.row),
            version: Some(record.version),
            change: Change::default(),
            now,
        }
    }

    /// An instance that is not in the store yet.
    pub(crate) fn new(row: InstanceRow, spec: Arc<InstanceSpec>, now: Timestamp) -> Self {
        let mut draft = Self {
            before: Arc::new(row.clone()),
            specs: BTreeMap::new(),
            version: None,
            change: Change::default(),
            now,
            row,
        };
        draft.put_spec(draft.row.wanted, spec);
        draft
    }

    /// Moves the draft's time forward.
    pub(crate) fn at(&mut self, now: Timestamp) {
        self.now = now;
    }

    /// Whether there is nothing to write.
    pub(crate) fn is_unchanged(&self) -> bool {
        self.version.is_some()
            && self.row == *self.before
            && self.change.events.is_empty()
            && self.change.incarnations.is_empty()
            && self.change.data.is_empty()
    }

    /// Whether the store knows that the row is unsettled: the condition for a mutating call.
    pub(crate) fn is_unsettled_on_disk(&self) -> bool {
        self.version.is_some() && !self.before.settled
    }

    pub(crate) fn put_spec(&mut self, generation: Generation, spec: Arc<InstanceSpec>) {
        self.change.specs.push((generation, Arc::clone(&spec)));
        self.specs.insert(generation, spec);
    }

    pub(crate) fn reserve(&mut self, reservation: Reservation) {
        self.change.reservation = Some(reservation);
    }

    pub(crate) fn take_data(&mut self, data: DataId) {
        self.change.take_data = Some(data);
    }

    pub(crate) fn event(&mut self, what: EventKind) {
        self.change.events.push(self.new_event(what));
    }

    fn new_event(&self, what: EventKind) -> NewEvent {
        NewEvent {
            instance: Some(self.row.id.clone()),
            at: self.now,
            revision: Some(self.row.revision),
            actor: None,
            reason: None,
            what,
        }
    }

    /// Makes an operation the open one; the one that was open is superseded.
    pub(crate) fn open_operation(&mut self, operation: Operation, hold: Option<crate::types::Hold>) {
        self.end_operation(OperationState::Superseded, None);
        self.change.events.push(NewEvent {
            actor: Some(operation.actor.clone()),
            reason: operation.reason.clone(),
            ..self.new_event(EventKind::Accepted { verb: operation.verb, operation: operation.id.clone(), hold })
        });
        self.row.operation = Some(operation.id.clone());
        self.change.operations.push(operation);
    }

    /// Ends the open operation, if there is one.
    pub(crate) fn end_operation(&mut self, state: OperationState, failure: Option<Reason>) {
        if let Some(id) = self.row.operation.take() {
            self.event(EventKind::OperationEnded { operation: id.clone(), state });
            self.change.ended.push(OperationEnd { id, state, at: self.now, failure });
        }
    }

    /// The operation that this change opens.
    ///
    /// # Panics
    /// When it opens none.
    pub(crate) fn opened(&self) -> &Operation {
        self.change.operations.first().expect("an accepted request opens an operation")
    }

    /// Takes a request out of the inbox.
    pub(crate) fn answer(&mut self, request: Option<u64>) {
        self.change.answers = request;
    }

    pub(crate) fn drop_stranger(&mut self, incarnation: crate::types::Incarnation) {
        self.change.drop_strangers.push(incarnation);
    }

    /// Begins a move: from now on the row is unsettled, and its deadline counts from here.
    pub(crate) fn begin_move(&mut self, lane: Lane) {
        self.row.lane = lane;
        self.row.settled = false;
        self.row.moving_since = Some(self.now);
        self.row.parked = false;
        self.row.retry_at = None;
        self.row.due_at = Some(self.now);
    }

    /// After an update that failed: puts the spec that was applied last in force again, under a generation above both. The
    /// failed one stays what the customer wants.
    pub(crate) fn fall_back(&mut self) {
        let Some(applied) = self.row.applied else { return };
        if self.row.in_force != self.row.wanted || applied == self.row.wanted {
            return;
        }
        let generation = self.row.next_generation();
        let spec = Arc::clone(&self.specs[&applied]);
        self.put_spec(generation, spec);
        self.row.in_force = generation;
    }

    /// Goes on above a generation that the provider has and the store never gave: its memory of it was lost, as when an older
    /// backup was restored. The specs stay what the store knows; without this each call would be refused as older.
    pub(crate) fn overtake(&mut self, found: Generation) {
        let was_wanted = self.row.wanted == self.row.in_force;
        let (wanted, in_force) =
            (Arc::clone(&self.specs[&self.row.wanted]), Arc::clone(&self.specs[&self.row.in_force]));
        self.row.wanted = found.next();
        self.put_spec(self.row.wanted, wanted);
        self.row.in_force = self.row.wanted;
        if !was_wanted {
            // A failed update stays behind what is in force in its place.
            self.row.in_force = self.row.next_generation();
            self.put_spec(self.row.in_force, in_force);
        }
        self.event(EventKind::NewerFound { found, goes_on_at: self.row.in_force });
    }

    /// Takes in what was seen: a cache, and an event where the phase is another one.
    pub(crate) fn absorb(&mut self, observed: &Observed) {
        let (phase, endpoint, reason) = match observed {
            Observed::Unknown { .. } => return,
            Observed::Absent => (None, None, None),
            Observed::Present(present) => (Some(present.phase), present.endpoint.clone(), present.reason.clone()),
        };
        if let (Some(phase), Some(live)) = (phase, &mut self.row.live) {
            live.seen = true;
            live.absent_since = None;
            // Whatever is there and not on its way in has its data.
            self.row.data_made |= !matches!(phase, Phase::Provisioning | Phase::Destroying | Phase::Failed);
        }
        self.set_phase(phase, reason.clone());
        self.row.endpoint = endpoint;
        self.row.reason = reason;
    }

    /// Records a phase, with an event where it is another one.
    pub(crate) fn set_phase(&mut self, phase: Option<Phase>, detail: Option<Reason>) {
        if self.row.phase != phase {
            self.event(EventKind::PhaseChanged { from: self.row.phase, to: phase, detail });
            self.row.phase = phase;
        }
    }

    /// A row for the live incarnation, in this state.
    fn incarnation_row(&self, state: IncarnationState, look_at: Option<Timestamp>) -> Option<IncarnationRow> {
        let live = self.row.live.as_ref()?;
        Some(IncarnationRow {
            incarnation: live.incarnation,
            instance: self.row.id.clone(),
            tenant: self.row.tenant.clone(),
            cell: self.row.cell.clone(),
            data: self.row.data.clone(),
            state,
            ended_at: (state != IncarnationState::Live).then_some(self.now),
            due_at: look_at,
        })
    }

    /// Writes the live incarnation down, together with the data it is to run on.
    pub(crate) fn start_incarnation(&mut self, incarnation: crate::types::Incarnation) {
        self.row.incarnations = incarnation.number();
        self.row.live =
            Some(crate::store::LiveIncarnation { incarnation, seen: false, absent_since: None, last_call: None });
        self.change.incarnations.extend(self.incarnation_row(IncarnationState::Live, None));
        self.data(DataState::Used);
        self.event(EventKind::IncarnationStarted { incarnation });
    }

    /// Ends the live incarnation, if there is one; remnants of it are looked for at the given time.
    pub(crate) fn end_incarnation(&mut self, state: IncarnationState, look_at: Timestamp) {
        self.change.incarnations.extend(self.incarnation_row(state, Some(look_at)));
        if let Some(live) = self.row.live.take() {
            self.event(EventKind::IncarnationEnded { incarnation: live.incarnation });
        }
    }

    /// Records the state of its data.
    pub(crate) fn data(&mut self, state: DataState) {
        self.change.data.push(DataRow {
            id: self.row.data.clone(),
            tenant: self.row.tenant.clone(),
            instance: self.row.id.clone(),
            cell: self.row.cell.clone(),
            state,
            since: self.now,
        });
    }

    /// Drops the row of its data.
    pub(crate) fn drop_data(&mut self) {
        self.change.drop_data.push(self.row.data.clone());
    }

    /// Drops specs that the row does not refer to any more.
    pub(crate) fn keep_only_needed_specs(&mut self) {
        let needed = [Some(self.row.wanted), Some(self.row.in_force), self.row.applied];
        let before = self.specs.len();
        self.specs.retain(|generation, _| needed.contains(&Some(*generation)));
        if self.specs.len() != before {
            self.change.keep_specs = Some(self.specs.keys().copied().collect());
        }
    }

    /// The change, ready to be committed.
    pub(crate) fn to_change(&self, epoch: Option<u64>, claiming: Claiming) -> (Change, Arc<InstanceRow>) {
        let row = Arc::new(self.row.clone());
        let write = match self.version {
            None => InstanceWrite::Insert(Arc::clone(&row)),
            Some(expected) => InstanceWrite::Update { row: Arc::clone(&row), expected },
        };
        (Change { epoch, instance: Some(write), claiming, ..self.change.clone() }, row)
    }

    /// The change that drops the instance.
    pub(crate) fn to_removal(&self, epoch: Option<u64>) -> Change {
        let write = InstanceWrite::Delete { id: self.row.id.clone(), expected: self.version.unwrap_or_default() };
        let change = Change { specs: Vec::new(), keep_specs: None, ..self.change.clone() };
        Change { epoch, instance: Some(write), claiming: Claiming::Release, ..change }
    }

    /// Drops what was not written yet, of a row that is in the store.
    pub(crate) fn drop_change(&mut self) {
        self.row = self.before.as_ref().clone();
        self.change = Change::default();
    }

    /// After the change was committed at this version: the next change starts from there.
    pub(crate) fn committed(&mut self, row: Arc<InstanceRow>, version: u64) {
        self.before = row;
        self.version = Some(version);
        self.change = Change::default();
    }

    /// The version of the row in the store that this goes on from; none for a new one.
    pub(crate) fn version(&self) -> Option<u64> {
        self.version
    }

    /// What is in the store after the commit at this version.
    pub(crate) fn to_record(&self, row: Arc<InstanceRow>, version: u64) -> Record {
        Record { row, version, specs: self.specs.clone(), taken_over: false }
    }
}
