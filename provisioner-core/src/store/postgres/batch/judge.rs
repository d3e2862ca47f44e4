//! Whether a change is taken, by the rules that all stores share, and what it leaves in the picture.

use std::collections::BTreeSet;

use super::{
    super::super::{
        Change, Claiming, Committed, DataRow, EventKind, InstanceRow, InstanceWrite, Operation, Reservation,
        StoreError, Worker,
        condition::{Held, check_capacity, is_retained_for, key_is_kept},
        format::Prepared,
    },
    picture::{Asked, Instance, Kept, Picture},
};
use crate::types::{DataId, HostName, InstanceId, OperationId};

type Result<T> = std::result::Result<T, StoreError>;

/// A number that the database has no room for.
#[derive(Debug, thiserror::Error)]
#[error("{0} is more than the database can hold")]
struct TooLarge(u64);

fn number(number: u64) -> Result<i64> {
    i64::try_from(number).map_err(|_| StoreError::NotWritten(Box::new(TooLarge(number))))
}

impl<'a> Picture<'a> {
    /// Takes a change, or refuses it and stays as it was. The position that it tells counts from the last event before the
    /// batch.
    pub(in super::super) fn take(&mut self, prepared: &'a Prepared) -> Result<Committed> {
        let change = &prepared.change;
        self.check(change)?;
        let worker = self.claim(change);
        self.answer(change);
        let version = self.write_instance(prepared);
        self.write_operations(prepared);
        self.write_findings(change);
        self.events += change.events.len() as u64;
        self.taken.push(prepared);
        Ok(Committed { version, position: self.events, worker })
    }

    fn check(&self, change: &Change) -> Result<()> {
        change.check_shape()?;
        check_numbers(change)?;
        if change.epoch.is_some_and(|epoch| !self.sessions.contains(&epoch)) {
            return Err(StoreError::SessionLost);
        }
        if change.answers.is_some_and(|number| self.requests.get(&number).is_none_or(|it| it.now.is_none())) {
            return Err(StoreError::Answered);
        }
        change.operations.iter().try_for_each(|operation| self.check_key(operation))?;
        if let Some(write) = &change.instance {
            self.check_instance(change, write)?;
        }
        let Some(row) = change.row() else { return Ok(()) };
        if let Some(reservation) = &change.reservation {
            self.check_reservation(&row.id, reservation)?;
        }
        match &change.take_data {
            Some(id)
                if !self.data.get(id).and_then(|it| it.now.as_ref()).is_some_and(|it| is_retained_for(it, row)) =>
            {
                Err(StoreError::DataNotRetained(id.clone()))
            }
            _ => Ok(()),
        }
    }

    fn operation(&self, id: &OperationId) -> Option<&Operation> {
        self.operations.get(id).and_then(|it| it.now.as_ref()).map(|asked| &asked.operation)
    }

    fn check_key(&self, operation: &Operation) -> Result<()> {
        let holder = operation.key.as_ref().and_then(|key| self.keys.get(key)).and_then(|id| self.operation(id));
        match holder {
            Some(holder)
                if holder.id != operation.id
                    && self.operation(&operation.id).is_none()
                    && key_is_kept(holder.accepted_at, operation.accepted_at) =>
            {
                Err(StoreError::KeyUsed(Box::new(holder.clone())))
            }
            _ => Ok(()),
        }
    }

