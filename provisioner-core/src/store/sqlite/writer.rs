//! The commit loop: whatever waits goes into one transaction, is made durable at once, and is answered one by one.

use std::{
    slice,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use rusqlite::Connection;
use tokio::sync::{mpsc, oneshot, watch};

use super::{
    super::{Committed, Pruned, Session, StoreError, format::Prepared},
    change,
    fault::{self, Fault},
    guard::{self, Guard},
    maintain,
};
use crate::{error::Chain, types::Timestamp};

/// How many pieces of work one transaction takes. Bounds how long the first of them waits for the last.
const BATCH_MAX: usize = 512;
/// How much work is done between checkpoints: some tens of megabytes of log.
const CHECKPOINT_EVERY: usize = 2_000;
/// How long the log may get before readers are waited for: some 130 MB.
const LOG_FRAMES_MAX: i64 = 32_000;
/// For how long. A backup reads for longer: the log grows on until it is over.
const READERS_TIMEOUT: Duration = Duration::from_millis(50);

/// One piece of work.
#[derive(Debug)]
pub(super) enum Work {
    Commit(Box<Prepared>),
    OpenSession { holder: String, now: Timestamp },
    CloseSession { epoch: u64 },
    Prune { before: Timestamp, limit: usize },
}

/// What came of it.
#[derive(Debug)]
pub(super) enum Outcome {
    Committed(Committed),
    Opened(Session),
    Closed,
    Pruned(Pruned),
}

/// A piece of work and where its answer goes.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) work: Work,
    pub(super) answer: oneshot::Sender<Result<Outcome, StoreError>>,
}

