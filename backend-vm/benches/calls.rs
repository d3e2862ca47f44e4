//! How many calls and how long the lives of instances take through the engine, beside scripts that do the same with one machine
//! after the other, on the same API server: `cargo bench -p backend-vm --bench calls [-- COUNT]`. Without a count: 1, 100 and 1,000
//! through the engine, and 100 by the scripts.
#![allow(missing_docs, clippy::unwrap_used, reason = "a benchmark may panic")]

#[path = "../tests/shared/clients.rs"]
mod clients;

use std::{
    collections::BTreeMap,
    path::Path,
    process::Stdio,
    sync::Arc,
    time::{Duration, Instant},
};

use backend_vm::{Place, VmBackend, VmConfig};
use provisioner_core::{
    Cell, ControlPlane, OpContext, Provisioner,
    control_plane::{NewInstance, OperationHandle, Request},
    store::{CommitMode, OperationState, SqliteStore, Store},
    types::{
        Actor, CellName, ControlPlaneId, DataDisposition, DataSource, InstanceId, InstanceSpec, Phase, Target,
        TenantId, Workload,
    },
};
use test_ec2::{Ec2, Options};
use tokio::io::{AsyncBufReadExt, BufReader};

const PARTS: [&str; 4] = ["create", "sleep", "wake", "destroy"];
/// Beside those, the scripts look at each of them once they run.
const LOOK: &str = "observe";
const COUNTS: [usize; 3] = [1, 100, 1000];
/// More of them take an hour, one after the other.
const COUNT_OF_SCRIPTS: usize = 100;

fn main() {
    if let Err(reason) = test_ec2::is_here() {
        println!("ignored: {reason}");
        return;
    }
    let count = std::env::args().find_map(|argument| argument.parse().ok());
    tokio::runtime::Runtime::new().unwrap().block_on(run(count));
}

async fn run(count: Option<usize>) {
    println!("| | instances | create | sleep | wake | destroy | calls for each | all of it | a look at all that run |");
    println!("|---|---|---|---|---|---|---|---|---|");
    for count in count.map_or(COUNTS.to_vec(), |count| vec![count]) {
        let stand = stand().await;
        let (life, looked) = ours(&stand, count).await;
        row("the engine with this backend", count, &life, looked);
    }
    let count = count.unwrap_or(COUNT_OF_SCRIPTS);
    for (name, script) in [("a loop with boto3", "boto3_life.py"), ("a loop with Apache Libcloud", "libcloud_life.py")]
    {
        let stand = self::stand().await;
        match rival(&stand, script, count).await {
            Some((life, looked)) => row(name, count, &life, looked),
            None => println!("| {name} | {count} | does not come to its end here | | | | | | |"),
        }
    }
}

/// Machines take half a second for each of their states, and boot nothing. The server has its tags indexed for all that are measured.
async fn stand() -> Ec2 {
    let moment = Duration::from_millis(500);
    let options = Options {
        start: moment,
        stop: moment,
        terminate: moment,
        checks: moment,
        boots: false,
        indexed_tags: true,
        ..Options::default()
    };
    Ec2::start(options).await.unwrap()
}

/// Calls of each part and how long it took.
type Life = Vec<(u64, Duration)>;

fn row(name: &str, count: usize, life: &Life, (looks, looked): (u64, Duration)) {
    let each = |calls: u64| calls as f64 / count as f64;
    let parts: Vec<_> =
        life.iter().map(|(calls, took)| format!("{:.2} calls, {:.1} s", each(*calls), took.as_secs_f64())).collect();
    let calls: u64 = life.iter().map(|(calls, _)| calls).sum();
    let took: Duration = life.iter().map(|(_, took)| *took).sum();
    let all = format!("{:.2} | {:.1} s | {looks} calls, {} ms", each(calls), took.as_secs_f64(), looked.as_millis());
    println!("| {name} | {count} | {} | {all} |", parts.join(" | "));
}

fn plane_id() -> ControlPlaneId {
    ControlPlaneId::new("bench").unwrap()
}

