//! The lives as jobs in apalis.

use std::{
    ops::Range,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use apalis::prelude::{BackendExt, BoxDynError, PollWith, Strategy, TaskSink, WorkerBuilder, WorkerError};
use apalis_sqlite::{Config, SqliteConnectOptions, SqlitePool, SqlitePoolOptions, SqliteStorage};
use apalis_workflow::{SteppedFlow, WorkflowSink};
use provisioner_core::seams::Random;
use sqlx::{
    Sqlite,
    pool::PoolConnection,
    sqlite::{SqliteJournalMode, SqliteSynchronous},
};
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
};

use crate::{
    measured::{Measured, cpu_seconds},
    report::Samples,
    setup::{Mode, Setup},
    wake::Wake,
    work::{CALLERS, Job, VERBS, World},
};

type Backend = PollWith<SqliteStorage<Job>, Strategy>;

/// Lives so many lives with each caller, in this folder.
pub async fn run(folder: &Path, lives: usize, setup: &Setup) -> Result<Measured, BoxDynError> {
    let pool = open(&folder.join("jobs.db"), setup.connections).await?;
    // Not `SqliteStorage::setup`, which turns `synchronous` off on the connection that it gets.
    SqliteStorage::migrations().run(&pool).await?;
    let sqlite = durability(&pool).await?;
    let world = Arc::new(World::new()?);
    let wakes: Vec<_> = (0..setup.workers).map(|_| Wake::default()).collect();
    let (stop, stopped) = watch::channel(false);
    let workers: Vec<_> =
        wakes.iter().enumerate().map(|(number, wake)| work(number, wake, &pool, setup, &world, &stopped)).collect();
    let push = Push::new(&pool, setup, wakes);

    // Not counted: rows for the statistics to be of, and everything warm.
    callers(&world, &push, setup.mode, 0..1).await?;
    if setup.analyze {
        // On each, as a connection does not hear of statistics that another one made.
        for connection in &mut all(&pool).await? {
            sqlx::query("ANALYZE").execute(&mut **connection).await?;
        }
    }
    let (began, cpu) = (Instant::now(), cpu_seconds());
    let samples = callers(&world, &push, setup.mode, 1..lives + 1).await?;
    // A caller hears of the end before it is on disk; what is still to be written then counts as well.
    stop.send(true)?;
    for worker in workers {
        worker.await??;
    }
    let (seconds, cpu_seconds) = (began.elapsed().as_secs_f64(), cpu_seconds() - cpu);

    let operations = CALLERS * lives * usize::from(VERBS);
    let done: i64 = sqlx::query_scalar("SELECT count(*) FROM Jobs WHERE status = 'Done'").fetch_one(&pool).await?;
    let warm = CALLERS * usize::from(VERBS);
    assert_eq!(usize::try_from(done)?, warm + operations, "every job is done, and that is on disk");
    assert_eq!(durability(&pool).await?, sqlite, "nobody changed it meanwhile");
    let rest = Measured { steps: operations, operations, seconds, p50_ms: None, p99_ms: None, cpu_seconds, sqlite };
    Ok(rest.with_samples(&samples))
}

/// Has each caller live these lives.
async fn callers(world: &Arc<World>, push: &Push, mode: Mode, lives: Range<usize>) -> Result<Samples, BoxDynError> {
    let callers: Vec<_> = (0..CALLERS)
        .map(|caller| {
            let (world, push, lives) = (Arc::clone(world), push.clone(), lives.clone());
            match mode {
                Mode::Jobs | Mode::Gathered => tokio::spawn(ask(world, push, caller, lives)),
                Mode::Workflow => tokio::spawn(flow(world, push, caller, lives)),
            }
        })
        .collect();
    let mut samples = Samples::default();
    for caller in callers {
        samples.extend(caller.await??);
    }
    Ok(samples)
}

/// With the settings of our own store.
async fn open(file: &Path, connections: u32) -> Result<SqlitePool, sqlx::Error> {
    let options = SqliteConnectOptions::new()
        .filename(file)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .busy_timeout(Duration::from_secs(60))
        .pragma("temp_store", "memory")
        .pragma("cache_size", "-32000")
        .pragma("journal_size_limit", "67108864")
        .pragma("wal_autocheckpoint", "64000");
    let pool = SqlitePoolOptions::new().min_connections(connections).max_connections(connections);
    pool.acquire_timeout(Duration::from_secs(120)).connect_with(options).await
}

/// All connections at once, as otherwise the pool gives the same one again.
async fn all(pool: &SqlitePool) -> Result<Vec<PoolConnection<Sqlite>>, sqlx::Error> {
    let mut connections = Vec::new();
    for _ in 0..pool.options().get_max_connections() {
        connections.push(pool.acquire().await?);
    }
    Ok(connections)
}

