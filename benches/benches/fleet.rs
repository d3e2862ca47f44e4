//! A fleet that sleeps: what 100,000 dormant instances cost the control plane.
//!
//! `cargo bench -p benches --bench fleet`

use std::{sync::Arc, time::Instant};

use benches::{AT_REST, cpu_time, fleet_cell, heading, one_more, resident_mib, row};
use provisioner_core::{
    ControlPlane, Result,
    memory::{MemoryConfig, MemoryProvisioner},
    store::{CommitMode, SqliteStore, Store},
    types::ControlPlaneId,
};

fn main() {
    // A process of its own for the start that is measured: memory that the filling took is not counted.
    if let Some(folder) = std::env::var_os("BENCH_FLEET") {
        run(start(folder.into()));
        return;
    }
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder");
    run(fill_store(folder.path().to_owned()));
    let this = std::env::current_exe().expect("a program knows where it is");
    let status = std::process::Command::new(this).env("BENCH_FLEET", folder.path()).status().expect("it starts again");
    assert!(status.success(), "the start was measured");
}

fn run(what: impl Future<Output = Result<()>>) {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    runtime.block_on(what).expect("the benchmark ran");
}

async fn open(folder: &std::path::Path) -> Result<Arc<SqliteStore>> {
    let opened = SqliteStore::open(folder.join("store.db"), ControlPlaneId::new("bench")?, CommitMode::Grouped).await;
    opened.map_err(|error| error.into_error("open"))
}

/// Signs them all up and puts them to sleep.
async fn fill_store(folder: std::path::PathBuf) -> Result<()> {
    let store = open(&folder).await?;
    let plane = ControlPlane::builder(store as Arc<dyn Store>)
        .cell(fleet_cell(&MemoryProvisioner::new(MemoryConfig::default())))
        .start()
        .await?;
    benches::fill(&plane).await;
    plane.shutdown().await
}

/// Starts on them in a fresh process, and watches it do nothing.
async fn start(folder: std::path::PathBuf) -> Result<()> {
    let empty = resident_mib();
    let provider = MemoryProvisioner::new(MemoryConfig::default());
    let began = Instant::now();
    let store = open(&folder).await?;
    let opened = began.elapsed();
    let plane = ControlPlane::builder(store as Arc<dyn Store>).cell(fleet_cell(&provider)).start().await?;
    one_more(&plane).await?;
    let started = began.elapsed();
    let (calls, cpu) = (provider.calls().values().sum::<u64>(), cpu_time());
    tokio::time::sleep(AT_REST).await;
    let rest_calls = provider.calls().values().sum::<u64>() - calls;
    let rest_cpu = cpu_time().saturating_sub(cpu);
    let size = std::fs::metadata(folder.join("store.db")).map_or(0, |file| file.len()) >> 20;
    heading(&["100,000 dormant instances", "figure", "target"]);
    row(&["store opened and checked".into(), format!("{:.2} s", opened.as_secs_f64()), String::new()]);
    row(&["from the start to a first sign-up running".into(), format!("{:.2} s", started.as_secs_f64()), "2 s".into()]);
    let memory = format!("{:.0} MiB (a process that does nothing: {empty:.0})", resident_mib());
    row(&["resident memory".into(), memory, "100 MB".into()]);
    row(&[format!("provider calls in {} s at rest", AT_REST.as_secs()), rest_calls.to_string(), "0".into()]);
    row(&[
        format!("CPU time in {} s at rest", AT_REST.as_secs()),
        format!("{} ms", rest_cpu.as_millis()),
        String::new(),
    ]);
    row(&["store on disk".into(), format!("{size} MiB"), String::new()]);
    plane.shutdown().await
}
