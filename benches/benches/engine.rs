//! The engine on the memory backend and SQLite on disk, beside the same rows written bare.
//!
//! `cargo bench -p benches --bench engine`

use std::{path::Path, sync::Arc, time::Instant};

use benches::{
    Bare, CALLERS, RecordingStore, Samples, by, empty_copy, heading, large_spec, live_all, row, sign_up_all,
};
use provisioner_core::{
    Cell, ControlPlane, Result,
    memory::{MemoryConfig, MemoryProvisioner},
    store::{Change, CommitMode, SqliteStore, Store},
    types::{CellName, ControlPlaneId},
};

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        println!("{CALLERS} callers at once, specs of {} bytes, two lines: what was measured, and its floor\n", {
            serde_json::to_vec(&large_spec("1.0")).expect("a spec is JSON").len()
        });
        heading(&["what", "a second", "p50 / p99", "changes a transaction", "bare, same batches", "times the floor"]);
        steps().await.expect("the benchmark ran");
        sign_ups().await.expect("the benchmark ran");
    });
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

/// Whole lives: create, sleep, wake, update, destroy, each waited for.
async fn steps() -> Result<()> {
    let bench = Bench::start().await?;
    let before = bench.transactions.transactions();
    let began = Instant::now();
    let samples = live_all(std::slice::from_ref(&bench.plane)).await?;
    let took = began.elapsed();
    let transactions = bench.transactions.transactions() - before;
    bench.plane.shutdown().await?;
    let changes = bench.store.take();
    let steps = changes.iter().filter(|change| change.operations.is_empty()).count();
    print("engine: durable steps", steps, &changes, took, transactions, &samples, bench.folder.path());
    Ok(())
}

/// Sign-ups alone: the engine is frozen.
async fn sign_ups() -> Result<()> {
    let bench = Bench::start().await?;
    bench.plane.freeze(true, by()).await?;
    let _ = bench.store.take();
    let before = bench.transactions.transactions();
    let began = Instant::now();
    let samples = sign_up_all(std::slice::from_ref(&bench.plane)).await?;
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
