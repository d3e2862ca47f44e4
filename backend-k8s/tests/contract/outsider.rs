//! Somebody with all rights at the cluster, who uses none of the backend's code.

use std::{
    collections::BTreeMap,
    future::Future,
    io::{Read, Write},
    net::TcpStream,
    time::{Duration, Instant},
};

use k8s_openapi::api::{
    apps::v1::StatefulSet,
    core::v1::{
        ConfigMap, Event, LimitRange, Namespace, PersistentVolumeClaim, Pod, ResourceQuota, Secret, Service,
        ServiceAccount,
    },
    networking::v1::{Ingress, NetworkPolicy},
};
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams},
};
use provisioner_contract::{Ability, Outsider, Refusal, Sight, Told, async_trait};
use provisioner_core::types::{Bound, ControlPlaneId, DataId, Isolation, Target, VariableName};
use serde_json::{Value, json};

use crate::{
    cluster::{Cluster, Rights},
    gate::Gate,
};

const OWNER: &str = "provisioner.internal/control-plane";
const INCARNATION: &str = "provisioner.internal/incarnation";
const DATA: &str = "provisioner.internal/data";
/// Kept by nobody, so whatever has it stays until it is taken away.
const FINALIZER: &str = "tests.provisioner.internal/blocked";
/// Where what started a product is asked about it: see `programs/launcher.rs`.
const LAUNCHER_PORT: u16 = 9099;
/// Longer than the node's rules take to follow, and than who was reached takes to answer, on a busy machine.
const RULES_WITHIN: Duration = Duration::from_secs(60);
/// Longer than a connection takes that leads somewhere.
const CONNECTED_WITHIN: Duration = Duration::from_secs(5);
const WITHIN: Duration = Duration::from_secs(60);

/// Looks through the API, and at what products answer.
pub(crate) struct ClusterOutsider {
    pub(crate) cluster: Cluster,
    pub(crate) gate: Gate,
    /// The account that the backend has.
    pub(crate) account: String,
    pub(crate) rights: Rights,
}

fn text(error: kube::Error) -> String {
    error.to_string()
}

