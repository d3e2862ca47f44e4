//! Steps as jobs in graphile_worker.

use std::time::Duration;

use graphile_worker::{
    IntoTaskHandlerResult, JobSpec, LocalQueueConfig, TaskHandler, WorkerContext, WorkerContextExt, WorkerOptions,
    WorkerUtils,
};
use sqlx::{PgPool, Postgres, Transaction};
use tokio::task::JoinHandle;

use crate::{
    Result,
    queue::{Ended, Queue, Stop},
    setup::AT_ONCE,
    work::Step,
};

/// Jobs are deleted when they are done.
pub const OPEN_JOBS: &str = "SELECT count(*) FROM graphile_worker._private_jobs";

const SCHEMA: &str = "graphile_worker";

impl TaskHandler for Step {
    const IDENTIFIER: &'static str = "step";

    async fn run(self, cx: WorkerContext) -> impl IntoTaskHandlerResult {
        let ended = cx.get_ext::<Ended>().expect("the worker was given it");
        let done = Queue::Graphile(cx.utils()).step(cx.pg_pool(), self, ended).await;
        done.inspect_err(|error| eprintln!("graphile_worker: {error}")).map_err(|error| error.to_string())
    }
}

pub fn utils(pool: &PgPool) -> WorkerUtils {
    WorkerUtils::new(pool.clone(), SCHEMA)
}

pub async fn put(utils: &WorkerUtils, transaction: &mut Transaction<'_, Postgres>, mut steps: Vec<Step>) -> Result<()> {
    let mut utils = utils.clone().with_executor(transaction);
    if steps.len() == 1 {
        utils.add_job(steps.remove(0), JobSpec::default()).await?;
    } else {
        let spec = JobSpec::default();
        let jobs: Vec<_> = steps.into_iter().map(|step| (step, &spec)).collect();
        utils.add_jobs(&jobs).await?;
    }
    Ok(())
}

/// Starts to do jobs.
pub fn work(
    pool: &PgPool,
    (local, gather_ms, poll_ms): (Option<usize>, Option<u64>, u64),
    ended: Ended,
    stop: Stop,
) -> JoinHandle<Result<()>> {
    let mut options = WorkerOptions::default()
        .pg_pool(pool.clone())
        .schema(SCHEMA)
        .concurrency(AT_ONCE)
        .poll_interval(Duration::from_millis(poll_ms))
        .listen_os_shutdown_signals(false)
        .shutdown_signal(async {
            // Whoever would say so being gone is a reason to stop as well.
            let _ = stop.await;
        })
        .add_extension(ended)
        .define_job::<Step>();
    if let Some(size) = local {
        options = options.local_queue(LocalQueueConfig::default().with_size(size));
    }
    if let Some(delay) = gather_ms {
        options = options.complete_job_batch_delay(Duration::from_millis(delay));
    }
    tokio::spawn(async move { Ok(options.init().await?.run().await?) })
}
