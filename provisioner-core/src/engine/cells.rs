//! One loop per cell: takes what is due, runs it within the cell's bounds, and sleeps until the next thing is due.
//!
//! Nothing is shared between the loops, so one sick cell does not slow the others.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
    time::Duration,
};

use futures::{FutureExt, StreamExt, future::OptionFuture, stream::BoxStream};
use tokio::{sync::Notify, task::JoinSet, time::Instant};
use tracing::{Instrument, error, info_span, warn};

use super::{
    Engine,
    drift::DriftGuard,
    queue::{Claimed, Queue, Work},
    remnants,
    run::{Next, run},
};
use crate::{
    context::Priority,
    error::{Chain, Error, ErrorKind, Result},
    placement::Cell,
    provisioner::Provisioner,
    store::{CellRow, Change, Claim, Lane, Record},
    types::{Capabilities, CellName, InstanceId, Timestamp},
};

/// How long to wait before what failed for reasons outside the instance is tried again.
const PAUSE: Duration = Duration::from_secs(1);
/// How many events are taken in before other work has its turn.
const EVENTS_AT_ONCE: usize = 256;
/// The longest sleep. The machine's wall clock may be set forward while the loop sleeps by the steady one.
const SLEEP_MAX: Duration = Duration::from_secs(3600);

/// How many instances it is remembered of that this process let go of them.
const LET_GO_MAX: usize = 4096;

/// At which versions this process last let go of instances that others may work on since, the newest of them.
#[derive(Debug, Default)]
struct LetGo {
    versions: BTreeMap<InstanceId, u64>,
    order: VecDeque<(InstanceId, u64)>,
}

impl LetGo {
    fn note(&mut self, id: &InstanceId, version: u64) {
        self.versions.insert(id.clone(), version);
        self.order.push_back((id.clone(), version));
        if self.order.len() > LET_GO_MAX
            && let Some((id, version)) = self.order.pop_front()
            && self.versions.get(&id) == Some(&version)
        {
            self.versions.remove(&id);
        }
    }
}

/// A cell at work.
#[derive(Debug)]
pub(crate) struct CellHandle {
    pub(crate) name: CellName,
    pub(crate) cell: Cell,
    pub(crate) capabilities: Capabilities,
    queue: Mutex<Queue>,
    /// How many instances may wait in the queue.
    room: usize,
    wake: Notify,
    /// Whether ended makings may be due to be looked for.
    remnants_due: AtomicBool,
    /// Whether the provider was seen to be another one.
    is_another: AtomicBool,
    /// Since when the provider can be worked with, in Unix milliseconds.
    available_since: AtomicI64,
    /// Why the provider cannot be worked with at the moment.
    unavailable: Mutex<Option<String>>,
    /// Calls that were made and whose answers are not in the store yet. Whoever looks next must know of them: reads may
    /// lag behind.
    unrecorded: Mutex<BTreeMap<InstanceId, Timestamp>>,
    /// None where no other process works on the same cell.
    let_go: Option<Mutex<LetGo>>,
    pub(crate) guard: DriftGuard,
}

impl CellHandle {
    /// `is_shared`: whether other processes work on the same cell. What waits here waits for them too, so that no more is
    /// claimed than keeps this one at work.
    pub(crate) fn new(cell: Cell, drift_frozen: bool, is_shared: bool) -> Self {
        let room = if is_shared { cell.calls_max.saturating_mul(4) } else { usize::MAX };
        Self {
            name: cell.name.clone(),
            capabilities: cell.provisioner.capabilities(),
            cell,
            queue: Mutex::new(Queue::with_room(room)),
            room,
            wake: Notify::new(),
            remnants_due: AtomicBool::new(true),
            is_another: AtomicBool::new(false),
            available_since: AtomicI64::new(i64::MIN),
            unavailable: Mutex::default(),
            unrecorded: Mutex::default(),
            let_go: is_shared.then(Mutex::default),
            guard: DriftGuard::new(drift_frozen),
        }
    }

    pub(crate) fn provisioner(&self) -> &Arc<dyn Provisioner> {
        &self.cell.provisioner
    }

    fn queue(&self) -> std::sync::MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says that an instance is worth looking at.
    pub(crate) fn offer(&self, id: InstanceId, lane: Lane, record: Option<Claimed>) {
        self.queue().offer(id, lane, record);
        self.wake.notify_one();
    }

    /// Whether somebody who waits need not wait for long.
    pub(crate) fn has_room(&self) -> bool {
        self.queue().has_room(Lane::Interactive)
    }

    /// Has the store asked again for all that is due.
    pub(crate) fn rescan(&self) {
        for lane in Lane::ALL {
            self.queue().set_behind(lane, true);
        }
        self.remnants_due.store(true, Ordering::SeqCst);
        self.wake.notify_one();
    }

