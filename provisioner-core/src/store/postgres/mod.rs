//! The store that several control plane processes share: a PostgreSQL database, 13 or newer.
//!
//! Everything is in one schema of its own. Each process has one connection that writes, one that listens, and a few that read.
//! Changes that wait together are committed together, in one transaction of two round trips. Who may write and who works on
//! what is judged by the database's clock.
//!
//! A proxy that gives each transaction another connection, such as PgBouncer in transaction mode, is not for it: statements are
//! prepared once for a connection, and one connection listens.
//!
//! # Requests inside a caller's own transaction
//! The function `submit` puts a request into the inbox, and it is taken in when the caller's transaction is committed; a
//! customer's row and what is to be provisioned for it are there together or not at all:
//!
//! ```sql
//! BEGIN;
//! INSERT INTO customers (name) VALUES ('acme');
//! SELECT provisioner.submit('create', 'acme', '{"tenant": "acme", "spec": {"workload": {"version": "1"}}}'::jsonb, 'signup');
//! COMMIT;
//! ```
//!
//! Its parameters: `verb` (`create`, `update`, `restart`, `sleep`, `wake`, `suspend`, `lift`, `destroy` or `retry`), `instance`,
//! `parameters` (an object: what the verb needs), `actor`, and if wanted `reason`, `key` and `expected`, the revision that the
//! caller has seen. It returns the operation's id, by which the control plane can be asked from then on. What cannot be right
//! (an unknown verb, no id of an instance) is refused at once, with a message that names the parameter; the rest is judged when
//! the request is taken in, and the operation tells what came of it. The same `key` within 24 hours returns the same operation,
//! and is refused with another verb or instance.
//!
//! It runs with the rights of the store's owner. A caller needs no more than:
//!
//! ```sql
//! GRANT USAGE ON SCHEMA provisioner TO signup;
//! GRANT EXECUTE ON FUNCTION provisioner.submit TO signup;
//! ```
//!
//! As it [notifies](https://www.postgresql.org/docs/current/sql-notify.html), a transaction that calls it cannot be prepared
//! for a two-phase commit.

mod batch;
mod claim;
mod config;
mod connect;
mod fault;
mod listen;
mod maintain;
mod notice;
mod read;
mod rows;
mod schema;
mod tls;
mod writer;

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use futures::stream::BoxStream;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub use self::config::PostgresConfig;
use self::{
    connect::{Connector, Readers},
    listen::{Listener, Told},
    writer::{Job, Writer},
};
use super::{
    CellRow, CellUsage, Change, Claim, Committed, DataRow, Event, IncarnationRow, InstanceFilter, Operation, Pruned,
    Record, Renewal, Session, Signal, Store, StoreError, Stranger, Submitted, Taken, format::Prepared,
    signals::Signals,
};
use crate::{
    error::Chain,
    types::{
        CellName, ControlPlaneId, DataId, IdempotencyKey, Incarnation, InstanceId, OperationId, Phase, TenantId,
        Timestamp,
    },
};

/// How many changes may wait for the writer before callers wait to hand theirs in.
const QUEUE: usize = 1024;

/// How long opening may wait for another process that brings the schema forward.
const OPEN_TIMEOUT: Duration = Duration::from_secs(600);

