//! The embedded store: one SQLite file, one process, one writer.
//!
//! Durable means durable: a commit is answered after its bytes were synced to the disk. Commits that wait together are
//! synced together, which is where the speed comes from. Readers never wait for the writer.

mod change;
mod fault;
mod format;
mod guard;
mod log;
mod maintain;
mod read;
mod readers;
mod schema;
mod writer;

use std::{
    fmt, fs,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread::JoinHandle,
};

use async_trait::async_trait;
use futures::stream::BoxStream;
use rusqlite::Connection;
use tokio::sync::{mpsc, oneshot, watch};

use self::{
    guard::Guard,
    readers::Readers,
    writer::{Job, Outcome, Work, Writer},
};
use super::{
    CellRow, CellUsage, Change, Claim, Committed, DataRow, Event, IncarnationRow, InstanceFilter, Operation, Pruned,
    Record, Renewal, Session, Signal, Store, StoreError, Stranger, Submitted, Taken, format::Prepared,
};
use crate::types::{
    CellName, ControlPlaneId, DataId, IdempotencyKey, Incarnation, InstanceId, OperationId, Phase, TenantId, Timestamp,
};

/// How many pieces of work may wait for the writer before callers wait to hand theirs in.
const QUEUE: usize = 1024;

/// How commits are carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CommitMode {
    /// By a thread of its own that takes whatever waits into one transaction.
    Grouped,
    /// On the caller's thread, one by one: for simulation.
    Inline,
}

/// A store in one SQLite file.
///
/// The file belongs to one process at a time, by a lock on the `.lock` file beside it. Dropping the last handle waits
/// for the commits that were handed in and lets go of the file.
pub struct SqliteStore {
    path: PathBuf,
    control_plane: ControlPlaneId,
    positions: watch::Receiver<u64>,
    transactions: Arc<AtomicU64>,
    engine: Engine,
}

/// Where work is done.
enum Engine {
    Grouped {
        /// Taken when the store is dropped, which ends the thread.
        jobs: Option<mpsc::Sender<Job>>,
        thread: Option<JoinHandle<()>>,
        readers: Arc<Readers>,
    },
    Inline(Mutex<Writer>),
}

/// Why an answer that should be there is not.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Lost(&'static str);

impl SqliteStore {
    /// Opens the store of a control plane, and makes it when there is none.
    ///
    /// The whole file is read once, to find damage before anything is built on it.
    ///
    /// # Errors
    /// [`StoreError::Refused`] when the file is in use, damaged, of another application or control plane, or of a newer
    /// release; it is left untouched then. [`StoreError::Full`] when a new one finds no room.
    pub async fn open(
        path: impl AsRef<Path> + Send,
        control_plane: ControlPlaneId,
        mode: CommitMode,
    ) -> Result<Arc<Self>, StoreError> {
        let path = path.as_ref().to_owned();
        match mode {
            CommitMode::Inline => Self::open_now(&path, control_plane, mode),
            CommitMode::Grouped => off_thread(move || Self::open_now(&path, control_plane, mode)).await,
        }
        .map(Arc::new)
    }

    fn open_now(path: &Path, control_plane: ControlPlaneId, mode: CommitMode) -> Result<Self, StoreError> {
        let guard = Arc::new(Guard::lock(path)?);
        let connection = guard.open(&control_plane)?;
        let (sender, positions) = watch::channel(read::last_position(&connection)?);
        let writer = Writer::new(connection, Arc::clone(&guard), sender);
        let path = guard.path().to_owned();
        let transactions = writer.transactions();
        let engine = match mode {
            CommitMode::Inline => Engine::Inline(Mutex::new(writer)),
            CommitMode::Grouped => {
                let (jobs, waiting) = mpsc::channel(QUEUE);
                let thread = std::thread::Builder::new()
                    .name("store".into())
                    .spawn(move || writer.serve(waiting))
                    .map_err(|error| guard::failed("the writer's thread cannot be started".into(), error))?;
                let readers = Arc::new(Readers::new(guard));
                Engine::Grouped { jobs: Some(jobs), thread: Some(thread), readers }
            }
        };
        Ok(Self { path, control_plane, positions, transactions, engine })
    }

    /// Writes a copy of the store, as of one moment, while it goes on working. The copy is made whole under another
    /// name first: a file of this name is a complete backup.
    ///
    /// # Errors
    /// [`StoreError::Refused`] when there is a file of this name already; [`StoreError::Full`] when there is no room.
    pub async fn backup(&self, to: &Path) -> Result<(), StoreError> {
        let to = to.to_owned();
        self.read(move |connection| copy(connection, &to)).await
    }

    /// How many transactions it has written since it was opened: with the number of commits, it tells how well these are
    /// grouped.
    #[must_use]
    pub fn transactions(&self) -> u64 {
        self.transactions.load(Ordering::Relaxed)
    }

