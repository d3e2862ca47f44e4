//! Each request: counted, befallen by what the test says, and executed.

use std::{collections::BTreeSet, sync::Arc};

use axum::{
    Router,
    body::Bytes,
    extract::{ConnectInfo, State},
    http::{HeaderMap, Method, Uri},
    response::Response,
};

use crate::{
    answer::{Refusal, XML, document, response, xml},
    door::{Cut, Door},
    faults::{Lasting, Once},
    query::Form,
    stand::{Stand, locked},
};

/// Serves until it is dropped.
pub(crate) async fn serve(stand: Arc<Stand>, door: Door) {
    let router = Router::new().fallback(handle).with_state(stand);
    let service = router.into_make_service_with_connect_info::<Cut>();
    if let Err(error) = axum::serve(door, service).await {
        tracing::error!(%error, "the proxy has ended");
    }
}

/// A request as it came.
struct Request {
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
}

async fn handle(
    State(stand): State<Arc<Stand>>,
    ConnectInfo(cut): ConnectInfo<Cut>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    // Older clients ask by GET.
    let form = Form::parse(if body.is_empty() { uri.query().unwrap_or_default().as_bytes() } else { &body });
    *locked(&stand.calls).entry(form.action().to_owned()).or_default() += 1;
    let lost = || {
        cut.cut();
        response(500, XML, "")
    };
    let lasting = stand.faults.lasting.borrow().clone();
    let refusal = match lasting {
        Some(Lasting::Unreachable) => return lost(),
        Some(Lasting::Hang) => {
            let mut faults = stand.faults.lasting.subscribe();
            // It fails only when the stand has ended.
            let _ = faults.wait_for(|fault| *fault != Some(Lasting::Hang)).await;
            return lost();
        }
        Some(Lasting::Throttled) => Some(Refusal::throttled()),
        Some(Lasting::Rights) => {
            let code = if is_ec2(&form) { "UnauthorizedOperation" } else { "AccessDenied" };
            Some(Refusal::with_status(403, code, "You are not authorized to perform this operation."))
        }
        Some(Lasting::Capacity | Lasting::NoCapacityIn(_)) | None => {
            let may = |actions: &BTreeSet<String>| !is_ec2(&form) || actions.contains(form.action());
            let message = format!("You are not authorized to perform this operation: ec2:{}.", form.action());
            let refusal = || Refusal::with_status(403, "UnauthorizedOperation", message);
            stand.options.actions.as_ref().is_some_and(|actions| !may(actions)).then(refusal)
        }
    };
    if let Some(refusal) = refusal {
        return refused(&form, refusal);
    }
    let once = stand.faults.next(form.action());
    match &once {
        Some(Once::BeforeSend { status, code, message }) => {
            return refused(&form, Refusal::with_status(*status, code, message));
        }
        Some(Once::LostBefore) => return lost(),
        Some(Once::Html500) => {
            return response(500, "text/html", "<html><body><h1>500 Internal Server Error</h1></body></html>");
        }
        Some(Once::LostAfter | Once::MalformedXml | Once::Delay(_)) | None => {}
    }
    // In a task of its own: who does not wait for the answer does not undo what was asked for.
    let work = tokio::spawn(executed(Arc::clone(&stand), form, Request { method, uri, headers, body }));
    let answered = match work.await {
        Ok(answered) => answered,
        Err(error) => {
            response(500, XML, document(&Refusal::with_status(500, "InternalError", error.to_string()).to_element()))
        }
    };
    match once {
        Some(Once::LostAfter) => lost(),
        Some(Once::MalformedXml) => response(200, XML, "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Response><reques"),
        Some(Once::Delay(time)) => {
            tokio::time::sleep(time).await;
            answered
        }
        _ => answered,
    }
}

fn is_ec2(form: &Form) -> bool {
    form.get("Version") == Some("2016-11-15")
}

fn refused(form: &Form, refusal: Refusal) -> Response {
    if is_ec2(form) {
        return xml(Err(refusal));
    }
    response(refusal.status, XML, document(&refusal.to_other_element()))
}

async fn executed(stand: Arc<Stand>, form: Form, request: Request) -> Response {
    if is_ec2(&form) {
        let answer = stand.execute(&form).await;
        return xml(answer.map_err(|refusal| stand.as_allowed(&form, refusal)));
    }
    let path = request.uri.path_and_query().map_or("/", |path| path.as_str());
    let passed = stand.moto.pass(request.method.as_str(), path, &request.headers, request.body.to_vec()).await;
    match passed {
        Ok((status, content_type, body)) => response(status, &content_type, body),
        Err(error) => response(502, "text/plain", error),
    }
}

impl Stand {
    /// Rights that depend on tags are none to what is not there: where callers have some rights alone, that is what they are told.
    fn as_allowed(&self, form: &Form, refusal: Refusal) -> Refusal {
        let is_missing = matches!(&*refusal.code, "InvalidInstanceID.NotFound" | "InvalidVolume.NotFound");
        let is_read = form.action().starts_with("Describe") || form.action() == "RunInstances";
        if !is_missing || is_read || self.options.actions.is_none() {
            return refusal;
        }
        let message = format!("You are not authorized to perform this operation: ec2:{}.", form.action());
        Refusal::with_status(403, "UnauthorizedOperation", message)
    }
}