    fn instance(&self, id: &InstanceId) -> Option<&Instance<'a>> {
        self.instances.get(id).and_then(|it| it.now.as_ref())
    }

    fn check_instance(&self, change: &Change, write: &InstanceWrite) -> Result<()> {
        let found = self.instance(write.id());
        match write {
            InstanceWrite::Insert(_) if found.is_some() => return Err(StoreError::Exists),
            InstanceWrite::Insert(_) => {}
            InstanceWrite::Update { expected, .. } | InstanceWrite::Delete { expected, .. } => {
                if found.map(|found| found.version) != Some(*expected) {
                    return Err(StoreError::Stale);
                }
            }
        }
        let works = matches!(change.claiming, Claiming::Keep | Claiming::Release);
        let own = found.and_then(|found| found.claimed_by);
        if works && (own.is_none() || own != change.epoch) { Err(StoreError::Stale) } else { Ok(()) }
    }

    fn check_reservation(&self, id: &InstanceId, reservation: &Reservation) -> Result<()> {
        let owner = |name: &HostName| self.host_names.get(name).and_then(|it| it.now.as_ref());
        if let Some(name) = reservation.host_names.iter().find(|name| owner(name).is_some_and(|owner| owner != id)) {
            return Err(StoreError::HostNameTaken(name.clone()));
        }
        let used = self.usage.get(&reservation.cell).and_then(|it| it.now.clone()).unwrap_or_default();
        let held = self.reservations.get(id).and_then(|it| it.now.as_ref());
        check_capacity(&reservation.capacity, &used, held, &Held::of(reservation))
    }

    /// Who works on the instance from now on, told to whom it may concern.
    fn claim(&mut self, change: &Change) -> Worker {
        if change.frozen.is_some() || !change.cells.is_empty() {
            self.outbox.decided();
        }
        let Some(write) = &change.instance else { return Worker::Nobody };
        let found = self.instance(write.id());
        let before = found.and_then(|found| found.claimed_by);
        let taken_over = found.is_some_and(|found| found.taken_over);
        let asks = change.claiming == Claiming::Leave;
        match (change.claiming, before) {
            (Claiming::Keep, _) => Worker::Here,
            (Claiming::Release, _) => Worker::Nobody,
            // Also of one that asks: whoever goes on from here must know.
            (_, Some(own)) if change.epoch == Some(own) && taken_over => Worker::TakenOver,
            (_, Some(own)) if change.epoch == Some(own) => Worker::Here,
            (_, Some(other)) if self.sessions.contains(&other) => {
                self.outbox.touched(other, write.id());
                Worker::Elsewhere
            }
            (Claiming::Take, Some(lapsed)) if change.epoch.is_some() => {
                self.ended_sessions.insert(lapsed);
                Worker::TakenOver
            }
            (Claiming::Take, None) if change.epoch.is_some() => Worker::Here,
            _ => {
                if let Some(row) = write.row().filter(|row| asks && row.due_at.is_some()) {
                    self.outbox.due(&row.cell);
                }
                Worker::Nobody
            }
        }
    }

    fn answer(&mut self, change: &Change) {
        if let Some(request) = change.answers.and_then(|number| self.requests.get_mut(&number)) {
            request.set(None);
        }
    }

    /// Paints the instance's row with what belongs to it, and says its version; 0 when none was written.
    fn write_instance(&mut self, prepared: &'a Prepared) -> u64 {
        let change = &prepared.change;
        let Some(write) = &change.instance else { return 0 };
        let id = write.id();
        let place = self.instances.entry(id).or_insert_with(Kept::absent);
        let (row, version) = match write {
            InstanceWrite::Delete { expected, .. } => {
                place.set(None);
                self.specs.entry(id).or_default().keep(&BTreeSet::new());
                self.reserve(id, None);
                self.version_used = self.version_used.max(*expected);
                return 0;
            }
            InstanceWrite::Insert(row) => (row, self.version_used + 1),
            InstanceWrite::Update { row, expected } => (row, expected + 1),
        };
        let (claimed_by, taken_over) = claimed(change, place.now.as_ref(), &self.sessions);
        let body = prepared.instance.as_deref().unwrap_or_default();
        place.set(Some(Instance { version, claimed_by, taken_over, row: Some((row, body)) }));
        self.write_specs(prepared, row);
        if let Some(reservation) = &change.reservation {
            self.reserve(&row.id, Some(reservation));
        }
        version
    }

    fn write_specs(&mut self, prepared: &'a Prepared, row: &'a InstanceRow) {
        let change = &prepared.change;
        if change.specs.is_empty() && change.keep_specs.is_none() {
            return;
        }
        let specs = self.specs.entry(&row.id).or_default();
        for ((generation, _), body) in change.specs.iter().zip(&prepared.specs) {
            specs.written.insert(generation.0.cast_signed(), body);
        }
        if let Some(keep) = &change.keep_specs {
            specs.keep(&keep.iter().map(|generation| generation.0.cast_signed()).collect());
        }
    }

    /// Replaces what an instance has reserved: totals and host names go along.
    fn reserve(&mut self, id: &'a InstanceId, reservation: Option<&Reservation>) {
        let place = self.reservations.entry(id).or_insert_with(Kept::absent);
        let wanted = reservation.map(Held::of);
        if place.now != wanted {
            if let Some(held) = &place.now {
                let used = self.usage.entry(held.cell.clone()).or_insert_with(Kept::absent);
                let before = used.now.take().unwrap_or_default();
                used.set(Some(before.minus(&held.usage)));
            }
            if let Some(wanted) = &wanted {
                let used = self.usage.entry(wanted.cell.clone()).or_insert_with(Kept::absent);
                let before = used.now.take().unwrap_or_default();
                used.set(Some(before.plus(&wanted.usage)));
            }
            place.set(wanted);
        }
        let names = reservation.map_or(&[][..], |reservation| &reservation.host_names);
        for (name, owner) in &mut self.host_names {
            if owner.now.as_ref() == Some(id) && !names.contains(name) {
                owner.set(None);
            }
        }
        for name in names {
            let owner = self.host_names.entry(name.clone()).or_insert_with(Kept::absent);
            if owner.now.as_ref() != Some(id) {
                owner.set(Some(id.clone()));
            }
        }
    }

    fn write_operations(&mut self, prepared: &'a Prepared) {
        for (operation, body) in prepared.change.operations.iter().zip(&prepared.operations) {
            let mut operation = operation.clone();
            if let Some(known) = self.operation(&operation.id) {
                // It may have lost its key to another one, of which its writer knows nothing.
                operation.key = known.key.clone();
            } else if let Some(key) = &operation.key
                && let Some(holder) = self.keys.insert(key.clone(), operation.id.clone())
                && let Some(holder) = self.operations.get_mut(&holder)
            {
                holder.changed = true;
                if let Some(asked) = &mut holder.now {
                    asked.operation.key = None;
                }
            }
            let place = self.operations.entry(operation.id.clone()).or_insert_with(Kept::absent);
            place.set(Some(Asked { operation, body: Some(body) }));
        }
        for end in &prepared.change.ended {
            match self.operations.get_mut(&end.id) {
                // It was looked for.
                Some(place) => {
                    let pending = place.now.as_mut().filter(|asked| !asked.operation.state.is_ended());
                    if let Some(Asked { operation, .. }) = pending {
                        operation.state = end.state;
                        operation.ended_at = Some(end.at);
                        operation.failure = end.failure.clone();
                        place.changed = true;
                    }
                }
                None => {
                    self.ended.entry(&end.id).or_insert(end);
                }
            }
        }
    }

    /// What is written as it comes.
    fn write_findings(&mut self, change: &'a Change) {
        for making in &change.incarnations {
            self.incarnations.insert(making.incarnation.to_string(), making);
        }
        let mut data = |id: &DataId, row: Option<&DataRow>| {
            self.data.entry(id.clone()).or_insert_with(Kept::unseen).set(row.cloned());
        };
        change.data.iter().for_each(|row| data(&row.id, Some(row)));
        change.drop_data.iter().for_each(|id| data(id, None));
        self.strangers.extend(change.strangers.iter().map(|stranger| (stranger.incarnation, Some(stranger))));
        self.strangers.extend(change.drop_strangers.iter().map(|incarnation| (*incarnation, None)));
        self.cells.extend(change.cells.iter().map(|cell| (&cell.name, cell)));
        self.frozen = change.frozen.or(self.frozen);
    }
}

