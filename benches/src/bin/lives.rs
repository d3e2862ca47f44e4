//! Whole lives on the engine, for a comparison with a rival: `lives FOLDER LIVES`.
//!
//! As many callers as given in `CALLERS` take instances through create, sleep, wake and destroy, each waited for, on the
//! memory backend with SQLite in that folder. Prints what it took, and then the same for its rows written bare.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

use benches::{Bare, Measured, RecordingStore, Samples, cpu_seconds, empty_copy};
use provisioner_core::{
    Cell, ControlPlane, Result,
    control_plane::{NewInstance, Request},
    memory::{MemoryConfig, MemoryProvisioner},
    store::{CommitMode, OperationState, SqliteStore, Store},
    types::{
        Actor, CellName, ControlPlaneId, DataDisposition, InstanceId, InstanceSpec, TenantId, VariableName, Workload,
    },
};

/// Callers at once.
const CALLERS: usize = 256;

#[tokio::main]
async fn main() {
    let mut arguments = std::env::args().skip(1);
    let folder = PathBuf::from(arguments.next().expect("a folder on the disk that the store would be on"));
    let lives = arguments.next().and_then(|lives| lives.parse().ok()).expect("how many lives each caller lives");
    run(&folder, lives).await.expect("the lives were lived");
}

async fn run(folder: &Path, lives: usize) -> Result<()> {
    let file = folder.join("store.db");
    let opened = SqliteStore::open(&file, ControlPlaneId::new("bench")?, CommitMode::Grouped).await;
    let inner = opened.map_err(|error| error.into_error("open"))?;
    let store = RecordingStore::new(Arc::clone(&inner));
    let cell = Cell::new(CellName::new("memory")?, Arc::new(MemoryProvisioner::new(MemoryConfig::default())));
    let cell = cell.with_calls_max(CALLERS);
    let plane = ControlPlane::builder(Arc::clone(&store) as Arc<dyn Store>).cell(cell).start().await?;

    let (began, before, cpu) = (Instant::now(), inner.transactions(), cpu_seconds());
    let callers: Vec<_> = (0..CALLERS).map(|caller| tokio::spawn(live(plane.clone(), caller, lives))).collect();
    let mut samples = Samples::default();
    for caller in callers {
        samples.extend(caller.await.expect("a caller does not panic")?);
    }
    let (seconds, cpu) = (began.elapsed().as_secs_f64(), cpu_seconds() - cpu);
    let transactions = inner.transactions() - before;
    plane.shutdown().await?;

    let changes = store.take();
    // The rest are acceptances: the intent, its operation and its event.
    let steps = changes.iter().filter(|change| change.operations.is_empty()).count();
    let sqlite = format!("SQLite {}, WAL, synchronous FULL", rusqlite::version());
    let operations = CALLERS * lives * 4;
    let ours = Measured { steps, operations, seconds, p50_ms: None, p99_ms: None, cpu_seconds: cpu, sqlite };
    ours.clone().with_samples(&samples).tell();

    let batch = changes.len().div_ceil(usize::try_from(transactions).unwrap_or(1).max(1));
    let floor = folder.join("floor.db");
    empty_copy(&file, &floor).expect("a file with the same tables");
    let bare = Bare::new(&changes);
    let cpu = cpu_seconds();
    let seconds = bare.write(&floor, batch).expect("the floor is written").as_secs_f64();
    Measured { seconds, cpu_seconds: cpu_seconds() - cpu, ..ours }.tell();
    Ok(())
}

/// What one caller does: every request waited for, then the next.
async fn live(plane: ControlPlane, caller: usize, lives: usize) -> Result<Samples> {
    let mut samples = Samples::default();
    let by = || Actor::new("bench").map(Request::by);
    for number in 0..lives {
        let id = InstanceId::new(format!("i-{caller}-{number}"))?;
        for verb in 0..4 {
            let began = Instant::now();
            let operation = match verb {
                0 => {
                    let tenant = TenantId::new(format!("tenant {caller}"))?;
                    plane.create(NewInstance::new(id.clone(), tenant, spec()?), by()?).await?
                }
                1 => plane.sleep(&id, by()?).await?,
                2 => plane.wake(&id, by()?).await?,
                _ => plane.destroy(&id, DataDisposition::Delete, by()?).await?,
            };
            assert_eq!(operation.wait().await?.state, OperationState::Done);
            samples.push(began.elapsed());
        }
    }
    Ok(samples)
}

/// As long as that of the other benchmarks.
fn spec() -> Result<InstanceSpec> {
    let mut spec = InstanceSpec::new(Workload::new("1.0").with_command(["/usr/bin/product", "--serve"]));
    spec.environment.insert(VariableName::new("CONFIGURATION")?, "x".repeat(600));
    Ok(spec)
}
