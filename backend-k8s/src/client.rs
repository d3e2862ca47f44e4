//! Requests to the cluster: one try each, until the caller's deadline.

use std::{
    hash::{BuildHasher, RandomState},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use http::{HeaderMap, HeaderName, HeaderValue, Request, StatusCode};
use http_body_util::BodyExt;
use k8s_openapi::{api::core::v1::Namespace, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use kube::{
    Client, Resource,
    api::{
        ApiResource, DeleteParams, DynamicObject, GetParams, ListParams, Patch, PatchParams, PostParams, Preconditions,
    },
    client::Body,
    core::{ObjectList, Request as Builder, Status},
};
use provisioner_core::{Effect, Error, ErrorKind, OpContext, Result};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::{
    aks,
    cluster::Cluster,
    error::{During, Failure, Refusal},
    home::Home,
    names::{self, FIELD_MANAGER},
    render::{Namespaces, Part},
};

/// How long one request may take that comes without a deadline.
pub(crate) const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// How many objects one answer may hold.
const PAGE: u32 = 500;

/// The requests of one call, with its deadline and its name for errors. A clone is the same call.
#[derive(Clone)]
pub(crate) struct Calls<'a> {
    cluster: &'a Cluster,
    pub(crate) cx: &'a OpContext,
    pub(crate) during: During<'a>,
    /// Whether a request of this call changed something, or may have: then no later one that fails makes that undone.
    acted: Arc<AtomicBool>,
}

impl<'a> Calls<'a> {
    /// Those of a call that begins.
    pub(crate) fn new(cluster: &'a Cluster, cx: &'a OpContext, during: During<'a>) -> Self {
        Self { cluster, cx, during, acted: Arc::default() }
    }

    /// An error of this kind in this call.
    pub(crate) fn error(&self, kind: ErrorKind) -> Error {
        self.heeding(self.during.error(kind))
    }

    /// An error that came from elsewhere during this call.
    pub(crate) fn heeding(&self, error: Error) -> Error {
        if self.acted.load(Ordering::Relaxed) { error.with_effect(Effect::Unknown) } else { error }
    }

    /// Makes the public error of a failure to read.
    pub(crate) fn reading(&self, failure: Failure) -> Error {
        self.heeding(failure.during(self.during, false))
    }

    /// Makes the public error of a failure to write.
    pub(crate) fn writing(&self, failure: Failure) -> Error {
        self.heeding(failure.during(self.during, true))
    }

    /// Applies an object: its fields become ours, whoever had them.
    pub(crate) async fn apply(
        &self,
        resource: &ApiResource,
        namespace: Option<&str>,
        name: &str,
        body: &Value,
    ) -> Result<DynamicObject, Failure> {
        let parameters = PatchParams::apply(FIELD_MANAGER).force();
        let request = builder(resource, namespace).patch(name, &parameters, &Patch::Apply(body)).map_err(unbuilt)?;
        self.send(request, || format!("patch {}", full_name(resource))).await
    }

    /// Makes an object that is not there yet.
    pub(crate) async fn create(&self, namespace: Option<&str>, part: &Part) -> Result<DynamicObject, Failure> {
        let parameters = PostParams { field_manager: Some(FIELD_MANAGER.into()), ..PostParams::default() };
        let body = serde_json::to_vec(&part.body).map_err(|error| Failure::Unreadable(error.to_string()))?;
        let request = builder(&part.resource, namespace).create(&parameters, body).map_err(unbuilt)?;
        self.send(request, || format!("create {}", full_name(&part.resource))).await
    }

    /// Changes an object by a JSON patch: its tests hold, or nothing is changed.
    pub(crate) async fn patch(
        &self,
        resource: &ApiResource,
        namespace: Option<&str>,
        name: &str,
        patch: Value,
    ) -> Result<DynamicObject, Failure> {
        let patch: kube::core::params::Patch<()> =
            Patch::Json(serde_json::from_value(patch).map_err(|error| Failure::Unreadable(error.to_string()))?);
        let parameters = PatchParams { field_manager: Some(FIELD_MANAGER.into()), ..PatchParams::default() };
        let request = builder(resource, namespace).patch(name, &parameters, &patch).map_err(unbuilt)?;
        self.send(request, || format!("patch {}", full_name(resource))).await
    }

    /// Reads an object. `None`: it is not there.
    pub(crate) async fn get<K: Resource<DynamicType = ()> + DeserializeOwned>(
        &self,
        namespace: Option<&str>,
        name: &str,
    ) -> Result<Option<K>, Failure> {
        let resource = ApiResource::erase::<K>(&());
        let request = builder(&resource, namespace).get(name, &GetParams::default()).map_err(unbuilt)?;
        match self.send(request, || format!("get {}", full_name(&resource))).await {
            Ok(object) => Ok(Some(object)),
            Err(failure) if failure.is_not_found() => Ok(None),
            Err(failure) => Err(failure),
        }
    }

    /// Reads an object of any kind. `None`: it is not there.
    pub(crate) async fn find(
        &self,
        resource: &ApiResource,
        namespace: Option<&str>,
        name: &str,
    ) -> Result<Option<DynamicObject>, Failure> {
        let request = builder(resource, namespace).get(name, &GetParams::default()).map_err(unbuilt)?;
        match self.send(request, || format!("get {}", full_name(resource))).await {
            Ok(object) => Ok(Some(object)),
            Err(failure) if failure.is_not_found() => Ok(None),
            Err(failure) => Err(failure),
        }
    }

    /// Reads all objects of a kind in a namespace that have these labels or fields.
    pub(crate) async fn list<K: Resource<DynamicType = ()> + DeserializeOwned + Clone>(
        &self,
        namespace: &str,
        parameters: &ListParams,
    ) -> Result<Vec<K>, Failure> {
        self.pages(&ApiResource::erase::<K>(&()), Some(namespace), parameters).await
    }

    async fn pages<K: DeserializeOwned + Clone>(
        &self,
        resource: &ApiResource,
        namespace: Option<&str>,
        parameters: &ListParams,
    ) -> Result<Vec<K>, Failure> {
        let mut parameters = parameters.clone().limit(PAGE);
        let mut items = Vec::new();
        loop {
            let request = builder(resource, namespace).list(&parameters).map_err(unbuilt)?;
            let page: ObjectList<K> = self.send(request, || format!("list {}", full_name(resource))).await?;
            items.extend(page.items);
            match page.metadata.continue_.filter(|next| !next.is_empty()) {
                Some(next) => parameters = parameters.continue_token(&next),
                None => return Ok(items),
            }
        }
    }

    /// Removes all objects of a kind in a namespace that have these labels, without reading them.
    pub(crate) async fn delete_all<K: Resource<DynamicType = ()>>(
        &self,
        namespace: &str,
        labels: &str,
    ) -> Result<(), Failure> {
        let resource = ApiResource::erase::<K>(&());
        let request = builder(&resource, Some(namespace))
            .delete_collection(&DeleteParams::background(), &ListParams::default().labels(labels))
            .map_err(unbuilt)?;
        self.answer(request, || format!("deletecollection {}", full_name(&resource))).await.map(drop)
    }

    /// Reads what stands for a data set. `None`: it is not there.
    pub(crate) async fn home(&self, home: &Home) -> Result<Option<DynamicObject>, Failure> {
        self.find(&home.resource(), home.scope(), home.name()).await
    }

    /// Reads everything that stands for a data set of the control plane.
    pub(crate) async fn homes(&self, namespaces: &Namespaces) -> Result<Vec<DynamicObject>, Failure> {
        let labels = format!("{}={}", names::CONTROL_PLANE, self.cx.control_plane);
        self.pages(&namespaces.home_kind(), namespaces.shared(), &ListParams::default().labels(&labels)).await
    }

    /// Removes an object, if it is still the one with this uid. `false`: it is not there.
    pub(crate) async fn delete(
        &self,
        resource: &ApiResource,
        namespace: Option<&str>,
        name: &str,
        uid: Option<&str>,
    ) -> Result<bool, Failure> {
        let preconditions = uid.map(|uid| Preconditions { uid: Some(uid.to_owned()), resource_version: None });
        self.delete_with(resource, namespace, name, DeleteParams { preconditions, ..DeleteParams::background() }).await
    }

    /// Removes an object, if it is still as it was seen. `false`: it is not there.
    pub(crate) async fn delete_as_seen(
        &self,
        resource: &ApiResource,
        namespace: Option<&str>,
        name: &str,
        seen: &ObjectMeta,
    ) -> Result<bool, Failure> {
        self.delete_with(resource, namespace, name, DeleteParams::background().preconditions(as_seen(seen))).await
    }

    /// Removes what stands for a data set, if it is still as it was seen. `false`: it is not there.
    pub(crate) async fn delete_home(&self, home: &Home, seen: &ObjectMeta) -> Result<bool, Failure> {
        let parameters = home.removal().preconditions(as_seen(seen));
        self.delete_with(&home.resource(), home.scope(), home.name(), parameters).await
    }

    async fn delete_with(
        &self,
        resource: &ApiResource,
        namespace: Option<&str>,
        name: &str,
        parameters: DeleteParams,
    ) -> Result<bool, Failure> {
        let request = builder(resource, namespace).delete(name, &parameters).map_err(unbuilt)?;
        match self.send::<Value>(request, || format!("delete {}", full_name(resource))).await {
            Ok(_) => Ok(true),
            Err(failure) if failure.is_not_found() => Ok(false),
            Err(failure) => Err(failure),
        }
    }

    /// The last lines that a pod's container wrote before it ended.
    pub(crate) async fn last_lines(&self, namespace: &str, pod: &str, lines: i64) -> Result<String, Failure> {
        let parameters = kube::api::LogParams {
            previous: true,
            tail_lines: Some(lines),
            limit_bytes: Some(8 * 1024),
            ..kube::api::LogParams::default()
        };
        let resource = ApiResource::erase::<k8s_openapi::api::core::v1::Pod>(&());
        let request = builder(&resource, Some(namespace)).logs(pod, &parameters).map_err(unbuilt)?;
        let (_, body) = self.answer(request, || "get pods/log".to_owned()).await?;
        Ok(String::from_utf8_lossy(&body).into_owned())
    }

    /// What tells this cluster from every other: the uid of its namespace kube-system.
    pub(crate) async fn cluster_uid(&self) -> Result<Option<String>, Failure> {
        Ok(self.get::<Namespace>(None, "kube-system").await?.and_then(|namespace| namespace.metadata.uid))
    }

    async fn send<T: DeserializeOwned>(
        &self,
        request: Request<Vec<u8>>,
        named: impl Fn() -> String + Send + Sync,
    ) -> Result<T, Failure> {
        let (_, body) = self.answer(request, &named).await?;
        serde_json::from_slice(&body).map_err(|error| Failure::Unreadable(format!("{}: {error}", named())))
    }

    async fn answer(
        &self,
        request: Request<Vec<u8>>,
        named: impl Fn() -> String + Send + Sync,
    ) -> Result<(HeaderMap, Vec<u8>), Failure> {
        let mutates = request.method() != http::Method::GET;
        let answer = self.ask(request, named).await;
        if mutates && answer.as_ref().err().is_none_or(Failure::may_have_acted) {
            self.acted.store(true, Ordering::Relaxed);
        }
        answer
    }

    async fn ask(
        &self,
        mut request: Request<Vec<u8>>,
        named: impl Fn() -> String + Send + Sync,
    ) -> Result<(HeaderMap, Vec<u8>), Failure> {
        if self.cx.cancel.is_cancelled() {
            return Err(Failure::Cancelled);
        }
        let audit_id = audit_id();
        request.headers_mut().insert(AUDIT_ID, HeaderValue::from_str(&audit_id).expect("it is hexadecimal"));
        let limit = tokio::time::Instant::now() + REQUEST_TIMEOUT;
        let deadline = self.cx.deadline.map_or(limit, |deadline| deadline.min(limit));
        let exchange = async {
            let client = self.cluster.client().await?;
            exchange(client, request).await
        };
        let answer = tokio::time::timeout_at(deadline, exchange).await.map_err(|_| Failure::TimedOut).flatten();
        let (code, headers, body) = answer?;
        if code.is_success() {
            return Ok((headers, body));
        }
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        // Not every answer is the API's own: a proxy before it writes text.
        let status = serde_json::from_slice::<Status>(&body).unwrap_or_else(|_| Status {
            message: String::from_utf8_lossy(&body).chars().take(500).collect(),
            ..Status::default()
        });
        Err(Failure::Refused(Box::new(Refusal {
            code,
            status,
            retry_after: retry_after(&headers),
            audit_id: Some(text(AUDIT_ID.as_str()).map_or(audit_id, str::to_owned)),
            request: named(),
        })))
    }
}

/// What a cluster's audit log calls a request. It takes the caller's word for it, and one that keeps no log may answer without:
/// <https://kubernetes.io/docs/reference/config-api/apiserver-audit.v1/#audit-k8s-io-v1-Event>.
const AUDIT_ID: HeaderName = HeaderName::from_static("audit-id");

/// One that nobody used before.
fn audit_id() -> String {
    // Every state is seeded by the operating system.
    let bits = || RandomState::new().hash_one(0);
    format!("{:016x}{:016x}", bits(), bits())
}

/// When to come back, as an answer says: Kubernetes tells it in seconds.
pub(crate) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    headers.get(http::header::RETRY_AFTER)?.to_str().ok()?.parse().ok().map(Duration::from_secs)
}

