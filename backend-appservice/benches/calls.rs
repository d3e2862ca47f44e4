//! How many calls and how long the lives of instances take through the engine, beside the floor: the same writes sent bare, as many at
//! once as the locks of plans allow. `cargo bench -p backend-appservice --bench calls [-- COUNT]`; 200 without a count.
#![allow(missing_docs, clippy::unwrap_used, reason = "a benchmark may panic")]

#[path = "../tests/shared/stand.rs"]
mod stand;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures::future::join_all;
use provisioner_azure::web;
use provisioner_core::{
    Cell, ControlPlane,
    control_plane::{NewInstance, OperationHandle, Request},
    store::{CommitMode, OperationState, SqliteStore, Store},
    types::{Actor, CellName, ControlPlaneId, DataDisposition, InstanceId, TenantId},
};
use serde_json::{Value, json};
use test_azure::{Azure, Client, Method, Options};

const PARTS: [&str; 4] = ["create", "sleep", "wake", "destroy"];
const COUNT: usize = 200;
/// How many sites share a plan.
const SHARED_BY: usize = 8;
/// How long the service works at a plan or a site.
const WORK: Duration = Duration::from_millis(250);

fn main() {
    let count = std::env::args().find_map(|argument| argument.parse().ok()).unwrap_or(COUNT);
    tokio::runtime::Runtime::new().unwrap().block_on(run(count));
}

async fn run(count: usize) {
    println!("| | instances | create | sleep | wake | destroy | writes for each | calls for each | all of it |");
    println!("|---|---|---|---|---|---|---|---|---|");
    let mut packed = 0;
    for (name, paced) in [("the engine with this backend", false), ("the same within the documented buckets", true)] {
        let stand = Azure::start(options(paced)).await.unwrap();
        let (life, plans) = ours(&stand, count, paced).await;
        row(name, count, life);
        if !paced {
            packed = plans;
            assert!(stand.left(("provisioner-control-plane", "bench")).await.is_empty(), "something is left");
        }
    }
    let stand = Azure::start(options(false)).await.unwrap();
    row("the writes, sent bare", count, bare(&stand, count).await);
    println!("\n| {count} sites | plans | $ a month (B1) | each |\n|---|---|---|---|");
    for (how, plans) in [("packed", packed), ("a plan each", count)] {
        let cost = plans as f64 * 13.14;
        println!("| {how} | {plans} | {cost:.2} | {:.2} |", cost / count as f64);
    }
}

/// Sites run nothing: what is measured is what is asked for.
fn options(paced: bool) -> Options {
    let buckets = paced.then(test_azure::Buckets::default);
    Options { work: WORK, boots: false, mute_sites: false, plans_max: 1000, buckets, ..Options::default() }
}

/// Writes, all calls, and how long it took.
type Part = (u64, u64, Duration);

fn row(name: &str, count: usize, life: Vec<Part>) {
    let each = |calls: u64| calls as f64 / count as f64;
    let parts: Vec<_> = life
        .iter()
        .map(|(writes, calls, took)| {
            format!("{:.2} writes, {:.2} calls, {:.1} s", each(*writes), each(*calls), took.as_secs_f64())
        })
        .collect();
    let sum = |of: fn(&Part) -> u64| each(life.iter().map(of).sum());
    let took: Duration = life.iter().map(|(_, _, took)| *took).sum();
    let (writes, calls) = (sum(|part| part.0), sum(|part| part.1));
    println!("| {name} | {count} | {} | {writes:.2} | {calls:.2} | {:.1} s |", parts.join(" | "), took.as_secs_f64());
}

/// Writes and calls so far.
fn counted(stand: &Azure) -> (u64, u64) {
    let is_read = |operation: &str| {
        ["Get", "List", "ListByResourceGroup"].iter().any(|read| operation.ends_with(read)) || operation == "Poll"
    };
    let calls = stand.calls_of();
    (calls.iter().filter(|(operation, _)| !is_read(operation)).map(|(_, count)| count).sum(), stand.calls())
}

/// The life, and how many plans there are when all are made.
async fn ours(stand: &Azure, count: usize, paced: bool) -> (Vec<Part>, usize) {
    let folder = tempfile::tempdir().unwrap();
    let id = ControlPlaneId::new("bench").unwrap();
    let store = SqliteStore::open(folder.path().join("store.db"), id, CommitMode::Grouped).await.unwrap();
    let store: Arc<dyn Store> = store;
    let mut config = stand::config(stand);
    config.plans.sites_max = SHARED_BY as u32;
    config.plans.plans_max = 1000;
    config.look_every = Duration::from_secs(1);
    // Sites that run nothing answer nobody: that they run is enough.
    config.probes = false;
    if paced {
        config.buckets = backend_appservice::Buckets::default();
    }
    let backend = stand::backend(stand, config);
    let cell = Cell::new(CellName::new("group").unwrap(), Arc::new(backend)).with_calls_max(256);
    let control_plane = ControlPlane::builder(store).cell(cell).start().await.unwrap();
    let ids: Vec<_> = (0..count).map(|n| InstanceId::new(format!("i{n}")).unwrap()).collect();
    let by = || Request::by(Actor::new("bench").unwrap());
    let (mut life, mut plans) = (Vec::new(), 0);
    for part in PARTS {
        let ((writes, calls), began) = (counted(stand), Instant::now());
        let mut handles = Vec::new();
        for id in &ids {
            let handle = match part {
                "create" => {
                    let spec = stand::spec("/bin/true", "1.0");
                    control_plane.create(NewInstance::new(id.clone(), TenantId::new("t").unwrap(), spec), by()).await
                }
                "sleep" => control_plane.sleep(id, by()).await,
                "wake" => control_plane.wake(id, by()).await,
                _ => control_plane.destroy(id, DataDisposition::Delete, by()).await,
            };
            handles.push(handle.unwrap());
        }
        join_all(handles.iter().map(ended)).await;
        let after = counted(stand);
        life.push((after.0 - writes, after.1 - calls, began.elapsed()));
        plans = plans.max(stand.plans().await.len());
    }
    (life, plans)
}