/// Asks until it is so.
async fn until<F: Future<Output = Told<bool>>>(what: &str, mut is_so: impl FnMut() -> F) -> Told<()> {
    let deadline = Instant::now() + WITHIN;
    while !is_so().await? {
        if Instant::now() > deadline {
            return Err(format!("{what}: not within {WITHIN:?}"));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

impl ClusterOutsider {
    fn client(&self) -> Client {
        self.cluster.admin.clone()
    }

    async fn all<K>(&self, labels: &str) -> Told<Vec<K>>
    where
        K: kube::Resource<DynamicType = ()> + Clone + serde::de::DeserializeOwned + std::fmt::Debug,
    {
        let list = Api::<K>::all(self.client()).list(&ListParams::default().labels(labels)).await;
        Ok(list.map_err(text)?.items)
    }

    async fn of<K>(&self, owner: &ControlPlaneId, target: &Target) -> Told<Vec<K>>
    where
        K: kube::Resource<DynamicType = ()> + Clone + serde::de::DeserializeOwned + std::fmt::Debug,
    {
        self.all(&format!("{OWNER}={owner},{INCARNATION}={}", target.incarnation)).await
    }

    async fn set(&self, owner: &ControlPlaneId, target: &Target) -> Told<StatefulSet> {
        let sets = self.of::<StatefulSet>(owner, target).await?;
        sets.into_iter().next().ok_or_else(|| "there is no stateful set of it".to_owned())
    }

    /// Asks the product for its pages, by the address of its service. With a body, makes one of it.
    async fn pages(&self, owner: &ControlPlaneId, target: &Target, new: Option<Value>) -> Told<Value> {
        let services = self.of::<Service>(owner, target).await?;
        let address = address_of(services.first().ok_or("there is no service of it")?)?;
        let (asked, expected) = match new {
            None => (get("/api/pages"), 200),
            Some(page) => (post("/api/pages", &page.to_string()), 201),
        };
        match request(address, asked).await? {
            (status, body) if status == expected => serde_json::from_slice(&body).map_err(|error| error.to_string()),
            (status, body) => Err(format!("the product answers {status}: {}", String::from_utf8_lossy(&body))),
        }
    }

    /// Asks what started the product, by the address of its pod.
    async fn ask_launcher(&self, owner: &ControlPlaneId, target: &Target, path: &str) -> Told<Vec<u8>> {
        let pods = self.of::<Pod>(owner, target).await?;
        let mut living = pods.iter().filter(|pod| pod.metadata.deletion_timestamp.is_none());
        let address = living.find_map(|pod| pod.status.as_ref()?.pod_ip.as_deref());
        let address = address.ok_or("there is no pod of it that has an address")?;
        match request(format!("{address}:{LAUNCHER_PORT}"), get(path)).await? {
            (200, body) => Ok(body),
            (status, body) => Err(format!("{path} is answered {status}: {}", String::from_utf8_lossy(&body))),
        }
    }

    async fn change_set(&self, owner: &ControlPlaneId, target: &Target, patch: serde_json::Value) -> Told<()> {
        let set = self.set(owner, target).await?;
        let api = Api::<StatefulSet>::namespaced(self.client(), &set.namespace().unwrap_or_default());
        let parameters = PatchParams { field_manager: Some("kubectl-edit".into()), ..PatchParams::default() };
        api.patch(&set.name_any(), &parameters, &Patch::Strategic(patch)).await.map(drop).map_err(text)
    }
}

/// The address of a service inside the cluster, which the node, and so this machine, leads to.
fn address_of(service: &Service) -> Told<String> {
    let spec = service.spec.as_ref().ok_or("a service without a spec")?;
    Ok(format!("{}:80", spec.cluster_ip.as_deref().ok_or("a service without an address")?))
}

/// Asks until somebody answers: the node's rules follow a pod that has become ready a moment later, and nothing tells when.
async fn request(address: String, asked: String) -> Told<(u16, Vec<u8>)> {
    let deadline = Instant::now() + RULES_WITHIN;
    loop {
        let (to, asked) = (address.clone(), asked.clone());
        let answered = tokio::task::spawn_blocking(move || exchange(&to, &asked));
        match answered.await.map_err(|error| error.to_string())? {
            Err(error) if leads_nowhere(&error) && Instant::now() < deadline => {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            answer => return answer.map_err(|error| error.to_string()),
        }
    }
}

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: product\r\nconnection: close\r\n\r\n")
}

fn post(path: &str, body: &str) -> String {
    let head = format!("POST {path} HTTP/1.1\r\nhost: product\r\nconnection: close\r\n");
    format!("{head}content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}

/// Whether a rule is missing, or leads to a pod that is gone: nobody was asked anything.
fn leads_nowhere(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{ConnectionRefused, HostUnreachable, TimedOut};
    // An answer that does not come in time is `WouldBlock` instead.
    matches!(error.kind(), ConnectionRefused | HostUnreachable | TimedOut)
}

fn exchange(address: &str, asked: &str) -> std::io::Result<(u16, Vec<u8>)> {
    let address = address.parse().map_err(std::io::Error::other)?;
    let mut stream = TcpStream::connect_timeout(&address, CONNECTED_WITHIN)?;
    stream.set_read_timeout(Some(RULES_WITHIN))?;
    stream.write_all(asked.as_bytes())?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let end = answer.windows(4).position(|part| part == b"\r\n\r\n").ok_or(std::io::ErrorKind::UnexpectedEof)?;
    let head = String::from_utf8_lossy(&answer[..end]).into_owned();
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    Ok((status.ok_or(std::io::ErrorKind::InvalidData)?, answer.split_off(end + 4)))
}

#[async_trait]
impl Outsider for ClusterOutsider {
    fn abilities(&self) -> &[Ability] {
        use Ability::*;
        &[
            Sight,
            Inventory,
            Notes,
            Ask,
            Environment,
            Secrets,
            Name,
            Search,
            Calls,
            Kill,
            Stop,
            Change,
            Delete,
            DeleteData,
            Block,
            Throttle,
            Rights,
            Hang,
            Unreachable,
            Codes,
            Isolation,
        ]
    }

    async fn sight(&self, owner: &ControlPlaneId, target: &Target) -> Told<Sight> {
        let made = self.of::<StatefulSet>(owner, target).await?.len();
        let pods = self.of::<Pod>(owner, target).await?;
        Ok(Sight { made, awake: pods.iter().filter(|pod| pod.metadata.deletion_timestamp.is_none()).count() })
    }

    async fn inventory(&self, owner: &ControlPlaneId) -> Told<Vec<String>> {
        let owned = format!("{OWNER}={owner}");
        let mut found = Vec::new();
        macro_rules! find {
            ($($kind:ty),*) => {$(
                let objects = self.all::<$kind>(&owned).await?;
                found.extend(objects.iter().map(|object| format!("{} {}", stringify!($kind), object.name_any())));
            )*};
        }
        find!(Namespace);
        if self.rights == Rights::Shared {
            // Nothing goes by itself with a namespace here.
            find!(
                ConfigMap,
                Secret,
                NetworkPolicy,
                ServiceAccount,
                PersistentVolumeClaim,
                StatefulSet,
                Pod,
                Service,
                Ingress
            );
        }
        Ok(found)
    }

    async fn write_note(&self, owner: &ControlPlaneId, target: &Target, note: &str) -> Told<()> {
        self.pages(owner, target, Some(json!({"title": "note", "text": note}))).await.map(drop)
    }

    async fn read_note(&self, owner: &ControlPlaneId, target: &Target) -> Told<Option<String>> {
        // The one written last comes first.
        let pages = self.pages(owner, target, None).await?;
        Ok(pages[0]["text"].as_str().map(str::to_owned))
    }

    async fn ask(&self, endpoint: &str) -> Told<()> {
        let name = endpoint.strip_prefix("http://").and_then(|rest| rest.strip_suffix(".svc"));
        let (name, namespace) = name.and_then(|name| name.split_once('.')).ok_or("not the name of a service")?;
        let service = Api::<Service>::namespaced(self.client(), namespace).get(name).await.map_err(text)?;
        match request(address_of(&service)?, get("/healthz")).await? {
            (200, _) => Ok(()),
            (status, _) => Err(format!("answers {status}")),
        }
    }

    async fn environment(&self, owner: &ControlPlaneId, target: &Target) -> Told<BTreeMap<String, String>> {
        let body = self.ask_launcher(owner, target, "/environment").await?;
        let variables = body.split(|byte| *byte == 0).filter_map(|variable| {
            let (name, value) = std::str::from_utf8(variable).ok()?.split_once('=')?;
            Some((name.to_owned(), value.to_owned()))
        });
        Ok(variables.collect())
    }

    async fn name(&self, owner: &ControlPlaneId, target: &Target) -> Told<String> {
        let set = self.set(owner, target).await?;
        Ok(format!("{}/{}", set.namespace().unwrap_or_default(), set.name_any()))
    }

    async fn search(&self, wanted: &str) -> Told<Vec<String>> {
        let mut found = Vec::new();
        macro_rules! search {
            ($($kind:ty),*) => {$(
                for object in Api::<$kind>::all(self.client()).list(&ListParams::default()).await.map_err(text)? {
                    let shown = serde_json::to_string(&object).map_err(|error| error.to_string())?;
                    if shown.contains(wanted) {
                        found.push(format!("{} {}", stringify!($kind), object.name_any()));
                    }
                }
            )*};
        }
        search!(
            Namespace,
            ConfigMap,
            ResourceQuota,
            LimitRange,
            NetworkPolicy,
            ServiceAccount,
            PersistentVolumeClaim,
            StatefulSet,
            Pod,
            Service,
            Ingress,
            Event
        );
        Ok(found)
    }

    async fn calls(&self) -> Told<u64> {
        Ok(self.gate.calls())
    }

    async fn kill(&self, owner: &ControlPlaneId, target: &Target) -> Told<()> {
        self.ask_launcher(owner, target, "/exit").await.map(drop)
    }

    async fn stop(&self, owner: &ControlPlaneId, target: &Target) -> Told<()> {
        self.change_set(owner, target, json!({"spec": {"replicas": 0}})).await?;
        until("what was stopped is gone", || async { Ok(self.of::<Pod>(owner, target).await?.is_empty()) }).await
    }

    async fn change(&self, owner: &ControlPlaneId, target: &Target, name: &VariableName, value: &str) -> Told<()> {
        let environment = json!([{"name": name.as_str(), "value": value}]);
        let container = json!([{"name": "product", "env": environment}]);
        self.change_set(owner, target, json!({"spec": {"template": {"spec": {"containers": container}}}})).await
    }

    async fn delete(&self, owner: &ControlPlaneId, target: &Target) -> Told<()> {
        let set = self.set(owner, target).await?;
        let api = Api::<StatefulSet>::namespaced(self.client(), &set.namespace().unwrap_or_default());
        api.delete(&set.name_any(), &DeleteParams::background()).await.map_err(text)?;
        until("what was deleted is gone", || async {
            let sets = self.of::<StatefulSet>(owner, target).await?;
            Ok(sets.is_empty() && self.of::<Pod>(owner, target).await?.is_empty())
        })
        .await
    }

    async fn delete_data(&self, owner: &ControlPlaneId, data: &DataId) -> Told<()> {
        let labels = format!("{OWNER}={owner},{DATA}={data}");
        for claim in self.all::<PersistentVolumeClaim>(&labels).await? {
            let api = Api::<PersistentVolumeClaim>::namespaced(self.client(), &claim.namespace().unwrap_or_default());
            api.delete(&claim.name_any(), &DeleteParams::default()).await.map_err(text)?;
        }
        until("the data is gone", || async { Ok(self.all::<PersistentVolumeClaim>(&labels).await?.is_empty()) }).await
    }

    async fn block(&self, owner: &ControlPlaneId, target: &Target, blocked: bool) -> Told<()> {
        let finalizers = if blocked { json!([FINALIZER]) } else { json!(null) };
        let patch = json!({"metadata": {"finalizers": finalizers}});
        for claim in self.of::<PersistentVolumeClaim>(owner, target).await? {
            let api = Api::<PersistentVolumeClaim>::namespaced(self.client(), &claim.namespace().unwrap_or_default());
            let done = api.patch(&claim.name_any(), &PatchParams::default(), &Patch::Merge(&patch)).await;
            done.map_err(text)?;
        }
        Ok(())
    }

    async fn isolation(&self, owner: &ControlPlaneId, target: &Target) -> Told<Isolation> {
        let pods = self.of::<Pod>(owner, target).await?;
        let spec = pods.first().and_then(|pod| pod.spec.as_ref()).ok_or("there is no pod of it")?;
        let limits = spec.containers[0].resources.as_ref().and_then(|resources| resources.limits.clone());
        let limits = limits.unwrap_or_default();
        let bound = |name: &str| if limits.contains_key(name) { Bound::Instance } else { Bound::None };
        Ok(Isolation { users: true, memory: bound("memory"), cpu: bound("cpu"), processes: Bound::None })
    }

    async fn refuse(&self, refusal: Option<Refusal>) -> Told<()> {
        if refusal == Some(Refusal::Rights) {
            self.cluster.allow(&self.account, self.rights, false).await.map_err(text)?;
            return self.cluster.until_rights_are(&self.account, self.rights, false).await;
        }
        if refusal.is_none() {
            // There already, unless rights were what was refused.
            let _ = self.cluster.allow(&self.account, self.rights, true).await;
            self.cluster.until_rights_are(&self.account, self.rights, true).await?;
        }
        self.gate.refuse(refusal);
        Ok(())
    }
}
