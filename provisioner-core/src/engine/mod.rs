//! Makes intents true and keeps them true.
//!
//! [`plan()`] decides, `run` does what it says, `cells` keeps one loop per cell going, `drift` compares slowly, `remnants`
//! cleans up after calls that came too late. Only the [`ControlPlane`](crate::ControlPlane) talks to it.

/// Whether a bug is planted. Without the feature `planted-bugs` this is `false`, and nothing of it is compiled in.
macro_rules! is_planted {
    ($engine:expr, $bug:ident) => {{
        #[cfg(feature = "planted-bugs")]
        let planted = $engine.seams.planted == Some($crate::engine::PlantedBug::$bug);
        #[cfg(not(feature = "planted-bugs"))]
        let planted = {
            let _ = &$engine;
            false
        };
        planted
    }};
}
pub(crate) use is_planted;

mod backoff;
pub(crate) mod cells;
mod config;
pub(crate) mod draft;
pub(crate) mod drift;
mod plan;
#[cfg(feature = "planted-bugs")]
mod planted;
mod queue;
mod remnants;
mod run;
pub(crate) mod session;
mod shared_clock;
pub(crate) mod sharing;
pub(crate) mod time;
mod upkeep;
pub(crate) mod waiters;

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
    time::Duration,
};

use futures::{FutureExt, future::BoxFuture};
use tokio::sync::Notify;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::error;

pub use config::EngineConfig;
pub use drift::DriftReport;
pub use plan::{Step, plan};
#[cfg(feature = "planted-bugs")]
pub use planted::{PlantedBug, UnknownBug};

use self::{cells::CellHandle, draft::Draft, queue::Claimed, session::Tenure, time::Time, waiters::Waiters};
use crate::{
    context::{OpContext, Priority},
    error::{Chain, Effect, Error, ErrorKind, Result},
    provisioner::Provisioner,
    seams::Seams,
    secret::SecretResolver,
    store::{Change, Claiming, Committed, Lane, Record, Store, StoreError},
    types::{CellName, InstanceId, Timestamp},
};

/// What every part of a running control plane shares.
#[derive(Debug)]
pub(crate) struct Engine {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) config: EngineConfig,
    pub(crate) seams: Seams,
    time: Time,
    pub(crate) secrets: Arc<dyn SecretResolver>,
    pub(crate) cells: BTreeMap<CellName, Arc<CellHandle>>,
    pub(crate) waiters: Waiters,
    /// This process's session: every write carries its number.
    pub(crate) tenure: Tenure,
    /// How this process is called in the store's record of sessions.
    pub(crate) holder: String,
    /// Told when there may be requests in the inbox.
    pub(crate) inbox: Notify,
    pub(crate) started_at: Timestamp,
    /// Stops all work.
    pub(crate) cancel: CancellationToken,
    /// All work has stopped, and the session is not needed any more.
    at_rest: CancellationToken,
    pub(crate) tasks: TaskTracker,
    frozen: AtomicBool,
    /// Since when work goes on, in Unix milliseconds: the start, or the end of the last freeze.
    working_since: AtomicI64,
    /// When old rows were removed for the last time, in Unix milliseconds; the start, before that.
    pruned_at: AtomicI64,
}

/// What an engine is made of.
#[derive(Debug)]
pub(crate) struct EngineParts {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) config: EngineConfig,
    pub(crate) seams: Seams,
    pub(crate) time: Time,
    pub(crate) secrets: Arc<dyn SecretResolver>,
    pub(crate) cells: Vec<CellHandle>,
    pub(crate) tenure: Tenure,
    pub(crate) holder: String,
    pub(crate) frozen: bool,
}

