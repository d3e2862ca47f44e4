//! The same durable work on the engine and as jobs in apalis, on one disk, in turns.
//!
//! `cargo run --release --manifest-path benches/rivals/apalis/Cargo.toml`

use std::{
    env,
    error::Error,
    ffi::OsString,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use measured::Measured;
use setup::{Mode, Setup};

#[path = "../../../src/measured.rs"]
mod measured;
#[path = "../../../src/report.rs"]
#[allow(dead_code, reason = "the benchmarks of the workspace use all of it")]
mod report;
mod rival;
mod setup;
mod wake;
mod work;

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// Lives that each caller lives in a run that counts.
const LIVES: usize = 8;
/// The same while setups are tried.
const LIVES_TRIED: usize = 2;
/// Runs that count. An odd number, so that one of them is in the middle.
const ROUNDS: usize = 3;

fn main() -> Result<()> {
    let arguments: Vec<_> = env::args().skip(1).collect();
    match &arguments[..] {
        [] => compare(),
        [folder, lives, setup] => {
            let (lives, setup) = (lives.parse()?, serde_json::from_str(setup)?);
            let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
            runtime.block_on(rival::run(Path::new(folder), lives, &setup))?.tell();
            Ok(())
        }
        _ => Err("it takes no arguments, or those that it gives to itself: FOLDER LIVES SETUP".into()),
    }
}

fn compare() -> Result<()> {
    // What it takes to build ours is not for a run to pay.
    if !ours("build").status()?.success() {
        return Err("the engine's part does not build".into());
    }
    let modes = [Mode::Jobs, Mode::Gathered, Mode::Workflow];
    println!("Setups of apalis, {} requests each:\n", work::CALLERS * LIVES_TRIED * usize::from(work::VERBS));
    report::heading(&["what", "setup", "operations/s"]);
    let best = modes.into_iter().map(tune).collect::<Result<Vec<_>>>()?;

    let (mut engine, mut floor, mut rivals) = (Vec::new(), Vec::new(), vec![Vec::new(); modes.len()]);
    for _ in 0..ROUNDS {
        let mut both = run_ours(LIVES)?;
        floor.push(both.pop().ok_or("no floor")?);
        engine.push(both.pop().ok_or("no engine")?);
        for (setup, runs) in best.iter().zip(&mut rivals) {
            runs.push(run_rival(setup, LIVES)?);
        }
    }
    let requests = work::CALLERS * LIVES * usize::from(work::VERBS);
    println!("\n{} callers, {requests} requests, {ROUNDS} rounds in turns, the middle one of each:\n", work::CALLERS);
    report::heading(&["what", "steps/s", "operations/s", "p50 / p99", "CPU s", "slowest to fastest, operations/s"]);
    row("the engine", engine)?;
    row("its rows written bare, same batches", floor)?;
    for (mode, runs) in modes.into_iter().zip(rivals) {
        row(&mode.to_string(), runs)?;
    }
    println!("\nThe setups of apalis that were the fastest:\n");
    for (mode, setup) in modes.into_iter().zip(&best) {
        println!("- {mode}: {setup}");
    }
    Ok(())
}

/// The fastest setup that is found by changing one thing after the other.
fn tune(mode: Mode) -> Result<Setup> {
    let tried = |setup: &Setup| -> Result<f64> {
        let speed = operations(&run_rival(setup, LIVES_TRIED)?);
        report::row(&[mode.to_string(), setup.to_string(), format!("{speed:.0}")]);
        Ok(speed)
    };
    tried(&Setup::plain(mode))?;
    let mut best = Setup::first(mode);
    let mut speed = tried(&best)?;
    for round in 0..Setup::ROUNDS {
        for setup in best.neighbours(round) {
            let other = tried(&setup)?;
            if other > speed {
                (best, speed) = (setup, other);
            }
        }
    }
    Ok(best)
}

fn operations(run: &Measured) -> f64 {
    run.operations as f64 / run.seconds
}

/// Prints the run in the middle, and how far apart they are.
fn row(what: &str, mut runs: Vec<Measured>) -> Result<()> {
    runs.sort_by(|a, b| operations(a).total_cmp(&operations(b)));
    let (slowest, fastest) = (runs.first().ok_or("no run")?, runs.last().ok_or("no run")?);
    let middle = &runs[runs.len() / 2];
    let times = match (middle.p50_ms, middle.p99_ms) {
        (Some(p50), Some(p99)) => format!("{p50:.1} / {p99:.1} ms"),
        _ => String::new(),
    };
    report::row(&[
        format!("{what} ({})", middle.sqlite),
        format!("{:.0}", middle.steps as f64 / middle.seconds),
        format!("{:.0}", operations(middle)),
        times,
        format!("{:.2}", middle.cpu_seconds),
        format!("{:.0} to {:.0}", operations(slowest), operations(fastest)),
    ]);
    Ok(())
}

/// One run of apalis, in a process of its own as ours is.
fn run_rival(setup: &Setup, lives: usize) -> Result<Measured> {
    let folder = folder()?;
    let mut command = Command::new(env::current_exe()?);
    command.arg(folder.path()).arg(lives.to_string()).arg(serde_json::to_string(setup)?);
    lines(&mut command)?.pop().ok_or_else(|| "apalis told nothing".into())
}

/// One run of the engine, and of its floor.
fn run_ours(lives: usize) -> Result<Vec<Measured>> {
    let folder = folder()?;
    lines(ours("run").arg("--").arg(folder.path()).arg(lives.to_string()))
}

/// The engine's part: a program of the workspace, as its SQLite and that of apalis cannot be linked into one.
fn ours(verb: &str) -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo")));
    // Build scripts that watch what Cargo set for this program would run again.
    for (name, _) in env::vars_os() {
        if ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_"].iter().any(|ours| name.to_string_lossy().starts_with(ours)) {
            command.env_remove(name);
        }
    }
    let manifest = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../Cargo.toml");
    command.args([verb, "--quiet", "--release", "--package", "benches", "--bin", "lives", "--manifest-path"]);
    command.arg(manifest);
    command
}

/// On the disk that holds the program, for both.
fn folder() -> Result<tempfile::TempDir> {
    let program = env::current_exe()?;
    Ok(tempfile::tempdir_in(program.parent().ok_or("the program is in a folder")?)?)
}

fn lines(command: &mut Command) -> Result<Vec<Measured>> {
    let output = command.stdin(Stdio::null()).stderr(Stdio::inherit()).output()?;
    if !output.status.success() {
        return Err(format!("a run failed: {}", output.status).into());
    }
    let text = String::from_utf8(output.stdout)?;
    text.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
}