fn backend(stand: &Ec2) -> VmBackend {
    let places = stand.subnets().into_iter().map(|(subnet, zone)| Place { subnet, zone });
    let mut config = VmConfig::new(test_ec2::REGION, places.collect());
    // The server is not paced, and neither are the scripts.
    config.buckets = clients::unpaced();
    clients::backend(config, stand.endpoint())
}

fn spec(image: &str) -> InstanceSpec {
    let mut workload = Workload::new("1.0").with_command(["/usr/local/bin/product"]);
    workload.vm_image = Some(image.to_owned());
    workload.port = Some(8080);
    InstanceSpec::new(workload)
}

/// The life, and what it takes to look at all of them once they run.
async fn ours(stand: &Ec2, count: usize) -> (Life, (u64, Duration)) {
    let folder = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(folder.path().join("store.db"), plane_id(), CommitMode::Grouped).await.unwrap();
    let store: Arc<dyn Store> = store;
    let backend = backend(stand);
    let cell = Cell::new(CellName::new("account").unwrap(), Arc::new(backend.clone())).with_calls_max(256);
    let control_plane = ControlPlane::builder(store).cell(cell).start().await.unwrap();
    let image = stand.image().await;
    let ids: Vec<_> = (0..count).map(|n| InstanceId::new(format!("i{n}")).unwrap()).collect();
    let by = || Request::by(Actor::new("bench").unwrap());
    let (mut life, mut looked) = (Life::new(), None);
    for part in PARTS {
        let (before, began) = (stand.calls(), Instant::now());
        let mut handles = Vec::new();
        for id in &ids {
            let handle = match part {
                "create" => {
                    let new = NewInstance::new(id.clone(), TenantId::new("tenant").unwrap(), spec(&image));
                    control_plane.create(new, by()).await
                }
                "sleep" => control_plane.sleep(id, by()).await,
                "wake" => control_plane.wake(id, by()).await,
                _ => control_plane.destroy(id, DataDisposition::Delete, by()).await,
            };
            handles.push(handle.unwrap());
        }
        futures::future::join_all(handles.iter().map(ended)).await;
        life.push((stand.calls() - before, began.elapsed()));
        if part == "create" {
            looked = Some(look(stand, &backend, &control_plane, &ids).await);
        }
    }
    (life, looked.expect("they were created"))
}

async fn look(stand: &Ec2, backend: &VmBackend, plane: &ControlPlane, ids: &[InstanceId]) -> (u64, Duration) {
    let mut targets = Vec::new();
    for id in ids {
        let instance = plane.get(id).await.unwrap();
        targets.push(Target {
            id: instance.id,
            tenant: instance.tenant,
            incarnation: instance.incarnation.unwrap(),
            generation: instance.generation,
            spec: Arc::new(instance.spec),
            data: DataSource::Fresh(instance.data),
        });
    }
    let (before, began) = (stand.calls(), Instant::now());
    let seen = backend.observe_many(&OpContext::new(plane_id()), &targets).await;
    assert!(seen.into_iter().all(|seen| seen.is_ok_and(|seen| seen.phase() == Some(Phase::Running))));
    (stand.calls() - before, began.elapsed())
}

async fn ended(handle: &OperationHandle) {
    let operation = handle.wait().await.unwrap();
    assert_eq!(operation.state, OperationState::Done, "{operation:?}");
}

/// `None`: it failed, and has said why.
async fn rival(stand: &Ec2, script: &str, count: usize) -> Option<(Life, (u64, Duration))> {
    let (subnet, _) = stand.subnets().into_iter().next().unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/rivals").join(script);
    let mut child = tokio::process::Command::new(test_ec2::python())
        .arg(script)
        .args([stand.endpoint(), &count.to_string(), &stand.image().await, &subnet])
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut life = BTreeMap::new();
    let (mut before, mut began) = (stand.calls(), Instant::now());
    while let Some(part) = lines.next_line().await.unwrap() {
        life.insert(part, (stand.calls() - before, began.elapsed()));
        (before, began) = (stand.calls(), Instant::now());
    }
    child.wait().await.unwrap().success().then(|| (PARTS.map(|part| life[part]).to_vec(), life[LOOK]))
}
