//! How many calls and how long the lives of instances take through the engine, beside scripts that do the same with one machine
//! after the other, on the same API server: `cargo bench -p backend-vm --bench calls [-- COUNT]`.
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
        Actor, CellName, ControlPlaneId, DataDisposition, DataId, DataSource, Generation, Incarnation, InstanceId,
        InstanceSpec, Target, TenantId, Workload,
    },
};
use test_ec2::{Ec2, Options};
use tokio::io::{AsyncBufReadExt, BufReader};

const PARTS: [&str; 4] = ["create", "sleep", "wake", "destroy"];

fn main() {
    if let Err(reason) = test_ec2::is_here() {
        println!("ignored: {reason}");
        return;
    }
    let count = std::env::args().find_map(|argument| argument.parse().ok()).unwrap_or(100);
    tokio::runtime::Runtime::new().unwrap().block_on(run(count));
}

async fn run(count: usize) {
    println!("| {count} instances | create | sleep | wake | destroy | calls for each | all of it |");
    println!("|---|---|---|---|---|---|---|");
    let stand = stand().await;
    row("the engine with this backend", count, ours(&stand, count).await);
    drop(stand);
    for (name, script) in [("a loop with boto3", "boto3_life.py"), ("a loop with Apache Libcloud", "libcloud_life.py")]
    {
        let stand = self::stand().await;
        match rival(&stand, script, count).await {
            Some(life) => row(name, count, life),
            None => println!("| {name} | does not come to its end here | | | | | |"),
        }
    }
    println!("\n| looks | calls | time |\n|---|---|---|");
    for looks in [1, 100, 1000] {
        let stand = self::stand().await;
        let backend = backend(&stand).await;
        let cx = OpContext::new(plane());
        let targets: Vec<_> = (0..looks).map(|n| target(n as u128)).collect();
        let (before, began) = (stand.calls(), Instant::now());
        let seen = backend.observe_many(&cx, &targets).await;
        assert!(seen.into_iter().all(|seen| seen.is_ok()));
        println!("| {looks} | {} | {} ms |", stand.calls() - before, began.elapsed().as_millis());
    }
}

/// Machines take half a second for each of their states, and boot nothing.
async fn stand() -> Ec2 {
    let moment = Duration::from_millis(500);
    let options =
        Options { start: moment, stop: moment, terminate: moment, checks: moment, boots: false, ..Options::default() };
    Ec2::start(options).await.unwrap()
}

/// Calls of each part and how long it took.
type Life = Vec<(u64, Duration)>;

fn row(name: &str, count: usize, life: Life) {
    let each = |calls: u64| calls as f64 / count as f64;
    let parts: Vec<_> =
        life.iter().map(|(calls, took)| format!("{:.2} calls, {:.1} s", each(*calls), took.as_secs_f64())).collect();
    let calls: u64 = life.iter().map(|(calls, _)| calls).sum();
    let took: Duration = life.iter().map(|(_, took)| *took).sum();
    println!("| {name} | {} | {:.2} | {:.1} s |", parts.join(" | "), each(calls), took.as_secs_f64());
}

fn plane() -> ControlPlaneId {
    ControlPlaneId::new("bench").unwrap()
}

async fn backend(stand: &Ec2) -> VmBackend {
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

fn target(n: u128) -> Target {
    Target {
        id: InstanceId::new(format!("i{n}")).unwrap(),
        tenant: TenantId::new("tenant").unwrap(),
        incarnation: Incarnation::new(1, n),
        generation: Generation::FIRST,
        spec: Arc::new(InstanceSpec::forgotten()),
        data: DataSource::Fresh(DataId::from_random(n)),
    }
}

async fn ours(stand: &Ec2, count: usize) -> Life {
    let folder = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(folder.path().join("store.db"), plane(), CommitMode::Grouped).await.unwrap();
    let store: Arc<dyn Store> = store;
    let cell = Cell::new(CellName::new("account").unwrap(), Arc::new(backend(stand).await));
    let plane = ControlPlane::builder(store).cell(cell).start().await.unwrap();
    let image = stand.image().await;
    let ids: Vec<_> = (0..count).map(|n| InstanceId::new(format!("i{n}")).unwrap()).collect();
    let by = || Request::by(Actor::new("bench").unwrap());
    let mut life = Life::new();
    for part in PARTS {
        let (before, began) = (stand.calls(), Instant::now());
        let mut handles = Vec::new();
        for id in &ids {
            let handle = match part {
                "create" => {
                    let new = NewInstance::new(id.clone(), TenantId::new("tenant").unwrap(), spec(&image));
                    plane.create(new, by()).await
                }
                "sleep" => plane.sleep(id, by()).await,
                "wake" => plane.wake(id, by()).await,
                _ => plane.destroy(id, DataDisposition::Delete, by()).await,
            };
            handles.push(handle.unwrap());
        }
        futures::future::join_all(handles.iter().map(ended)).await;
        life.push((stand.calls() - before, began.elapsed()));
    }
    life
}

async fn ended(handle: &OperationHandle) {
    let operation = handle.wait().await.unwrap();
    assert_eq!(operation.state, OperationState::Done, "{operation:?}");
}

/// `None`: it failed, and has said why.
async fn rival(stand: &Ec2, script: &str, count: usize) -> Option<Life> {
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
    child.wait().await.unwrap().success().then(|| PARTS.map(|part| life[part]).to_vec())
}
