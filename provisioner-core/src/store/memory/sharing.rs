//! Sessions, claims and signals: who may write, and who works on what.

use std::{collections::BTreeMap, fmt, mem, sync::Arc, time::Duration};

use futures::stream::BoxStream;

use crate::{
    seams::Clock,
    store::{
        Change, Claiming, InstanceWrite, Operation, Renewal, Session, Signal, StoreError, Submitted, Worker,
        signals::Signals,
    },
    types::{IdempotencyKey, Incarnation, InstanceId, OperationId, Timestamp},
};

/// How several sessions share the store: by whose clock they lapse, and after how much silence.
#[derive(Clone)]
struct Rules {
    clock: Arc<dyn Clock>,
    lapses_after: Duration,
    signals: Signals,
}

/// The sessions, and what each works on.
#[derive(Default)]
pub(super) struct Sharing {
    /// None: one session at a time, which works on everything.
    rules: Option<Rules>,
    newest: u64,
    /// Those in force, and until when.
    open: BTreeMap<u64, Timestamp>,
    claims: BTreeMap<InstanceId, Claimed>,
    makings: BTreeMap<Incarnation, u64>,
    requests: BTreeMap<u64, (Submitted, u64)>,
    last_request: u64,
}

/// Who works on an instance.
#[derive(Debug, Clone, Copy)]
struct Claimed {
    epoch: u64,
    taken_over: bool,
}

impl Sharing {
    pub(super) fn by(clock: Arc<dyn Clock>, lapses_after: Duration) -> Self {
        let rules = Rules { clock, lapses_after, signals: Signals::new() };
        Self { rules: Some(rules), ..Self::default() }
    }

    fn now(&self) -> Timestamp {
        self.shown().unwrap_or(Timestamp::from_unix_ms(0))
    }

    /// What the clock shows by which sessions lapse; none where none do.
    fn shown(&self) -> Option<Timestamp> {
        self.rules.as_ref().map(|rules| rules.clock.now())
    }

    pub(super) fn open(&mut self) -> Session {
        self.newest += 1;
        let lapses_after = self.rules.as_ref().map(|rules| rules.lapses_after);
        if lapses_after.is_none() {
            self.open.clear();
        }
        self.open.insert(self.newest, self.lapses_at());
        Session { epoch: self.newest, lapses_after, now: self.shown() }
    }

    fn lapses_at(&self) -> Timestamp {
        self.rules
            .as_ref()
            .map_or(Timestamp::from_unix_ms(i64::MAX), |rules| rules.clock.now().after(rules.lapses_after))
    }

    pub(super) fn renew(&mut self, epoch: u64) -> Result<Renewal, StoreError> {
        self.check(epoch)?;
        let now = self.now();
        self.open.retain(|_, until| now < *until);
        self.open.insert(epoch, self.lapses_at());
        Ok(Renewal { in_force: self.open.keys().copied().collect(), now: self.shown() })
    }

    pub(super) fn close(&mut self, epoch: u64) {
        if self.open.remove(&epoch).is_some() {
            self.tell(Signal::Missed);
        }
    }

    pub(super) fn check(&self, epoch: u64) -> Result<(), StoreError> {
        if self.is_in_force(epoch) { Ok(()) } else { Err(StoreError::SessionLost) }
    }

    fn is_in_force(&self, epoch: u64) -> bool {
        self.open.get(&epoch).is_some_and(|until| self.now() < *until)
    }

    /// Ends a session that lapsed, as something is taken from it: whatever the clock shows later, it does not come back to that.
    fn end(&mut self, epoch: u64) {
        self.open.remove(&epoch);
    }

    /// Claims an instance, unless another session in force works on it. `Some`: whether the one before lapsed over it.
    pub(super) fn claim(&mut self, epoch: u64, id: &InstanceId) -> Option<bool> {
        if self.rules.is_none() {
            return Some(false);
        }
        let before = self.claims.get(id).copied();
        let taken_over = match before {
            Some(claimed) if claimed.epoch == epoch => claimed.taken_over,
            Some(claimed) if self.is_in_force(claimed.epoch) => return None,
            Some(claimed) => {
                self.end(claimed.epoch);
                true
            }
            None => false,
        };
        self.claims.insert(id.clone(), Claimed { epoch, taken_over });
        Some(taken_over)
    }

    /// Gives a claim up; whether there was one of this session, in force, that nobody has to know of.
    pub(super) fn release(&mut self, epoch: u64, id: &InstanceId) -> bool {
        let is_given_up = self.is_in_force(epoch)
            && self.claims.get(id).is_some_and(|claimed| claimed.epoch == epoch && !claimed.taken_over);
        if is_given_up {
            self.claims.remove(id);
        }
        is_given_up
    }

    /// Whether a session that lapsed worked on it, as far as nobody has written since.
    pub(super) fn is_taken_over(&self, id: &InstanceId) -> bool {
        self.claims.get(id).is_some_and(|claimed| claimed.taken_over)
    }

    /// Claims a making that is to be looked for; whether nobody else looks for it.
    pub(super) fn claim_making(&mut self, epoch: u64, making: Incarnation) -> bool {
        let other = self.makings.get(&making).copied().filter(|other| *other != epoch);
        if self.rules.is_none() || other.is_some_and(|other| self.is_in_force(other)) {
            return self.rules.is_none();
        }
        other.into_iter().for_each(|lapsed| self.end(lapsed));
        self.makings.insert(making, epoch);
        true
    }

