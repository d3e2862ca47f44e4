//! Durable steps as jobs in queues on PostgreSQL, beside the same rows written bare, on one server, in turns; and on the same server,
//! in the same run, the engine's own benchmark.
//!
//! `cargo run --release --manifest-path benches/rivals/postgres/Cargo.toml`, with `DATABASE_URL` and `SQLX_OFFLINE=true`.

use std::{
    collections::BTreeMap,
    env,
    error::Error,
    path::Path,
    process::{Command, Stdio},
};

use bare::Way;
use figures::Figures;
use setup::{AT_ONCE, Library, Setup};
use sign_ups::CALLERS;

mod apalis;
mod bare;
mod figures;
mod graphile;
#[path = "../../../src/measured.rs"]
#[allow(dead_code, reason = "the other rival tells its figures as this says")]
mod measured;
mod queue;
mod replicas;
#[path = "../../../src/report.rs"]
#[allow(dead_code, reason = "the benchmarks of the workspace use all of it")]
mod report;
mod server;
mod setup;
mod sign_ups;
mod ticks;
mod work;

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// Instances that are taken through their lives in a run that counts, if nobody says how many.
const INSTANCES: usize = 2_000;
/// Of them, while setups are tried: one in so many.
const TRIED: usize = 4;
/// Runs that count. An odd number, so that one of them is in the middle.
const ROUNDS: usize = 3;
/// Worker processes.
const PROCESSES: [usize; 3] = [1, 2, 3];
/// Connections that are tried for sign-ups.
const CONNECTIONS: [u32; 3] = [16, 32, 64];
const LIBRARIES: [Library; 2] = [Library::Apalis, Library::Graphile];

#[tokio::main]
async fn main() -> Result<()> {
    let arguments: Vec<_> = env::args().skip(1).collect();
    match &arguments[..] {
        [] => compare(INSTANCES).await,
        [instances] => match instances.parse() {
            Ok(instances) if instances > 0 => compare(instances).await,
            _ => Err("how many instances is a number above zero".into()),
        },
        [role, database, setup] if role == "worker" => {
            replicas::be_worker(database, &serde_json::from_str(setup)?).await
        }
        _ => Err("it takes how many instances, or what it gives to itself: worker DATABASE SETUP".into()),
    }
}

/// What is measured in a round. The order is that of the tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Row {
    BareOneByOne,
    BareBatches { writers: usize },
    Steps { library: usize, processes: usize },
    SignUpBare,
    SignUp { library: usize },
}

async fn compare(instances: usize) -> Result<()> {
    // What it takes to build ours is not for a run to pay.
    ours(&["--no-run"])?;
    println!("{}; {}\n", versions(), server::conditions().await?);
    println!("Setups of a worker process, {} steps each:\n", instances.div_ceil(TRIED) * 4);
    report::heading(&["what", "setup", "steps/s"]);
    let mut setups = Vec::new();
    for library in LIBRARIES {
        setups.push(tune(library, instances.div_ceil(TRIED)).await?);
    }
    let requests = instances * 4;
    println!("\nConnections of the process that accepts sign-ups, {} of them each:\n", requests.div_ceil(TRIED));
    report::heading(&["what", "connections", "sign-ups/s"]);
    let bare = tune_sign_ups(None, requests.div_ceil(TRIED)).await?;
    let mut connections = Vec::new();
    for library in LIBRARIES {
        connections.push(tune_sign_ups(Some(library), requests.div_ceil(TRIED)).await?);
    }

    let mut rows = vec![Row::BareOneByOne, Row::BareBatches { writers: 1 }, Row::BareBatches { writers: 4 }];
    for processes in PROCESSES {
        rows.extend((0..LIBRARIES.len()).map(|library| Row::Steps { library, processes }));
    }
    rows.push(Row::SignUpBare);
    rows.extend((0..LIBRARIES.len()).map(|library| Row::SignUp { library }));
    let mut runs: BTreeMap<Row, Vec<Figures>> = BTreeMap::new();
    for _ in 0..ROUNDS {
        for &row in &rows {
            let figures = match row {
                Row::BareOneByOne => bare::run(Way::OneByOne, instances).await?,
                Row::BareBatches { writers } => bare::run(Way::Batches { writers }, instances).await?,
                Row::Steps { library, processes } => {
                    replicas::run(LIBRARIES[library], &setups[library], processes, instances).await?
                }
                Row::SignUpBare => sign_ups::run(None, bare, requests).await?,
                Row::SignUp { library } => {
                    sign_ups::run(Some(LIBRARIES[library]), connections[library], requests).await?
                }
            };
            runs.entry(row).or_default().push(figures);
        }
    }
    print(runs, instances)?;
    println!("\nThe setups that were the fastest:\n");
    for ((library, setup), connections) in LIBRARIES.into_iter().zip(&setups).zip(connections) {
        println!("- {library}: {setup}; sign-ups over {connections} connections");
    }
    println!("- bare: sign-ups over {bare} connections\n");
    ours(&[])
}

