//! The signup service as its users meet it: the real binary, over HTTP, with the real product behind it.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::time::{Duration, Instant};

use reqwest::Method;
use rustix::process::Signal;
use serde_json::{Value, json};
use support::{PATIENCE, Signup, State, command, parts, problem, refused};
use tokio::sync::Notify;

const SIGN_UP: &str = "/api/instances";

fn acme() -> Value {
    json!({"id": "acme", "tenant": "Acme & Sons", "plan": "trial"})
}

/// The pages in a product's notebook.
async fn pages(signup: &Signup, endpoint: &str) -> Value {
    signup.client.get(format!("{endpoint}/api/pages")).send().await.unwrap().json().await.unwrap()
}

async fn write_page(signup: &Signup, endpoint: &str) {
    let page = json!({"title": "Minutes", "text": "still here"});
    let answer = signup.client.post(format!("{endpoint}/api/pages")).json(&page).send().await.unwrap();
    assert_eq!(answer.status(), 201);
}

#[tokio::test]
async fn whoever_signs_up_gets_a_running_product_of_their_own() {
    let state = State::new();
    let signup = Signup::start(&state).await;
    let answer = signup.request(Method::POST, SIGN_UP).json(&acme()).send().await.unwrap();
    let place = answer.headers()["location"].to_str().unwrap().to_owned();
    let (status, operation) = parts(answer).await;
    assert_eq!(status, 202);
    assert_eq!(place, format!("/api/operations/{}", operation["id"].as_str().unwrap()));
    assert_eq!(operation["verb"], "create");
    assert_eq!(signup.operation(operation["id"].as_str().unwrap()).await["state"], "done");

    let (_, instance) = signup.get("/api/instances/acme").await;
    for (field, value) in [
        ("id", json!("acme")),
        ("tenant", json!("Acme & Sons")),
        ("plan", json!("trial")),
        ("version", json!("1.1")),
        ("intent", json!("running")),
        ("phase", json!("running")),
        ("holds", json!([])),
        ("parked", json!(false)),
        ("generation", json!(1)),
        ("revision", json!(1)),
    ] {
        assert_eq!(instance[field], value, "{field}: {instance}");
    }
    let page = signup.client.get(instance["endpoint"].as_str().unwrap()).send().await.unwrap().text().await.unwrap();
    assert!(page.contains("Acme &amp; Sons") && page.contains("version 1.1"), "{page}");
    let (_, totals) = signup.get("/api/totals").await;
    assert_eq!((&totals["all"], &totals["running"]), (&json!(1), &json!(1)));
    let (_, slo) = signup.get("/api/slo").await;
    assert_eq!(slo["failed"], 0, "{slo}");
}

#[tokio::test]
async fn the_same_key_is_the_same_sign_up_and_a_taken_name_is_refused() {
    let state = State::new();
    let signup = Signup::start(&state).await;
    let keyed = |body: &Value| signup.request(Method::POST, SIGN_UP).header("Idempotency-Key", "k-1").json(body).send();
    let (_, first) = parts(keyed(&acme()).await.unwrap()).await;
    let (status, second) = parts(keyed(&acme()).await.unwrap()).await;
    assert_eq!((status, &second["id"]), (202, &first["id"]));
    let other = json!({"id": "acme", "tenant": "Somebody else", "plan": "trial"});
    let answer = signup.request(Method::POST, SIGN_UP).json(&other).send().await.unwrap();
    assert_eq!(problem(answer, 409).await["kind"], "conflict");
    signup.operation(first["id"].as_str().unwrap()).await;
    assert_eq!(state.products("Acme & Sons").len(), 1);
    assert_eq!(state.products("Somebody else").len(), 0);
}

