//! Steps as jobs: worker processes, and who starts and counts them.

use std::{
    env,
    process::Stdio,
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};
use sqlx::PgPool;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, stdin},
    process::{Child, ChildStdin, ChildStdout, Command},
    sync::{mpsc, oneshot},
    time::{interval, sleep, timeout},
};

use crate::{
    Result,
    figures::Figures,
    measured::cpu_seconds,
    queue::{self, Ended, Queue},
    server,
    setup::{AT_ONCE, Library, Setup},
    work::{self, STEPS, Step},
};

/// Lives that each process has ended before the clock runs.
const WARM: usize = 8;
/// Nothing is heard of for so long only when jobs are lost.
const PATIENCE: Duration = Duration::from_secs(120);

/// What a worker process tells, a line each.
#[derive(Debug, Serialize, Deserialize)]
enum Told {
    /// It begins to look for jobs.
    Ready,
    /// So many lives have ended in it so far.
    Ended(usize),
    /// It stops, and used so much of the processors since it was told that the clock runs.
    Stopped { cpu_seconds: f64 },
}

/// Does jobs until the other end of its input is closed.
pub async fn be_worker(database: &str, setup: &Setup) -> Result<()> {
    let pool = server::open(database, setup.connections).await?;
    let ended = Ended::default();
    let (stop, stopped) = oneshot::channel();
    let mut worker = queue::work(&pool, setup, Ended::clone(&ended), stopped);
    tell(&Told::Ready)?;

    let (mut input, mut ticks) = (BufReader::new(stdin()).lines(), interval(Duration::from_millis(5)));
    let (mut cpu, mut told) = (cpu_seconds(), 0);
    loop {
        tokio::select! {
            line = input.next_line() => match line? {
                Some(_) => cpu = cpu_seconds(),
                None => break,
            },
            _ = ticks.tick() => {
                let now = ended.load(Ordering::Relaxed);
                if now != told {
                    tell(&Told::Ended(now))?;
                    told = now;
                }
            }
            over = &mut worker => {
                over??;
                return Err("the worker stopped by itself".into());
            }
        }
    }
    let cpu_seconds = cpu_seconds() - cpu;
    stop.send(()).map_err(|()| "the worker does not hear")?;
    worker.await??;
    server::durability(&pool).await?;
    tell(&Told::Stopped { cpu_seconds })
}

fn tell(told: &Told) -> Result<()> {
    println!("{}", serde_json::to_string(told)?);
    Ok(())
}

/// Takes so many instances through their lives with so many worker processes, in a database of its own.
pub async fn run(library: Library, setup: &Setup, processes: usize, instances: usize) -> Result<Figures> {
    server::in_database(async |database| {
        let pool = server::open(database, 2).await?;
        work::create_tables(&pool).await?;
        let queue = Queue::new(library, &pool);
        queue.create_tables(&pool).await?;
        let mut replicas = Replicas::start(database, setup, processes)?;
        let figures = measure(&pool, &queue, &mut replicas, instances).await;
        // In any case, as processes that outlive their database would only complain.
        let cpu_seconds = replicas.stop().await;
        let mut figures = figures?;
        figures.cpu_seconds = cpu_seconds?;
        pool.close().await;
        Ok(figures)
    })
    .await
}

async fn measure(pool: &PgPool, queue: &Queue, replicas: &mut Replicas, instances: usize) -> Result<Figures> {
    // Not counted: every process is at work, and there are rows for statistics to be of.
    let mut warm = 0;
    for round in 0.. {
        let count = AT_ONCE * replicas.processes.len();
        accept(pool, queue, work::names(&format!("warm-{round}"), count)).await?;
        warm += count;
        replicas.wait_for(warm).await?;
        if replicas.processes.iter().all(|process| process.ended >= WARM) {
            break;
        }
        if round == 20 {
            return Err("a worker process does nothing".into());
        }
    }
    no_open_jobs(pool, queue).await?;
    sqlx::query("ANALYZE").execute(pool).await?;

    replicas.clock_runs().await?;
    accept(pool, queue, work::names("i", instances)).await?;
    let began = Instant::now();
    replicas.wait_for(warm + instances).await?;
    // That a job is done has to be on disk as well, or it would be done again after a crash.
    no_open_jobs(pool, queue).await?;
    let seconds = began.elapsed().as_secs_f64();
    work::check(pool, warm + instances).await?;
    Ok(Figures { count: instances * usize::from(STEPS.unsigned_abs()), seconds, samples: None, cpu_seconds: 0.0 })
}