/// The engine's benchmark, which finds the same server by `DATABASE_URL`.
fn ours(arguments: &[&str]) -> Result<()> {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    // Build scripts that watch what Cargo set for this program would run again.
    for (name, _) in env::vars_os() {
        if ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_"].iter().any(|ours| name.to_string_lossy().starts_with(ours)) {
            command.env_remove(name);
        }
    }
    command.args(["bench", "--quiet", "--package", "benches", "--bench", "postgres", "--manifest-path"]);
    command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../Cargo.toml")).args(arguments);
    let status = command.stdin(Stdio::null()).status()?;
    if status.success() { Ok(()) } else { Err(format!("the engine's benchmark: {status}").into()) }
}

/// The fastest setup of a worker process that is found by changing one thing after the other.
async fn tune(library: Library, instances: usize) -> Result<Setup> {
    let tried = async |setup: &Setup| -> Result<f64> {
        let speed = replicas::run(library, setup, 1, instances).await?.speed();
        report::row(&[library.to_string(), setup.to_string(), format!("{speed:.0}")]);
        Ok(speed)
    };
    tried(&Setup::plain(library)).await?;
    let mut best = Setup::first(library);
    let mut speed = tried(&best).await?;
    for round in 0..Setup::ROUNDS {
        for setup in best.neighbours(round) {
            let other = tried(&setup).await?;
            if other > speed {
                (best, speed) = (setup, other);
            }
        }
    }
    Ok(best)
}

/// With how many connections most sign-ups are accepted.
async fn tune_sign_ups(library: Option<Library>, requests: usize) -> Result<u32> {
    let (mut best, mut speed) = (CONNECTIONS[0], 0.0);
    for connections in CONNECTIONS {
        let other = sign_ups::run(library, connections, requests).await?.speed();
        let what = library.map_or_else(|| "bare".to_owned(), |library| library.to_string());
        report::row(&[what, connections.to_string(), format!("{other:.0}")]);
        if other > speed {
            (best, speed) = (connections, other);
        }
    }
    Ok(best)
}

/// Prints the run in the middle of each row, and how far apart they are.
fn print(mut runs: BTreeMap<Row, Vec<Figures>>, instances: usize) -> Result<()> {
    for runs in runs.values_mut() {
        runs.sort_by(|a, b| a.speed().total_cmp(&b.speed()));
    }
    let middle = |row: Row| runs.get(&row).and_then(|runs| runs.get(runs.len() / 2)).ok_or("no run");
    let (steps, sign_ups): (Vec<_>, Vec<_>) =
        runs.keys().partition(|row| !matches!(row, Row::SignUpBare | Row::SignUp { .. }));

    println!("\n{instances} instances of 4 steps, {ROUNDS} rounds in turns, the middle one of each:\n");
    report::heading(&["what", "steps/s", "of bare, one by one", "CPU s", "slowest to fastest, steps/s"]);
    let floor = middle(Row::BareOneByOne)?.speed();
    for &row in steps {
        let figures = middle(row)?;
        let what = match row {
            Row::BareBatches { writers: 1 } => format!("bare, {} steps in a transaction, 1 writer", bare::BATCH),
            Row::BareBatches { writers } => format!("bare, {} steps in a transaction, {writers} writers", bare::BATCH),
            Row::Steps { library, processes: 1 } => format!("{}, 1 process", LIBRARIES[library]),
            Row::Steps { library, processes } => format!("{}, {processes} processes", LIBRARIES[library]),
            _ => format!("bare, a transaction for each step, {AT_ONCE} at once"),
        };
        let speed = figures.speed();
        let ratio = format!("{:.2}", speed / floor);
        report::row(&[what, format!("{speed:.0}"), ratio, format!("{:.2}", figures.cpu_seconds), spread(&runs[&row])]);
    }

    println!("\n{CALLERS} callers, no worker, {ROUNDS} rounds in turns, the middle one of each:\n");
    report::heading(&["what", "sign-ups/s", "p50 / p99", "CPU s", "slowest to fastest, sign-ups/s"]);
    for &row in sign_ups {
        let figures = middle(row)?;
        let what = match row {
            Row::SignUp { library } => format!("{}, row and job", LIBRARIES[library]),
            _ => "bare, the row alone".to_owned(),
        };
        let times = figures.samples.as_ref().map(report::Samples::p50_p99).unwrap_or_default();
        let cpu = format!("{:.2}", figures.cpu_seconds);
        report::row(&[what, format!("{:.0}", figures.speed()), times, cpu, spread(&runs[&row])]);
    }
    Ok(())
}

fn spread(sorted: &[Figures]) -> String {
    let speed = |figures: Option<&Figures>| figures.map_or(0.0, Figures::speed);
    format!("{:.0} to {:.0}", speed(sorted.first()), speed(sorted.last()))
}

/// The versions that the lock file has of what is compared.
fn versions() -> String {
    let lock = include_str!("../Cargo.lock");
    let version = |name: &str| {
        let (_, behind) = lock.split_once(&format!("name = \"{name}\"\nversion = \""))?;
        Some(format!("{name} {}", behind.split('"').next()?))
    };
    ["apalis-postgres", "graphile_worker", "sqlx"].into_iter().filter_map(version).collect::<Vec<_>>().join(", ")
}
