//! A fleet that sleeps: what 100,000 dormant instances cost the control plane.
//!
//! `cargo bench -p benches --bench fleet`

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use benches::{cpu_time, heading, resident_mib, row};
use futures::{StreamExt, stream};
use provisioner_core::{
    Cell, ControlPlane, Result,
    control_plane::{NewInstance, Request},
    memory::{MemoryConfig, MemoryProvisioner},
    store::{CommitMode, SqliteStore, Store},
    types::{Actor, CellName, ControlPlaneId, InstanceId, InstanceSpec, TenantId, VariableName, Workload},
};

/// Instances.
const FLEET: usize = 100_000;
/// For how long the fleet is watched doing nothing.
const AT_REST: Duration = Duration::from_secs(20);

fn main() {
    // A process of its own for the start that is measured: memory that the filling took is not counted.
    if let Some(folder) = std::env::var_os("BENCH_FLEET") {
        run(start(folder.into()));
        return;
    }
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder");
    run(fill(folder.path().to_owned()));
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

fn cell(provider: &MemoryProvisioner) -> Result<Cell> {
    Ok(Cell::new(CellName::new("memory")?, Arc::new(provider.clone())).with_calls_max(256))
}

fn by() -> Request {
    Request::by(Actor::new("bench").expect("a name"))
}

fn spec() -> Result<InstanceSpec> {
    let mut spec = InstanceSpec::new(Workload::new("1.0").with_command(["/usr/bin/product"]));
    spec.environment.insert(VariableName::new("CONFIGURATION")?, "x".repeat(600));
    Ok(spec)
}

/// Signs them all up and puts them to sleep.
async fn fill(folder: std::path::PathBuf) -> Result<()> {
    let store = open(&folder).await?;
    let plane = ControlPlane::builder(store as Arc<dyn Store>)
        .cell(cell(&MemoryProvisioner::new(MemoryConfig::default()))?)
        .start()
        .await?;
    let spec = spec()?;
    let began = Instant::now();
    stream::iter(0..FLEET)
        .for_each_concurrent(256, |number| {
            let (plane, spec) = (plane.clone(), spec.clone());
            async move {
                let id = InstanceId::new(format!("i-{number}")).expect("a label");
                let tenant = TenantId::new(format!("tenant {number}")).expect("a name");
                let made = plane.create(NewInstance::new(id.clone(), tenant, spec), by()).await.expect("accepted");
                made.wait().await.expect("made");
                plane.sleep(&id, by()).await.expect("accepted").wait().await.expect("asleep");
            }
        })
        .await;
    println!("{FLEET} instances signed up and asleep in {:.1} s\n", began.elapsed().as_secs_f64());
    plane.shutdown().await
}

/// Starts on them in a fresh process, and watches it do nothing.
async fn start(folder: std::path::PathBuf) -> Result<()> {
    let empty = resident_mib();
    let provider = MemoryProvisioner::new(MemoryConfig::default());
    let began = Instant::now();
    let store = open(&folder).await?;
    let opened = began.elapsed();
    let plane = ControlPlane::builder(store as Arc<dyn Store>).cell(cell(&provider)?).start().await?;
    let id = InstanceId::new("fresh")?;
    let new = NewInstance::new(id, TenantId::new("tenant")?, spec()?);
    plane.create(new, by()).await?.wait().await?;
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