    /// Runs a read, on one moment's state.
    async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        match &self.engine {
            Engine::Inline(writer) => {
                let writer = writer.lock().unwrap_or_else(PoisonError::into_inner);
                read(writer.connection())
            }
            Engine::Grouped { readers, .. } => {
                let reader = Readers::take(readers).await?;
                off_thread(move || read(reader.connection())).await
            }
        }
    }

    /// Likewise, for reads of several statements that must agree.
    async fn read_together<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.read(|connection| {
            // Ends when dropped; there is nothing to commit.
            let moment = connection.unchecked_transaction()?;
            read(&moment)
        })
        .await
    }

    async fn write(&self, work: Work) -> Result<Outcome, StoreError> {
        match &self.engine {
            Engine::Inline(writer) => {
                let mut writer = writer.lock().unwrap_or_else(PoisonError::into_inner);
                let outcome = writer.carry_out(&[work]).pop().expect("one answer for one work");
                writer.checkpoint_when_due();
                outcome
            }
            Engine::Grouped { jobs, .. } => {
                let jobs = jobs.as_ref().expect("taken only when the store is dropped");
                let (answer, answered) = oneshot::channel();
                let gone = |_| StoreError::NotWritten(Box::new(Lost("the writer has ended")));
                jobs.send(Job { work, answer }).await.map_err(gone)?;
                let lost = Lost("the writer ended before it answered");
                answered.await.map_err(|_| StoreError::Failed(Box::new(lost)))?
            }
        }
    }
}

impl fmt::Debug for SqliteStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqliteStore").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Drop for SqliteStore {
    fn drop(&mut self) {
        if let Engine::Grouped { jobs, thread, readers } = &mut self.engine {
            // The writer goes last, as the last one to close tidies the log up, and readers may not.
            readers.close();
            drop(jobs.take());
            if let Some(Err(_)) = thread.take().map(JoinHandle::join) {
                tracing::error!(path = %self.path.display(), "the store's writer ended in a panic");
            }
        }
    }
}

/// Runs what blocks where it may.
async fn off_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    tokio::task::spawn_blocking(work).await.map_err(|error| StoreError::Failed(Box::new(error)))?
}

/// Copies the store into a new file.
fn copy(connection: &Connection, to: &Path) -> Result<(), StoreError> {
    let failed = |error| guard::failed(format!("the backup {} cannot be made", to.display()), error);
    if fs::symlink_metadata(to).is_ok() {
        return Err(StoreError::Refused(format!("{} exists: expected a name that is free", to.display())));
    }
    let unfinished = guard::beside(to, ".unfinished");
    let file = guard::private().truncate(true).open(&unfinished).map_err(failed)?;
    let name = unfinished
        .to_str()
        .ok_or_else(|| StoreError::Refused(format!("{} is not valid UTF-8: expected a name that is", to.display())))?;
    let copied = connection.execute("VACUUM INTO ?1", [name]).map_err(StoreError::from);
    let finished = copied.and_then(|_| {
        // SQLite does not sync what it makes this way.
        file.sync_all().map_err(failed)?;
        fs::rename(&unfinished, to).map_err(failed)?;
        guard::sync_folder(to).map_err(failed)
    });
    if finished.is_err() {
        let _ = fs::remove_file(&unfinished);
    }
    finished
}

#[async_trait]
impl Store for SqliteStore {
    fn control_plane(&self) -> &ControlPlaneId {
        &self.control_plane
    }

    async fn open_session(&self, holder: &str, now: Timestamp) -> Result<Session, StoreError> {
        match self.write(Work::OpenSession { holder: holder.into(), now }).await? {
            Outcome::Opened(session) => Ok(session),
            other => unreachable!("asked for a session, got {other:?}"),
        }
    }

    async fn renew_session(&self, epoch: u64) -> Result<Renewal, StoreError> {
        self.read(move |connection| read::check_session(connection, epoch)).await?;
        Ok(Renewal { in_force: vec![epoch], now: None })
    }

    async fn close_session(&self, epoch: u64) -> Result<(), StoreError> {
        self.write(Work::CloseSession { epoch }).await.map(drop)
    }

