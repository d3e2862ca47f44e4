//! The commit loop: whatever waits goes into one transaction, is made durable at once, and is answered one by one.

use std::{
    slice,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use deadpool_postgres::ClientWrapper;
use tokio::{
    sync::{mpsc, oneshot},
    time::{self, Instant},
};
use tokio_postgres::error::SqlState;

use super::{
    super::{
        Committed, StoreError,
        format::{Columns, Prepared},
    },
    batch::{
        load::{self, NotLoaded},
        save::{self, Mark, Saved},
        statements::Statements,
    },
    config::Schema,
    connect::Connector,
    fault::{self, Cause, Remedy, TimedOut, Unknown},
    listen::Told,
};
use crate::error::Chain;

/// How many changes one transaction takes. Bounds how long the first of them waits for the last.
const BATCH_MAX: usize = 512;
/// How often a batch is tried again that another process's write came before.
const TRIES: usize = 5;
/// How often a transaction whose answer was lost is asked about.
const ASK_EVERY: Duration = Duration::from_millis(50);

/// A change and where its answer goes.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) prepared: Box<Prepared>,
    pub(super) answer: oneshot::Sender<Result<Committed, StoreError>>,
}

/// The one connection that writes, made again whenever it is in doubt.
pub(super) struct Writer {
    connector: Connector,
    schema: Schema,
    told: Told,
    timeout: Duration,
    /// By what the database knows this process.
    name: String,
    /// The number of the last batch.
    batch: i64,
    line: Option<Line>,
    /// How many transactions were written.
    transactions: Arc<AtomicU64>,
}

/// A connection with its statements.
struct Line {
    client: ClientWrapper,
    statements: Statements,
}

/// Why a batch was not carried out.
#[derive(Debug, Clone)]
enum Failure {
    /// Another process's write came before. Nothing was written.
    Raced(Cause),
    /// One of the changes cannot be written. Nothing was.
    Single(Cause),
    /// The connection was lost before the commit was sent. Nothing was written.
    Lost(Cause),
    /// The database does not do it now. Nothing was written.
    Refused { cause: Cause, full: bool },
    /// The answer to the commit was lost, and the database cannot be asked.
    Unknown(Cause),
}

type Outcomes = Vec<Result<Committed, StoreError>>;

impl Failure {
    fn answer(&self) -> StoreError {
        match self {
            Self::Raced(cause) | Self::Single(cause) | Self::Lost(cause) => fault::not_written(cause, false),
            Self::Refused { cause, full } => fault::not_written(cause, *full),
            Self::Unknown(cause) => StoreError::Failed(Box::new(Unknown(cause.clone()))),
        }
    }

    /// Of a transaction that was not committed.
    fn of(error: tokio_postgres::Error) -> Self {
        let (remedy, full) = (fault::remedy(&error), fault::is_full(&error));
        let cause = Cause::new(error);
        match remedy {
            Remedy::Again => Self::Raced(cause),
            Remedy::Apart => Self::Single(cause),
            Remedy::Reconnect => Self::Lost(cause),
            Remedy::Fail => Self::Refused { cause, full },
        }
    }
}

impl Writer {
    pub(super) fn new(connector: Connector, schema: Schema, told: Told, timeout: Duration) -> Self {
        let name = format!("{:032x}", rand::random::<u128>());
        Self { connector, schema, told, timeout, name, batch: 0, line: None, transactions: Arc::default() }
    }

