//! Starts the real signup service on a folder of its own, and leaves nothing behind.
#![allow(dead_code, unreachable_pub, reason = "each test target uses a part of it")]

#[path = "../../signup/cargo.rs"]
mod cargo;

use std::{
    future::Future,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::{Duration, Instant},
};

use reqwest::{Client, Method, Response};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
    sync::OnceCell,
    time::timeout,
};

/// How long anything may take before it counts as not happening, also that real pods come up on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(300);

/// The binaries under test.
#[derive(Debug)]
pub struct Binaries {
    pub signup: PathBuf,
    pub product: PathBuf,
}

/// The binaries under test: those that `cargo xtask test` built for all tests together, or else built here, once per test run, as an
/// example is not built with every choice of tests, and the product is another package.
pub async fn binaries() -> &'static Binaries {
    static BUILT: OnceCell<Binaries> = OnceCell::const_new();
    let told = |name| std::env::var_os(name).map(PathBuf::from);
    BUILT
        .get_or_init(async || match (told("SIGNUP_BINARY"), told("PRODUCT_BINARY")) {
            (Some(signup), Some(product)) => Binaries { signup, product },
            _ => build().await,
        })
        .await
}

/// The backends that this was built with, so that nothing is built twice.
const CLOUDS: &[&str] = match (cfg!(feature = "k8s"), cfg!(feature = "vm"), cfg!(feature = "appservice")) {
    (true, true, true) => &["--features", "examples/k8s,examples/vm,examples/appservice"],
    (true, true, false) => &["--features", "examples/k8s,examples/vm"],
    (true, false, true) => &["--features", "examples/k8s,examples/appservice"],
    (true, false, false) => &["--features", "examples/k8s"],
    (false, true, true) => &["--features", "examples/vm,examples/appservice"],
    (false, true, false) => &["--features", "examples/vm"],
    (false, false, true) => &["--features", "examples/appservice"],
    (false, false, false) => &[],
};

async fn build() -> Binaries {
    let arguments = ["-p", "product", "-p", "examples", "--bin", "product", "--example", "signup"];
    let built = cargo::build(&[&arguments, CLOUDS].concat()).await.unwrap();
    let find = |wanted| built.iter().find(|(name, _)| name == wanted).unwrap().1.clone();
    Binaries { signup: find("signup"), product: find("product") }
}

/// A state folder. When dropped, whatever still runs on it is killed.
#[derive(Debug)]
pub struct State(TempDir);