impl Engine {
    /// Starts the loops of all cells.
    pub(crate) fn start(parts: EngineParts) -> Arc<Self> {
        let started_at = parts.time.now();
        let engine = Arc::new(Self {
            started_at,
            working_since: AtomicI64::new(started_at.unix_ms()),
            store: parts.store,
            config: parts.config,
            secrets: parts.secrets,
            cells: parts.cells.into_iter().map(|cell| (cell.name.clone(), Arc::new(cell))).collect(),
            waiters: Waiters::default(),
            tenure: parts.tenure,
            holder: parts.holder,
            inbox: Notify::new(),
            cancel: CancellationToken::new(),
            at_rest: CancellationToken::new(),
            tasks: TaskTracker::new(),
            frozen: AtomicBool::new(parts.frozen),
            pruned_at: AtomicI64::new(started_at.unix_ms()),
            seams: parts.seams,
            time: parts.time,
        });
        for cell in engine.cells.values() {
            engine.tasks.spawn(cells::work(Arc::clone(&engine), Arc::clone(cell)));
            engine.tasks.spawn(drift::patrol(Arc::clone(&engine), Arc::clone(cell)));
        }
        engine.tasks.spawn(upkeep::sort_out_cells(Arc::clone(&engine)));
        engine.tasks.spawn(sharing::listen(Arc::clone(&engine)));
        engine.tasks.spawn(sharing::tell_waiters(Arc::clone(&engine)));
        // Not one of those that a shutdown waits for: what is under way is recorded under this session.
        tokio::spawn(session::keep(Arc::clone(&engine)));
        engine
    }

    /// Stops new work, waits for calls in flight and their records, closes the session.
    pub(crate) async fn shutdown(&self) -> Result<(), StoreError> {
        self.cancel.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        self.at_rest.cancel();
        self.seams.durably(self.store.close_session(self.tenure.epoch())).await
    }

    pub(crate) fn now(&self) -> Timestamp {
        self.time.now()
    }

    /// When time last jumped. How long ago anything before that was is not known.
    pub(crate) fn jumped_at(&self) -> Timestamp {
        self.time.jumped_at()
    }

    pub(crate) fn is_frozen(&self) -> bool {
        self.frozen.load(Ordering::SeqCst)
    }

    /// Since when work goes on: time before that counts for no deadline.
    pub(crate) fn working_since(&self) -> Timestamp {
        Timestamp::from_unix_ms(self.working_since.load(Ordering::SeqCst))
    }

    /// Whether old rows are to be removed now: so the last time was an interval ago. Whoever asks removes them.
    pub(crate) fn is_prune_due(&self, now: Timestamp, interval: Duration) -> bool {
        let due = |last: i64| (now.since(Timestamp::from_unix_ms(last)) >= interval).then_some(now.unix_ms());
        self.pruned_at.fetch_update(Ordering::SeqCst, Ordering::SeqCst, due).is_ok()
    }

    pub(crate) fn set_frozen(&self, frozen: bool) {
        if !frozen {
            self.working_since.store(self.now().unix_ms(), Ordering::SeqCst);
        }
        self.frozen.store(frozen, Ordering::SeqCst);
        if !frozen {
            for cell in self.cells.values() {
                cell.rescan();
            }
        }
    }

    /// Says that a row which this session works on is worth looking at, when its cell is configured.
    pub(crate) fn offer(&self, epoch: u64, record: Record, lane: Lane) {
        if let Some(cell) = self.cells.get(&record.row.cell) {
            cell.offer(record.row.id.clone(), lane, Some(Claimed { epoch, record }));
        }
    }

    /// Which claim a request makes: none where there is no room for more work, or nothing is begun any more, so that another process
    /// can do it.
    pub(crate) fn claiming(&self, cell: &CellName) -> Claiming {
        match !self.cancel.is_cancelled() && self.cells.get(cell).is_some_and(|cell| cell.has_room()) {
            true => Claiming::Take,
            false => Claiming::Leave,
        }
    }

    /// A context for calls of this control plane, without deadline.
    pub(crate) fn context(&self, priority: Priority) -> OpContext {
        let mut cx = OpContext::new(self.store.control_plane().clone()).with_secrets(Arc::clone(&self.secrets));
        cx.priority = priority;
        cx.now = self.now();
        cx.replicas = self.tenure.replicas();
        // A token of its own: shutting down waits for what was sent instead of cutting it.
        cx.cancel = CancellationToken::new();
        cx
    }

