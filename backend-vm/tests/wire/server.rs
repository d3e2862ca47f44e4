//! A service that answers what a test tells it to, and notes what it was asked.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use axum::{Router, body::Bytes, extract::State, http::StatusCode, response::IntoResponse, routing::post};
use backend_vm::{VmBackend, VmConfig};

/// A request: its action and parameters.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) action: String,
    pub(crate) parameters: BTreeMap<String, String>,
}

/// An answer: its status and body.
pub(crate) type Answer = (u16, String);
type Script = Box<dyn Fn(&Asked) -> Answer + Send + Sync>;

struct Inner {
    script: Mutex<Script>,
    asked: Mutex<Vec<Asked>>,
}

/// The service. Ends with the test's runtime.
#[derive(Clone)]
pub(crate) struct Server {
    inner: Arc<Inner>,
    url: String,
}

impl Server {
    pub(crate) async fn start(script: impl Fn(&Asked) -> Answer + Send + Sync + 'static) -> Self {
        let inner = Arc::new(Inner { script: Mutex::new(Box::new(script)), asked: Mutex::default() });
        let router = Router::new().route("/", post(answer)).with_state(Arc::clone(&inner));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { inner, url }
    }

    /// Where somebody else is, or nobody.
    pub(crate) fn at(url: String) -> Self {
        Self { inner: Arc::new(Inner { script: Mutex::new(Box::new(empty)), asked: Mutex::default() }), url }
    }

    /// From now on it answers like this.
    pub(crate) fn answer(&self, script: impl Fn(&Asked) -> Answer + Send + Sync + 'static) {
        *self.inner.script.lock().unwrap() = Box::new(script);
    }

    /// What was asked since this was called last.
    pub(crate) fn asked(&self) -> Vec<Asked> {
        std::mem::take(&mut self.inner.asked.lock().unwrap())
    }

    /// A backend that asks here.
    pub(crate) fn backend(&self, config: VmConfig) -> VmBackend {
        crate::clients::backend(config, &self.url)
    }
}

async fn answer(State(inner): State<Arc<Inner>>, body: Bytes) -> impl IntoResponse {
    let parameters: BTreeMap<String, String> = form_urlencoded::parse(&body).into_owned().collect();
    let asked = Asked { action: parameters.get("Action").cloned().unwrap_or_default(), parameters };
    let (status, body) = (inner.script.lock().unwrap())(&asked);
    inner.asked.lock().unwrap().push(asked);
    (StatusCode::from_u16(status).unwrap(), [("content-type", "text/xml")], body)
}

/// A refusal, as the service words them.
pub(crate) fn refusal(status: u16, code: &str) -> Answer {
    let errors = format!("<Errors><Error><Code>{code}</Code><Message>it says why</Message></Error></Errors>");
    (status, format!("<Response>{errors}<RequestID>request-1</RequestID></Response>"))
}

/// An answer to this action.
pub(crate) fn ok(asked: &Asked, body: &str) -> Answer {
    let action = &asked.action;
    (200, format!("<{action}Response><requestId>request-2</requestId>{body}</{action}Response>"))
}

/// An empty account that has images.
pub(crate) fn empty(asked: &Asked) -> Answer {
    match asked.action.as_str() {
        "DescribeImages" => ok(
            asked,
            "<imagesSet><item><imageId>ami-1</imageId><rootDeviceName>/dev/xvda</rootDeviceName></item></imagesSet>",
        ),
        "DescribeInstances" => ok(asked, "<reservationSet/>"),
        "DescribeVolumes" => ok(asked, "<volumeSet/>"),
        _ => ok(asked, "<return>true</return>"),
    }
}

/// The machine that a RunInstances asks for, in this state.
pub(crate) fn machine(asked: &Asked, id: &str, state: &str) -> String {
    let tags = (1..20).filter_map(|n| {
        let of = |part| asked.parameters.get(&format!("TagSpecification.1.Tag.{n}.{part}"));
        Some(format!("<item><key>{}</key><value>{}</value></item>", of("Key")?, of("Value")?))
    });
    let tags: String = tags.collect();
    format!(
        "<instancesSet><item><instanceId>{id}</instanceId><instanceState><code>0</code><name>{state}</name>\
         </instanceState><tagSet>{tags}</tagSet></item></instancesSet>"
    )
}