    /// Why the provider cannot be worked with at the moment; its instances wait.
    pub(crate) fn unavailable(&self) -> Option<String> {
        self.unavailable.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Since when the provider can be worked with: time before that counts for no deadline.
    pub(crate) fn available_since(&self) -> Timestamp {
        Timestamp::from_unix_ms(self.available_since.load(Ordering::SeqCst))
    }

    fn set_unavailable(&self, why: Option<String>) {
        *self.unavailable.lock().unwrap_or_else(PoisonError::into_inner) = why;
    }

    /// A call for an instance is about to be made.
    pub(crate) fn call_begins(&self, id: &InstanceId, now: Timestamp) {
        self.unrecorded.lock().unwrap_or_else(PoisonError::into_inner).insert(id.clone(), now);
    }

    /// What came of the last call for an instance is in the store.
    pub(crate) fn call_is_recorded(&self, id: &InstanceId) {
        self.unrecorded.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
    }

    /// The last call for an instance that is not in the store.
    pub(crate) fn unrecorded_call(&self, id: &InstanceId) -> Option<Timestamp> {
        self.unrecorded.lock().unwrap_or_else(PoisonError::into_inner).get(id).copied()
    }

    /// This process works on an instance no more, as of this version of its row.
    pub(crate) fn let_go(&self, id: &InstanceId, version: u64) {
        if let Some(let_go) = &self.let_go {
            let_go.lock().unwrap_or_else(PoisonError::into_inner).note(id, version);
        }
    }

    /// Whether a record of this version was claimed before this process let go of the instance: answers of the store are late now
    /// and then, and another process may work on it since.
    pub(crate) fn was_let_go(&self, id: &InstanceId, version: u64) -> bool {
        let Some(let_go) = &self.let_go else { return false };
        let let_go = let_go.lock().unwrap_or_else(PoisonError::into_inner);
        let_go.versions.get(id).is_some_and(|last| version <= *last)
    }

    /// The provider was seen to be another one than the store knows: no more work there until it is itself again.
    pub(crate) fn stop_until_identified(&self) {
        self.is_another.store(true, Ordering::SeqCst);
        self.wake.notify_one();
    }

    /// Says that something of the cell is due at this time: it is in the store.
    pub(crate) fn note_due(&self, due: Timestamp) {
        self.queue().note_due(due);
        self.wake.notify_one();
    }
}

/// The loop of one cell, until the engine is cancelled; then it waits for what runs.
pub(crate) async fn work(engine: Arc<Engine>, cell: Arc<CellHandle>) {
    while !engine.cancel.is_cancelled() {
        let looped = CellLoop::new(Arc::clone(&engine), Arc::clone(&cell)).work();
        if std::panic::AssertUnwindSafe(looped).catch_unwind().await.is_ok() {
            return;
        }
        error!(cell = %cell.name, "the loop of a cell ended with a panic; it starts again");
        // What it was working on was dropped: the store knows all of it.
        *cell.queue() = Queue::with_room(cell.room);
        tokio::time::sleep(PAUSE).await;
    }
}

/// Waits until the provider is reached and is the one that the store knows.
async fn until_identified(engine: &Engine, cell: &CellHandle) -> bool {
    let mut pause = PAUSE;
    loop {
        let identified = tokio::select! {
            biased;
            () = engine.cancel.cancelled() => return false,
            identified = identify(engine, cell) => identified,
        };
        match identified {
            Ok(()) => {
                cell.available_since.store(engine.now().unix_ms(), Ordering::SeqCst);
                cell.set_unavailable(None);
                return true;
            }
            Err(error) => {
                cell.set_unavailable(Some(Chain(&error).to_string()));
                error!(cell = %cell.name, error = %Chain(&error), "the cell is unavailable; its instances wait");
            }
        }
        tokio::select! {
            biased;
            () = engine.cancel.cancelled() => return false,
            () = tokio::time::sleep(pause) => pause = (pause * 2).min(Duration::from_secs(60)),
        }
    }
}

/// Checks that the provider is the one that the store knows, or writes down which it is.
pub(crate) async fn identify(engine: &Engine, cell: &CellHandle) -> Result<()> {
    let cx = engine.context(Priority::Background).with_timeout(engine.config.call_timeout);
    let asked = tokio::time::timeout(engine.config.call_timeout, cell.provisioner().identity(&cx));
    let identity = engine.seams.calling(asked).await.map_err(|_| super::run::lost_answer("identify"))??;
    let rows = engine.store.cells().await.map_err(|error| error.into_error("identify"))?;
    let known = rows.into_iter().find(|row| row.name == cell.name);
    match known.as_ref().and_then(|row| row.identity.clone()) {
        Some(known) if known == identity => Ok(()),
        Some(known) => Err(Error::new(ErrorKind::Conflict, "identify").with_message(format!(
            "cell {} is {identity:?} now and was {known:?}: its instances are elsewhere, not gone",
            cell.name
        ))),
        None => {
            let drift_frozen = known.and_then(|row| row.drift_frozen);
            let row = CellRow { name: cell.name.clone(), identity: Some(identity), drift_frozen };
            let change = Change { epoch: Some(engine.tenure.epoch()), cells: vec![row], ..Change::default() };
            engine.commit(change).await.map(drop).map_err(|error| error.into_error("identify"))
        }
    }
}

struct CellLoop {
    engine: Arc<Engine>,
    cell: Arc<CellHandle>,
    runs: JoinSet<(InstanceId, Next)>,
    remnants: Option<tokio::task::JoinHandle<()>>,
    /// Where the last claim of each lane ended.
    cursors: [Option<(Timestamp, InstanceId)>; 2],
    /// The earliest time at which something is due by itself.
    next_due: Option<Timestamp>,
    events: Option<BoxStream<'static, InstanceId>>,
    events_again: Instant,
}

impl CellLoop {
    fn new(engine: Arc<Engine>, cell: Arc<CellHandle>) -> Self {
        Self {
            engine,
            cell,
            runs: JoinSet::new(),
            remnants: None,
            cursors: [None, None],
            next_due: None,
            events: None,
            events_again: Instant::now(),
        }
    }