/// Writes these instances with the jobs of their first steps, all in one transaction.
async fn accept(pool: &PgPool, queue: &Queue, instances: Vec<String>) -> Result<()> {
    let mut transaction = pool.begin().await?;
    work::sign_up_all(&mut transaction, &instances).await?;
    queue.put(&mut transaction, instances.into_iter().map(Step::first).collect()).await?;
    Ok(transaction.commit().await?)
}

async fn no_open_jobs(pool: &PgPool, queue: &Queue) -> Result<()> {
    let mut connection = pool.acquire().await?;
    let began = Instant::now();
    while queue.open_jobs(&mut connection).await? > 0 {
        if began.elapsed() > PATIENCE {
            return Err("jobs that were done are not known to be".into());
        }
        sleep(Duration::from_millis(5)).await;
    }
    Ok(())
}

/// Worker processes.
#[derive(Debug)]
struct Replicas {
    processes: Vec<Process>,
    told: mpsc::Receiver<(usize, Told)>,
}

#[derive(Debug)]
struct Process {
    child: Child,
    input: Option<ChildStdin>,
    ended: usize,
}

impl Replicas {
    fn start(database: &str, setup: &Setup, processes: usize) -> Result<Self> {
        let (sender, told) = mpsc::channel(64);
        let setup = serde_json::to_string(setup)?;
        let mut started = Vec::new();
        for number in 0..processes {
            let mut child = Command::new(env::current_exe()?)
                .args(["worker", database, &setup])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .kill_on_drop(true)
                .spawn()?;
            let (input, output) = (child.stdin.take(), child.stdout.take());
            tokio::spawn(read(number, output.ok_or("its output is piped")?, sender.clone()));
            started.push(Process { child, input, ended: 0 });
        }
        Ok(Self { processes: started, told })
    }

    /// Waits until so many lives have ended in all processes together.
    async fn wait_for(&mut self, lives: usize) -> Result<()> {
        while self.processes.iter().map(|process| process.ended).sum::<usize>() < lives {
            let (number, told) =
                timeout(PATIENCE, self.told.recv()).await?.ok_or("every worker process stopped by itself")?;
            match told {
                Told::Ready => {}
                Told::Ended(ended) => self.processes[number].ended = ended,
                Told::Stopped { .. } => return Err("a worker process stopped by itself".into()),
            }
        }
        Ok(())
    }

    async fn clock_runs(&mut self) -> Result<()> {
        for process in &mut self.processes {
            process.input.as_mut().ok_or("it still listens")?.write_all(b"the clock runs\n").await?;
        }
        Ok(())
    }

    /// Stops them, and tells what they used of the processors while the clock ran.
    async fn stop(mut self) -> Result<f64> {
        for process in &mut self.processes {
            process.input = None;
        }
        let mut used = 0.0;
        while let Some((_, told)) = timeout(PATIENCE, self.told.recv()).await? {
            if let Told::Stopped { cpu_seconds } = told {
                used += cpu_seconds;
            }
        }
        for process in &mut self.processes {
            let status = process.child.wait().await?;
            if !status.success() {
                return Err(format!("a worker process failed: {status}").into());
            }
        }
        Ok(used)
    }
}

/// Passes on what a process tells, until it ends or says what nobody understands.
async fn read(number: usize, output: ChildStdout, sender: mpsc::Sender<(usize, Told)>) {
    let mut lines = BufReader::new(output).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        let Ok(told) = serde_json::from_str(&line) else {
            eprintln!("a worker process tells: {line}");
            continue;
        };
        if sender.send((number, told)).await.is_err() {
            return;
        }
    }
}
