//! Another API server of the cluster that the scripts made, on the same store: one that can be killed without harm to anybody.

use std::{
    ffi::OsString,
    fs::{self, File},
    io::Write,
    os::unix::ffi::OsStringExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use kube::{Client, Config};
use tempfile::TempDir;
use test_peers::kubernetes::{Cluster, Origin, folder};
use test_reserved::ports::Ports;

/// Longer than one takes to serve on a busy machine.
const READY_WITHIN: Duration = Duration::from_secs(120);

/// An API server. Killed when dropped.
pub(crate) struct ApiServer {
    /// Its command line.
    words: Vec<OsString>,
    client: Client,
    child: Option<Child>,
    /// With its kubeconfig and its log.
    folder: TempDir,
    /// The first of them is its own.
    _ports: Ports,
}

impl ApiServer {
    /// One beside that of the scripts, not started yet; or why there can be none.
    pub(crate) async fn beside(cluster: &Cluster) -> Result<Self, String> {
        if cluster.origin() != Origin::Scripts {
            return Err(format!("the API server of the cluster {} is no process of this machine", cluster.origin()));
        }
        let mut words = command_of("kube-apiserver")?;
        // Nobody else's, also while it is down.
        let ports = Ports::take();
        let port = *ports.range().start();
        let own = words.iter_mut().find(|word| word.to_string_lossy().starts_with("--secure-port="));
        *own.ok_or("the API server was started without --secure-port")? = format!("--secure-port={port}").into();
        // Or it would lead the cluster's pods to itself.
        words.push("--endpoint-reconciler-type=none".into());

        let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
        let mut config = cluster.config().await?;
        let kubeconfig = fs::read_to_string(PathBuf::from(cluster.kubeconfig())).map_err(|error| error.to_string())?;
        let (theirs, ours) = (config.cluster_url.to_string(), format!("https://127.0.0.1:{port}"));
        let kubeconfig = kubeconfig.replace(theirs.trim_end_matches('/'), &ours);
        if !kubeconfig.contains(&ours) {
            return Err(format!("{theirs} is not in the kubeconfig"));
        }
        let mut file = File::create(folder.path().join("kubeconfig")).map_err(|error| error.to_string())?;
        file.write_all(kubeconfig.as_bytes()).map_err(|error| error.to_string())?;
        config.cluster_url = ours.parse().expect("an address");
        let client = client(config)?;
        Ok(Self { words, client, child: None, folder, _ports: ports })
    }

    /// Names a file with the way to it.
    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.folder.path().join("kubeconfig")
    }

    /// Starts it, and waits until it serves. It ends with the thread that called this.
    pub(crate) async fn start(&mut self) -> Result<(), String> {
        let log = self.folder.path().join("log");
        let open = || File::options().create(true).append(true).open(&log).map_err(|error| error.to_string());
        let child = Command::new("setpriv")
            // Also a test that is killed leaves no server behind.
            .args(["--pdeathsig", "KILL", "--"])
            .args(&self.words)
            .stdin(Stdio::null())
            .stdout(open()?)
            .stderr(open()?)
            .spawn();
        let child = self.child.insert(child.map_err(|error| format!("setpriv: {error}"))?);
        let deadline = Instant::now() + READY_WITHIN;
        loop {
            let ready = self.client.request_text(get("/readyz")).await;
            if ready.is_ok_and(|answer| answer == "ok") {
                return Ok(());
            }
            if let Some(status) = child.try_wait().map_err(|error| error.to_string())? {
                return Err(format!("the API server ended with {status}: {}", last_line(&log)));
            }
            if Instant::now() > deadline {
                return Err(format!("the API server is not ready after {READY_WITHIN:?}: {}", last_line(&log)));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Kills it. Whoever talked to it notices.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // What ended by itself has ended.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// How many watches of these things are open, its own among them.
    pub(crate) async fn watches(&self, resource: &str) -> Result<u64, String> {
        let metrics = self.client.request_text(get("/metrics")).await.map_err(|error| error.to_string())?;
        let named = format!("resource=\"{resource}\"");
        let lines = metrics.lines().filter(|line| {
            line.starts_with("apiserver_longrunning_gauge{") && line.contains("verb=\"WATCH\"") && line.contains(&named)
        });
        let numbers = lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
        Ok(numbers.sum::<f64>() as u64)
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.kill();
    }
}

fn get(path: &str) -> http::Request<Vec<u8>> {
    http::Request::get(path).body(Vec::new()).expect("a request")
}

/// One that does not try again by itself.
pub(crate) fn client(mut config: Config) -> Result<Client, String> {
    config.default_retry = false;
    Client::try_from(config).map_err(|error| error.to_string())
}

/// The command line of one of the cluster's servers, as it runs.
fn command_of(name: &str) -> Result<Vec<OsString>, String> {
    let file = folder()?.join("pids").join(name);
    let text = fs::read_to_string(&file).map_err(|error| format!("{}: {error}", file.display()))?;
    let pid = text.split_whitespace().next().ok_or_else(|| format!("{} names no process", file.display()))?;
    let line = fs::read(format!("/proc/{pid}/cmdline")).map_err(|error| format!("process {pid}, {name}: {error}"))?;
    let words = line.split(|byte| *byte == 0).filter(|word| !word.is_empty());
    let words: Vec<_> = words.map(|word| OsString::from_vec(word.to_vec())).collect();
    match words.first().map(Path::new).and_then(Path::file_name) {
        Some(program) if program == name => Ok(words),
        program => Err(format!("process {pid} is {program:?} and not {name}")),
    }
}

fn last_line(log: &Path) -> String {
    let text = fs::read(log).unwrap_or_default();
    String::from_utf8_lossy(&text).lines().last().unwrap_or("it said nothing").to_owned()
}
