//! Where decisions are kept.
//!
//! [`Store::commit`] is the only write of decisions: a [`Change`] is taken whole or not at all, on conditions that are
//! checked in the same transaction. A state and the event that tells of it are one change.

mod condition;
#[cfg(any(feature = "sqlite", feature = "postgres"))]
mod format;
mod log;
mod memory;
mod open;
#[cfg(feature = "postgres")]
mod postgres;
mod rows;
mod sharing;
mod signals;
#[cfg(feature = "sqlite")]
mod sqlite;

use std::{fmt, sync::Arc};

use async_trait::async_trait;
use futures::stream::BoxStream;
use tokio::sync::watch;

pub use log::{Event, EventKind, NewEvent, Operation, OperationEnd, OperationState, Verb};
pub use memory::MemoryStore;
pub use open::open;
#[cfg(feature = "postgres")]
pub use postgres::{PostgresConfig, PostgresStore};
pub use rows::{
    Capacity, CellRow, CellUsage, DataRow, DataState, IncarnationRow, IncarnationState, InstanceRow, Lane,
    LiveIncarnation, Record, Reservation, Stranger,
};
pub use sharing::{Ask, Claiming, Renewal, Session, Signal, Submitted, Taken, Worker};
#[cfg(feature = "sqlite")]
pub use sqlite::{CommitMode, SqliteStore};

use crate::{
    error::{Effect, Error, ErrorKind},
    types::{
        CellName, ControlPlaneId, DataId, Generation, HostName, IdempotencyKey, Incarnation, InstanceId, InstanceSpec,
        OperationId, Phase, TenantId, Timestamp,
    },
};

