//! A store in memory, for tests and simulation: ordered maps under one mutex, and nothing else that could vary.

mod due;
mod sharing;

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use futures::stream::BoxStream;
use tokio::sync::watch;

use self::{due::DueIndex, sharing::Sharing};
use super::{
    CellRow, CellUsage, Change, Claim, Committed, DataRow, Event, EventKind, IncarnationRow, IncarnationState,
    InstanceFilter, InstanceRow, InstanceWrite, Operation, OperationState, Pruned, Record, Renewal, Reservation,
    Session, Signal, Store, StoreError, Stranger, Submitted, Taken, Verb,
    condition::{Held, check_capacity, is_retained_for, key_is_kept},
};
use crate::{
    seams::Clock,
    types::{
        CellName, ControlPlaneId, DataId, Generation, HostName, IdempotencyKey, Incarnation, InstanceId, InstanceSpec,
        OperationId, Phase, TenantId, Timestamp,
    },
};

/// A store in memory. Commits and reads happen on the caller's thread, at once, and depend on nothing but their order.
pub struct MemoryStore {
    control_plane: ControlPlaneId,
    positions: watch::Sender<u64>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    sharing: Sharing,
    instances: BTreeMap<InstanceId, (u64, Arc<InstanceRow>)>,
    /// The highest version of an instance that is gone: later ones of its id begin above.
    version_used: u64,
    specs: BTreeMap<(InstanceId, Generation), Arc<InstanceSpec>>,
    reservations: BTreeMap<InstanceId, (Held, Vec<HostName>)>,
    usage: BTreeMap<CellName, CellUsage>,
    host_names: BTreeMap<HostName, InstanceId>,
    incarnations: BTreeMap<Incarnation, IncarnationRow>,
    due: DueIndex,
    data: BTreeMap<DataId, DataRow>,
    operations: BTreeMap<OperationId, Operation>,
    keys: BTreeMap<IdempotencyKey, OperationId>,
    events: BTreeMap<u64, Event>,
    position: u64,
    strangers: BTreeMap<Incarnation, Stranger>,
    cells: BTreeMap<CellName, CellRow>,
    frozen: bool,
}

impl MemoryStore {
    /// An empty store of this control plane.
    #[must_use]
    pub fn new(control_plane: ControlPlaneId) -> Arc<Self> {
        Arc::new(Self { control_plane, positions: watch::Sender::new(0), state: Mutex::default() })
    }

    /// An empty store that several control planes of this process share, as replicas share a database. Sessions lapse after so
    /// much silence, by this clock.
    #[must_use]
    pub fn shared(control_plane: ControlPlaneId, clock: Arc<dyn Clock>, lapses_after: Duration) -> Arc<Self> {
        let state = State { sharing: Sharing::by(clock, lapses_after), ..State::default() };
        Arc::new(Self { control_plane, positions: watch::Sender::new(0), state: Mutex::new(state) })
    }

    /// Puts a request into the inbox, as a caller's own transaction does in a database; tells its place there.
    pub fn submit(&self, request: Submitted) -> u64 {
        self.state().sharing.submit(request)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryStore").field("control_plane", &self.control_plane).finish_non_exhaustive()
    }
}

impl State {
    fn check(&self, change: &Change) -> Result<(), StoreError> {
        change.check_shape()?;
        change.epoch.map_or(Ok(()), |epoch| self.sharing.check(epoch))?;
        self.sharing.check_answer(change)?;
        change.operations.iter().try_for_each(|operation| self.check_key(operation))?;
        change.instance.as_ref().map_or(Ok(()), |write| self.check_instance(write))?;
        self.sharing.check_claim(change)?;
        let Some(row) = change.row() else { return Ok(()) };
        if let Some(reservation) = &change.reservation {
            self.check_reservation(&row.id, reservation)?;
        }
        match &change.take_data {
            Some(id) if !self.data.get(id).is_some_and(|data| is_retained_for(data, row)) => {
                Err(StoreError::DataNotRetained(id.clone()))
            }
            _ => Ok(()),
        }
    }

    fn check_key(&self, operation: &Operation) -> Result<(), StoreError> {
        let holder = operation.key.as_ref().and_then(|key| self.keys.get(key)).map(|id| &self.operations[id]);
        match holder {
            Some(holder)
                if holder.id != operation.id
                    && !self.operations.contains_key(&operation.id)
                    && key_is_kept(holder.accepted_at, operation.accepted_at) =>
            {
                Err(StoreError::KeyUsed(Box::new(holder.clone())))
            }
            _ => Ok(()),
        }
    }