#[tokio::test]
async fn an_instance_sleeps_wakes_is_held_and_lifted_and_keeps_its_data() {
    let state = State::new();
    let signup = Signup::start(&state).await;
    let endpoint = signup.sign_up("acme", "Acme").await;
    write_page(&signup, &endpoint).await;

    let asleep = signup.done("/api/instances/acme/sleep", json!({"reason": "night"})).await;
    assert_eq!((&asleep["reason"], &asleep["actor"]), (&json!("night"), &json!("operator")));
    let (_, instance) = signup.get("/api/instances/acme").await;
    assert_eq!((&instance["phase"], &instance["intent"]), (&json!("zero"), &json!("zero")));
    assert!(state.products("Acme").is_empty());
    signup.done("/api/instances/acme/wake", json!({})).await;
    assert_eq!(pages(&signup, &signup.endpoint("acme").await).await[0]["text"], "still here");

    signup.done("/api/instances/acme/suspend", json!({})).await;
    let (_, instance) = signup.get("/api/instances/acme").await;
    assert_eq!((&instance["phase"], &instance["holds"]), (&json!("suspended"), &json!(["unpaid"])));
    let answer = signup.request(Method::POST, "/api/instances/acme/wake").send().await.unwrap();
    problem(answer, 409).await;
    signup.done("/api/instances/acme/suspend", json!({"hold": "abuse"})).await;
    signup.done("/api/instances/acme/lift", json!({})).await;
    let (_, instance) = signup.get("/api/instances/acme").await;
    assert_eq!((&instance["intent"], &instance["holds"]), (&json!("suspended"), &json!(["abuse"])));
    signup.done("/api/instances/acme/lift", json!({"hold": "abuse"})).await;
    assert_eq!(pages(&signup, &signup.endpoint("acme").await).await.as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn an_instance_is_upgraded_restarted_and_deleted() {
    let state = State::new();
    let signup = Signup::start(&state).await;
    let endpoint = signup.sign_up("acme", "Acme").await;
    write_page(&signup, &endpoint).await;
    signup.done("/api/instances/acme/upgrade", json!({"version": "2.0"})).await;
    let endpoint = signup.endpoint("acme").await;
    let page = signup.client.get(&endpoint).send().await.unwrap().text().await.unwrap();
    assert!(page.contains("version 2.0") && page.contains("Minutes"), "{page}");

    let before = state.products("Acme");
    signup.done("/api/instances/acme/restart", json!({})).await;
    let after = state.products("Acme");
    assert_eq!(after.len(), 1);
    assert_ne!(before, after);
    let (_, instance) = signup.get("/api/instances/acme").await;
    assert_eq!((&instance["generation"], &instance["version"]), (&json!(3), &json!("2.0")));

    let stale = signup.request(Method::DELETE, "/api/instances/acme").header("If-Match", "\"1\"").send().await.unwrap();
    problem(stale, 409).await;
    let (status, _) = parts(signup.request(Method::DELETE, "/api/instances/acme").send().await.unwrap()).await;
    assert_eq!(status, 202);
    signup.until("acme", |status, _| status == 404).await;
    assert!(state.products("Acme").is_empty());
    // The name is free again, and what comes under it begins with nothing.
    let endpoint = signup.sign_up("acme", "Acme").await;
    assert_eq!(pages(&signup, &endpoint).await, json!([]));
}

#[tokio::test]
async fn a_version_that_does_not_start_is_parked_and_the_old_one_can_be_had_back() {
    let state = State::new();
    let mut command = command(state.path()).await;
    command.args(["--demo-faults", "--move-deadline-seconds", "3"]);
    let signup = Signup::start_as(command).await;
    signup.sign_up("acme", "Acme").await;
    let (_, operation) = signup.post("/api/instances/acme/upgrade", &json!({"version": "broken-exit"})).await;
    let ended = signup.operation(operation["id"].as_str().unwrap()).await;
    assert_eq!(ended["state"], "failed", "{ended}");
    let instance = signup.until("acme", |_, instance| instance["parked"] == true).await;
    assert!(instance["reason"]["message"].is_string(), "{instance}");
    let (status, _) = signup.post("/api/instances/acme/retry", &json!({})).await;
    assert_eq!(status, 202);
    signup.done("/api/instances/acme/upgrade", json!({"version": "2.0"})).await;
    let (_, instance) = signup.get("/api/instances/acme").await;
    assert_eq!((&instance["phase"], &instance["parked"]), (&json!("running"), &json!(false)), "{instance}");
}

#[tokio::test]
async fn what_cannot_be_read_or_had_is_told_as_a_problem() {
    let state = State::new();
    let signup = Signup::start(&state).await;
    let send = async |method: Method, path: &str, content_type: &str, body: String| {
        signup.request(method, path).header("content-type", content_type).body(body).send().await.unwrap()
    };
    const JSON: &str = "application/json";
    let text = |body: Value| body.to_string();
    let long = "x".repeat(70_000);
    for (method, path, content_type, body, status, field) in [
        (Method::POST, SIGN_UP, JSON, "{".into(), 400, None),
        (Method::POST, SIGN_UP, JSON, "{} trailing".into(), 400, None),
        (Method::POST, SIGN_UP, JSON, text(json!({"id": "acme", "tenant": "A"})), 400, None),
        (Method::POST, SIGN_UP, JSON, text(json!({"id": 7, "tenant": "A", "plan": "trial"})), 400, Some("id")),
        (Method::POST, SIGN_UP, JSON, text(json!({"id": "acme", "colour": 1})), 400, Some("colour")),
        (Method::POST, SIGN_UP, "text/plain", text(acme()), 415, None),
        (Method::POST, SIGN_UP, "", text(acme()), 415, None),
        (Method::POST, SIGN_UP, JSON, text(json!({"id": long, "tenant": "A", "plan": "trial"})), 413, None),
        (Method::POST, SIGN_UP, JSON, text(json!({"id": "../x", "tenant": "A", "plan": "trial"})), 422, Some("id")),
        (
            Method::POST,
            SIGN_UP,
            JSON,
            text(json!({"id": "a", "tenant": "\u{1b}", "plan": "trial"})),
            422,
            Some("tenant"),
        ),
        (Method::POST, SIGN_UP, JSON, text(json!({"id": "a", "tenant": "A", "plan": "gold"})), 422, Some("plan")),
        (
            Method::POST,
            SIGN_UP,
            JSON,
            text(json!({"id": "a", "tenant": "A", "plan": "trial", "version": "9"})),
            422,
            Some("version"),
        ),
        (Method::POST, "/api/instances/acme/suspend", JSON, text(json!({"hold": "No Such"})), 422, Some("hold")),
        (
            Method::POST,
            "/api/instances/acme/sleep",
            JSON,
            text(json!({"reason": "x".repeat(501)})),
            422,
            Some("reason"),
        ),
        (Method::GET, "/api/instances?limit=0", JSON, String::new(), 400, Some("limit")),
        (Method::GET, "/api/instances?limit=501", JSON, String::new(), 400, Some("limit")),
        (Method::GET, "/api/instances?colour=red", JSON, String::new(), 400, None),
        (Method::GET, "/api/instances?phase=blue", JSON, String::new(), 400, None),
        (Method::GET, "/api/instances/NO..SUCH", JSON, String::new(), 404, None),
        (Method::GET, "/api/instances/nobody", JSON, String::new(), 404, None),
        (Method::POST, "/api/instances/nobody/wake", JSON, String::new(), 404, None),
        (Method::GET, "/api/operations/nope", JSON, String::new(), 404, None),
        (Method::GET, "/nowhere", JSON, String::new(), 404, None),
        (Method::PUT, SIGN_UP, JSON, text(acme()), 405, None),
        (Method::GET, "/api/instances/acme/sleep", JSON, String::new(), 405, None),
    ] {
        let what = format!("{method} {path} {}", &body[..body.len().min(80)]);
        let answer = send(method, path, content_type, body).await;
        assert_eq!(answer.status().as_u16(), status, "{what}");
        let problem = problem(answer, status).await;
        assert_eq!(problem["field"].as_str(), field, "{what}: {problem}");
        assert!(problem.to_string().len() < 1000, "{what}: {problem}");
    }
}

#[tokio::test]
async fn another_site_can_change_nothing_and_the_page_loads_nothing_from_elsewhere() {
    let state = State::new();
    let signup = Signup::start(&state).await;
    let site = signup.request(Method::POST, SIGN_UP).header("sec-fetch-site", "cross-site").json(&acme());
    problem(site.send().await.unwrap(), 403).await;
    let origin = signup.request(Method::DELETE, "/api/instances/acme").header("origin", "http://evil.example");
    problem(origin.send().await.unwrap(), 403).await;
    let name = signup.request(Method::GET, SIGN_UP).header("host", "evil.example");
    problem(name.send().await.unwrap(), 421).await;
    for path in ["/", "/app.js", "/app.css", "/api.js", "/fleet.js", "/log.js", "/icon.svg"] {
        let answer = signup.request(Method::GET, path).send().await.unwrap();
        assert_eq!(answer.status(), 200, "{path}");
        assert!(answer.headers()["content-security-policy"].to_str().unwrap().starts_with("default-src 'none'"));
        let text = answer.text().await.unwrap();
        assert!(!text.contains("innerHTML") && !text.contains("//cdn") && !text.contains(" onclick="), "{path}");
    }
}

#[tokio::test]
async fn the_fleet_is_listed_in_pages_by_phase_and_by_the_beginning_of_the_name() {
    let state = State::new();
    let signup = Signup::start(&state).await;
    for id in ["bolt", "bolt-2", "boltz", "acme"] {
        signup.sign_up(id, id).await;
    }
    signup.done("/api/instances/boltz/sleep", json!({})).await;
    let list = async |query: &str| {
        let (status, page) = signup.get(&format!("/api/instances?{query}")).await;
        assert_eq!(status, 200, "{page}");
        let items = page["items"].as_array().unwrap();
        (
            items.iter().map(|item| item["id"].as_str().unwrap().to_owned()).collect::<Vec<_>>().join(" "),
            page["more"].clone(),
        )
    };
    for (query, ids, more) in [
        ("", "acme bolt bolt-2 boltz", false),
        ("limit=2", "acme bolt", true),
        ("limit=2&after=bolt", "bolt-2 boltz", false),
        ("phase=zero", "boltz", false),
        ("prefix=a", "acme", false),
        ("prefix=bolt", "bolt bolt-2 boltz", false),
        ("prefix=bolt&limit=2", "bolt bolt-2", true),
        ("prefix=bolt&limit=2&after=bolt-2", "boltz", false),
        ("prefix=bolt-", "bolt-2", false),
        ("prefix=c", "", false),
        ("prefix=%C3%A9", "", false),
        ("tenant=acme", "acme", false),
    ] {
        assert_eq!(list(query).await, (ids.to_owned(), json!(more)), "{query}");
    }
}

/// Reads server-sent events until one satisfies; what was read, as id, name and data.
async fn stream(signup: &Signup, last: Option<u64>, until: impl Fn(&Value) -> bool) -> Vec<(u64, String, Value)> {
    let mut request = signup.request(Method::GET, "/api/events");
    if let Some(last) = last {
        request = request.header("last-event-id", last.to_string());
    }
    let mut answer = request.send().await.unwrap();
    assert_eq!(answer.headers()["content-type"], "text/event-stream");
    let (mut text, mut seen) = (String::new(), Vec::new());
    loop {
        let chunk = answer.chunk().await.unwrap().expect("the stream ended");
        text.push_str(std::str::from_utf8(&chunk).unwrap());
        while let Some((block, rest)) = text.split_once("\n\n").map(|(block, rest)| (block.to_owned(), rest.to_owned()))
        {
            text = rest;
            let field = |name: &str| block.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
            let Some(id) = field("id:") else { continue };
            let data: Value = serde_json::from_str(field("data:").unwrap()).unwrap();
            let last = until(&data);
            seen.push((id.parse().unwrap(), field("event:").unwrap().to_owned(), data));
            if last {
                return seen;
            }
        }
    }
}

#[tokio::test]
async fn events_come_in_order_and_go_on_where_they_were_left() {
    let state = State::new();
    let signup = Signup::start(&state).await;
    signup.sign_up("acme", "Acme").await;
    let done = |data: &Value| data["kind"] == "operation_ended" && data["state"] == "done";
    let seen = stream(&signup, Some(0), done).await;
    assert_eq!(seen[0].1, "ready");
    let names: Vec<_> = seen.iter().map(|(_, name, _)| name.as_str()).collect();
    assert_eq!(names[1], "accepted", "{names:?}");
    assert!(names.contains(&"phase_changed"), "{names:?}");
    assert!(seen[1..].windows(2).all(|pair| pair[0].0 < pair[1].0), "{seen:?}");
    for (id, name, data) in &seen[1..] {
        assert_eq!((&data["position"], &data["kind"]), (&json!(id), &json!(name)));
        assert!(data["text"].is_string() && data["at"].is_string(), "{data}");
    }

    // Whoever comes back gets what came after, and nothing twice.
    let middle = seen[1].0;
    let rest = stream(&signup, Some(middle), done).await;
    assert_eq!(rest[1..], seen[2..]);
    // Whoever comes anew gets what happens from now on.
    let (signup, last) = (&signup, seen.last().unwrap().0);
    let begun = Notify::new();
    let is_last = |data: &Value| {
        begun.notify_one();
        data["verb"] == "sleep"
    };
    let (news, _) = tokio::join!(stream(signup, None, is_last), async {
        // The first event tells that the position is set after which the stream begins.
        begun.notified().await;
        signup.done("/api/instances/acme/sleep", json!({})).await
    });
    assert!(news[1..].iter().all(|(id, ..)| *id > last), "{news:?}");

    let (_, log) = signup.get("/api/instances/acme/events?limit=2").await;
    assert_eq!((log["items"].as_array().unwrap().len(), &log["more"]), (2, &json!(true)));
    assert_eq!(log["items"][0]["actor"], "Acme");
    let after = &log["items"][1]["position"];
    let (_, next) = signup.get(&format!("/api/instances/acme/events?after={after}")).await;
    assert!(next["items"][0]["position"].as_u64() > after.as_u64(), "{next}");
}

#[tokio::test]
async fn a_taken_port_is_named() {
    let state = State::new();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let mut command = command(state.path()).await;
    command.args(["--listen", &address]);
    let (code, said) = refused(command).await;
    assert_eq!((code, said.lines().count()), (Some(1), 1), "{said}");
    assert!(said.starts_with(&format!("signup: cannot listen on {address}")) && said.contains("--listen"), "{said}");
}

#[tokio::test]
async fn only_this_machine_is_listened_to() {
    let state = State::new();
    let mut command = command(state.path()).await;
    command.args(["--listen", "0.0.0.0:0"]);
    let (code, said) = refused(command).await;
    assert_eq!(code, Some(2));
    assert!(said.contains("loopback"), "{said}");
}

#[tokio::test]
#[cfg_attr(feature = "k8s", ignore = "this is built with Kubernetes")]
async fn built_without_kubernetes_it_says_how_to_build_it() {
    let state = State::new();
    let mut command = tokio::process::Command::new(&support::binaries().await.signup);
    command.arg("--state").arg(state.path());
    command.args(["--listen", "127.0.0.1:0", "--backend", "k8s", "--image", "localhost/product:1"]);
    let (code, said) = refused(command).await;
    assert_eq!((code, said.lines().count()), (Some(1), 1), "{said}");
    assert!(said.contains("--features k8s --example signup"), "{said}");
}

#[tokio::test]
async fn a_second_copy_on_the_same_folder_is_refused_and_the_first_goes_on() {
    let state = State::new();
    let first = Signup::start(&state).await;
    let (code, said) = refused(command(state.path()).await).await;
    assert_eq!((code, said.lines().count()), (Some(1), 1), "{said}");
    assert!(said.contains("store.db is refused") && said.contains("other copy"), "{said}");
    assert_eq!(first.get("/healthz").await.0, 200);
}

#[tokio::test]
async fn a_broken_folder_store_or_product_is_named() {
    let state = State::new();
    let file = state.path().join("file");
    std::fs::write(&file, "").unwrap();
    let damaged = state.path().join("damaged");
    std::fs::create_dir(&damaged).unwrap();
    std::fs::write(damaged.join("store.db"), "this is no store at all, and long enough to tell ".repeat(100)).unwrap();
    let before = std::fs::read(damaged.join("store.db")).unwrap();
    let good = state.path().join("good");
    for (folder, product, expected) in [
        (&file, None, "is a file: name a folder that can be written to with --state"),
        (&file.join("below"), None, "name a folder that can be written to with --state"),
        (&std::path::PathBuf::from("/proc/self/nowhere"), None, "name a folder that can be written to with --state"),
        (&damaged, None, "store.db is refused"),
        (&good, Some(state.path().join("nothing")), "name the product's binary with --product"),
        (&good, Some(file.clone()), "is not a program: name the product's binary with --product"),
    ] {
        let mut command = command(folder).await;
        if let Some(product) = product {
            command.arg("--product").arg(product);
        }
        let (code, said) = refused(command).await;
        assert_eq!((code, said.lines().count()), (Some(1), 1), "{said}");
        assert!(said.starts_with("signup: ") && said.contains(expected), "{said}");
        assert!(!said.contains("panicked"), "{said}");
    }
    assert_eq!(std::fs::read(damaged.join("store.db")).unwrap(), before, "a damaged store is left alone");
}

#[tokio::test]
async fn a_signal_ends_the_service_and_not_the_instances() {
    let state = State::new();
    for signal in [Signal::TERM, Signal::INT] {
        let signup = Signup::start(&state).await;
        if signal == Signal::TERM {
            signup.sign_up("acme", "Acme").await;
        }
        let endpoint = signup.endpoint("acme").await;
        let before = state.products("Acme");
        let client = signup.client.clone();
        // Somebody who listens must not keep it from ending.
        let listening = signup.request(Method::GET, "/api/events").send().await.unwrap();
        let began = Instant::now();
        assert_eq!(signup.end(signal).await.code(), Some(0));
        assert!(began.elapsed() < Duration::from_secs(8), "it took {:?}", began.elapsed());
        drop(listening);
        assert_eq!(client.get(&endpoint).send().await.unwrap().status(), 200);
        assert_eq!(state.products("Acme"), before);
    }
}

#[tokio::test]
async fn a_killed_service_finds_its_instances_again() {
    let state = State::new();
    let signup = Signup::start(&state).await;
    let endpoint = signup.sign_up("acme", "Acme").await;
    write_page(&signup, &endpoint).await;
    // One more is on its way at the moment of the kill.
    let (status, _) = signup.post(SIGN_UP, &json!({"id": "bolt", "tenant": "Bolt", "plan": "team"})).await;
    assert_eq!(status, 202);
    let before = state.products("Acme");
    let client = signup.client.clone();
    signup.end(Signal::KILL).await;
    assert_eq!(client.get(&endpoint).send().await.unwrap().status(), 200, "it goes on without the service");

    let signup = Signup::start(&state).await;
    let instance = signup.until("acme", |_, instance| instance["phase"] == "running").await;
    assert_eq!(instance["endpoint"], endpoint.as_str());
    assert_eq!(state.products("Acme"), before, "it was not started anew");
    assert_eq!(pages(&signup, &endpoint).await[0]["text"], "still here");
    signup.until("bolt", |_, instance| instance["phase"] == "running").await;
    assert_eq!(state.products("Bolt").len(), 1);
    signup.done("/api/instances/acme/sleep", json!({})).await;
    assert!(state.products("Acme").is_empty(), "it obeys the new service");
}

#[tokio::test]
async fn killed_at_any_place_of_a_sign_up_it_ends_with_one_running_product() {
    const PLACES_MAX: u64 = 60;
    for place in 1..=PLACES_MAX {
        let state = State::new();
        let mut command = command(state.path()).await;
        command.env("SIGNUP_KILL_AT", place.to_string());
        // It may die before it is ready, before it answers, or never.
        let started = tokio::spawn(Signup::start_as(command)).await;
        let keyed =
            |signup: &Signup| signup.request(Method::POST, SIGN_UP).header("Idempotency-Key", "once").json(&acme());
        let mut survived = false;
        if let Ok(signup) = started {
            let _ = keyed(&signup).send().await;
            let deadline = Instant::now() + PATIENCE;
            loop {
                let path = "/api/instances/acme";
                let Ok(answer) = signup.request(Method::GET, path).send().await else { break };
                if parts(answer).await.1["phase"] == "running" {
                    survived = true;
                    break;
                }
                assert!(Instant::now() < deadline, "place {place}: neither dead nor running");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
        let signup = Signup::start(&state).await;
        let (status, operation) = parts(keyed(&signup).send().await.unwrap()).await;
        assert_eq!(status, 202, "place {place}: {operation}");
        assert_eq!(signup.operation(operation["id"].as_str().unwrap()).await["state"], "done", "place {place}");
        assert_eq!(state.products("Acme & Sons").len(), 1, "place {place}");
        if survived {
            return;
        }
    }
    panic!("a sign-up has more than {PLACES_MAX} places to be killed at: raise the bound");
}
