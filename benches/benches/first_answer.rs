//! From `create` to the first answer of the product, and back from zero, beside the product started by hand.
//!
//! `cargo bench -p benches --bench first_answer`

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use backend_process::ProcessConfig;
use benches::{Samples, heading, row};
use provisioner_core::{
    Cell, ControlPlane, Result,
    control_plane::{NewInstance, Request},
    store::{CommitMode, OperationState, SqliteStore},
    types::{
        Actor, CellName, ControlPlaneId, DataDisposition, InstanceId, InstanceSpec, TenantId, VariableName, Workload,
    },
};

/// How often each is done.
const ROUNDS: usize = 60;

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async { measure().await.expect("the benchmark ran") });
}

async fn measure() -> Result<()> {
    let product = product();
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder");
    let root = std::path::absolute(folder.path()).expect("an absolute path");
    let mut by_hand = Samples::default();
    for round in 0..ROUNDS {
        by_hand.push(start_by_hand(&product, &root.join(format!("by-hand-{round}"))));
    }
    let plane_id = ControlPlaneId::new("bench")?;
    let store = SqliteStore::open(root.join("store.db"), plane_id, CommitMode::Grouped).await;
    let store = store.map_err(|error| error.into_error("open"))?;
    let backend = ProcessConfig::new(root.join("instances")).without_users().build()?;
    let cell = Cell::new(CellName::new("here")?, Arc::new(backend));
    let plane = ControlPlane::builder(store).cell(cell).start().await?;
    let (mut created, mut woken) = (Samples::default(), Samples::default());
    for round in 0..ROUNDS {
        let id = InstanceId::new(format!("i-{round}"))?;
        let new = NewInstance::new(id.clone(), TenantId::new("tenant")?, spec(&product));
        created.push(until_answered(&plane, &id, plane.create(new, by()).await).await?);
        finish(plane.sleep(&id, by()).await).await?;
        woken.push(until_answered(&plane, &id, plane.wake(&id, by()).await).await?);
        finish(plane.destroy(&id, DataDisposition::Delete, by()).await).await?;
    }
    plane.shutdown().await?;
    heading(&[
        "process backend, from the call to the first answer",
        "p50 / p99",
        "beyond the product's own start, p50",
    ]);
    let beyond = |samples: &Samples| {
        format!("{:.1} ms", (samples.percentile(50).as_secs_f64() - by_hand.percentile(50).as_secs_f64()) * 1e3)
    };
    row(&["the product started by hand (the floor)".into(), by_hand.p50_p99(), "0".into()]);
    row(&["`create`".into(), created.p50_p99(), beyond(&created)]);
    row(&["`wake`".into(), woken.p50_p99(), beyond(&woken)]);
    Ok(())
}

fn by() -> Request {
    Request::by(Actor::new("bench").expect("a name"))
}

fn spec(product: &Path) -> InstanceSpec {
    let mut workload = Workload::new("1.0").with_command([product.to_string_lossy()]);
    workload.health_path = "/healthz".into();
    let mut spec = InstanceSpec::new(workload);
    for (name, value) in environment() {
        spec.environment.insert(VariableName::new(name).expect("a name"), value.into());
    }
    spec
}

fn environment() -> [(&'static str, &'static str); 2] {
    [("TENANT", "tenant"), ("PRODUCT_VERSION", "1.0")]
}

async fn finish(operation: Result<provisioner_core::control_plane::OperationHandle>) -> Result<()> {
    assert_eq!(operation?.wait().await?.state, OperationState::Done);
    Ok(())
}

/// From before the call (its time is in `began`) until `GET /` is answered at the instance's endpoint.
async fn until_answered(
    plane: &ControlPlane,
    id: &InstanceId,
    operation: Result<provisioner_core::control_plane::OperationHandle>,
) -> Result<Duration> {
    let operation = operation?;
    let began = operation.operation().accepted_at;
    finish(Ok(operation)).await?;
    let endpoint = plane.get(id).await?.endpoint.expect("it runs");
    let address = endpoint.as_str().trim_start_matches("http://").parse().expect("an address");
    tokio::task::spawn_blocking(move || assert!(answers(address), "it runs, so it answers"))
        .await
        .expect("it was asked");
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
    Ok(now - Duration::from_millis(u64::try_from(began.unix_ms()).expect("after 1970")))
}

/// Starts the product as a person would, and asks until it answers.
fn start_by_hand(product: &Path, data: &Path) -> Duration {
    std::fs::create_dir_all(data).expect("a folder");
    let port = TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a free port").port();
    let began = Instant::now();
    let mut child = Command::new(product)
        .env_clear()
        .envs(environment())
        .env("PORT", port.to_string())
        .env("DATA_PATH", data)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("the product starts");
    while !answers(SocketAddr::from(([127, 0, 0, 1], port))) {
        std::thread::sleep(Duration::from_micros(200));
    }
    let took = began.elapsed();
    child.kill().and_then(|()| child.wait()).expect("the product is stopped");
    took
}

fn answers(address: SocketAddr) -> bool {
    let ask = || -> std::io::Result<bool> {
        let mut stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        stream.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        Ok(answer.starts_with(b"HTTP/1.1 200"))
    };
    ask().unwrap_or(false)
}

/// The example product, built as it is shipped.
fn product() -> PathBuf {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let build = ["build", "--release", "-p", "product", "--message-format=json"];
    let built = Command::new(cargo).args(build).stderr(Stdio::inherit()).output().expect("cargo runs");
    assert!(built.status.success(), "the product is built");
    let executable = String::from_utf8_lossy(&built.stdout)
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter(|message| message["target"]["name"] == "product")
        .find_map(|message| message["executable"].as_str().map(PathBuf::from));
    executable.expect("cargo names the binary")
}