    /// How many transactions were written, as it rises.
    pub(super) fn transactions(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.transactions)
    }

    /// Makes the connection, and forgets processes that wrote nothing for long.
    pub(super) async fn begin(&mut self) -> Result<(), StoreError> {
        let line = self.connect().await?;
        let query = "DELETE FROM writers WHERE written_at < clock_timestamp() - interval '7 days'";
        line.client.batch_execute(query).await?;
        self.line = Some(line);
        Ok(())
    }

    /// Serves until nobody can send any more and everything sent was answered.
    pub(super) async fn serve(mut self, mut jobs: mpsc::Receiver<Job>) {
        let mut waiting = Vec::with_capacity(BATCH_MAX);
        while jobs.recv_many(&mut waiting, BATCH_MAX).await > 0 {
            let (batch, answers): (Vec<_>, Vec<_>) = waiting.drain(..).map(|job| (job.prepared, job.answer)).unzip();
            let batch: Vec<&Prepared> = batch.iter().map(|prepared| &**prepared).collect();
            for (answer, outcome) in answers.into_iter().zip(self.carry_out(&batch).await) {
                // Whoever stopped waiting does not need the answer.
                let _ = answer.send(outcome);
            }
        }
    }

    /// Carries the changes out, together if that succeeds, else one by one, so that none fails for another one's sake.
    async fn carry_out(&mut self, batch: &[&Prepared]) -> Outcomes {
        let failure = match self.together(batch).await {
            Ok(outcomes) => return outcomes,
            Err(failure) => failure,
        };
        let (Failure::Single(cause) | Failure::Raced(cause)) = &failure else {
            // Not one by one: what keeps all of them would be waited for again and again.
            tracing::warn!(error = %Chain(&failure.answer()), changes = batch.len(), "a transaction failed");
            return batch.iter().map(|_| Err(failure.answer())).collect();
        };
        if batch.len() == 1 {
            return vec![Err(failure.answer())];
        }
        tracing::warn!(error = %Chain(cause), changes = batch.len(), "a transaction failed; trying one by one");
        let mut outcomes = Vec::with_capacity(batch.len());
        let mut stopped: Option<Failure> = None;
        for single in batch {
            outcomes.push(match (&stopped, self.together_unless(&stopped, single).await) {
                (Some(failure), _) => Err(failure.answer()),
                (None, Ok(mut outcome)) => outcome.pop().expect("one answer for one change"),
                (None, Err(failure)) => {
                    let answer = failure.answer();
                    if let Failure::Lost(cause) | Failure::Refused { cause, .. } | Failure::Unknown(cause) = failure {
                        stopped = Some(Failure::Refused { cause, full: matches!(answer, StoreError::Full(_)) });
                    }
                    Err(answer)
                }
            });
        }
        outcomes
    }

    async fn together_unless(&mut self, stopped: &Option<Failure>, single: &&Prepared) -> Result<Outcomes, Failure> {
        match stopped {
            Some(_) => Ok(Vec::new()),
            None => self.together(slice::from_ref(single)).await,
        }
    }

    /// Carries the changes out in one transaction, again if another process's write came before.
    async fn together(&mut self, batch: &[&Prepared]) -> Result<Outcomes, Failure> {
        let deadline = Instant::now() + self.timeout;
        let mut tries = 1;
        loop {
            match self.attempt(batch).await {
                Err(Failure::Raced(_) | Failure::Lost(_)) if tries < TRIES && Instant::now() < deadline => tries += 1,
                done => return done,
            }
        }
    }

    async fn attempt(&mut self, batch: &[&Prepared]) -> Result<Outcomes, Failure> {
        let not_begun = |error: StoreError| {
            let full = matches!(error, StoreError::Full(_));
            Failure::Refused { cause: Cause::new(error), full }
        };
        let line = match self.line.take().filter(|line| !line.client.is_closed()) {
            Some(line) => line,
            None => self.connect().await.map_err(not_begun)?,
        };
        let deadline = Instant::now() + self.timeout;
        // A connection that is not put back is not used again.
        let loading = load::load(&line.client, &line.statements, batch);
        let loaded = match time::timeout_at(deadline, loading).await {
            Ok(Ok(loaded)) => loaded,
            Ok(Err(not_loaded)) => {
                let failure = match not_loaded {
                    NotLoaded::Failed(error) => Failure::of(error),
                    NotLoaded::Damaged(error) => Failure::Single(Cause::new(error)),
                };
                if !matches!(failure, Failure::Lost(_)) {
                    self.roll_back(line).await;
                }
                return Err(failure);
            }
            Err(_) => return Err(Failure::Refused { cause: Cause::new(TimedOut(self.timeout)), full: false }),
        };
        let mut picture = loaded.picture;
        let outcomes: Outcomes = batch.iter().map(|prepared| picture.take(prepared)).collect();
        if picture.is_unchanged() {
            self.roll_back(line).await;
            return Ok(outcomes);
        }
        self.batch += 1;
        let events = picture.events();
        let mark = Mark { writer: &self.name, batch: self.batch, channel: self.schema.as_str() };
        let saving = save::save(&line.client, &line.statements, &picture, &mark);
        let saved = time::timeout_at(deadline, saving).await;
        let before = match saved {
            Ok(Saved::Committed(before)) => {
                self.line = Some(line);
                before
            }
            Ok(Saved::Refused(error)) => {
                // The commit that was sent behind it was a rollback.
                self.line = Some(line);
                return Err(Failure::of(error));
            }
            Ok(Saved::Unknown(error)) => {
                drop(line);
                self.find_out(&loaded.transaction, Cause::new(error)).await?.saturating_sub(events)
            }
            Err(_) => {
                drop(line);
                self.find_out(&loaded.transaction, Cause::new(TimedOut(self.timeout))).await?.saturating_sub(events)
            }
        };
        self.transactions.fetch_add(1, Ordering::Relaxed);
        self.told.show(before + events);
        let shifted = |committed: Committed| Committed { position: before + committed.position, ..committed };
        Ok(outcomes.into_iter().map(|outcome| outcome.map(shifted)).collect())
    }

    /// Finds out what became of the last batch, whose answer was lost: the position after it, if it was committed.
    ///
    /// The transaction's state tells when it is over, and the mark, written by it, whether it was committed: after a crash of the
    /// server, the number of a transaction that left no trace may be another one's.
    /// <https://www.postgresql.org/docs/current/functions-info.html#FUNCTIONS-INFO-SNAPSHOT>
    async fn find_out(&mut self, transaction: &str, cause: Cause) -> Result<u64, Failure> {
        let deadline = Instant::now() + self.timeout;
        tracing::warn!(error = %Chain(&cause), "the answer to a commit was lost; asking what became of it");
        loop {
            match time::timeout_at(deadline, self.ask(transaction)).await {
                Ok(Ok(Some(position))) => return position.ok_or(Failure::Refused { cause, full: false }),
                Ok(Ok(None)) => {}
                Ok(Err(error)) => {
                    self.line = None;
                    tracing::debug!(error = %Chain(&error), "the database cannot be asked yet");
                }
                Err(_) => self.line = None,
            }
            if Instant::now() + ASK_EVERY >= deadline {
                return Err(Failure::Unknown(cause));
            }
            time::sleep(ASK_EVERY).await;
        }
    }

    /// Asks what became of the last batch: `None` as long as it is not over, else the position after it, if it was committed.
    async fn ask(&mut self, transaction: &str) -> Result<Option<Option<u64>>, StoreError> {
        let line = match self.line.take() {
            Some(line) => line,
            None => self.connect().await?,
        };
        let status = line.client.query_one("SELECT pg_xact_status($1::text::xid8)", &[&transaction]).await;
        let is_over = match status {
            Ok(row) => row.text_or_null(0)? != Some("in progress"),
            // After a crash the server may not have come to this number again.
            Err(error) if error.code() == Some(&SqlState::INVALID_PARAMETER_VALUE) => true,
            Err(error) => return Err(error.into()),
        };
        if !is_over {
            self.line = Some(line);
            return Ok(None);
        }
        let query = "SELECT position FROM writers WHERE writer = $1 AND batch = $2";
        let marked = line.client.query_opt(query, &[&self.name, &self.batch]).await?;
        self.line = Some(line);
        Ok(Some(marked.map(|row| row.count(0)).transpose()?))
    }

    async fn connect(&self) -> Result<Line, StoreError> {
        let client = self.connector.connect().await?;
        match time::timeout(self.timeout, Statements::prepare(&client)).await {
            Ok(statements) => Ok(Line { statements: statements?, client }),
            Err(_) => Err(StoreError::Failed(Box::new(TimedOut(self.timeout)))),
        }
    }

    /// Ends a transaction that is not to be committed. The connection is kept if that succeeds.
    async fn roll_back(&mut self, line: Line) {
        if matches!(time::timeout(self.timeout, line.client.batch_execute("ROLLBACK")).await, Ok(Ok(()))) {
            self.line = Some(line);
        }
    }
}