/// What every connection says of its durability, when all say the same.
async fn durability(pool: &SqlitePool) -> Result<String, BoxDynError> {
    let mut connections = all(pool).await?;
    for connection in &mut connections {
        let journal: String = sqlx::query_scalar("PRAGMA journal_mode").fetch_one(&mut **connection).await?;
        let synchronous: i64 = sqlx::query_scalar("PRAGMA synchronous").fetch_one(&mut **connection).await?;
        if (journal.as_str(), synchronous) != ("wal", 2) {
            return Err(format!("journal_mode {journal}, synchronous {synchronous}: not as durable as ours").into());
        }
    }
    let version: String = sqlx::query_scalar("SELECT sqlite_version()").fetch_one(&mut *connections[0]).await?;
    Ok(format!("SQLite {version}, WAL, synchronous FULL"))
}

fn config(setup: &Setup) -> Config {
    Config::default().queue("lives").batch_size(setup.batch).lock_tasks(setup.lock)
}

/// Starts a worker.
fn work(
    number: usize,
    wake: &Wake,
    pool: &SqlitePool,
    setup: &Setup,
    world: &Arc<World>,
    stopped: &watch::Receiver<bool>,
) -> JoinHandle<Result<(), WorkerError>> {
    let strategy = Strategy::new().apply(wake.clone()).interval(Duration::from_millis(setup.poll_ms));
    let backend: Backend = SqliteStorage::new(pool).with_config(config(setup)).poll_with_strategy(strategy);
    let worker = WorkerBuilder::new(format!("worker-{number}")).backend(backend);
    let mut stopped = stopped.clone();
    let signal = async move {
        // Whoever would say so being gone is a reason to stop as well.
        let _ = stopped.wait_for(|stopped| *stopped).await;
        Ok::<(), std::io::Error>(())
    };
    let world = Arc::clone(world);
    if setup.mode == Mode::Workflow {
        let step = move || {
            let world = Arc::clone(&world);
            move |job: Job| {
                let world = Arc::clone(&world);
                async move {
                    world.act(&job).await?;
                    if job.verb + 1 == VERBS {
                        world.tell(job.caller);
                    }
                    Ok::<Job, BoxDynError>(job.next())
                }
            }
        };
        let life = SteppedFlow::new("life").and_then(step()).and_then(step()).and_then(step()).and_then(step());
        tokio::spawn(worker.build(life).run_until(signal))
    } else {
        let job = move |job: Job| {
            let world = Arc::clone(&world);
            async move {
                world.act(&job).await?;
                world.tell(job.caller);
                Ok::<(), BoxDynError>(())
            }
        };
        tokio::spawn(worker.build(job).run_until(signal))
    }
}

/// How callers push.
#[derive(Clone)]
struct Push {
    storage: SqliteStorage<Job>,
    wakes: Arc<[Wake]>,
    gather: Option<mpsc::Sender<Job>>,
}

impl Push {
    fn new(pool: &SqlitePool, setup: &Setup, wakes: Vec<Wake>) -> Self {
        let storage = SqliteStorage::new(pool).with_config(config(setup));
        let alone = Self { storage, wakes: wakes.into(), gather: None };
        if setup.mode != Mode::Gathered {
            return alone;
        }
        let (sender, mut jobs) = mpsc::channel(CALLERS);
        let mut inner = alone.clone();
        tokio::spawn(async move {
            let mut some = Vec::new();
            while jobs.recv_many(&mut some, CALLERS).await > 0 {
                inner.storage.push_bulk(std::mem::take(&mut some)).await.expect("the jobs are pushed");
                inner.wake();
            }
        });
        Self { gather: Some(sender), ..alone }
    }

    fn wake(&self) {
        self.wakes.iter().for_each(Wake::wake);
    }

    async fn push(&mut self, job: Job) -> Result<(), BoxDynError> {
        if let Some(gather) = &self.gather {
            gather.send(job).await?;
        } else {
            self.storage.push(job).await?;
            self.wake();
        }
        Ok(())
    }
}

/// What one caller does: every request waited for, then the next.
async fn ask(world: Arc<World>, mut push: Push, caller: usize, lives: Range<usize>) -> Result<Samples, BoxDynError> {
    let (mut samples, random) = (Samples::default(), Random::from_os());
    for number in lives {
        let mut job = Job::first(caller, number, &random)?;
        for _ in 0..VERBS {
            let began = Instant::now();
            let done = world.wait(caller);
            push.push(job.trimmed()).await?;
            done.await?;
            samples.push(began.elapsed());
            job = job.next();
        }
    }
    Ok(samples)
}

/// The same, but a life is asked for once. A step takes from the end of the one before it.
async fn flow(world: Arc<World>, mut push: Push, caller: usize, lives: Range<usize>) -> Result<Samples, BoxDynError> {
    let (mut samples, random) = (Samples::default(), Random::from_os());
    for number in lives {
        let mut before = Instant::now();
        let done = world.wait(caller);
        push.storage.push_start(Job::first(caller, number, &random)?).await?;
        push.wake();
        done.await?;
        for end in world.ends(caller) {
            samples.push(end - before);
            before = end;
        }
    }
    Ok(samples)
}
