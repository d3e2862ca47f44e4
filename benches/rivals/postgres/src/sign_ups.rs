//! Sign-ups: the customer's row and the job of the first step, in one transaction, while no worker is there.

use std::time::Instant;

use sqlx::PgPool;
use tokio::task::JoinSet;

use crate::{
    Result,
    figures::Figures,
    measured::cpu_seconds,
    queue::Queue,
    report::Samples,
    server,
    setup::Library,
    work::{self, Step},
};

/// Callers at once.
pub const CALLERS: usize = 256;

/// Accepts about so many requests, in a database of its own. Without a library, only the row is written.
pub async fn run(library: Option<Library>, connections: u32, requests: usize) -> Result<Figures> {
    server::in_database(async |database| {
        let pool = server::open(database, connections).await?;
        work::create_tables(&pool).await?;
        let queue = library.map(|library| Queue::new(library, &pool));
        if let Some(queue) = &queue {
            queue.create_tables(&pool).await?;
        }
        let each = requests.div_ceil(CALLERS);
        all(&pool, queue.as_ref(), "warm", 1).await?;
        sqlx::query("ANALYZE").execute(&pool).await?;
        let figures = all(&pool, queue.as_ref(), "i", each).await?;

        let wanted = CALLERS * (1 + each);
        let rows: i64 = sqlx::query_scalar("SELECT count(*) FROM instances").fetch_one(&pool).await?;
        assert_eq!(usize::try_from(rows)?, wanted, "every customer's row is there");
        if let Some(queue) = &queue {
            let jobs = queue.open_jobs(&mut *pool.acquire().await?).await?;
            assert_eq!(usize::try_from(jobs)?, wanted, "and a job for each");
        }
        server::durability(&pool).await?;
        pool.close().await;
        Ok(figures)
    })
    .await
}

async fn all(pool: &PgPool, queue: Option<&Queue>, prefix: &str, each: usize) -> Result<Figures> {
    let (began, cpu) = (Instant::now(), cpu_seconds());
    let mut callers = JoinSet::new();
    for caller in 0..CALLERS {
        let names = work::names(&format!("{prefix}-{caller}"), each);
        callers.spawn(sign_up(pool.clone(), queue.cloned(), names));
    }
    let mut samples = Samples::default();
    while let Some(done) = callers.join_next().await {
        samples.extend(done??);
    }
    let (seconds, cpu_seconds) = (began.elapsed().as_secs_f64(), cpu_seconds() - cpu);
    Ok(Figures { count: CALLERS * each, seconds, samples: Some(samples), cpu_seconds })
}

/// What one caller does: every request waited for, then the next. To wait for a connection is part of it.
async fn sign_up(pool: PgPool, queue: Option<Queue>, names: Vec<String>) -> Result<Samples> {
    let mut samples = Samples::default();
    for name in names {
        let began = Instant::now();
        let mut transaction = pool.begin().await?;
        work::sign_up(&mut transaction, &name).await?;
        if let Some(queue) = &queue {
            queue.put(&mut transaction, vec![Step::first(name)]).await?;
        }
        transaction.commit().await?;
        samples.push(began.elapsed());
    }
    Ok(samples)
}
