//! The signup service with its instances as Web Apps of a stand-in for Azure: the product in real processes, behind a front door with
//! a certificate.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::process::Stdio;

use libtest_mimic::{Arguments, Trial};
use serde_json::{Value, json};
use support::{Signup, State};
use test_azure::{Azure, Method, Options};

const OWNER: (&str, &str) = ("provisioner-control-plane", "signup");

fn main() {
    let trials = vec![Trial::test("a_customer_signs_up_sleeps_wakes_is_held_and_leaves", || {
        tokio::runtime::Runtime::new()?.block_on(live());
        Ok(())
    })];
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}

async fn live() {
    let binaries = support::binaries().await;
    // A test that is run by itself beside this one may build it again, to the same place.
    let own = tempfile::tempdir().unwrap();
    let service = own.path().join("signup");
    std::fs::copy(&binaries.signup, &service).unwrap();

    let stand = Azure::start(Options::default()).await.unwrap();
    let state = State::new();
    let mut command = tokio::process::Command::new(&service);
    command
        .args(["--listen", "127.0.0.1:0", "--backend", "appservice", "--region", stand.region()])
        .args(["--subscription", stand.subscription(), "--resource-group", stand.resource_group()])
        .args(["--storage-account", stand.storage_account(), "--sites-per-plan", "1", "--plans-max", "1"])
        .args(["--image", "registry.example.com/product:1", "--command"])
        .arg(&binaries.product)
        .args(["--endpoint", stand.endpoint(), "--ca-file"])
        .arg(stand.ca_file())
        .arg("--state")
        .arg(state.path())
        .env("AZURE_ACCESS_TOKEN", stand.token())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true);
    let signup = Signup::start_as(command).await;
    let client = stand.client();
    let awake = async || stand.sites(OWNER).await.iter().filter(|site| site.state == "Running").count();
    let ask = async |method: Method, path: &str, body: Option<String>| {
        let url = format!("{}{path}", signup.endpoint("acme").await);
        let answer = client.send(method, &url, None, body).await.unwrap();
        (answer.status, String::from_utf8(answer.body.to_vec()).unwrap())
    };

    let endpoint = signup.sign_up("acme", "Acme & Sons").await;
    assert!(endpoint.starts_with("https://"), "{endpoint}");
    assert_eq!((awake().await, stand.plans().await.len()), (1, 1));
    let page = json!({"title": "Minutes", "text": "still here"}).to_string();
    assert_eq!(ask(Method::POST, "/api/pages", Some(page)).await.0, 201);
    let (_, front) = ask(Method::GET, "/", None).await;
    assert!(front.contains("Acme &amp; Sons") && front.contains("version 1.1"), "{front}");

    // The one plan has no room for another one.
    let full = json!({"id": "other", "tenant": "Other Ltd.", "plan": "trial"});
    assert_eq!(signup.post("/api/instances", &full).await.0, 202);
    signup.until("other", |_, instance| instance.to_string().contains("all 1 plans have 1 sites")).await;

    for (verb, phase, back) in [("sleep", "zero", "wake"), ("suspend", "suspended", "lift")] {
        signup.done(&format!("/api/instances/acme/{verb}"), json!({})).await;
        assert_eq!((signup.get("/api/instances/acme").await.1["phase"].clone(), awake().await), (json!(phase), 0));
        signup.done(&format!("/api/instances/acme/{back}"), json!({})).await;
        let (_, pages) = ask(Method::GET, "/api/pages", None).await;
        let pages: Value = serde_json::from_str(&pages).unwrap();
        assert_eq!(pages[0]["text"], "still here");
    }
    signup.done("/api/instances/acme/upgrade", json!({"version": "2.0"})).await;
    let (_, front) = ask(Method::GET, "/", None).await;
    assert!(front.contains("version 2.0") && front.contains("Minutes"), "{front}");

    for id in ["other", "acme"] {
        let removed = signup.request(reqwest::Method::DELETE, &format!("/api/instances/{id}")).send().await.unwrap();
        assert_eq!(support::parts(removed).await.0, 202);
        signup.until(id, |status, _| status == 404).await;
    }
    assert_eq!(stand.left(OWNER).await, [""; 0]);
}
