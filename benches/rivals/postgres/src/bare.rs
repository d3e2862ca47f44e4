//! The rows of the steps without a queue: what the server and the disk can do.

use std::time::Instant;

use sqlx::PgPool;
use tokio::task::JoinSet;

use crate::{
    Result,
    figures::Figures,
    measured::cpu_seconds,
    server,
    setup::AT_ONCE,
    work::{self, STEPS, Step},
};

/// Steps in a transaction, where there are several in one.
pub const BATCH: usize = 128;

/// How the rows are written.
#[derive(Debug, Clone, Copy)]
pub enum Way {
    /// A transaction for each step, as many at once as a worker process does jobs.
    OneByOne,
    /// [`BATCH`] steps in each transaction, by so many writers at once.
    Batches { writers: usize },
}

/// Takes so many instances through their lives, in a database of its own.
pub async fn run(way: Way, instances: usize) -> Result<Figures> {
    server::in_database(async |database| {
        let writers = match way {
            Way::OneByOne => AT_ONCE,
            Way::Batches { writers } => writers,
        };
        let pool = server::open(database, u32::try_from(writers)?).await?;
        work::create_tables(&pool).await?;
        let warm = AT_ONCE * 2;
        live(&pool, way, writers, work::names("warm", warm)).await?;
        sqlx::query("ANALYZE").execute(&pool).await?;
        let figures = live(&pool, way, writers, work::names("i", instances)).await?;
        work::check(&pool, warm + instances).await?;
        server::durability(&pool).await?;
        pool.close().await;
        Ok(figures)
    })
    .await
}

async fn live(pool: &PgPool, way: Way, writers: usize, instances: Vec<String>) -> Result<Figures> {
    work::sign_up_all(&mut *pool.acquire().await?, &instances).await?;
    let (began, cpu) = (Instant::now(), cpu_seconds());
    let mut tasks = JoinSet::new();
    for share in instances.chunks(instances.len().div_ceil(writers)) {
        let (pool, share) = (pool.clone(), share.to_vec());
        match way {
            Way::OneByOne => tasks.spawn(one_by_one(pool, share)),
            Way::Batches { .. } => tasks.spawn(in_batches(pool, share)),
        };
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    let (seconds, cpu_seconds) = (began.elapsed().as_secs_f64(), cpu_seconds() - cpu);
    let count = instances.len() * usize::from(STEPS.unsigned_abs());
    Ok(Figures { count, seconds, samples: None, cpu_seconds })
}

async fn one_by_one(pool: PgPool, instances: Vec<String>) -> Result<()> {
    for instance in instances {
        let mut next = Some(Step::first(instance));
        while let Some(step) = next {
            let mut transaction = pool.begin().await?;
            assert!(work::write(&mut transaction, &step).await?, "nobody else works on it");
            transaction.commit().await?;
            next = step.next();
        }
    }
    Ok(())
}

async fn in_batches(pool: PgPool, instances: Vec<String>) -> Result<()> {
    let mut steps: Vec<_> = instances.into_iter().map(Step::first).collect();
    while !steps.is_empty() {
        for batch in steps.chunks(BATCH) {
            let mut transaction = pool.begin().await?;
            work::write_all(&mut transaction, batch).await?;
            transaction.commit().await?;
        }
        steps = steps.into_iter().filter_map(Step::next).collect();
    }
    Ok(())
}
