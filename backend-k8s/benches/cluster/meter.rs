//! Between a backend's client and the cluster: counts what is asked, and keeps what is written.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use http::{HeaderMap, Method, Request, Response, Uri};
use kube::{Client, client::Body};

/// One write, as it was sent.
#[derive(Debug, Clone)]
pub(crate) struct Written {
    pub(crate) method: Method,
    pub(crate) uri: Uri,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Vec<u8>,
}

impl Written {
    /// The namespace that it makes, or is in.
    pub(crate) fn namespace(&self) -> String {
        let mut parts = self.uri.path().split('/').skip_while(|part| *part != "namespaces").skip(1);
        match parts.next() {
            Some(namespace) => namespace.to_owned(),
            None => {
                let body: serde_json::Value = serde_json::from_slice(&self.body).expect("JSON");
                body["metadata"]["name"].as_str().expect("it has a name").to_owned()
            }
        }
    }
}

#[derive(Debug, Default)]
struct Seen {
    /// By what is done to which kind.
    counts: BTreeMap<String, u64>,
    writes: Vec<Written>,
}

/// Between a backend's client and the cluster.
#[derive(Debug, Clone, Default)]
pub(crate) struct Meter(Arc<Mutex<Seen>>);

impl Meter {
    /// A client whose requests go through here.
    pub(crate) fn around(&self, client: Client) -> Client {
        let meter = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let (meter, client) = (meter.clone(), client.clone());
            async move { meter.pass(&client, request).await }
        });
        Client::new(service, "default")
    }

    /// What was counted since the last time.
    pub(crate) fn take_counts(&self) -> BTreeMap<String, u64> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner).counts)
    }

    /// What was written since the last time, in its order.
    pub(crate) fn take_writes(&self) -> Vec<Written> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner).writes)
    }

    async fn pass(&self, client: &Client, request: Request<Body>) -> Result<Response<Body>, tower::BoxError> {
        let (parts, body) = request.into_parts();
        let body = body.collect_bytes().await?;
        {
            let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            *seen.counts.entry(name_of(&parts.method, &parts.uri)).or_default() += 1;
            if parts.method != Method::GET {
                seen.writes.push(Written {
                    method: parts.method.clone(),
                    uri: parts.uri.clone(),
                    headers: parts.headers.clone(),
                    body: body.to_vec(),
                });
            }
        }
        Ok(client.send(Request::from_parts(parts, Body::from(body))).await?)
    }
}

/// `list pods`, `watch pods`, `get pods`, `patch pods`.
fn name_of(method: &Method, uri: &Uri) -> String {
    // `/api/v1/...` or `/apis/GROUP/VERSION/...`, then `namespaces/NAME/` for what is in one.
    let mut parts: Vec<&str> = uri.path().split('/').filter(|part| !part.is_empty()).collect();
    parts.drain(..parts.len().min(if parts.first() == Some(&"api") { 2 } else { 3 }));
    if parts.len() > 2 && parts[0] == "namespaces" {
        parts.drain(..2);
    }
    let kind = parts.first().copied().unwrap_or("the server");
    let verb = match (method, uri.query().is_some_and(|query| query.contains("watch=true")), parts.len()) {
        (&Method::GET, true, _) => "watch",
        (&Method::GET, false, 1) => "list",
        (&Method::GET, false, _) => "get",
        (other, ..) => &other.as_str().to_lowercase(),
    };
    format!("{verb} {kind}")
}