/// Somebody else kept the file locked for too long, or it cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("no transaction could begin")]
struct NotBegun(#[source] Arc<rusqlite::Error>);

/// The one connection that writes.
#[derive(Debug)]
pub(super) struct Writer {
    connection: Connection,
    guard: Arc<Guard>,
    position: u64,
    positions: watch::Sender<u64>,
    since_checkpoint: usize,
    /// How many transactions were written.
    transactions: Arc<AtomicU64>,
}

impl Writer {
    pub(super) fn new(connection: Connection, guard: Arc<Guard>, positions: watch::Sender<u64>) -> Self {
        let position = *positions.borrow();
        Self { connection, guard, position, positions, since_checkpoint: 0, transactions: Arc::default() }
    }

    /// How many transactions were written, as it rises.
    pub(super) fn transactions(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.transactions)
    }

    pub(super) fn connection(&self) -> &Connection {
        &self.connection
    }

    /// Serves until nobody can send any more and everything sent was answered.
    pub(super) fn serve(mut self, mut jobs: mpsc::Receiver<Job>) {
        let mut waiting = Vec::with_capacity(BATCH_MAX);
        while jobs.blocking_recv_many(&mut waiting, BATCH_MAX) > 0 {
            let (batch, answers): (Vec<_>, Vec<_>) = waiting.drain(..).map(|job| (job.work, job.answer)).unzip();
            for (answer, outcome) in answers.into_iter().zip(self.carry_out(&batch)) {
                // Whoever stopped waiting does not need the answer.
                let _ = answer.send(outcome);
            }
            self.checkpoint_when_due();
        }
    }

    /// Does the work, together if that succeeds, else piece by piece, so that none fails for another one's sake.
    pub(super) fn carry_out(&mut self, batch: &[Work]) -> Vec<Result<Outcome, StoreError>> {
        if let Err(error) = self.begin() {
            // Not piece by piece: whoever locks the file would be waited for again and again.
            let error = Arc::new(error);
            let not_begun = || StoreError::NotWritten(Box::new(NotBegun(Arc::clone(&error))));
            return batch.iter().map(|_| Err(not_begun())).collect();
        }
        match self.transaction(batch) {
            Ok(outcomes) => outcomes,
            Err(error) if batch.len() == 1 => vec![Err(error)],
            Err(error) => {
                tracing::warn!(error = %Chain(&error), works = batch.len(), "a transaction failed; trying one by one");
                let single = |work| {
                    self.begin().map_err(|error| StoreError::NotWritten(Box::new(NotBegun(Arc::new(error)))))?;
                    self.transaction(slice::from_ref(work))?.pop().expect("one answer for one work")
                };
                batch.iter().map(single).collect()
            }
        }
    }

    /// Copies the log into the file once there is enough of it. Readers go on meanwhile.
    pub(super) fn checkpoint_when_due(&mut self) {
        if self.since_checkpoint < CHECKPOINT_EVERY {
            return;
        }
        self.since_checkpoint = 0;
        if let Err(error) = self.checkpoint() {
            // What is in the log is safe there.
            tracing::warn!(error = %Chain(&error), "the store's log could not be copied into its file; it grows");
        }
    }

    fn checkpoint(&self) -> rusqlite::Result<()> {
        let frames: i64 =
            self.connection.prepare_cached("PRAGMA wal_checkpoint(PASSIVE)")?.query_row([], |row| row.get(1))?;
        if frames > LOG_FRAMES_MAX {
            // Under constant reads there is always one that keeps the log from starting over: wait for those there are.
            self.connection.busy_timeout(READERS_TIMEOUT)?;
            let restarted = self.connection.query_row("PRAGMA wal_checkpoint(RESTART)", [], |_| Ok(()));
            self.connection.busy_timeout(guard::BUSY_TIMEOUT)?;
            restarted?;
        }
        Ok(())
    }

    fn begin(&self) -> rusqlite::Result<()> {
        self.connection.prepare_cached("BEGIN IMMEDIATE")?.execute([]).map(drop)
    }

    /// The rest of a transaction that was begun: an error means that none of it was written.
    fn transaction(&mut self, batch: &[Work]) -> Result<Vec<Result<Outcome, StoreError>>, StoreError> {
        let mut position = self.position;
        let outcomes = match self.attempt(batch, &mut position) {
            Ok(outcomes) => outcomes,
            Err((error, committing)) => return Err(self.roll_back(error, committing)),
        };
        self.position = position;
        self.since_checkpoint += batch.len();
        self.transactions.fetch_add(1, Ordering::Relaxed);
        self.positions.send_if_modified(|shown| std::mem::replace(shown, position) != position);
        Ok(outcomes)
    }

    /// Does all the work and commits it. An error says whether it came from the commit itself.
    fn attempt(
        &self,
        batch: &[Work],
        position: &mut u64,
    ) -> Result<Vec<Result<Outcome, StoreError>>, (rusqlite::Error, bool)> {
        let mut outcomes = Vec::with_capacity(batch.len());
        for work in batch {
            match self.apply(work, position) {
                Ok(outcome) => outcomes.push(Ok(outcome)),
                Err(Fault::Refused(error)) => outcomes.push(Err(error)),
                Err(Fault::Sqlite(error)) => return Err((error, false)),
            }
        }
        let commit = || self.connection.prepare_cached("COMMIT")?.execute([]);
        commit().map_err(|error| (error, true))?;
        Ok(outcomes)
    }

    fn apply(&self, work: &Work, position: &mut u64) -> Result<Outcome, Fault> {
        let connection = &self.connection;
        match work {
            Work::Commit(prepared) => change::take(connection, prepared, position).map(Outcome::Committed),
            Work::OpenSession { holder, now } => maintain::open_session(connection, holder, *now).map(Outcome::Opened),
            Work::CloseSession { epoch } => maintain::close_session(connection, *epoch).map(|()| Outcome::Closed),
            Work::Prune { before, limit } => maintain::prune(connection, *before, *limit).map(Outcome::Pruned),
        }
    }

    /// Leaves the store as it was before the transaction, also for a start after a crash, and says what went wrong.
    fn roll_back(&self, error: rusqlite::Error, committing: bool) -> StoreError {
        // Some errors end the transaction by themselves.
        if !self.connection.is_autocommit()
            && let Err(error) = self.connection.execute_batch("ROLLBACK")
        {
            return error.into();
        }
        if committing && let Err(error) = self.guard.cut_log(&self.connection) {
            // Now a crash could bring the refused transaction back: the one case in which nobody can tell.
            return match error {
                StoreError::Full(source) => StoreError::Failed(source),
                other => other,
            };
        }
        if fault::is_io(&error) && !self.guard.has_room() {
            return StoreError::Full(Box::new(error));
        }
        match error.into() {
            StoreError::Failed(source) => StoreError::NotWritten(source),
            other => other,
        }
    }
}