/// A store in a PostgreSQL database. It lives on the runtime on which it was opened.
///
/// Dropping the last handle lets go of the connections, after the commits that were handed in.
///
/// # Cancellation
/// A commit whose future is dropped happens or does not. A read or a claim whose future is dropped costs its connection, and a
/// claim may have been made: this session's next one finds it.
pub struct PostgresStore {
    config: PostgresConfig,
    control_plane: ControlPlaneId,
    readers: Readers,
    /// For the session alone: its renewal waits for no reads.
    heart: Readers,
    jobs: mpsc::Sender<Job>,
    told: Told,
    transactions: Arc<AtomicU64>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

/// Why an answer that should be there is not.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Lost(&'static str);

impl PostgresStore {
    /// Opens the store of a control plane, and makes its schema when there is none. Several processes may do so at once.
    ///
    /// # Errors
    /// [`StoreError::Refused`] when the server is older than 13, the schema is of another application or control plane or of a
    /// newer release, or the database does not let this user in; nothing was changed then. [`StoreError::Failed`] when it cannot be
    /// reached.
    ///
    /// # Cancellation
    /// The schema is made or brought forward whole, or not at all.
    pub async fn open(config: PostgresConfig, control_plane: ControlPlaneId) -> Result<Arc<Self>, StoreError> {
        let connector = Connector::new(&config)?;
        time::timeout(OPEN_TIMEOUT, migrate(&connector, &config, &control_plane))
            .await
            .unwrap_or_else(|_| Err(StoreError::Failed(Box::new(fault::TimedOut(OPEN_TIMEOUT)))))?;
        let told = Told { positions: watch::Sender::new(0), signals: Signals::new() };
        let schema = config.schema.clone();
        let mut writer = Writer::new(connector.clone(), schema.clone(), told.clone(), config.timeout);
        writer.begin().await?;
        let readers = Readers::new(&connector, &config, config.pool_size)?;
        let heart = Readers::new(&connector, &config, 1)?;
        let listener = Listener { connector, schema, told: told.clone(), timeout: config.timeout };
        let ear = listener.begin().await?;
        let transactions = writer.transactions();
        let (jobs, waiting) = mpsc::channel(QUEUE);
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        tasks.spawn(writer.serve(waiting));
        tasks.spawn(listener.serve(ear, stop.clone()));
        Ok(Arc::new(Self { config, control_plane, readers, heart, jobs, told, transactions, stop, tasks }))
    }

    /// How many transactions it has written since it was opened: with the number of commits, it tells how well these are
    /// grouped.
    #[must_use]
    pub fn transactions(&self) -> u64 {
        self.transactions.load(Ordering::Relaxed)
    }
}

/// Brings the schema forward, again as often as a step is given up for others.
async fn migrate(
    connector: &Connector,
    config: &PostgresConfig,
    control_plane: &ControlPlaneId,
) -> Result<(), StoreError> {
    loop {
        match migrate_once(connector, config, control_plane).await {
            Err(error) if fault::is_contended(&error) => {
                tracing::warn!(error = %Chain(&error), "the schema could not be brought forward; trying again");
                time::sleep(schema::TRY_AGAIN_AFTER).await;
            }
            done => return done,
        }
    }
}

async fn migrate_once(
    connector: &Connector,
    config: &PostgresConfig,
    control_plane: &ControlPlaneId,
) -> Result<(), StoreError> {
    let mut client = connector.connect().await?;
    let transaction = client.transaction().await.map_err(fault::refused)?;
    schema::migrate(&transaction, &config.schema, control_plane, config.later_steps).await?;
    transaction.commit().await.map_err(fault::refused)
}

impl fmt::Debug for PostgresStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresStore").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Drop for PostgresStore {
    fn drop(&mut self) {
        self.stop.cancel();
        self.readers.close();
        self.heart.close();
        self.tasks.close();
    }
}

#[async_trait]
impl Store for PostgresStore {
    fn control_plane(&self) -> &ControlPlaneId {
        &self.control_plane
    }

    async fn open_session(&self, holder: &str, _: Timestamp) -> Result<Session, StoreError> {
        claim::open_session(&self.heart, holder, self.config.lapses_after).await
    }

    async fn renew_session(&self, epoch: u64) -> Result<Renewal, StoreError> {
        claim::renew_session(&self.heart, epoch, self.config.lapses_after).await
    }

    async fn close_session(&self, epoch: u64) -> Result<(), StoreError> {
        claim::close_session(&self.heart, epoch, self.config.schema.as_str()).await
    }

