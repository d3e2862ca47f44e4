//! The signup service with its instances on a real Kubernetes cluster, and the product in real pods.
//!
//! Where the scripts of `tests/peers` have made no cluster, the test shows as ignored with the reason; with `REQUIRED_PEERS`
//! naming `kubernetes`, it fails instead.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::{
    process::{Command, Stdio},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use libtest_mimic::{Arguments, Completion, Trial};
use serde_json::{Value, json};
use support::{PATIENCE, Signup, State};
use test_peers::kubernetes::{
    Cluster, Image, Origin, is_required,
    volumes::{CLASS, Volumes},
};

/// Of a tag that is not `latest`: nodes that have it do not ask where it could be pulled from.
const IMAGE: &str = "localhost/product:e2e";
const OWNER: &str = "provisioner.internal/control-plane";

fn main() {
    let trials =
        vec![Trial::ignorable_test("a_customer_signs_up_sleeps_wakes_is_held_and_leaves", || match cluster() {
            Ok(cluster) => {
                let runtime = tokio::runtime::Runtime::new()?;
                runtime.block_on(live(Kubernetes::new(cluster)));
                Ok(Completion::Completed)
            }
            Err(reason) => {
                if is_required() {
                    return Err(format!("kubernetes is required: {reason}").into());
                }
                Ok(Completion::ignored_with(reason))
            }
        })];
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}

fn cluster() -> Result<Cluster, String> {
    let cluster = Cluster::find()?;
    match cluster.origin() {
        Origin::Scripts => Ok(cluster),
        // And the images of another's nodes are its owner's affair.
        Origin::Kind | Origin::Named => Err(format!(
            "instances without an ingress are reached from a cluster's node alone, and the node of the cluster {} is \
             not this machine",
            cluster.origin()
        )),
    }
}

async fn live(cluster: Kubernetes) {
    let binaries = support::binaries().await;
    // A test that is run by itself beside this one may build it again, to the same place.
    let own = tempfile::tempdir().unwrap();
    let service = own.path().join("signup");
    std::fs::copy(&binaries.signup, &service).unwrap();
    cluster.found.load(&Image::new(IMAGE, &binaries.product)).unwrap();
    let volumes = Volumes::prepare(&cluster.found).await.unwrap().unwrap();
    tokio::spawn(volumes.clone().make());

    let state = State::new();
    let mut command = tokio::process::Command::new(&service);
    command
        .args(["--listen", "127.0.0.1:0", "--backend", "k8s", "--image", IMAGE, "--storage-class", CLASS])
        .args(["--control-plane", &cluster.control_plane])
        .arg("--state")
        .arg(state.path())
        .env("KUBECONFIG", cluster.found.kubeconfig())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true);
    let signup = Signup::start_as(command).await;

    let endpoint = signup.sign_up("acme", "Acme & Sons").await;
    let namespaces = cluster.namespaces();
    assert_eq!(namespaces.len(), 1, "{namespaces:?}");
    let (_, instance) = signup.get("/api/instances/acme").await;
    assert_eq!(instance["phase"], "running", "{instance}");
    let page = json!({"title": "Minutes", "text": "still here"});
    let written = cluster.ask(&signup, &endpoint, |client, url| client.post(format!("{url}/api/pages")).json(&page));
    assert_eq!(written.await.0, 201);
    let (status, front) = cluster.ask(&signup, &endpoint, |client, url| client.get(url)).await;
    assert!(status == 200 && front.contains("Acme &amp; Sons") && front.contains("version 1.1"), "{front}");

    signup.done("/api/instances/acme/sleep", json!({})).await;
    assert_eq!((signup.get("/api/instances/acme").await.1["phase"].clone(), cluster.pods()), (json!("zero"), 0));
    signup.done("/api/instances/acme/wake", json!({})).await;
    assert_eq!(cluster.pages(&signup).await[0]["text"], "still here");

    signup.done("/api/instances/acme/suspend", json!({})).await;
    assert_eq!((signup.get("/api/instances/acme").await.1["phase"].clone(), cluster.pods()), (json!("suspended"), 0));
    signup.done("/api/instances/acme/lift", json!({})).await;
    assert_eq!(cluster.pages(&signup).await.as_array().unwrap().len(), 1);

    signup.done("/api/instances/acme/upgrade", json!({"version": "2.0"})).await;
    let endpoint = signup.endpoint("acme").await;
    let (_, front) = cluster.ask(&signup, &endpoint, |client, url| client.get(url)).await;
    assert!(front.contains("version 2.0") && front.contains("Minutes"), "{front}");

    let (status, _) =
        support::parts(signup.request(reqwest::Method::DELETE, "/api/instances/acme").send().await.unwrap()).await;
    assert_eq!(status, 202);
    signup.until("acme", |status, _| status == 404).await;
    assert_eq!(cluster.namespaces(), [""; 0]);
    volumes.until_gone(&namespaces, PATIENCE).await.unwrap();
}