    fn check_instance(&self, write: &InstanceWrite) -> Result<(), StoreError> {
        let version = self.instances.get(write.id()).map(|(version, _)| *version);
        match write {
            InstanceWrite::Insert(_) if version.is_some() => Err(StoreError::Exists),
            InstanceWrite::Insert(_) => Ok(()),
            InstanceWrite::Update { expected, .. } | InstanceWrite::Delete { expected, .. } => {
                if version == Some(*expected) { Ok(()) } else { Err(StoreError::Stale) }
            }
        }
    }

    fn check_reservation(&self, id: &InstanceId, reservation: &Reservation) -> Result<(), StoreError> {
        let taken = |name: &&HostName| self.host_names.get(*name).is_some_and(|owner| owner != id);
        if let Some(name) = reservation.host_names.iter().find(taken) {
            return Err(StoreError::HostNameTaken(name.clone()));
        }
        let used = self.usage(&reservation.cell);
        let held = self.reservations.get(id).map(|(held, _)| held);
        check_capacity(&reservation.capacity, &used, held, &Held::of(reservation))
    }

    fn usage(&self, cell: &CellName) -> CellUsage {
        self.usage.get(cell).cloned().unwrap_or_default()
    }

    /// Replaces what an instance has reserved: totals and host names go along.
    fn reserve(&mut self, id: &InstanceId, reservation: Option<&Reservation>) {
        if let Some((held, names)) = self.reservations.remove(id) {
            let used = self.usage.entry(held.cell).or_default();
            *used = used.minus(&held.usage);
            for name in names {
                self.host_names.remove(&name);
            }
        }
        let Some(reservation) = reservation else { return };
        let held = Held::of(reservation);
        let used = self.usage.entry(held.cell.clone()).or_default();
        *used = used.plus(&held.usage);
        self.host_names.extend(reservation.host_names.iter().map(|name| (name.clone(), id.clone())));
        self.reservations.insert(id.clone(), (held, reservation.host_names.clone()));
    }

    /// Drops the specs of an instance, but for those to keep.
    fn drop_specs(&mut self, id: &InstanceId, keep: &[Generation]) {
        let own = (id.clone(), Generation(0))..=(id.clone(), Generation(u64::MAX));
        let dropped: Vec<_> = self
            .specs
            .range(own)
            .map(|(key, _)| key.clone())
            .filter(|(_, generation)| !keep.contains(generation))
            .collect();
        for key in dropped {
            self.specs.remove(&key);
        }
    }

    /// Writes a change that was checked.
    fn apply(&mut self, change: Change) -> Committed {
        let worker = self.sharing.take(&change);
        self.sharing.answer(&change);
        let version = self.apply_instance(&change);
        for operation in change.operations {
            self.apply_operation(operation);
        }
        for end in change.ended {
            let pending = self.operations.get_mut(&end.id).filter(|operation| !operation.state.is_ended());
            if let Some(operation) = pending {
                operation.state = end.state;
                operation.ended_at = Some(end.at);
                operation.failure = end.failure;
            }
        }
        for making in change.incarnations {
            let before = self.incarnations.insert(making.incarnation, making.clone());
            self.due.replace_incarnation(before.as_ref(), Some(&making));
        }
        self.data.extend(change.data.into_iter().map(|data| (data.id.clone(), data)));
        for id in &change.drop_data {
            self.data.remove(id);
        }
        self.strangers.extend(change.strangers.into_iter().map(|stranger| (stranger.incarnation, stranger)));
        for incarnation in &change.drop_strangers {
            self.strangers.remove(incarnation);
        }
        self.cells.extend(change.cells.into_iter().map(|cell| (cell.name.clone(), cell)));
        self.frozen = change.frozen.unwrap_or(self.frozen);
        for event in change.events {
            self.position += 1;
            self.events.insert(self.position, Event { position: self.position, event });
        }
        Committed { version, position: self.position, worker }
    }

    fn apply_instance(&mut self, change: &Change) -> u64 {
        let (row, version) = match &change.instance {
            None => return 0,
            Some(InstanceWrite::Delete { id, expected }) => {
                let before = self.instances.remove(id);
                self.due.replace_instance(before.as_ref().map(|(_, row)| row.as_ref()), None);
                self.drop_specs(id, &[]);
                self.reserve(id, None);
                self.version_used = self.version_used.max(*expected);
                return 0;
            }
            Some(InstanceWrite::Insert(row)) => (row, self.version_used + 1),
            Some(InstanceWrite::Update { row, expected }) => (row, expected + 1),
        };
        let id = &row.id;
        let before = self.instances.insert(id.clone(), (version, Arc::clone(row)));
        self.due.replace_instance(before.as_ref().map(|(_, row)| row.as_ref()), Some(row));
        for (generation, spec) in &change.specs {
            self.specs.insert((id.clone(), *generation), Arc::clone(spec));
        }
        if let Some(keep) = &change.keep_specs {
            self.drop_specs(id, keep);
        }
        if let Some(reservation) = &change.reservation {
            self.reserve(id, Some(reservation));
        }
        version
    }

