//! Many instances at the level of the API, without pods: their writes beside the same ones sent by themselves.

use std::{
    collections::BTreeMap,
    io::Write,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use benches::{heading, row};
use futures::StreamExt;
use http::Request;
use k8s_openapi::api::core::v1::Namespace;
use kube::{
    Api,
    api::{DeleteParams, ListParams},
    client::Body,
};
use provisioner_core::Provisioner;
use serde_json::{Value, json};

use crate::{ALLOCATOR, AT_ONCE, PATIENCE, Side, cluster::Cluster, each, meter::Written};

const INSTANCES: usize = 500;
/// How often each is measured, the three by turns, as a cluster gets slower with what it holds.
const ROUNDS: usize = 3;
/// What namespaces are called here instead, so that the same writes make others.
const BARE: &str = "bare";
const KUBECTL: &str = "kubectl";

pub(crate) async fn measure(cluster: &Cluster) {
    // Nothing is there for a node that nobody has.
    let nowhere = ("provisioner.internal/bench".to_owned(), "nowhere".to_owned());
    let side = Side::new(cluster, "writes", |config| config.node_selector = [nowhere].into());
    // Its watches are open from here on, whoever writes.
    assert_eq!(side.backend.list(&side.cx).count().await, 0);
    let mut times: BTreeMap<&str, Vec<Duration>> = BTreeMap::new();
    let mut requests = 0;
    for _ in 0..ROUNDS {
        side.meter.take_writes();
        let targets = side.targets(INSTANCES / ROUNDS);
        let began = Instant::now();
        each(&targets, AT_ONCE, |target| async { drop(side.backend.create(&side.cx, target).await.expect("made")) })
            .await;
        times.entry("ours").or_default().push(began.elapsed());
        let writes = side.meter.take_writes();
        requests += writes.len();
        let bare = by_instance(&writes, BARE);
        let began = Instant::now();
        each(bare, AT_ONCE, |writes| async move {
            for write in writes {
                send(cluster, write).await;
            }
        })
        .await;
        times.entry(BARE).or_default().push(began.elapsed());
        let manifests = manifests(&by_instance(&writes, KUBECTL));
        let took = tokio::task::spawn_blocking(move || apply_by_kubectl(&manifests)).await.expect("it was tried");
        times.entry(KUBECTL).or_default().push(took);
    }
    let made = INSTANCES / ROUNDS * ROUNDS;
    let seconds = |who: &str| times[who].iter().sum::<Duration>().as_secs_f64();
    heading(&[
        &format!("{made} instances without pods, {} writes each", requests / made),
        "time",
        "instances/s",
        "of bare",
    ]);
    for (name, who) in [
        ("the same writes sent bare, 16 at once, the same watches open (the floor)", BARE),
        ("`create`, 16 at once", "ours"),
        ("`kubectl apply --server-side` of the same manifests", KUBECTL),
    ] {
        let (took, floor) = (seconds(who), seconds(BARE));
        let rate = format!("{:.1}", made as f64 / took);
        row(&[name.into(), format!("{took:.1} s"), rate, format!("{:.2}", took / floor)]);
    }
    println!();
    weigh(cluster, &side).await;
    clear(cluster, &side).await;
}

/// The writes of each instance, in their order, into namespaces of another name.
fn by_instance(writes: &[Written], prefix: &str) -> Vec<Vec<Written>> {
    let mut found: BTreeMap<String, Vec<Written>> = BTreeMap::new();
    for write in writes {
        let namespace = write.namespace();
        let other = namespace.replacen("instance", prefix, 1);
        let uri = write.uri.to_string().replace(&namespace, &other).parse().expect("an address");
        let body = String::from_utf8_lossy(&write.body).replace(&namespace, &other).into_bytes();
        found.entry(namespace).or_default().push(Written { uri, body, ..write.clone() });
    }
    found.into_values().collect()
}

async fn send(cluster: &Cluster, write: Written) {
    let mut request = Request::new(Body::from(write.body));
    *request.method_mut() = write.method;
    *request.uri_mut() = write.uri;
    *request.headers_mut() = write.headers;
    let answer = cluster.admin.send(request).await.expect("an answer");
    assert!(answer.status().is_success(), "{}", answer.status());
    // As everybody does.
    answer.into_body().collect_bytes().await.expect("all of it");
}

/// As somebody would keep them in files.
fn manifests(instances: &[Vec<Written>]) -> String {
    let items: Vec<Value> = instances
        .iter()
        .flatten()
        .map(|write| {
            let mut body: Value = serde_json::from_slice(&write.body).expect("JSON");
            if write.uri.path().contains("/namespaces/") {
                body["metadata"]["namespace"] = json!(write.namespace());
            }
            body
        })
        .collect();
    json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string()
}

fn apply_by_kubectl(manifests: &str) -> Duration {
    let cluster = test_peers::kubernetes::Cluster::find().expect("it was there");
    let began = Instant::now();
    let mut kubectl = Command::new("kubectl")
        .args(["apply", "--server-side", "--filename", "-"])
        .env("KUBECONFIG", cluster.kubeconfig())
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .expect("kubectl starts");
    kubectl.stdin.take().expect("it was asked for").write_all(manifests.as_bytes()).expect("it reads");
    assert!(kubectl.wait().expect("it ends").success());
    began.elapsed()
}

/// What the caches hold of what was made, by what is allocated before and after they are filled, beyond what one allocates that
/// has nothing.
async fn weigh(cluster: &Cluster, side: &Side) {
    let settled = || async {
        tokio::time::sleep(Duration::from_secs(5)).await;
        ALLOCATOR.allocated()
    };
    let before = settled().await;
    // One that has nothing: clients, connections, and what libraries keep.
    let idle = Side::new(cluster, "idle", |_| {});
    assert_eq!(idle.backend.list(&idle.cx).count().await, 0);
    let between = settled().await;
    let weighed = Side { random: side.random.clone(), ..Side::new(cluster, "weighed", |_| {}) };
    let weighed = Side { cx: side.cx.clone(), ..weighed };
    let listed = weighed.backend.list(&weighed.cx).count().await;
    let after = settled().await;
    let fixed = between.saturating_sub(before);
    let (known, said) = weighed.backend.cache_weight(weighed.control_plane()).expect("it has listed");
    heading(&["caches, a control plane with", "allocated with nothing", "for each beyond that", "by its own count"]);
    row(&[
        format!("{known} namespaces ({listed} listed)"),
        format!("{} KiB", fixed >> 10),
        format!("{} bytes", after.saturating_sub(between).saturating_sub(fixed) / known.max(1)),
        format!("{} bytes", said / known.max(1)),
    ]);
    println!();
}

/// Removes all that this made, whoever wrote it.
async fn clear(cluster: &Cluster, side: &Side) {
    let namespaces = Api::<Namespace>::all(cluster.admin.clone());
    let own = ListParams::default().labels(&format!("provisioner.internal/control-plane={}", side.control_plane()));
    let deadline = Instant::now() + PATIENCE * 4;
    loop {
        let left = namespaces.list(&own).await.expect("a list").items;
        if left.is_empty() || Instant::now() > deadline {
            println!("{} namespaces left.", left.len());
            return;
        }
        let standing = left.iter().filter(|namespace| namespace.metadata.deletion_timestamp.is_none());
        let names = standing.filter_map(|namespace| namespace.metadata.name.clone());
        each(names, AT_ONCE, |name| {
            let namespaces = namespaces.clone();
            async move { drop(namespaces.delete(&name, &DeleteParams::default()).await) }
        })
        .await;
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
}