    async fn work(mut self) {
        self.cell.stop_until_identified();
        loop {
            if self.engine.cancel.is_cancelled() {
                break;
            }
            if self.cell.is_another.swap(false, Ordering::SeqCst) && !until_identified(&self.engine, &self.cell).await {
                break;
            }
            self.open_events().await;
            let mut filled = true;
            if !self.engine.is_frozen() {
                filled = self.fill().await;
                self.start_remnants();
            }
            self.start_runs();
            let noted = self.cell.queue().take_due();
            self.next_due = [self.next_due, noted].into_iter().flatten().min();
            let timer = self.timer(filled);
            // In this order, so that a run on a virtual clock can be repeated. Nobody starves: whatever is ready is taken in below.
            tokio::select! {
                biased;
                () = self.engine.cancel.cancelled() => break,
                Some(ended) = self.runs.join_next() => self.ended(ended),
                () = self.cell.wake.notified() => {}
                Some(event) = OptionFuture::from(self.events.as_mut().map(StreamExt::next)) => self.event(event),
                Some(()) = OptionFuture::from(timer.map(tokio::time::sleep)) => {}
            }
            self.take_in();
        }
        // A call that was sent is seen through, and its answer recorded.
        while self.runs.join_next().await.is_some() {}
        if let Some(remnants) = self.remnants.take()
            && remnants.await.is_err()
        {
            warn!(cell = %self.cell.name, "looking for remnants ended with a panic");
        }
    }

    /// Takes in whatever is ready: one look at the queue serves it all.
    fn take_in(&mut self) {
        while let Some(ended) = self.runs.try_join_next() {
            self.ended(ended);
        }
        for _ in 0..EVENTS_AT_ONCE {
            let Some(event) = self.events.as_mut().and_then(|events| events.next().now_or_never()) else { break };
            self.event(event);
        }
        if self.next_due.is_some_and(|due| due <= self.engine.now()) {
            self.next_due = None;
            self.cell.rescan();
        }
    }

    fn event(&mut self, event: Option<InstanceId>) {
        match event {
            // Somebody may be waiting for just this.
            Some(id) => self.cell.queue().offer(id, Lane::Interactive, None),
            None => {
                self.events = None;
                self.events_again = Instant::now() + PAUSE;
            }
        }
    }

    /// How long to sleep when nothing happens; for ever when nothing is due.
    fn timer(&self, filled: bool) -> Option<Duration> {
        let due = self.next_due.map(|due| due.since(self.engine.now()).clamp(Duration::from_millis(1), SLEEP_MAX));
        let events = (self.events.is_none() && self.cell.capabilities.watch)
            .then(|| self.events_again.saturating_duration_since(Instant::now()));
        let store = (!filled).then_some(PAUSE);
        [due, events, store].into_iter().flatten().min()
    }

    async fn open_events(&mut self) {
        if self.events.is_none() && self.cell.capabilities.watch && Instant::now() >= self.events_again {
            let cx = self.engine.context(Priority::Background);
            let opening = async { self.cell.provisioner().watch(&cx) };
            self.events = Some(self.engine.seams.calling(opening).await);
        }
    }

