//! Steps as jobs in apalis-postgres.

use std::{process, time::Duration};

use apalis::prelude::{BackendExt, TaskBuilder, WorkerBuilder, WorkerBuilderExt};
use apalis_postgres::{Config, PostgresStorage, queries};
use sqlx::{PgPool, Postgres, Transaction};
use tokio::task::JoinHandle;

use crate::{
    Result,
    queue::{Ended, Queue, Stop},
    setup::AT_ONCE,
    ticks::Ticks,
    work::Step,
};

/// Jobs stay in the table when they are done.
pub const OPEN_JOBS: &str = "SELECT count(*) FROM apalis.jobs WHERE status <> 'Done'";

const QUEUE: &str = "steps";

pub async fn create_tables(pool: &PgPool) -> Result<()> {
    Ok(PostgresStorage::setup(pool).await?)
}

pub async fn put(transaction: &mut Transaction<'_, Postgres>, steps: Vec<Step>) -> Result<()> {
    let tasks = steps.iter().map(|step| Ok(TaskBuilder::new(serde_json::to_vec(step)?).build()));
    let tasks = tasks.collect::<Result<Vec<_>>>()?;
    Ok(queries::push_tasks(&mut **transaction, QUEUE, tasks).await?)
}

/// Starts to do jobs.
pub fn work(
    pool: &PgPool,
    (batch, lock, poll_ms): (usize, bool, u64),
    ended: Ended,
    stop: Stop,
) -> JoinHandle<Result<()>> {
    let config = Config::default().queue(QUEUE).batch_size(batch).lock_tasks(lock);
    let backend = PostgresStorage::<Step>::new(pool)
        .with_config(config)
        .with_pubsub()
        .poll_with_strategy(Ticks::new(Duration::from_millis(poll_ms)));
    let worker = WorkerBuilder::new(format!("worker-{}", process::id())).backend(backend).concurrency(AT_ONCE);
    let pool = pool.clone();
    let worker = worker.build(move |step: Step| {
        let (pool, ended) = (pool.clone(), Ended::clone(&ended));
        async move {
            let done = Queue::Apalis.step(&pool, step, &ended).await;
            done.inspect_err(|error| eprintln!("apalis-postgres: {error}"))
        }
    });
    let signal = async move {
        // Whoever would say so being gone is a reason to stop as well.
        let _ = stop.await;
        Ok::<(), std::io::Error>(())
    };
    let worker = tokio::spawn(worker.run_until(signal));
    tokio::spawn(async move { Ok(worker.await??) })
}