/// Why the store did not do what was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The instance's row is not at the version that was expected. Read it again.
    #[error("the row changed since it was read")]
    Stale,
    /// There is an instance of this id already.
    #[error("there is an instance of this id already")]
    Exists,
    /// A host name belongs to another instance.
    #[error("the host name {0} is taken")]
    HostNameTaken(HostName),
    /// The key belongs to an operation already.
    #[error("the idempotency key belongs to operation {}", .0.id)]
    KeyUsed(Box<Operation>),
    /// The cell cannot hold it.
    #[error("{cell} is full: {used} {resource} with this one, of {capacity}")]
    CellFull {
        /// Which cell.
        cell: CellName,
        /// Which resource: `instances`, `cpu_millis`, `memory_mib` or `data_mib`.
        resource: &'static str,
        /// How much would be used.
        used: u64,
        /// How much there is.
        capacity: u64,
    },
    /// The data that was to be taken up is not retained for this tenant in this cell.
    #[error("no retained data {0} of this tenant in this cell")]
    DataNotRetained(DataId),
    /// The request of the inbox was answered already.
    #[error("the request of the inbox was answered already")]
    Answered,
    /// The session is over: a newer one took over, or it lapsed.
    #[error("the session with the store is over")]
    SessionLost,
    /// There is no room for the write. Nothing was written.
    #[error("no room left for the store")]
    Full(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The store is damaged, foreign, in use, or of a newer release. It was left untouched.
    #[error("{0}")]
    Refused(String),
    /// The store did not take the write, for a reason that is none of the above. Nothing was written.
    #[error("the store failed, and nothing was written")]
    NotWritten(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The store did not answer. It is not known whether the write happened.
    #[error("the store failed")]
    Failed(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl StoreError {
    /// The public error for a store that failed the caller through no fault of the request.
    #[must_use]
    pub fn into_error(self, operation: &'static str) -> Error {
        let kind = match &self {
            Self::Full(_) => ErrorKind::StoreFull,
            Self::Refused(_) => ErrorKind::StoreRefused,
            Self::SessionLost => ErrorKind::SessionLost,
            Self::Stale
            | Self::Exists
            | Self::HostNameTaken(_)
            | Self::KeyUsed(_)
            | Self::DataNotRetained(_)
            | Self::Answered => ErrorKind::Conflict,
            Self::CellFull { .. } => ErrorKind::QuotaExceeded,
            Self::NotWritten(_) | Self::Failed(_) => ErrorKind::Unavailable,
        };
        // Of what did not answer nobody knows.
        let effect = if matches!(self, Self::Failed(_)) { Effect::Unknown } else { Effect::None };
        Error::new(kind, operation).with_effect(effect).with_source(self)
    }

    /// The same of a read that failed: it changed nothing, whether its answer came or not.
    #[must_use]
    pub(crate) fn read_error(self, operation: &'static str) -> Error {
        self.into_error(operation).with_effect(Effect::None)
    }
}

/// What becomes of an instance's row.
#[derive(Debug, Clone)]
pub enum InstanceWrite {
    /// A new one. [`StoreError::Exists`] when there is one of this id.
    Insert(Arc<InstanceRow>),
    /// A new state of the one at this version. [`StoreError::Stale`] when it is at another one, or gone.
    Update {
        /// The new state.
        row: Arc<InstanceRow>,
        /// The version it was read at.
        expected: u64,
    },
    /// Removal of the one at this version, with its specs and reservations. [`StoreError::Stale`] likewise.
    Delete {
        /// Which.
        id: InstanceId,
        /// The version it was read at.
        expected: u64,
    },
}

/// One write: all of it or nothing.
#[derive(Debug, Clone, Default)]
pub struct Change {
    /// The session that writes. [`StoreError::SessionLost`] unless it is in force.
    pub epoch: Option<u64>,
    /// The instance's row.
    pub instance: Option<InstanceWrite>,
    /// What becomes of the claim on it.
    pub claiming: Claiming,
    /// Specs of that instance to be kept, by generation.
    pub specs: Vec<(Generation, Arc<InstanceSpec>)>,
    /// When set, the specs of that instance to keep; the others are dropped.
    pub keep_specs: Option<Vec<Generation>>,
    /// What that instance reserves from now on.
    pub reservation: Option<Reservation>,
    /// Data to be taken up: no instance may use it, it must be of this tenant and cell, and where it was seen in use, the row
    /// must say so. Its row follows in `data`.
    pub take_data: Option<DataId>,
    /// Makings, inserted or replaced.
    pub incarnations: Vec<IncarnationRow>,
    /// Data rows, inserted or replaced.
    pub data: Vec<DataRow>,
    /// Data rows to be dropped.
    pub drop_data: Vec<DataId>,
    /// Operations, inserted or replaced. [`StoreError::KeyUsed`] when a new one's key belongs to another whose 24 hours
    /// are not over.
    pub operations: Vec<Operation>,
    /// Operations that end. One that has ended already, or is not there, stays as it is.
    pub ended: Vec<OperationEnd>,
    /// Strangers, inserted or replaced.
    pub strangers: Vec<Stranger>,
    /// Strangers that are none any more.
    pub drop_strangers: Vec<Incarnation>,
    /// What happened.
    pub events: Vec<NewEvent>,
    /// Cells, inserted or replaced.
    pub cells: Vec<CellRow>,
    /// Whether all work at providers is frozen from now on.
    pub frozen: Option<bool>,
    /// The request of the inbox that this answers: it is taken out. [`StoreError::Answered`] when it is not there any more.
    pub answers: Option<u64>,
}

/// How long an idempotency key is kept.
pub const KEY_KEPT: std::time::Duration = std::time::Duration::from_secs(24 * 3600);

/// What a commit did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Committed {
    /// The version of the instance's row now; 0 when it was not written or is gone.
    pub version: u64,
    /// The position of the last event so far.
    pub position: u64,
    /// Who works on the instance from now on.
    pub worker: Worker,
}

/// Which instances a listing yields.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct InstanceFilter {
    /// Only those of this tenant.
    pub tenant: Option<TenantId>,
    /// Only those in this cell.
    pub cell: Option<CellName>,
    /// Only those last seen in this phase.
    pub phase: Option<Phase>,
    /// Only those that are parked, or that are not.
    pub parked: Option<bool>,
}

/// Which due rows to take.
#[derive(Debug, Clone)]
pub struct Claim {
    /// The session that takes them.
    pub epoch: u64,
    /// Of which cell.
    pub cell: CellName,
    /// In which lane.
    pub lane: Lane,
    /// Due at this time or before.
    pub now: Timestamp,
    /// After this one, in the order of due time and id.
    pub after: Option<(Timestamp, InstanceId)>,
    /// How many at most.
    pub limit: usize,
}

/// How many rows were removed for their age.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Pruned {
    /// Events.
    pub events: usize,
    /// Operations that ended.
    pub operations: usize,
    /// Makings that ended.
    pub incarnations: usize,
}