    /// Fills the window from the store. False: the store failed.
    async fn fill(&mut self) -> bool {
        for lane in Lane::ALL {
            while let Some(limit) = self.begin_claim(lane) {
                let claim = Claim {
                    epoch: self.engine.tenure.epoch(),
                    cell: self.cell.name.clone(),
                    lane,
                    now: self.engine.now(),
                    after: self.cursors[lane as usize].take(),
                    limit,
                };
                let Some(records) = self.claim(&claim).await else {
                    self.cell.queue().set_behind(lane, true);
                    return false;
                };
                let last = records.last().filter(|_| records.len() == limit);
                let cursor = last.and_then(|record| Some((record.row.due_at?, record.row.id.clone())));
                // After a pass that did not start at the beginning, another one does: something earlier may have found
                // no room.
                let more = cursor.is_some() || claim.after.is_some();
                self.cursors[lane as usize] = cursor;
                let mut queue = self.cell.queue();
                queue.offer_claimed(claim.epoch, records, lane);
                if more {
                    queue.set_behind(lane, true);
                }
                drop(queue);
                // One pass over what is due is enough at a time: what fills the places meanwhile must run, too.
                if self.cursors[lane as usize].is_none() || self.engine.cancel.is_cancelled() {
                    break;
                }
            }
        }
        true
    }

    /// How many rows to claim. From here on, whatever finds no room says so anew.
    fn begin_claim(&self, lane: Lane) -> Option<usize> {
        let mut queue = self.cell.queue();
        let limit = queue.wanted(lane)? + queue.depth().1;
        queue.set_behind(lane, false);
        Some(limit)
    }

    async fn claim(&mut self, claim: &Claim) -> Option<Vec<Record>> {
        let result = async {
            let records = self.engine.store.claim(claim).await?;
            if records.len() < claim.limit {
                let next = self.engine.store.next_due(&self.cell.name, claim.now).await?;
                self.next_due = [self.next_due, next].into_iter().flatten().min();
            }
            Ok(records)
        };
        match result.await {
            Ok(records) => Some(records),
            Err(error) => {
                self.engine.store_error(&error, claim.epoch);
                warn!(cell = %self.cell.name, error = %Chain(&error), "could not read what is due");
                None
            }
        }
    }

    fn start_runs(&mut self) {
        loop {
            // Each process takes its share of what may be under way.
            let share = self.cell.cell.calls_max.div_ceil(self.engine.tenure.replicas() as usize);
            let work = self.cell.queue().pop(share);
            let Some(work) = work else { break };
            let (engine, cell) = (Arc::clone(&self.engine), Arc::clone(&self.cell));
            self.runs.spawn(run_one(engine, cell, work));
        }
        let (waiting, running) = self.cell.queue().depth();
        #[expect(clippy::cast_precision_loss, reason = "a gauge")]
        for (state, depth) in [("waiting", waiting as f64), ("running", running as f64)] {
            metrics::gauge!("provisioner_queue_depth", "cell" => self.cell.name.to_string(), "state" => state)
                .set(depth);
        }
    }

    fn ended(&mut self, ended: Result<(InstanceId, Next), tokio::task::JoinError>) {
        // The run catches panics itself, so a task ends without an answer only when the runtime shuts down.
        let Ok((id, next)) = ended else { return };
        let mut queue = self.cell.queue();
        match next {
            Next::Rest => {}
            // The store knows that it is due, and is asked again once work goes on.
            Next::Frozen => Lane::ALL.into_iter().for_each(|lane| queue.set_behind(lane, true)),
            Next::Due(due) => queue.note_due(due),
            Next::Again | Next::StoreFailed => queue.offer(id.clone(), Lane::Interactive, None),
        }
        queue.finish(&id);
    }

    fn start_remnants(&mut self) {
        let idle = self.remnants.as_ref().is_none_or(tokio::task::JoinHandle::is_finished);
        if idle && self.cell.remnants_due.swap(false, Ordering::SeqCst) {
            let (engine, cell) = (Arc::clone(&self.engine), Arc::clone(&self.cell));
            self.remnants = Some(tokio::spawn(async move {
                remnants::look(&engine, &cell).await;
                // Whatever became due meanwhile is looked for in another round.
                cell.wake.notify_one();
            }));
        }
    }
}

async fn run_one(engine: Arc<Engine>, cell: Arc<CellHandle>, work: Work) -> (InstanceId, Next) {
    let id = work.id.clone();
    let span = info_span!("run", instance = %id, cell = %cell.name);
    let next = std::panic::AssertUnwindSafe(run(&engine, &cell, work).instrument(span)).catch_unwind().await;
    let next = next.unwrap_or_else(|_| {
        error!(instance = %id, "a run ended with a panic; the instance is looked at again");
        Next::StoreFailed
    });
    if next == Next::StoreFailed && !engine.cancel.is_cancelled() {
        // The place stays taken meanwhile, so a store that fails is not asked by everybody at once.
        tokio::time::sleep(PAUSE).await;
    }
    (id, next)
}