    /// Refuses a change of who says that it works on the instance, and does not.
    pub(super) fn check_claim(&self, change: &Change) -> Result<(), StoreError> {
        let works = matches!(change.claiming, Claiming::Keep | Claiming::Release);
        if self.rules.is_none() || !works {
            return Ok(());
        }
        let Some(write) = &change.instance else { return Ok(()) };
        let own = self.claims.get(write.id()).map(|claimed| claimed.epoch);
        if own.is_some() && own == change.epoch { Ok(()) } else { Err(StoreError::Stale) }
    }

    /// Who works on the instance of a change that is taken, and says so to whom it may concern.
    pub(super) fn take(&mut self, change: &Change) -> Worker {
        if self.rules.is_none() {
            return Worker::Here;
        }
        for making in &change.incarnations {
            self.makings.remove(&making.incarnation);
        }
        if change.frozen.is_some() || !change.cells.is_empty() {
            self.tell(Signal::Decided);
        }
        let Some(write) = &change.instance else { return Worker::Nobody };
        let worker = self.worker(change, write);
        match (worker, write.row()) {
            (Worker::Elsewhere, _) => {
                let epoch = self.claims.get(write.id()).map_or(0, |claimed| claimed.epoch);
                self.tell(Signal::Touched { epoch, instance: write.id().clone() });
            }
            (Worker::Nobody, Some(row)) if change.claiming == Claiming::Leave && row.due_at.is_some() => {
                self.tell(Signal::Due(row.cell.clone()));
            }
            _ => {}
        }
        if write.row().is_none() {
            self.claims.remove(write.id());
        }
        worker
    }

    fn worker(&mut self, change: &Change, write: &InstanceWrite) -> Worker {
        let epoch = change.epoch.unwrap_or_default();
        let id = write.id();
        match change.claiming {
            Claiming::Keep => {
                self.claims.insert(id.clone(), Claimed { epoch, taken_over: false });
                Worker::Here
            }
            Claiming::Release => {
                self.claims.remove(id);
                Worker::Nobody
            }
            Claiming::Take if epoch != 0 => match self.claim(epoch, id) {
                None => Worker::Elsewhere,
                Some(true) => Worker::TakenOver,
                Some(false) => Worker::Here,
            },
            Claiming::Take | Claiming::Leave => match self.claims.get(id) {
                Some(claimed) if claimed.epoch == epoch && claimed.taken_over => Worker::TakenOver,
                Some(claimed) if claimed.epoch == epoch => Worker::Here,
                Some(claimed) if self.is_in_force(claimed.epoch) => Worker::Elsewhere,
                _ => Worker::Nobody,
            },
        }
    }

    fn tell(&self, signal: Signal) {
        if let Some(rules) = &self.rules {
            rules.signals.tell(signal);
        }
    }

    pub(super) fn signals(&self) -> Option<BoxStream<'static, Signal>> {
        self.rules.as_ref().map(|rules| rules.signals.stream())
    }

    // The inbox

    /// Puts a request into the inbox; its place there is given to it.
    pub(super) fn submit(&mut self, request: Submitted) -> u64 {
        self.last_request += 1;
        let number = self.last_request;
        self.requests.insert(number, (Submitted { number, ..request }, 0));
        self.tell(Signal::Submitted);
        number
    }

    /// The oldest request of each instance, claimed.
    pub(super) fn requests(&mut self, epoch: u64, limit: usize) -> Vec<Submitted> {
        let mut seen = std::collections::BTreeSet::new();
        let oldest: Vec<u64> = self
            .requests
            .iter()
            .filter(|(_, (request, _))| seen.insert(request.instance.clone()))
            .filter(|(_, (_, by))| *by == epoch || !self.is_in_force(*by))
            .map(|(number, _)| *number)
            .take(limit)
            .collect();
        let mut claimed = Vec::new();
        for number in oldest {
            if let Some((request, by)) = self.requests.get_mut(&number) {
                let before = mem::replace(by, epoch);
                claimed.push(request.clone());
                if before != epoch {
                    self.end(before);
                }
            }
        }
        claimed
    }

    /// The operation that a request which waits here will become.
    pub(super) fn operation(&self, id: &OperationId) -> Option<Operation> {
        self.requests.values().find(|(request, _)| request.operation == *id).map(|(request, _)| request.pending())
    }

    /// The same, of a request with this key.
    pub(super) fn operation_of_key(&self, key: &IdempotencyKey) -> Option<Operation> {
        let of_key = |(request, _): &&(Submitted, u64)| request.key.as_ref() == Some(key);
        self.requests.values().rfind(of_key).map(|(request, _)| request.pending())
    }

    /// Refuses to answer a request that is not there any more.
    pub(super) fn check_answer(&self, change: &Change) -> Result<(), StoreError> {
        match change.answers {
            Some(number) if !self.requests.contains_key(&number) => Err(StoreError::Answered),
            _ => Ok(()),
        }
    }

    pub(super) fn answer(&mut self, change: &Change) {
        if let Some(number) = change.answers {
            self.requests.remove(&number);
        }
    }
}

impl fmt::Debug for Sharing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sharing")
            .field("shared", &self.rules.is_some())
            .field("open", &self.open)
            .finish_non_exhaustive()
    }
}
