//! What the rest asks of a queue, whichever it is.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use graphile_worker::WorkerUtils;
use sqlx::{PgConnection, PgPool, Postgres, Transaction};
use tokio::{sync::oneshot, task::JoinHandle};

use crate::{
    Result, apalis, graphile,
    setup::{Library, Settings, Setup},
    work::{self, Step},
};

/// Lives that ended in this process.
pub type Ended = Arc<AtomicUsize>;

/// Tells a worker to stop.
pub type Stop = oneshot::Receiver<()>;

/// Where jobs are put.
#[derive(Clone)]
pub enum Queue {
    Apalis,
    Graphile(WorkerUtils),
}

impl Queue {
    pub fn new(library: Library, pool: &PgPool) -> Self {
        match library {
            Library::Apalis => Self::Apalis,
            Library::Graphile => Self::Graphile(graphile::utils(pool)),
        }
    }

    /// Makes the tables of the queue.
    pub async fn create_tables(&self, pool: &PgPool) -> Result<()> {
        match self {
            Self::Apalis => apalis::create_tables(pool).await,
            Self::Graphile(utils) => Ok(utils.migrate().await?),
        }
    }

    /// Puts jobs in, as part of a transaction of the caller's.
    pub async fn put(&self, transaction: &mut Transaction<'_, Postgres>, steps: Vec<Step>) -> Result<()> {
        match self {
            Self::Apalis => apalis::put(transaction, steps).await,
            Self::Graphile(utils) => graphile::put(utils, transaction, steps).await,
        }
    }

    /// How many jobs are not known to be done.
    pub async fn open_jobs(&self, connection: &mut PgConnection) -> Result<i64> {
        let query = match self {
            Self::Apalis => apalis::OPEN_JOBS,
            Self::Graphile(_) => graphile::OPEN_JOBS,
        };
        Ok(sqlx::query_scalar(query).fetch_one(connection).await?)
    }

    /// Does one step: its rows and the job of the next one, in one transaction.
    pub async fn step(&self, pool: &PgPool, step: Step, ended: &Ended) -> Result<()> {
        let mut transaction = pool.begin().await?;
        if !work::write(&mut transaction, &step).await? {
            return Ok(());
        }
        let next = step.next();
        let last = next.is_none();
        if let Some(next) = next {
            self.put(&mut transaction, vec![next]).await?;
        }
        transaction.commit().await?;
        if last {
            ended.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }
}

/// Starts to do jobs, until it is told to stop.
pub fn work(pool: &PgPool, setup: &Setup, ended: Ended, stop: Stop) -> JoinHandle<Result<()>> {
    match setup.settings {
        Settings::Apalis { batch, lock } => apalis::work(pool, (batch, lock, setup.poll_ms), ended, stop),
        Settings::Graphile { local, gather_ms } => graphile::work(pool, (local, gather_ms, setup.poll_ms), ended, stop),
    }
}
