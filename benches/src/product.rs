//! The example product: as a spec, and as somebody starts it by hand.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use provisioner_core::{
    ControlPlane, Result,
    control_plane::OperationHandle,
    store::OperationState,
    types::{InstanceId, InstanceSpec, VariableName, Workload},
};

/// A spec of it.
///
/// # Panics
/// Never.
#[must_use]
pub fn spec(product: &Path) -> InstanceSpec {
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

/// Waits for an operation, which has to be done.
///
/// # Errors
/// What the control plane answers.
///
/// # Panics
/// When it failed.
pub async fn finish(operation: Result<OperationHandle>) -> Result<()> {
    assert_eq!(operation?.wait().await?.state, OperationState::Done);
    Ok(())
}

/// From when an operation was accepted until `GET /` is answered at the instance's endpoint.
///
/// # Errors
/// What the control plane answers.
///
/// # Panics
/// When it does not answer.
pub async fn until_answered(
    plane: &ControlPlane,
    id: &InstanceId,
    operation: Result<OperationHandle>,
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

/// The product as a person would start it. Killed when dropped.
#[derive(Debug)]
pub struct ByHand {
    child: Child,
    address: SocketAddr,
    began: Instant,
}

impl ByHand {
    /// Starts it on this data.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn start(product: &Path, data: &Path) -> Self {
        std::fs::create_dir_all(data).expect("a folder");
        let port = TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a free port").port();
        let began = Instant::now();
        let child = Command::new(product)
            .env_clear()
            .envs(environment())
            .env("PORT", port.to_string())
            .env("DATA_PATH", data)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("the product starts");
        Self { child, address: SocketAddr::from(([127, 0, 0, 1], port)), began }
    }

    /// Asks until it answers: how long that took from its start.
    pub fn until_answered(&self) -> Duration {
        while !answers(self.address) {
            std::thread::sleep(Duration::from_micros(200));
        }
        self.began.elapsed()
    }
}

impl Drop for ByHand {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
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
///
/// # Panics
/// When it cannot be built.
#[must_use]
pub fn product() -> PathBuf {
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