    fn apply_operation(&mut self, mut operation: Operation) {
        if let Some(known) = self.operations.get(&operation.id) {
            // It may have lost its key to another one, of which its writer knows nothing.
            operation.key = known.key.clone();
        } else if let Some(key) = &operation.key
            && let Some(holder) = self.keys.insert(key.clone(), operation.id.clone())
            && let Some(holder) = self.operations.get_mut(&holder)
        {
            holder.key = None;
        }
        self.operations.insert(operation.id.clone(), operation);
    }

    fn record(&self, version: u64, row: &Arc<InstanceRow>) -> Record {
        let generations = [Some(row.wanted), Some(row.in_force), row.applied];
        let specs = generations.into_iter().flatten().filter_map(|generation| {
            let spec = self.specs.get(&(row.id.clone(), generation))?;
            Some((generation, Arc::clone(spec)))
        });
        let taken_over = self.sharing.is_taken_over(&row.id);
        Record { row: Arc::clone(row), version, specs: specs.collect(), taken_over }
    }

    fn prune(&mut self, before: Timestamp, limit: usize) -> Pruned {
        let old_operations = oldest(
            self.operations.values().filter_map(|operation| Some((operation.ended_at?, operation.id.clone()))),
            before,
            limit,
        );
        for id in &old_operations {
            if let Some(key) = self.operations.remove(id).and_then(|operation| operation.key) {
                self.keys.remove(&key);
            }
        }
        let ended = self
            .incarnations
            .values()
            .filter(|making| making.state == IncarnationState::Ended && making.due_at.is_none());
        let old_makings =
            oldest(ended.filter_map(|making| Some((making.ended_at?, making.incarnation))), before, limit);
        for incarnation in &old_makings {
            let before = self.incarnations.remove(incarnation);
            self.due.replace_incarnation(before.as_ref(), None);
        }
        let events = self.prune_events(before, limit);
        Pruned { events, operations: old_operations.len(), incarnations: old_makings.len() }
    }

    fn prune_events(&mut self, before: Timestamp, limit: usize) -> usize {
        let mut old = oldest(self.events.values().map(|event| (event.event.at, event.position)), before, limit);
        for position in &old {
            self.events.remove(position);
        }
        let is_last = |event: &Event| matches!(event.event.what, EventKind::Forgotten { .. });
        let gone: BTreeMap<InstanceId, u64> = self
            .events
            .values()
            .filter(|event| is_last(event))
            .filter_map(|event| Some((event.event.instance.clone()?, event.position)))
            .collect();
        let is_over = |event: &&Event| {
            let end = event.event.instance.as_ref().and_then(|id| gone.get(id));
            !is_last(event) && end.is_some_and(|end| event.position < *end)
        };
        let over: Vec<u64> =
            self.events.values().filter(is_over).map(|event| event.position).take(limit - old.len()).collect();
        for position in &over {
            self.events.remove(position);
        }
        old.extend(over);
        old.len()
    }
}

/// What lies before a time, the oldest first, up to a limit.
fn oldest<T: Ord>(rows: impl Iterator<Item = (Timestamp, T)>, before: Timestamp, limit: usize) -> Vec<T> {
    let mut old: Vec<_> = rows.filter(|(at, _)| *at < before).collect();
    old.sort();
    old.into_iter().map(|(_, row)| row).take(limit).collect()
}

fn is_after<K: Ord>(key: &K, after: Option<&K>) -> bool {
    after.is_none_or(|after| key > after)
}

#[async_trait]
impl Store for MemoryStore {
    fn control_plane(&self) -> &ControlPlaneId {
        &self.control_plane
    }

    async fn open_session(&self, _: &str, _: Timestamp) -> Result<Session, StoreError> {
        Ok(self.state().sharing.open())
    }

    async fn renew_session(&self, epoch: u64) -> Result<Renewal, StoreError> {
        self.state().sharing.renew(epoch)
    }

    async fn close_session(&self, epoch: u64) -> Result<(), StoreError> {
        self.state().sharing.close(epoch);
        Ok(())
    }

