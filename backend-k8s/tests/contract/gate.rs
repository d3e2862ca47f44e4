//! Between the backend's client and the cluster: counts requests, and holds them up or answers them when asked to.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use http::{Request, Response, StatusCode};
use kube::{Client, client::Body};
use provisioner_contract::Refusal;
use tokio::sync::watch;

/// Between the backend's client and the cluster.
#[derive(Debug, Clone)]
pub(crate) struct Gate {
    calls: Arc<AtomicU64>,
    refusal: watch::Sender<Option<Refusal>>,
}

impl Gate {
    pub(crate) fn new() -> Self {
        Self { calls: Arc::default(), refusal: watch::Sender::new(None) }
    }

    /// How many requests came so far.
    pub(crate) fn calls(&self) -> u64 {
        self.calls.load(Ordering::SeqCst)
    }

    pub(crate) fn refuse(&self, refusal: Option<Refusal>) {
        self.refusal.send_replace(refusal);
    }

    /// A client whose requests go through here.
    pub(crate) fn around(&self, client: Client) -> Client {
        let gate = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let (gate, client) = (gate.clone(), client.clone());
            async move { gate.pass(&client, request).await }
        });
        Client::new(service, "default")
    }

    async fn pass(&self, client: &Client, request: Request<Body>) -> Result<Response<Body>, tower::BoxError> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        let refusal = *self.refusal.borrow();
        match refusal {
            None => Ok(client.send(request).await?),
            // The cluster itself does not do that to somebody who asks for little.
            Some(Refusal::Throttled { after }) => Ok(throttled(after)),
            Some(Refusal::Unreachable) => Err("connection refused".into()),
            Some(_) => {
                let mut refusals = self.refusal.subscribe();
                let _ = refusals.wait_for(Option::is_none).await;
                Ok(client.send(request).await?)
            }
        }
    }
}

/// As API priority and fairness answers: <https://kubernetes.io/docs/concepts/cluster-administration/flow-control/>.
fn throttled(after: Duration) -> Response<Body> {
    let seconds = after.as_secs_f64().ceil();
    Response::builder()
        .status(StatusCode::TOO_MANY_REQUESTS)
        .header("retry-after", format!("{seconds}"))
        .body(Body::from(b"Too many requests, please try again later.".to_vec()))
        .expect("a whole answer")
}
