//! The client of one kind's watch. What the library's events do not tell is seen at its requests: that a watch is open again,
//! from where on, and when the cluster wants to be asked again.

use std::sync::{Arc, Mutex, PoisonError};

use http::{Request, Response, Uri};
use http_body_util::BodyExt;
use kube::{Client, client::Body};
use tokio::time::{Duration, Instant};
use tower::BoxError;

use super::{Kind, Shared};
use crate::client::{REQUEST_TIMEOUT, retry_after};

/// Between two openings of a watch, so that a server that ends each one at once is not asked without end.
const OPENINGS_APART: Duration = Duration::from_secs(1);

/// A client whose requests tell how the watch of this kind fares.
pub(super) fn listening(client: Client, kind: Kind, shared: &Arc<Shared>) -> Client {
    let shared = Arc::clone(shared);
    let opened = Arc::new(Mutex::new(None));
    let namespace = client.default_namespace().to_owned();
    let service = tower::service_fn(move |request: Request<Body>| {
        let (client, shared, opened) = (client.clone(), Arc::clone(&shared), Arc::clone(&opened));
        async move {
            match watched_from(request.uri()) {
                Some(version) => open(&client, kind, &shared, &opened, request, version).await,
                None => read(&client, kind, &shared, request).await,
            }
        }
    });
    Client::new(service, namespace)
}

async fn open(
    client: &Client,
    kind: Kind,
    shared: &Shared,
    opened: &Mutex<Option<Instant>>,
    request: Request<Body>,
    version: u64,
) -> Result<Response<Body>, BoxError> {
    shared.state().health.entry(kind).or_default().open();
    let before = *opened.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(before) = before {
        tokio::time::sleep_until(before + OPENINGS_APART).await;
    }
    // The cluster answers when it begins to watch, not when something happens.
    let response = tokio::time::timeout(REQUEST_TIMEOUT, client.send(request)).await??;
    *opened.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    if response.status().is_success() {
        shared.state().opened(kind, version);
        shared.changed.send_modify(|changed| *changed += 1);
    } else {
        shared.state().health.entry(kind).or_default().retry_after = retry_after(response.headers());
    }
    Ok(response)
}

async fn read(
    client: &Client,
    kind: Kind,
    shared: &Shared,
    request: Request<Body>,
) -> Result<Response<Body>, BoxError> {
    let exchange = async {
        let (parts, body) = client.send(request).await?.into_parts();
        let body = body.collect().await?.to_bytes();
        Ok::<_, BoxError>(Response::from_parts(parts, Body::from(body.to_vec())))
    };
    let response = tokio::time::timeout(REQUEST_TIMEOUT, exchange).await??;
    shared.state().health.entry(kind).or_default().retry_after = retry_after(response.headers());
    Ok(response)
}

/// The version that a request wants to watch from, if it is one for that.
fn watched_from(uri: &Uri) -> Option<u64> {
    let query = || uri.query().unwrap_or_default().split('&').filter_map(|pair| pair.split_once('='));
    let is_watch = query().any(|pair| pair == ("watch", "true"));
    let version = query().find_map(|(key, value)| (key == "resourceVersion").then(|| value.parse().ok()).flatten());
    is_watch.then(|| version.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watch_is_told_from_a_reading() {
        let from = |uri: &'static str| watched_from(&Uri::from_static(uri));
        assert_eq!(from("/api/v1/pods?&watch=true&allowWatchBookmarks=true&resourceVersion=17"), Some(17));
        assert_eq!(from("/api/v1/pods?&watch=true"), Some(0));
        assert_eq!(from("/api/v1/pods?&limit=500&resourceVersion=17"), None);
        assert_eq!(from("/api/v1/pods"), None);
    }
}