    fn signals(&self) -> Option<BoxStream<'static, Signal>> {
        self.state().sharing.signals()
    }

    async fn commit(&self, change: Change) -> Result<Committed, StoreError> {
        let mut state = self.state();
        state.check(&change)?;
        let committed = state.apply(change);
        // Still under the lock: positions rise in the order of commits.
        self.positions.send_if_modified(|shown| std::mem::replace(shown, committed.position) != committed.position);
        Ok(committed)
    }

    async fn instance(&self, id: &InstanceId) -> Result<Option<Record>, StoreError> {
        let state = self.state();
        Ok(state.instances.get(id).map(|(version, row)| state.record(*version, row)))
    }

    async fn instances(
        &self,
        filter: &InstanceFilter,
        after: Option<&InstanceId>,
        limit: usize,
    ) -> Result<Vec<Record>, StoreError> {
        let state = self.state();
        let fits = |row: &InstanceRow| {
            filter.tenant.as_ref().is_none_or(|tenant| *tenant == row.tenant)
                && filter.cell.as_ref().is_none_or(|cell| *cell == row.cell)
                && filter.phase.is_none_or(|phase| Some(phase) == row.phase)
                && filter.parked.is_none_or(|parked| parked == row.parked)
        };
        let found = state.instances.values().filter(|(_, row)| is_after(&row.id, after) && fits(row));
        Ok(found.take(limit).map(|(version, row)| state.record(*version, row)).collect())
    }

    async fn counts(&self) -> Result<Vec<(CellName, Option<Phase>, u64)>, StoreError> {
        let mut counts = BTreeMap::new();
        for (_, row) in self.state().instances.values() {
            *counts.entry((row.cell.clone(), row.phase)).or_insert(0) += 1;
        }
        Ok(counts.into_iter().map(|((cell, phase), count)| (cell, phase, count)).collect())
    }

    async fn claim(&self, claim: &Claim) -> Result<Vec<Record>, StoreError> {
        let mut state = self.state();
        let State { sharing, due, instances, .. } = &mut *state;
        sharing.check(claim.epoch)?;
        let due = due.instances(&claim.cell, claim.lane, claim.now, claim.after.as_ref());
        let free = due.filter(|id| instances.contains_key(*id) && sharing.claim(claim.epoch, id).is_some());
        let ids: Vec<_> = free.take(claim.limit).cloned().collect();
        let found = ids.iter().filter_map(|id| state.instances.get(id));
        Ok(found.map(|(version, row)| state.record(*version, row)).collect())
    }

    async fn claim_instance(&self, epoch: u64, id: &InstanceId) -> Result<Taken, StoreError> {
        let mut state = self.state();
        state.sharing.check(epoch)?;
        if !state.instances.contains_key(id) {
            return Ok(Taken::Absent);
        }
        if state.sharing.claim(epoch, id).is_none() {
            return Ok(Taken::Elsewhere);
        }
        let (version, row) = &state.instances[id];
        Ok(Taken::Here(state.record(*version, row)))
    }

    async fn release(&self, epoch: u64, id: &InstanceId, version: u64) -> Result<bool, StoreError> {
        let mut state = self.state();
        let is_as_it_was = state.instances.get(id).is_some_and(|(now, _)| *now == version);
        Ok(is_as_it_was && state.sharing.release(epoch, id))
    }

    async fn next_due(&self, cell: &CellName, now: Timestamp) -> Result<Option<Timestamp>, StoreError> {
        Ok(self.state().due.next(cell, now))
    }

    async fn due_incarnations(
        &self,
        cell: &CellName,
        now: Timestamp,
        limit: usize,
    ) -> Result<Vec<IncarnationRow>, StoreError> {
        let state = self.state();
        let due = state.due.incarnations(cell, now).filter_map(|incarnation| state.incarnations.get(incarnation));
        Ok(due.take(limit).cloned().collect())
    }

    async fn claim_incarnations(
        &self,
        epoch: u64,
        cell: &CellName,
        now: Timestamp,
        limit: usize,
    ) -> Result<Vec<IncarnationRow>, StoreError> {
        let mut state = self.state();
        let State { sharing, due, incarnations, .. } = &mut *state;
        sharing.check(epoch)?;
        let due = due.incarnations(cell, now).filter(|incarnation| sharing.claim_making(epoch, **incarnation));
        Ok(due.filter_map(|incarnation| incarnations.get(incarnation)).take(limit).cloned().collect())
    }

    async fn incarnations(&self, of: &[Incarnation]) -> Result<Vec<Option<IncarnationRow>>, StoreError> {
        let state = self.state();
        Ok(of.iter().map(|incarnation| state.incarnations.get(incarnation).cloned()).collect())
    }

    async fn operation(&self, id: &OperationId) -> Result<Option<Operation>, StoreError> {
        let state = self.state();
        Ok(state.operations.get(id).cloned().or_else(|| state.sharing.operation(id)))
    }

    async fn ended(&self, of: &[OperationId]) -> Result<Vec<OperationId>, StoreError> {
        let state = self.state();
        let has_ended = |id: &&OperationId| state.operations.get(*id).is_some_and(|found| found.state.is_ended());
        Ok(of.iter().filter(has_ended).cloned().collect())
    }

    async fn inbox(&self, epoch: u64, limit: usize) -> Result<Vec<Submitted>, StoreError> {
        let mut state = self.state();
        state.sharing.check(epoch)?;
        Ok(state.sharing.requests(epoch, limit))
    }

    async fn operation_of_key(&self, key: &IdempotencyKey) -> Result<Option<Operation>, StoreError> {
        let state = self.state();
        let taken_in = || state.keys.get(key).and_then(|id| state.operations.get(id)).cloned();
        Ok(state.sharing.operation_of_key(key).or_else(taken_in))
    }

    async fn provisioning_times(&self, since: Timestamp, limit: usize) -> Result<Vec<(u64, bool)>, StoreError> {
        let state = self.state();
        let mut ended: Vec<_> = state
            .operations
            .values()
            .filter(|operation| operation.verb == Verb::Create)
            .filter(|operation| matches!(operation.state, OperationState::Done | OperationState::Failed))
            .filter_map(|operation| Some((operation.ended_at?, operation)))
            .filter(|(ended_at, _)| *ended_at >= since)
            .collect();
        ended.sort_by(|(one, a), (other, b)| (other, &b.id).cmp(&(one, &a.id)));
        let time = |(ended_at, operation): (Timestamp, &Operation)| {
            let ms = ended_at.unix_ms().saturating_sub(operation.accepted_at.unix_ms());
            (u64::try_from(ms).unwrap_or(0), operation.state == OperationState::Done)
        };
        Ok(ended.into_iter().take(limit).map(time).collect())
    }

    async fn events(&self, instance: Option<&InstanceId>, after: u64, limit: usize) -> Result<Vec<Event>, StoreError> {
        let state = self.state();
        let of = |event: &&Event| instance.is_none_or(|id| event.event.instance.as_ref() == Some(id));
        let Some(next) = after.checked_add(1) else { return Ok(Vec::new()) };
        Ok(state.events.range(next..).map(|(_, event)| event).filter(of).take(limit).cloned().collect())
    }

    fn positions(&self) -> watch::Receiver<u64> {
        self.positions.subscribe()
    }

    async fn data(
        &self,
        tenant: Option<&TenantId>,
        after: Option<&DataId>,
        limit: usize,
    ) -> Result<Vec<DataRow>, StoreError> {
        let state = self.state();
        let fits = |row: &&DataRow| is_after(&row.id, after) && tenant.is_none_or(|tenant| *tenant == row.tenant);
        Ok(state.data.values().filter(fits).take(limit).cloned().collect())
    }

    async fn data_set(&self, id: &DataId) -> Result<Option<DataRow>, StoreError> {
        Ok(self.state().data.get(id).cloned())
    }

    async fn strangers(&self) -> Result<Vec<Stranger>, StoreError> {
        let mut strangers: Vec<_> = self.state().strangers.values().cloned().collect();
        // By text, as in the other stores.
        strangers.sort_by_cached_key(|stranger| stranger.incarnation.to_string());
        Ok(strangers)
    }

    async fn cells(&self) -> Result<Vec<CellRow>, StoreError> {
        Ok(self.state().cells.values().cloned().collect())
    }

    async fn usage(&self, cell: &CellName) -> Result<CellUsage, StoreError> {
        Ok(self.state().usage(cell))
    }

    async fn cells_in_use(&self) -> Result<Vec<CellName>, StoreError> {
        let state = self.state();
        let is_open = |row: &&IncarnationRow| row.due_at.is_some() || row.state != IncarnationState::Ended;
        let mut cells: Vec<_> = state
            .instances
            .values()
            .map(|(_, row)| &row.cell)
            .chain(state.incarnations.values().filter(is_open).map(|row| &row.cell))
            .chain(state.data.values().map(|row| &row.cell))
            .chain(state.strangers.values().map(|row| &row.cell))
            .cloned()
            .collect();
        cells.sort();
        cells.dedup();
        Ok(cells)
    }

    async fn frozen(&self) -> Result<bool, StoreError> {
        Ok(self.state().frozen)
    }

    async fn prune(&self, before: Timestamp, limit: usize) -> Result<Pruned, StoreError> {
        Ok(self.state().prune(before, limit))
    }
}