async fn exchange(client: &Client, request: Request<Vec<u8>>) -> Result<(StatusCode, HeaderMap, Vec<u8>), Failure> {
    let response = client.send(request.map(Body::from)).await.map_err(|error| unanswered(&error))?;
    let (parts, body) = response.into_parts();
    let body = body.collect().await.map_err(|error| unanswered(&error))?;
    Ok((parts.status, parts.headers, body.to_bytes().to_vec()))
}

/// What came of a request that has no answer.
pub(crate) fn unanswered(error: &kube::Error) -> Failure {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error);
    let (mut message, mut was_sent) = (String::new(), true);
    while let Some(error) = source {
        if let Some(failure) = aks::unsigned(error) {
            return failure;
        }
        if let Some(error) = error.downcast_ref::<hyper_util::client::legacy::Error>() {
            was_sent &= !error.is_connect();
        }
        if !message.is_empty() {
            message.push_str(": ");
        }
        message.push_str(&error.to_string());
        source = error.source();
    }
    Failure::Unanswered { was_sent, message }
}

fn unbuilt(error: kube::core::request::Error) -> Failure {
    Failure::Unreadable(error.to_string())
}

fn as_seen(seen: &ObjectMeta) -> Preconditions {
    Preconditions { uid: seen.uid.clone(), resource_version: seen.resource_version.clone() }
}

fn builder(resource: &ApiResource, namespace: Option<&str>) -> Builder {
    Builder::new(DynamicObject::url_path(resource, namespace))
}

/// The plural and the group, as rights name it.
fn full_name(resource: &ApiResource) -> String {
    match resource.group.as_str() {
        "" => resource.plural.clone(),
        group => format!("{}.{group}", resource.plural),
    }
}

/// One operation of a JSON patch.
pub(crate) fn operation(op: &str, path: &str, value: impl Into<Value>) -> Value {
    json!({"op": op, "path": path, "value": value.into()})
}

/// The path to an annotation or label, as JSON patches write it.
pub(crate) fn path_of(map: &str, key: &str) -> String {
    format!("/metadata/{map}/{}", key.replace('~', "~0").replace('/', "~1"))
}