    fn signals(&self) -> Option<BoxStream<'static, Signal>> {
        None
    }

    async fn commit(&self, change: Change) -> Result<Committed, StoreError> {
        match self.write(Work::Commit(Box::new(Prepared::new(change)))).await? {
            Outcome::Committed(committed) => Ok(committed),
            other => unreachable!("asked for a commit, got {other:?}"),
        }
    }

    async fn instance(&self, id: &InstanceId) -> Result<Option<Record>, StoreError> {
        let id = id.clone();
        self.read_together(move |connection| read::instance(connection, &id)).await
    }

    async fn instances(
        &self,
        filter: &InstanceFilter,
        after: Option<&InstanceId>,
        limit: usize,
    ) -> Result<Vec<Record>, StoreError> {
        let (filter, after) = (filter.clone(), after.cloned());
        self.read_together(move |connection| read::instances(connection, &filter, after.as_ref(), limit)).await
    }

    async fn counts(&self) -> Result<Vec<(CellName, Option<Phase>, u64)>, StoreError> {
        self.read(read::counts).await
    }

    async fn claim(&self, claim: &Claim) -> Result<Vec<Record>, StoreError> {
        let claim = claim.clone();
        self.read_together(move |connection| read::claim(connection, &claim)).await
    }

    async fn claim_instance(&self, epoch: u64, id: &InstanceId) -> Result<Taken, StoreError> {
        let id = id.clone();
        let read = move |connection: &Connection| {
            read::check_session(connection, epoch)?;
            read::instance(connection, &id)
        };
        Ok(self.read_together(read).await?.map_or(Taken::Absent, Taken::Here))
    }

    /// One session works on everything, without claims.
    async fn release(&self, _: u64, _: &InstanceId, _: u64) -> Result<bool, StoreError> {
        Ok(false)
    }

    async fn next_due(&self, cell: &CellName, now: Timestamp) -> Result<Option<Timestamp>, StoreError> {
        let cell = cell.clone();
        self.read(move |connection| read::next_due(connection, &cell, now)).await
    }

    async fn due_incarnations(
        &self,
        cell: &CellName,
        now: Timestamp,
        limit: usize,
    ) -> Result<Vec<IncarnationRow>, StoreError> {
        let cell = cell.clone();
        self.read(move |connection| read::due_incarnations(connection, &cell, now, limit)).await
    }

    async fn claim_incarnations(
        &self,
        epoch: u64,
        cell: &CellName,
        now: Timestamp,
        limit: usize,
    ) -> Result<Vec<IncarnationRow>, StoreError> {
        let cell = cell.clone();
        let read = move |connection: &Connection| {
            read::check_session(connection, epoch)?;
            read::due_incarnations(connection, &cell, now, limit)
        };
        self.read_together(read).await
    }

    async fn incarnations(&self, of: &[Incarnation]) -> Result<Vec<Option<IncarnationRow>>, StoreError> {
        let of = of.to_vec();
        self.read_together(move |connection| read::incarnations(connection, &of)).await
    }

    async fn operation(&self, id: &OperationId) -> Result<Option<Operation>, StoreError> {
        let id = id.clone();
        self.read(move |connection| read::operation(connection, &id)).await
    }

    async fn ended(&self, of: &[OperationId]) -> Result<Vec<OperationId>, StoreError> {
        let of = of.to_vec();
        self.read_together(move |connection| read::ended(connection, of)).await
    }

    async fn inbox(&self, _: u64, _: usize) -> Result<Vec<Submitted>, StoreError> {
        // A file of one process: nobody else's transaction can put anything there.
        Ok(Vec::new())
    }

    async fn operation_of_key(&self, key: &IdempotencyKey) -> Result<Option<Operation>, StoreError> {
        let key = key.clone();
        self.read(move |connection| read::operation_of_key(connection, &key)).await
    }

    async fn provisioning_times(&self, since: Timestamp, limit: usize) -> Result<Vec<(u64, bool)>, StoreError> {
        self.read(move |connection| read::provisioning_times(connection, since, limit)).await
    }

    async fn events(&self, instance: Option<&InstanceId>, after: u64, limit: usize) -> Result<Vec<Event>, StoreError> {
        let instance = instance.cloned();
        self.read(move |connection| read::events(connection, instance.as_ref(), after, limit)).await
    }

    fn positions(&self) -> watch::Receiver<u64> {
        self.positions.clone()
    }

    async fn data(
        &self,
        tenant: Option<&TenantId>,
        after: Option<&DataId>,
        limit: usize,
    ) -> Result<Vec<DataRow>, StoreError> {
        let (tenant, after) = (tenant.cloned(), after.cloned());
        self.read(move |connection| read::data(connection, tenant.as_ref(), after.as_ref(), limit)).await
    }

    async fn data_set(&self, id: &DataId) -> Result<Option<DataRow>, StoreError> {
        let id = id.clone();
        self.read(move |connection| read::data_set(connection, &id)).await
    }

    async fn strangers(&self) -> Result<Vec<Stranger>, StoreError> {
        self.read(read::strangers).await
    }

    async fn cells(&self) -> Result<Vec<CellRow>, StoreError> {
        self.read(read::cells).await
    }

    async fn usage(&self, cell: &CellName) -> Result<CellUsage, StoreError> {
        let cell = cell.clone();
        self.read(move |connection| read::usage(connection, &cell)).await
    }

    async fn cells_in_use(&self) -> Result<Vec<CellName>, StoreError> {
        self.read_together(read::cells_in_use).await
    }

    async fn frozen(&self) -> Result<bool, StoreError> {
        self.read(read::frozen).await
    }

    async fn prune(&self, before: Timestamp, limit: usize) -> Result<Pruned, StoreError> {
        match self.write(Work::Prune { before, limit }).await? {
            Outcome::Pruned(pruned) => Ok(pruned),
            other => unreachable!("asked to prune, got {other:?}"),
        }
    }
}