/// Where decisions are kept. Object-safe; a value is a shared handle.
///
/// # Cancellation
/// A commit whose future is dropped happens or does not; reads leave nothing behind.
#[async_trait]
pub trait Store: fmt::Debug + Send + Sync + 'static {
    /// The control plane that the store belongs to.
    fn control_plane(&self) -> &ControlPlaneId;

    /// Begins a session: from now on this process may write. A store of one process ends the sessions before; one that several
    /// share ends none, and its sessions lapse when they are not renewed.
    async fn open_session(&self, holder: &str, now: Timestamp) -> Result<Session, StoreError>;

    /// Keeps a session from lapsing, and tells the numbers of all that are in force, and the store's clock.
    /// [`StoreError::SessionLost`] when it is not in force any more. One that lapsed comes back, if at all, where the clock was set
    /// back before another session was renewed or took anything of what it worked on.
    async fn renew_session(&self, epoch: u64) -> Result<Renewal, StoreError>;

    /// Ends a session, so that nobody has to wait for it to lapse, and tells the others to look for what it worked on.
    async fn close_session(&self, epoch: u64) -> Result<(), StoreError>;

    /// What other processes write that this one should know at once, from now on. None where there are no others. Losing a
    /// signal costs time, never truth.
    fn signals(&self) -> Option<BoxStream<'static, Signal>>;

    /// Takes a change whole, durably, or not at all. When several conditions do not hold, the answer is the first of:
    /// session, the request of the inbox, keys, the instance's version and claim, host names, capacity, data.
    async fn commit(&self, change: Change) -> Result<Committed, StoreError>;

    /// One instance.
    async fn instance(&self, id: &InstanceId) -> Result<Option<Record>, StoreError>;

    /// Instances in the order of their ids, after the given one, up to `limit`.
    async fn instances(
        &self,
        filter: &InstanceFilter,
        after: Option<&InstanceId>,
        limit: usize,
    ) -> Result<Vec<Record>, StoreError>;

    /// How many instances were last seen in each phase, by cell; `None` is "not seen yet".
    async fn counts(&self) -> Result<Vec<(CellName, Option<Phase>, u64)>, StoreError>;

    /// Due rows, in the order of due time and id, but for those that another session in force works on. From then on this
    /// session works on them, until a write of it releases them or it is over.
    async fn claim(&self, claim: &Claim) -> Result<Vec<Record>, StoreError>;

    /// Claims one instance, due or not, unless another session in force works on it.
    async fn claim_instance(&self, epoch: u64, id: &InstanceId) -> Result<Taken, StoreError>;

    /// Gives up the claim of this session on an instance that was looked at and not written: it is at this version still. Whether it
    /// did: not where the session is over, where the row was written since, and where somebody was taken over and who goes on must
    /// know.
    async fn release(&self, epoch: u64, id: &InstanceId, version: u64) -> Result<bool, StoreError>;

    /// The earliest due time of a cell after `now`, of instances and of ended makings.
    async fn next_due(&self, cell: &CellName, now: Timestamp) -> Result<Option<Timestamp>, StoreError>;

    /// The makings of a cell that are to be looked for at this time or before, up to `limit`.
    async fn due_incarnations(
        &self,
        cell: &CellName,
        now: Timestamp,
        limit: usize,
    ) -> Result<Vec<IncarnationRow>, StoreError>;

    /// The same, claimed as instances are: what another session in force looks for is passed over, until its next write.
    async fn claim_incarnations(
        &self,
        epoch: u64,
        cell: &CellName,
        now: Timestamp,
        limit: usize,
    ) -> Result<Vec<IncarnationRow>, StoreError>;

    /// What is known of these makings, in their order.
    async fn incarnations(&self, of: &[Incarnation]) -> Result<Vec<Option<IncarnationRow>>, StoreError>;

    /// One operation; for a request that waits in the inbox, [the one it becomes](Submitted::pending).
    async fn operation(&self, id: &OperationId) -> Result<Option<Operation>, StoreError>;

    /// Which of these operations have ended.
    async fn ended(&self, of: &[OperationId]) -> Result<Vec<OperationId>, StoreError>;

    /// Requests that callers put into the inbox inside their own transactions, the oldest of each instance, claimed as
    /// instances are. A change that [answers](Change::answers) one takes it out.
    async fn inbox(&self, epoch: u64, limit: usize) -> Result<Vec<Submitted>, StoreError>;

    /// The operation of a key, in the inbox too: the last one, also when its 24 hours are over and no other has taken the key.
    async fn operation_of_key(&self, key: &IdempotencyKey) -> Result<Option<Operation>, StoreError>;

    /// How long the creations took that were done or failed since then, in milliseconds from acceptance, and whether
    /// they succeeded: the newest first, up to `limit`. One that was superseded is neither.
    async fn provisioning_times(&self, since: Timestamp, limit: usize) -> Result<Vec<(u64, bool)>, StoreError>;

    /// Events after a position, of one instance or of all, in order, up to `limit`.
    async fn events(&self, instance: Option<&InstanceId>, after: u64, limit: usize) -> Result<Vec<Event>, StoreError>;

    /// The position of the last committed event, as it rises.
    fn positions(&self) -> watch::Receiver<u64>;

    /// Data sets, in the order of their ids, after the given one: of a tenant or of all.
    async fn data(
        &self,
        tenant: Option<&TenantId>,
        after: Option<&DataId>,
        limit: usize,
    ) -> Result<Vec<DataRow>, StoreError>;

    /// One data set.
    async fn data_set(&self, id: &DataId) -> Result<Option<DataRow>, StoreError>;

    /// What was found that the store never knew.
    async fn strangers(&self) -> Result<Vec<Stranger>, StoreError>;

    /// What is recorded of cells.
    async fn cells(&self) -> Result<Vec<CellRow>, StoreError>;

    /// What a cell holds and has promised.
    async fn usage(&self, cell: &CellName) -> Result<CellUsage, StoreError>;

    /// The cells that rows name, recorded or not: those of instances, data, strangers, and makings that are not over or
    /// are still to be looked for.
    async fn cells_in_use(&self) -> Result<Vec<CellName>, StoreError>;

    /// Whether all work at providers is frozen.
    async fn frozen(&self) -> Result<bool, StoreError>;

    /// Removes up to `limit` of each kind of row that ended before `before`: events, ended operations, ended makings.
    /// Of a forgotten instance's events the [`Forgotten`](EventKind::Forgotten) one stays until then, and no other.
    async fn prune(&self, before: Timestamp, limit: usize) -> Result<Pruned, StoreError>;
}
