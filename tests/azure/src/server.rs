//! Each request: counted, befallen by what the test says, executed, and written down.

use std::sync::Arc;

use axum::{
    Router,
    body::Bytes,
    extract::{ConnectInfo, State},
    http::{HeaderMap, Method, Uri},
    response::Response,
};
use serde_json::Value;

use crate::{
    answer::{Answer, JSON, Refusal, response},
    door::Door,
    faults::{Lasting, Once},
    line::Cut,
    operations::{self, Operation, Target},
    record::Call,
    request::Request,
    stand::{Stand, locked, no_right},
    words,
};

/// Serves until it is dropped.
pub(crate) async fn serve(stand: Arc<Stand>, door: Door) {
    let router = Router::new().fallback(handle).with_state(stand);
    let service = router.into_make_service_with_connect_info::<Cut>();
    if let Err(error) = axum::serve(door, service).await {
        tracing::error!(%error, "the resource manager has ended");
    }
}

/// A request as it came.
struct Raw {
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
    found: Option<(Operation, Target)>,
}

async fn handle(
    State(stand): State<Arc<Stand>>,
    ConnectInfo(cut): ConnectInfo<Cut>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let found = operations::find(&method, uri.path());
    let raw = Raw { method, uri, headers, body, found };
    *locked(&stand.calls).entry(raw.operation().to_owned()).or_default() += 1;
    let lost = || {
        cut.cut();
        response(500, JSON, "")
    };
    let lasting = stand.faults.lasting.borrow().clone();
    match lasting {
        Some(Lasting::Unreachable) => return lost(),
        Some(Lasting::Hang) => {
            let mut faults = stand.faults.lasting.subscribe();
            // It fails only when the stand has ended.
            let _ = faults.wait_for(|fault| *fault != Some(Lasting::Hang)).await;
            return lost();
        }
        _ => {}
    }
    let admitted = stand.admit(&raw);
    let once = if admitted.is_ok() { stand.faults.next(raw.operation()) } else { None };
    match &once {
        Some(Once::LostBefore) => return lost(),
        Some(Once::Html500) => {
            return response(500, "text/html", "<html><body><h1>500 Internal Server Error</h1></body></html>");
        }
        _ => {}
    }
    // In a task of its own: who does not wait for the answer does not undo what was asked for.
    let work = tokio::spawn(answered(Arc::clone(&stand), raw, admitted, once.clone()));
    let answer = work.await.unwrap_or_else(|error| Refusal::new(500, "InternalError", error.to_string()).to_answer());
    match once {
        Some(Once::LostAfter) => lost(),
        Some(Once::MalformedJson) => {
            let text = answer.body.map(|body| body.to_string()).unwrap_or_else(|| "{}".to_owned());
            let middle = (1..text.len() / 2 + 1).rev().find(|at| text.is_char_boundary(*at)).unwrap_or_default();
            response(answer.status, JSON, text[..middle].to_owned())
        }
        Some(Once::Delay(time)) => {
            tokio::time::sleep(time).await;
            answer.to_response()
        }
        _ => answer.to_response(),
    }
}

/// The header of what is left of the limit, for a request that may be executed.
type Admitted = Result<(&'static str, String), Refusal>;

/// The answer, as it is sent and written down.
async fn answered(stand: Arc<Stand>, raw: Raw, admitted: Admitted, once: Option<Once>) -> Answer {
    let body = raw.json();
    let is_befallen = matches!(&*stand.faults.lasting.borrow(), Some(Lasting::Throttled { .. } | Lasting::Rights));
    let is_changed = matches!(once, Some(Once::BeforeSend { .. } | Once::MalformedJson | Once::LostAfter));
    let is_mute = stand.options.mute_sites && raw.operation() == "WebApps_CreateOrUpdate";
    let injected = is_befallen || is_changed || is_mute;
    let (answer, left) = match admitted {
        Ok(left) => (stand.executed(&raw, body.clone(), once).await, Some(left)),
        Err(refusal) => (Err(refusal), None),
    };
    let mut answer = answer.unwrap_or_else(|refusal| refusal.to_answer());
    let id = words::unique();
    for name in ["x-ms-request-id", "x-ms-correlation-request-id"] {
        answer.headers.push((name, id.clone()));
    }
    answer.headers.extend(left);
    answer.headers.push(("cache-control", "no-cache".to_owned()));
    if answer.body.is_some() {
        answer.headers.push(("content-type", JSON.to_owned()));
    }
    let path = raw.uri.path_and_query().map_or("/", |path| path.as_str());
    let body = body.unwrap_or_default();
    let call =
        Call { operation: raw.operation(), method: &raw.method, path, headers: &raw.headers, body: &body, injected };
    stand.record.add(&call, &answer);
    answer
}

impl Raw {
    fn operation(&self) -> &'static str {
        self.found.as_ref().map_or("Unknown", |(operation, _)| operation.id)
    }

    fn json(&self) -> Result<Value, Refusal> {
        if self.body.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_slice(&self.body).map_err(|error| {
            Refusal::new(400, "InvalidRequestContent", format!("The request content was invalid: '{error}'."))
        })
    }
}

impl Stand {
    /// Whether a caller may ask for this now.
    fn admit(&self, raw: &Raw) -> Admitted {
        self.check_caller(&raw.headers)?;
        let action = raw.found.as_ref().map_or("", |(operation, _)| operation.action);
        match &*self.faults.lasting.borrow() {
            Some(Lasting::Throttled { after }) => {
                let seconds = after.as_secs_f64().ceil();
                return Err(Refusal::throttled((seconds > 0.0).then(|| format!("{seconds:.0}"))));
            }
            Some(Lasting::Rights) => return Err(no_right(action, "AuthorizationFailed", raw.uri.path())),
            _ => {}
        }
        let left = self.levels.take(&raw.method)?;
        self.check_right(action, "AuthorizationFailed", raw.uri.path())?;
        Ok(left)
    }

    async fn executed(&self, raw: &Raw, body: Result<Value, Refusal>, once: Option<Once>) -> Result<Answer, Refusal> {
        if let Some(Once::BeforeSend { status, code, message, capitalised }) = &once {
            let refusal = Refusal::new(*status, code, message);
            return Err(if *capitalised { refusal.capitalised("00000") } else { refusal });
        }
        let Some((operation, target)) = raw.found.clone() else {
            let message = format!("The stand does not know {} {}.", raw.method, raw.uri.path());
            return Err(Refusal::new(404, "InvalidResourceType", message));
        };
        let query = form_urlencoded::parse(raw.uri.query().unwrap_or_default().as_bytes()).into_owned().collect();
        let path = raw.uri.path().to_owned();
        let mut request = Request { operation, target, path, query, body: body?, fate: once };
        self.check_place(&request)?;
        request.leave_out();
        let is_write = matches!(raw.method, Method::PUT | Method::PATCH);
        if is_write && !request.body.is_object() {
            let message = "The request content was invalid and could not be deserialized: an object is needed.";
            return Err(Refusal::new(400, "InvalidRequestContent", message));
        }
        self.execute(&request).await
    }
}