impl State {
    pub fn new() -> Self {
        Self(tempfile::Builder::new().prefix("signup-test-").tempdir().unwrap())
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// The product's processes of an instance that keep their data in this folder.
    pub fn products(&self, tenant: &str) -> Vec<Pid> {
        let tenant = format!("TENANT={tenant}");
        processes_mentioning(self.path())
            .into_iter()
            .filter(|pid| process_file(*pid, "environ").split('\0').any(|variable| variable == tenant))
            .collect()
    }
}

impl Drop for State {
    fn drop(&mut self) {
        kill_all_mentioning(self.path());
    }
}

/// Kills every process that has this path in its arguments, environment or working folder, one by one, until none is left.
pub fn kill_all_mentioning(path: &Path) {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let left = processes_mentioning(path);
        if left.is_empty() || Instant::now() > deadline {
            return;
        }
        for pid in left {
            let _ = kill_process(pid, Signal::KILL);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn processes_mentioning(path: &Path) -> Vec<Pid> {
    let path = path.to_str().unwrap();
    let own = std::process::id().cast_signed();
    let numbers = std::fs::read_dir("/proc").unwrap().flatten();
    numbers
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .filter(|number| *number != own)
        .filter_map(Pid::from_raw)
        .filter(|pid| {
            let folder = std::fs::read_link(format!("/proc/{}/cwd", pid.as_raw_nonzero())).unwrap_or_default();
            // What has ended has no arguments and no environment any more.
            ["cmdline", "environ"].iter().any(|file| process_file(*pid, file).contains(path))
                || folder.starts_with(path)
        })
        .collect()
}

fn process_file(pid: Pid, file: &str) -> String {
    let bytes = std::fs::read(format!("/proc/{}/{file}", pid.as_raw_nonzero())).unwrap_or_default();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The service's command line on this folder.
pub async fn command(state: &Path) -> Command {
    let binaries = binaries().await;
    let mut command = Command::new(&binaries.signup);
    command
        .args(["--listen", "127.0.0.1:0"])
        .arg("--state")
        .arg(state)
        .arg("--product")
        .arg(&binaries.product)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    command
}

/// Runs a service that is expected to end by itself: its exit code and what it said on stderr.
pub async fn refused(mut command: Command) -> (Option<i32>, String) {
    let output = timeout(PATIENCE, command.output()).await.expect("it did not end").unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

/// A running service. Killed when dropped; its instances are the folder's affair.
#[derive(Debug)]
pub struct Signup {
    child: Child,
    pub url: String,
    pub client: Client,
}

impl Signup {
    pub async fn start(state: &State) -> Self {
        Self::start_as(command(state.path()).await).await
    }

    pub async fn start_as(mut command: Command) -> Self {
        // What it has to say goes to the test's own output, where it is read when the test fails.
        let mut child = command.stderr(Stdio::inherit()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let url = timeout(PATIENCE, async {
            loop {
                let line = lines.next_line().await.unwrap().expect("it ended before it was ready");
                if let Some(url) = line.strip_prefix("signup is ready at ") {
                    return url.to_owned();
                }
            }
        });
        let url = url.await.expect("it did not become ready");
        Self { child, url, client: Client::new() }
    }

    /// Sends a signal and waits for the end.
    pub async fn end(mut self, signal: Signal) -> ExitStatus {
        let pid = self.child.id().and_then(|id| Pid::from_raw(id.cast_signed())).unwrap();
        kill_process(pid, signal).unwrap();
        self.ended().await
    }

    /// Waits for the end.
    pub async fn ended(&mut self) -> ExitStatus {
        timeout(PATIENCE, self.child.wait()).await.expect("it did not end").unwrap()
    }

    pub fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        self.client.request(method, format!("{}{path}", self.url)).timeout(PATIENCE)
    }

    pub async fn get(&self, path: &str) -> (u16, Value) {
        parts(self.request(Method::GET, path).send().await.unwrap()).await
    }

    pub async fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        parts(self.request(Method::POST, path).json(body).send().await.unwrap()).await
    }

    /// Asks something of an instance and waits until it is done.
    #[track_caller]
    pub fn done(&self, path: &str, body: Value) -> impl Future<Output = Value> {
        let path = path.to_owned();
        async move {
            let (status, operation) = self.post(&path, &body).await;
            assert_eq!(status, 202, "{path}: {operation}");
            let operation = self.operation(operation["id"].as_str().unwrap()).await;
            assert_eq!(operation["state"], "done", "{path}: {operation}");
            operation
        }
    }

    /// Signs up and waits until it runs; the endpoint.
    pub async fn sign_up(&self, id: &str, tenant: &str) -> String {
        self.done("/api/instances", json!({"id": id, "tenant": tenant, "plan": "trial"})).await;
        self.endpoint(id).await
    }

    pub async fn endpoint(&self, id: &str) -> String {
        let (status, instance) = self.get(&format!("/api/instances/{id}")).await;
        assert_eq!(status, 200, "{instance}");
        instance["endpoint"].as_str().unwrap_or_else(|| panic!("no endpoint: {instance}")).to_owned()
    }

    /// Waits until an operation ended.
    pub async fn operation(&self, id: &str) -> Value {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let (status, operation) = self.get(&format!("/api/operations/{id}?wait=20")).await;
            assert_eq!(status, 200, "{operation}");
            if operation["state"] != "pending" {
                return operation;
            }
            assert!(Instant::now() < deadline, "still pending: {operation}");
        }
    }

    /// Waits until an instance is as wanted.
    pub async fn until(&self, id: &str, wanted: impl Fn(u16, &Value) -> bool) -> Value {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let (status, instance) = self.get(&format!("/api/instances/{id}")).await;
            if wanted(status, &instance) {
                return instance;
            }
            assert!(Instant::now() < deadline, "{id} did not become as wanted: {status} {instance}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// An answer's status and JSON.
pub async fn parts(response: Response) -> (u16, Value) {
    let status = response.status().as_u16();
    let text = response.text().await.unwrap();
    (status, serde_json::from_str(&text).unwrap_or(Value::String(text)))
}

/// Whether the answer is a problem as RFC 9457 has it, of this status; its fields.
#[track_caller]
pub fn problem(response: Response, status: u16) -> impl Future<Output = Value> {
    assert_eq!(response.status().as_u16(), status);
    assert_eq!(response.headers()["content-type"], "application/problem+json");
    async move {
        let problem: Value = response.json().await.unwrap();
        assert_eq!(problem["status"], status);
        for field in ["type", "title", "detail"] {
            assert!(problem[field].is_string(), "{field}: {problem}");
        }
        problem
    }
}