    fn signals(&self) -> Option<BoxStream<'static, Signal>> {
        Some(self.told.signals.stream())
    }

    async fn commit(&self, change: Change) -> Result<Committed, StoreError> {
        let (answer, answered) = oneshot::channel();
        let gone = |_| StoreError::NotWritten(Box::new(Lost("the writer has ended")));
        self.jobs.send(Job { prepared: Box::new(Prepared::new(change)), answer }).await.map_err(gone)?;
        let lost = Lost("the writer ended before it answered");
        answered.await.map_err(|_| StoreError::Failed(Box::new(lost)))?
    }

    async fn instance(&self, id: &InstanceId) -> Result<Option<Record>, StoreError> {
        read::instance(&self.readers, id).await
    }

    async fn instances(
        &self,
        filter: &InstanceFilter,
        after: Option<&InstanceId>,
        limit: usize,
    ) -> Result<Vec<Record>, StoreError> {
        read::instances(&self.readers, filter, after, limit).await
    }

    async fn counts(&self) -> Result<Vec<(CellName, Option<Phase>, u64)>, StoreError> {
        read::counts(&self.readers).await
    }

    async fn claim(&self, claim: &Claim) -> Result<Vec<Record>, StoreError> {
        claim::claim(&self.readers, claim).await
    }

    async fn claim_instance(&self, epoch: u64, id: &InstanceId) -> Result<Taken, StoreError> {
        claim::claim_instance(&self.readers, epoch, id).await
    }

    async fn release(&self, epoch: u64, id: &InstanceId, version: u64) -> Result<bool, StoreError> {
        claim::release(&self.readers, epoch, id, version).await
    }

    async fn next_due(&self, cell: &CellName, now: Timestamp) -> Result<Option<Timestamp>, StoreError> {
        read::next_due(&self.readers, cell, now).await
    }

    async fn due_incarnations(
        &self,
        cell: &CellName,
        now: Timestamp,
        limit: usize,
    ) -> Result<Vec<IncarnationRow>, StoreError> {
        read::due_incarnations(&self.readers, cell, now, limit).await
    }

    async fn claim_incarnations(
        &self,
        epoch: u64,
        cell: &CellName,
        now: Timestamp,
        limit: usize,
    ) -> Result<Vec<IncarnationRow>, StoreError> {
        claim::claim_incarnations(&self.readers, epoch, cell, now, limit).await
    }

    async fn incarnations(&self, of: &[Incarnation]) -> Result<Vec<Option<IncarnationRow>>, StoreError> {
        read::incarnations(&self.readers, of).await
    }

    async fn operation(&self, id: &OperationId) -> Result<Option<Operation>, StoreError> {
        read::operation(&self.readers, id).await
    }

    async fn ended(&self, of: &[OperationId]) -> Result<Vec<OperationId>, StoreError> {
        read::ended(&self.readers, of).await
    }

    async fn inbox(&self, epoch: u64, limit: usize) -> Result<Vec<Submitted>, StoreError> {
        claim::inbox(&self.readers, epoch, limit).await
    }

    async fn operation_of_key(&self, key: &IdempotencyKey) -> Result<Option<Operation>, StoreError> {
        read::operation_of_key(&self.readers, key).await
    }

    async fn provisioning_times(&self, since: Timestamp, limit: usize) -> Result<Vec<(u64, bool)>, StoreError> {
        read::provisioning_times(&self.readers, since, limit).await
    }

    async fn events(&self, instance: Option<&InstanceId>, after: u64, limit: usize) -> Result<Vec<Event>, StoreError> {
        read::events(&self.readers, instance, after, limit).await
    }

    fn positions(&self) -> watch::Receiver<u64> {
        self.told.positions.subscribe()
    }

    async fn data(
        &self,
        tenant: Option<&TenantId>,
        after: Option<&DataId>,
        limit: usize,
    ) -> Result<Vec<DataRow>, StoreError> {
        read::data(&self.readers, tenant, after, limit).await
    }

    async fn data_set(&self, id: &DataId) -> Result<Option<DataRow>, StoreError> {
        read::data_set(&self.readers, id).await
    }

    async fn strangers(&self) -> Result<Vec<Stranger>, StoreError> {
        read::strangers(&self.readers).await
    }

    async fn cells(&self) -> Result<Vec<CellRow>, StoreError> {
        read::cells(&self.readers).await
    }

    async fn usage(&self, cell: &CellName) -> Result<CellUsage, StoreError> {
        read::usage(&self.readers, cell).await
    }

    async fn cells_in_use(&self) -> Result<Vec<CellName>, StoreError> {
        read::cells_in_use(&self.readers).await
    }

    async fn frozen(&self) -> Result<bool, StoreError> {
        read::frozen(&self.readers).await
    }

    async fn prune(&self, before: Timestamp, limit: usize) -> Result<Pruned, StoreError> {
        maintain::prune(&self.readers, before, limit).await
    }
}