/// The cluster as somebody with all rights sees it. When dropped, what is left of this run is removed.
struct Kubernetes {
    found: Cluster,
    control_plane: String,
}

impl Kubernetes {
    fn new(found: Cluster) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        Self { found, control_plane: format!("e2e-{:x}-{:x}", std::process::id(), now.as_micros()) }
    }

    fn kubectl(&self, arguments: &[&str]) -> String {
        let output = Command::new("kubectl")
            .args(arguments)
            .env("KUBECONFIG", self.found.kubeconfig())
            .stdin(Stdio::null())
            .stderr(Stdio::inherit())
            .output()
            .unwrap();
        assert!(output.status.success(), "kubectl {}: {}", arguments.join(" "), output.status);
        String::from_utf8(output.stdout).unwrap()
    }

    fn namespaces(&self) -> Vec<String> {
        let owner = format!("{OWNER}={}", self.control_plane);
        let told = self.kubectl(&["get", "namespaces", "-l", &owner, "-o", "jsonpath={.items[*].metadata.name}"]);
        told.split_whitespace().map(str::to_owned).collect()
    }

    /// How many pods there are that nobody has ended.
    fn pods(&self) -> usize {
        let owner = format!("{OWNER}={}", self.control_plane);
        let told = self.kubectl(&["get", "pods", "-A", "-l", &owner, "-o", "json"]);
        let pods: Value = serde_json::from_str(&told).unwrap();
        let living = |pod: &&Value| pod["metadata"]["deletionTimestamp"].is_null();
        pods["items"].as_array().unwrap().iter().filter(living).count()
    }

    /// Asks the product behind an endpoint, the name of a service, by the address that this name has in the cluster.
    async fn ask(
        &self,
        signup: &Signup,
        endpoint: &str,
        request: impl Fn(&reqwest::Client, String) -> reqwest::RequestBuilder,
    ) -> (u16, String) {
        let name = endpoint.strip_prefix("http://").and_then(|rest| rest.strip_suffix(".svc")).unwrap();
        let (service, namespace) = name.split_once('.').unwrap();
        let place = "jsonpath={.spec.clusterIP}:{.spec.ports[0].port}";
        let address = self.kubectl(&["get", "service", service, "-n", namespace, "-o", place]);
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            match request(&signup.client, format!("http://{address}")).timeout(PATIENCE).send().await {
                Ok(answer) => return (answer.status().as_u16(), answer.text().await.unwrap()),
                // The node's rules follow a pod that has become ready a moment later, and nothing tells when.
                Err(error) if error.is_connect() && tokio::time::Instant::now() < deadline => {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                Err(error) => panic!("{address}: {error}"),
            }
        }
    }

    /// The pages in the notebook of the one instance.
    async fn pages(&self, signup: &Signup) -> Value {
        let endpoint = signup.endpoint("acme").await;
        let (_, pages) = self.ask(signup, &endpoint, |client, url| client.get(format!("{url}/api/pages"))).await;
        serde_json::from_str(&pages).unwrap()
    }
}

impl Drop for Kubernetes {
    fn drop(&mut self) {
        let owner = format!("{OWNER}={}", self.control_plane);
        // Nothing, after a run that came to its end.
        let _ = Command::new("kubectl")
            .args(["delete", "namespaces", "-l", &owner, "--wait=false"])
            .env("KUBECONFIG", self.found.kubeconfig())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .status();
    }
}
