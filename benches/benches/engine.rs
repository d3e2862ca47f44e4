//! The engine on the memory backend and SQLite on disk, beside the same rows written bare.
//!
//! `cargo bench -p benches --bench engine`

use std::{path::Path, sync::Arc, time::Instant};

use benches::{Bare, RecordingStore, Samples, empty_copy, heading, row};
use provisioner_core::{
    Cell, ControlPlane, Result,
    control_plane::{NewInstance, Request},
    memory::{MemoryConfig, MemoryProvisioner},
    store::{Change, CommitMode, OperationState, SqliteStore, Store},
    types::{
        Actor, CellName, ControlPlaneId, DataDisposition, InstanceId, InstanceSpec, TenantId, VariableName, Workload,
    },
};

/// Callers at once.
const CALLERS: usize = 256;
/// Instances that each caller takes through their life.
const LIVES: usize = 12;
/// Sign-ups that each caller makes.
const SIGN_UPS: usize = 80;

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        println!("{CALLERS} callers at once, specs of {} bytes, two lines: what was measured, and its floor\n", {
            serde_json::to_vec(&spec("1.0")).expect("a spec is JSON").len()
        });
        heading(&["what", "a second", "p50 / p99", "changes a transaction", "bare, same batches", "times the floor"]);
        steps().await.expect("the benchmark ran");
        sign_ups().await.expect("the benchmark ran");
    });
}

fn spec(version: &str) -> InstanceSpec {
    let mut spec = InstanceSpec::new(Workload::new(version).with_command(["/usr/bin/product", "--serve"]));
    let name = VariableName::new("CONFIGURATION").expect("a name");
    spec.environment.insert(name, "x".repeat(600));
    spec
}

fn by() -> Request {
    Request::by(Actor::new("bench").expect("a name"))
}

fn id(caller: usize, number: usize) -> InstanceId {
    InstanceId::new(format!("i-{caller}-{number}")).expect("a label")
}

fn new(caller: usize, number: usize) -> NewInstance {
    NewInstance::new(id(caller, number), TenantId::new(format!("tenant {caller}")).expect("a name"), spec("1.0"))
}

struct Bench {
    folder: tempfile::TempDir,
    store: Arc<RecordingStore<SqliteStore>>,
    transactions: Arc<SqliteStore>,
    plane: ControlPlane,
}

impl Bench {
    async fn start() -> Result<Self> {
        let folder =
            tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder on the disk that the store would be on");
        let plane_id = ControlPlaneId::new("bench")?;
        let opened = SqliteStore::open(folder.path().join("store.db"), plane_id, CommitMode::Grouped).await;
        let inner = opened.map_err(|error| error.into_error("open"))?;
        let store = RecordingStore::new(Arc::clone(&inner));
        let provider = MemoryProvisioner::new(MemoryConfig::default());
        let cell = Cell::new(CellName::new("memory")?, Arc::new(provider)).with_calls_max(CALLERS);
        let plane = ControlPlane::builder(Arc::clone(&store) as Arc<dyn Store>).cell(cell).start().await?;
        Ok(Self { folder, store, transactions: inner, plane })
    }
}

/// Runs what one caller does for all of them at once, and puts the times together.
async fn all_callers<F>(plane: &ControlPlane, one: impl Fn(ControlPlane, usize) -> F) -> Result<Samples>
where
    F: Future<Output = Result<Samples>> + Send + 'static,
{
    let callers: Vec<_> = (0..CALLERS).map(|caller| tokio::spawn(one(plane.clone(), caller))).collect();
    let mut samples = Samples::default();
    for caller in callers {
        samples.extend(caller.await.expect("a caller does not panic")?);
    }
    Ok(samples)
}

/// Whole lives: create, sleep, wake, update, destroy, each waited for.
async fn steps() -> Result<()> {
    let bench = Bench::start().await?;
    let before = bench.transactions.transactions();
    let began = Instant::now();
    let samples = all_callers(&bench.plane, |plane, caller| async move {
        let mut samples = Samples::default();
        for number in 0..LIVES {
            live(&plane, caller, number, &mut samples).await?;
        }
        Ok(samples)
    })
    .await?;
    let took = began.elapsed();
    let transactions = bench.transactions.transactions() - before;
    bench.plane.shutdown().await?;
    let changes = bench.store.take();
    let steps = changes.iter().filter(|change| change.operations.is_empty()).count();
    print("engine: durable steps", steps, &changes, took, transactions, &samples, bench.folder.path());
    Ok(())
}

async fn live(plane: &ControlPlane, caller: usize, number: usize, samples: &mut Samples) -> Result<()> {
    let id = id(caller, number);
    for verb in 0..5 {
        let began = Instant::now();
        let operation = match verb {
            0 => plane.create(new(caller, number), by()).await?,
            1 => plane.sleep(&id, by()).await?,
            2 => plane.wake(&id, by()).await?,
            3 => plane.update(&id, spec("2.0"), by()).await?,
            _ => plane.destroy(&id, DataDisposition::Delete, by()).await?,
        };
        assert_eq!(operation.wait().await?.state, OperationState::Done);
        samples.push(began.elapsed());
    }
    Ok(())
}

/// Sign-ups alone: the engine is frozen.
async fn sign_ups() -> Result<()> {
    let bench = Bench::start().await?;
    bench.plane.freeze(true, by()).await?;
    let _ = bench.store.take();
    let before = bench.transactions.transactions();
    let began = Instant::now();
    let samples = all_callers(&bench.plane, |plane, caller| async move {
        let mut samples = Samples::default();
        for number in 0..SIGN_UPS {
            let began = Instant::now();
            plane.create(new(caller, number), by()).await?;
            samples.push(began.elapsed());
        }
        Ok(samples)
    })
    .await?;
    let took = began.elapsed();
    let transactions = bench.transactions.transactions() - before;
    bench.plane.shutdown().await?;
    let changes = bench.store.take();
    print(
        "sign-ups accepted, workers idle",
        changes.len(),
        &changes,
        took,
        transactions,
        &samples,
        bench.folder.path(),
    );
    Ok(())
}

fn print(
    what: &str,
    count: usize,
    changes: &[Change],
    took: std::time::Duration,
    transactions: u64,
    samples: &Samples,
    folder: &Path,
) {
    let batch = changes.len().div_ceil(usize::try_from(transactions).unwrap_or(1).max(1));
    let floor = folder.join("floor.db");
    empty_copy(&folder.join("store.db"), &floor).expect("a file with the same tables");
    let bare = Bare::new(changes).write(&floor, batch).expect("the floor is written");
    row(&[
        what.into(),
        format!("{:.0}", count as f64 / took.as_secs_f64()),
        samples.p50_p99(),
        batch.to_string(),
        format!("{:.0}", count as f64 / bare.as_secs_f64()),
        format!("{:.2}", took.as_secs_f64() / bare.as_secs_f64()),
    ]);
}