/// Refuses what the database's columns cannot hold.
fn check_numbers(change: &Change) -> Result<()> {
    let specs = change.specs.iter().map(|(generation, _)| generation.0);
    let strangers = change.strangers.iter().map(|stranger| stranger.generation.0);
    specs.chain(strangers).try_for_each(|generation| number(generation).map(drop))
}

/// The claim on an instance after a write that was taken, and whether it was taken over.
fn claimed(change: &Change, before: Option<&Instance<'_>>, sessions: &BTreeSet<u64>) -> (Option<u64>, bool) {
    let held = before.and_then(|before| Some((before.claimed_by?, before.taken_over)));
    match (change.claiming, change.epoch, held) {
        (Claiming::Keep, epoch, _) => (epoch, false),
        (Claiming::Release, ..) => (None, false),
        (Claiming::Take, Some(epoch), Some((holder, _))) if epoch != holder && !sessions.contains(&holder) => {
            (Some(epoch), true)
        }
        (Claiming::Take, Some(epoch), None) => (Some(epoch), false),
        (.., Some((holder, taken_over))) => (Some(holder), taken_over),
        (.., None) => (None, false),
    }
}

/// Whether an event is the last of its instance.
pub(super) fn is_last(what: &EventKind) -> bool {
    matches!(what, EventKind::Forgotten { .. })
}