    /// After so long no call can be under way any more, whoever made it.
    pub(crate) fn longest_call(&self, cell: &CellHandle) -> Duration {
        cell.capabilities.call_max.max(self.config.call_timeout)
    }

    /// The same for calls of a process that does not know yet that its session is over.
    pub(crate) fn latest_call(&self, cell: &CellHandle) -> Duration {
        self.longest_call(cell).saturating_add(self.tenure.lapses_after().unwrap_or_default())
    }

    /// Makes one call to a backend, within the time for one call. A panic of the backend is an error like any other.
    pub(crate) async fn call<T>(
        &self,
        cell: &CellHandle,
        cx: OpContext,
        operation: &'static str,
        instance: &InstanceId,
        call: impl FnOnce(OpContext, Arc<dyn Provisioner>) -> BoxFuture<'static, Result<T>>,
    ) -> Result<T> {
        let cx = cx.with_timeout(self.config.call_timeout);
        let cancel = cx.cancel.clone();
        let call = std::panic::AssertUnwindSafe(call(cx, Arc::clone(cell.provisioner()))).catch_unwind();
        let answer = match self.seams.calling(tokio::time::timeout(self.config.call_timeout, call)).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => {
                error!(%instance, operation, "the backend panicked");
                let error = Error::new(ErrorKind::Internal, operation).with_effect(Effect::Unknown);
                Err(error.with_message("the backend panicked"))
            }
            Err(_) => {
                cancel.cancel();
                Err(run::lost_answer(operation))
            }
        };
        answer.map_err(|error| if error.instance().is_none() { error.with_instance(instance) } else { error })
    }

    /// Commits a change. When another session took over, all work stops.
    pub(crate) async fn commit(&self, change: Change) -> Result<Committed, StoreError> {
        let epoch = change.epoch.unwrap_or_default();
        let ended = change.ended.clone();
        let committed = self.seams.durably(self.store.commit(change)).await;
        match &committed {
            Ok(_) => ended.iter().for_each(|end| self.waiters.ended_like(end)),
            Err(error) => self.store_error(error, epoch),
        }
        committed
    }

    /// The number that a write of this session carries.
    pub(crate) fn epoch_of_writes(&self, epoch: u64) -> Option<u64> {
        (!is_planted!(self, IgnoresEpoch)).then_some(epoch)
    }

    /// What a write of who works on an instance says about that.
    fn claiming_of_work(&self, claiming: Claiming) -> Claiming {
        if is_planted!(self, IgnoresClaims) { Claiming::Leave } else { claiming }
    }

    /// Whether calls may be begun under this session, which may be over by now.
    pub(crate) fn allows_calls(&self, epoch: u64) -> bool {
        self.tenure.allows_calls(epoch) || is_planted!(self, CallsWithoutSession)
    }

    /// Commits the draft's change under this session and begins the next one from there. What began under a session that is over
    /// is not written under the next one: another process may have worked on it in between.
    pub(crate) async fn write(&self, epoch: u64, draft: &mut Draft, claiming: Claiming) -> Result<(), StoreError> {
        let (change, row) = draft.to_change(self.epoch_of_writes(epoch), self.claiming_of_work(claiming));
        let committed = self.commit(change).await?;
        draft.committed(row, committed.version);
        Ok(())
    }

    /// Commits the removal of the draft's instance, likewise.
    pub(crate) async fn remove(&self, epoch: u64, draft: &Draft) -> Result<(), StoreError> {
        let removal = draft.to_removal(self.epoch_of_writes(epoch));
        self.commit(Change { claiming: self.claiming_of_work(removal.claiming), ..removal }).await.map(drop)
    }

    /// A process whose session ended must not go on: somebody else works on its instances. Where others share the store it goes
    /// on with another session; a store of one process is another process's now.
    pub(crate) fn store_error(&self, failure: &StoreError, epoch: u64) {
        if !matches!(failure, StoreError::SessionLost) || self.tenure.lose(epoch) || self.cancel.is_cancelled() {
            return;
        }
        error!(error = %Chain(failure), "another session took over: all work stops");
        self.cancel.cancel();
    }
}