async fn ended(handle: &OperationHandle) {
    let operation = handle.wait().await.unwrap();
    assert_eq!(operation.state, OperationState::Done, "{operation:?}");
}

/// The same writes without anything else: one after the other in each plan, and all plans at once. A plan, its share of sites with
/// their shares of data; stopped, started and removed, and the plan at last. Polls as the service asks for them are counted.
async fn bare(stand: &Azure, count: usize) -> Vec<Part> {
    let bare = Bare { client: stand.client(), token: stand.token(), stand: stand.clone() };
    let plans: Vec<Vec<usize>> = (0..count).collect::<Vec<_>>().chunks(SHARED_BY).map(<[usize]>::to_vec).collect();
    let mut life = Vec::new();
    for part in PARTS {
        let ((writes, calls), began) = (counted(stand), Instant::now());
        join_all(plans.iter().enumerate().map(|(plan, sites)| bare.part(part, plan, sites))).await;
        let after = counted(stand);
        life.push((after.0 - writes, after.1 - calls, began.elapsed()));
    }
    life
}

struct Bare {
    client: Client,
    token: String,
    stand: Azure,
}

impl Bare {
    async fn part(&self, part: &str, plan: usize, sites: &[usize]) {
        let (plan, region) = (format!("serverfarms/plan-{plan}"), self.stand.region());
        if part == "create" {
            let body =
                json!({"location": region, "kind": "linux", "sku": {"name": "B1"}, "properties": {"reserved": true}});
            self.web(Method::PUT, &plan, body).await;
        }
        for site in sites {
            let (name, share) = (format!("sites/bare-site-{site}"), format!("data-{site}"));
            match part {
                "create" => {
                    self.storage(Method::PUT, &share, json!({"properties": {"shareQuota": 1}})).await;
                    self.web(Method::PUT, &name, self.site(&plan, &share)).await;
                }
                "sleep" => self.web(Method::POST, &format!("{name}/stop"), Value::Null).await,
                "wake" => self.web(Method::POST, &format!("{name}/start"), Value::Null).await,
                _ => {
                    self.web(Method::DELETE, &format!("{name}?deleteEmptyServerFarm=false"), Value::Null).await;
                    self.storage(Method::DELETE, &share, Value::Null).await;
                }
            }
        }
        if part == "destroy" {
            self.web(Method::DELETE, &plan, Value::Null).await;
        }
    }

    fn site(&self, plan: &str, share: &str) -> Value {
        json!({
            "location": self.stand.region(), "kind": "app,linux,container", "tags": {"owner": "bare"},
            "properties": {
                "serverFarmId": self.path("Microsoft.Web", plan), "httpsOnly": true, "reserved": true,
                "siteConfig": {
                    "linuxFxVersion": "DOCKER|product", "appCommandLine": "/bin/true",
                    "appSettings": [{"name": "WEBSITES_PORT", "value": "8080"}],
                    "azureStorageAccounts": {"data": {
                        "type": "AzureFiles", "accountName": self.stand.storage_account(), "shareName": share,
                        "accessKey": self.stand.storage_key(), "mountPath": "/data"
                    }}
                }
            }
        })
    }

    fn path(&self, provider: &str, resource: &str) -> String {
        let (subscription, group) = (self.stand.subscription(), self.stand.resource_group());
        format!("/subscriptions/{subscription}/resourceGroups/{group}/providers/{provider}/{resource}")
    }

    async fn web(&self, method: Method, resource: &str, body: Value) {
        self.done(method, &self.path("Microsoft.Web", resource), web::VERSION, body).await;
    }

    async fn storage(&self, method: Method, share: &str, body: Value) {
        let resource = format!("storageAccounts/{}/fileServices/default/shares/{share}", self.stand.storage_account());
        let path = self.path("Microsoft.Storage", &resource);
        self.done(method, &path, provisioner_azure::storage::VERSION, body).await;
    }

    async fn done(&self, method: Method, path: &str, version: &str, body: Value) {
        let mark = if path.contains('?') { '&' } else { '?' };
        let url = format!("{}{path}{mark}api-version={version}", self.stand.endpoint());
        let body = (!body.is_null()).then(|| body.to_string());
        let answer = self.client.send(method, &url, Some(&self.token), body).await.unwrap();
        assert!(matches!(answer.status, 200..300), "{path}: {answer:?}");
        let Some(poll) = answer.headers.get("azure-asyncoperation") else { return };
        loop {
            tokio::time::sleep(WORK / 4).await;
            let told = self.client.send(Method::GET, poll.to_str().unwrap(), Some(&self.token), None).await.unwrap();
            let told: Value = serde_json::from_slice(&told.body).unwrap();
            match told["status"].as_str() {
                Some("InProgress") => {}
                Some("Succeeded") => return,
                other => panic!("{path}: {other:?}"),
            }
        }
    }
}
