//! The signup service with its instances as machines of an EC2 API server that nobody here wrote, behind the proxy that has them
//! boot: the product in real processes, each at an address of its own.
//!
//! Where `cargo xtask peers` has not prepared the server, the test shows as ignored with the reason; with `REQUIRED_PEERS` naming
//! `moto`, it fails instead.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::{os::unix::fs::PermissionsExt, process::Stdio};

use libtest_mimic::{Arguments, Completion, Trial};
use serde_json::{Value, json};
use support::{Signup, State};
use test_ec2::{Ec2, Options};

const OWNER: &str = "provisioner:control-plane";

fn main() {
    let trials = vec![Trial::ignorable_test("a_customer_signs_up_sleeps_wakes_is_held_and_leaves", || {
        if let Some(reason) = test_ec2::missing()? {
            return Ok(Completion::ignored_with(reason));
        }
        tokio::runtime::Runtime::new()?.block_on(live());
        Ok(Completion::Completed)
    })];
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}

async fn live() {
    let binaries = support::binaries().await;
    // A test that is run by itself beside this one may build it again, to the same place.
    let own = tempfile::tempdir().unwrap();
    let service = own.path().join("signup");
    std::fs::copy(&binaries.signup, &service).unwrap();
    // The root of a machine is a folder here.
    let product = own.path().join("product");
    let script =
        format!("#!/bin/sh\nDATA_PATH=\"$PROVISIONER_ROOT$DATA_PATH\" exec '{}'\n", binaries.product.display());
    std::fs::write(&product, script).unwrap();
    std::fs::set_permissions(&product, std::fs::Permissions::from_mode(0o755)).unwrap();

    let stand = Ec2::start(Options::default()).await.unwrap();
    let (subnet, zone) = stand.subnets().into_iter().next().unwrap();
    let state = State::new();
    let mut command = tokio::process::Command::new(&service);
    command
        .args(["--listen", "127.0.0.1:0", "--backend", "vm", "--region", test_ec2::REGION, "--probes"])
        .args(["--endpoint", stand.endpoint(), "--place", &format!("{subnet}:{zone}")])
        .args(["--vm-image", &stand.image().await, "--vm-product", product.to_str().unwrap()])
        .arg("--state")
        .arg(state.path())
        .envs([("AWS_ACCESS_KEY_ID", "test"), ("AWS_SECRET_ACCESS_KEY", "test")])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true);
    let signup = Signup::start_as(command).await;
    let awake = async || {
        let machines = stand.machines((OWNER, "signup")).await;
        machines.iter().filter(|machine| machine.state == test_ec2::State::Running).count()
    };
    let ask = async |path: &str| {
        let url = format!("{}{path}", signup.endpoint("acme").await);
        signup.client.get(url).send().await.unwrap().text().await.unwrap()
    };

    let endpoint = signup.sign_up("acme", "Acme & Sons").await;
    assert_eq!(awake().await, 1);
    let page = json!({"title": "Minutes", "text": "still here"});
    let written = signup.client.post(format!("{endpoint}/api/pages")).json(&page).send().await.unwrap();
    assert_eq!(written.status(), 201);
    let front = ask("/").await;
    assert!(front.contains("Acme &amp; Sons") && front.contains("version 1.1"), "{front}");

    for (verb, phase, back) in [("sleep", "zero", "wake"), ("suspend", "suspended", "lift")] {
        signup.done(&format!("/api/instances/acme/{verb}"), json!({})).await;
        assert_eq!((signup.get("/api/instances/acme").await.1["phase"].clone(), awake().await), (json!(phase), 0));
        signup.done(&format!("/api/instances/acme/{back}"), json!({})).await;
        let pages: Value = serde_json::from_str(&ask("/api/pages").await).unwrap();
        assert_eq!(pages[0]["text"], "still here");
    }
    signup.done("/api/instances/acme/upgrade", json!({"version": "2.0"})).await;
    let front = ask("/").await;
    assert!(front.contains("version 2.0") && front.contains("Minutes"), "{front}");

    let removed = signup.request(reqwest::Method::DELETE, "/api/instances/acme").send().await.unwrap();
    assert_eq!(support::parts(removed).await.0, 202);
    signup.until("acme", |status, _| status == 404).await;
    assert_eq!(stand.left((OWNER, "signup")).await, [""; 0]);
}
