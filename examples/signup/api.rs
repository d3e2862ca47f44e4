//! The JSON API.

use std::{sync::Arc, time::Duration};

use axum::{
    Json as Body, Router,
    extract::{DefaultBodyLimit, Path, State},
    http::{HeaderValue, StatusCode, header},
    middleware,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use provisioner_core::{
    ControlPlane,
    control_plane::{NewInstance, OperationHandle, Page},
    store::InstanceFilter,
    types::{Actor, DataDisposition, Hold, InstanceId, OperationId, Phase, TenantId},
};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::{
    catalog::{Catalog, Plan},
    events,
    extract::{BODY_MAX, Conditions, Json, Named, OptionalJson, Search},
    guard, page,
    problem::{Problem, invalid_name},
    view::{EventView, InstanceView, OperationView, PageView, SloView, TotalsView},
};

/// The hold that suspends and lifts mean when they name none.
const HOLD_DEFAULT: &str = "unpaid";
/// How long an operation may be waited for in one request, in seconds.
const WAIT_SECONDS_MAX: u64 = 60;
const PAGE_LIMIT: usize = 100;
const PAGE_LIMIT_MAX: usize = 500;
/// How many may watch the fleet at once.
const WATCHERS_MAX: usize = 256;

/// What the handlers share.
#[derive(Debug)]
pub(crate) struct App {
    /// The control plane.
    pub(crate) control_plane: ControlPlane,
    /// What can be signed up for.
    pub(crate) catalog: Catalog,
    /// Ends what would go on by itself.
    pub(crate) stop: CancellationToken,
    /// Room for those who watch.
    pub(crate) watchers: Arc<Semaphore>,
}

impl App {
    /// What the handlers share.
    pub(crate) fn new(control_plane: ControlPlane, catalog: Catalog, stop: CancellationToken) -> Self {
        Self { control_plane, catalog, stop, watchers: Arc::new(Semaphore::new(WATCHERS_MAX)) }
    }
}

/// An answer, or what went wrong.
pub(crate) type Answer = Result<Response, Problem>;
type Shared = State<Arc<App>>;

/// Every route.
pub(crate) fn router(app: Arc<App>) -> Router {
    let instance = Router::new()
        .route("/", get(instance).delete(destroy))
        .route("/sleep", post(sleep))
        .route("/wake", post(wake))
        .route("/suspend", post(suspend))
        .route("/lift", post(lift))
        .route("/upgrade", post(upgrade))
        .route("/restart", post(restart))
        .route("/retry", post(retry))
        .route("/events", get(instance_events));
    Router::new()
        .route("/api/instances", get(instances).post(sign_up))
        .nest("/api/instances/{id}", instance)
        .route("/api/operations/{operation}", get(operation))
        .route("/api/events", get(events::follow))
        .route("/api/catalog", get(catalog))
        .route("/api/totals", get(totals))
        .route("/api/slo", get(slo))
        .route("/healthz", get(async || Body(json!({"status": "ok"}))))
        .merge(page::router())
        .fallback(async || Problem::new(StatusCode::NOT_FOUND, "There is nothing at this address."))
        .method_not_allowed_fallback(async || {
            Problem::new(StatusCode::METHOD_NOT_ALLOWED, "This address does not take this method; see Allow.")
        })
        .with_state(app)
        .layer(DefaultBodyLimit::max(BODY_MAX))
        .layer(middleware::from_fn(guard::guard))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct SignUp {
    id: String,
    tenant: String,
    plan: String,
    version: Option<String>,
    reason: Option<String>,
}

async fn sign_up(State(app): Shared, conditions: Conditions, Json(new): Json<SignUp>) -> Answer {
    let id = InstanceId::new(&new.id).map_err(invalid_name("id"))?;
    let tenant = TenantId::new(new.tenant.trim()).map_err(invalid_name("tenant"))?;
    let version = new.version.as_deref().unwrap_or_else(|| app.catalog.version_default());
    let spec = app.catalog.spec(&id, &tenant, &new.plan, version)?;
    // Without a login, a customer is who they say they are.
    let actor = Actor::new(tenant.as_str()).map_err(invalid_name("tenant"))?;
    let request = conditions.request(actor, new.reason)?;
    accepted(&app.control_plane.create(NewInstance::new(id, tenant, spec), request).await?)
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Listing {
    after: Option<String>,
    limit: Option<usize>,
    phase: Option<Phase>,
    tenant: Option<String>,
    /// The beginning of the ids to be listed.
    prefix: Option<String>,
}

async fn instances(State(app): Shared, Search(listing): Search<Listing>) -> Answer {
    let limit = page_limit(listing.limit)?;
    let tenant = listing.tenant.map(TenantId::new).transpose().map_err(invalid_name("tenant"))?;
    let after = listing.after.map(InstanceId::new).transpose().map_err(invalid_name("after"))?;
    let filter = InstanceFilter { tenant, phase: listing.phase, ..InstanceFilter::default() };
    let prefix = listing.prefix.unwrap_or_default();
    // Ids come in order: start right before the first one with this beginning, and stop after the last.
    let after = after.max(before_all(&prefix));
    let Page { mut items, mut more } = app.control_plane.list(&filter, after.as_ref(), limit).await?;
    if let Some(end) = items.iter().position(|instance| !instance.id.as_str().starts_with(&prefix)) {
        items.truncate(end);
        more = false;
    }
    Ok(Body(PageView { items: items.into_iter().map(InstanceView::from).collect(), more }).into_response())
}

/// The last possible id before all those that begin with `prefix`; none when there is none.
fn before_all(prefix: &str) -> Option<InstanceId> {
    const ORDER: &str = "-0123456789abcdefghijklmnopqrstuvwxyz";
    const LENGTH_MAX: usize = 40;
    let last = prefix.chars().last()?;
    let begin = &prefix[..prefix.len() - last.len_utf8()];
    let before = match ORDER.find(last)? {
        // Nothing stands between an id and the same with a dash.
        0 => begin.to_owned(),
        place => format!("{:z<LENGTH_MAX$}", format!("{begin}{}", &ORDER[place - 1..place])),
    };
    // For the first letter of all there is none; what is no beginning of an id finds nothing anyway.
    InstanceId::new(before).ok()
}

async fn instance(State(app): Shared, Named(id): Named) -> Answer {
    let view = InstanceView::from(app.control_plane.get(&id).await?);
    Ok(Body(view).into_response())
}

/// What may be said with any request.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Ask {
    reason: Option<String>,
}

async fn sleep(
    State(app): Shared,
    Named(id): Named,
    conditions: Conditions,
    OptionalJson(ask): OptionalJson<Ask>,
) -> Answer {
    accepted(&app.control_plane.sleep(&id, conditions.request(operator(), ask.reason)?).await?)
}

async fn wake(
    State(app): Shared,
    Named(id): Named,
    conditions: Conditions,
    OptionalJson(ask): OptionalJson<Ask>,
) -> Answer {
    accepted(&app.control_plane.wake(&id, conditions.request(operator(), ask.reason)?).await?)
}

async fn restart(
    State(app): Shared,
    Named(id): Named,
    conditions: Conditions,
    OptionalJson(ask): OptionalJson<Ask>,
) -> Answer {
    accepted(&app.control_plane.restart(&id, conditions.request(operator(), ask.reason)?).await?)
}

async fn retry(
    State(app): Shared,
    Named(id): Named,
    conditions: Conditions,
    OptionalJson(ask): OptionalJson<Ask>,
) -> Answer {
    accepted(&app.control_plane.retry(&id, conditions.request(operator(), ask.reason)?).await?)
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct AskHold {
    hold: Option<String>,
    reason: Option<String>,
}

impl AskHold {
    fn hold(&self) -> Result<Hold, Problem> {
        Hold::new(self.hold.as_deref().unwrap_or(HOLD_DEFAULT)).map_err(invalid_name("hold"))
    }
}

async fn suspend(
    State(app): Shared,
    Named(id): Named,
    conditions: Conditions,
    OptionalJson(ask): OptionalJson<AskHold>,
) -> Answer {
    let hold = ask.hold()?;
    accepted(&app.control_plane.suspend(&id, hold, conditions.request(operator(), ask.reason)?).await?)
}

async fn lift(
    State(app): Shared,
    Named(id): Named,
    conditions: Conditions,
    OptionalJson(ask): OptionalJson<AskHold>,
) -> Answer {
    let hold = ask.hold()?;
    accepted(&app.control_plane.lift(&id, &hold, conditions.request(operator(), ask.reason)?).await?)
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct AskVersion {
    version: String,
    reason: Option<String>,
}

async fn upgrade(State(app): Shared, Named(id): Named, conditions: Conditions, Json(ask): Json<AskVersion>) -> Answer {
    let instance = app.control_plane.get(&id).await?;
    let plan = Catalog::plan_of(&instance.spec).unwrap_or_default();
    let spec = app.catalog.spec(&instance.id, &instance.tenant, plan, &ask.version)?;
    accepted(&app.control_plane.update(&id, spec, conditions.request(operator(), ask.reason)?).await?)
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Removal {
    data: Option<DataDisposition>,
    reason: Option<String>,
}

async fn destroy(
    State(app): Shared,
    Named(id): Named,
    conditions: Conditions,
    Search(removal): Search<Removal>,
) -> Answer {
    let data = removal.data.unwrap_or(DataDisposition::Delete);
    accepted(&app.control_plane.destroy(&id, data, conditions.request(operator(), removal.reason)?).await?)
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct EventListing {
    after: Option<u64>,
    limit: Option<usize>,
}

async fn instance_events(State(app): Shared, Named(id): Named, Search(listing): Search<EventListing>) -> Answer {
    let limit = page_limit(listing.limit)?;
    let page = app.control_plane.events(Some(&id), listing.after.unwrap_or(0), limit).await?;
    let items = page.items.into_iter().map(EventView::from).collect();
    Ok(Body(PageView { items, more: page.more }).into_response())
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Waiting {
    wait: Option<u64>,
}

async fn operation(State(app): Shared, Path(id): Path<String>, Search(waiting): Search<Waiting>) -> Answer {
    let missing = || Problem::new(StatusCode::NOT_FOUND, "There is no such operation.");
    let id = OperationId::new(id).map_err(|_| missing())?;
    let handle = app.control_plane.operation(&id).await.map_err(|error| match error.kind() {
        provisioner_core::ErrorKind::NotFound => missing(),
        _ => error.into(),
    })?;
    let wait = Duration::from_secs(waiting.wait.unwrap_or(0).min(WAIT_SECONDS_MAX));
    if wait.is_zero() || handle.operation().state.is_ended() {
        return Ok(Body(OperationView::from(handle.operation())).into_response());
    }
    tokio::select! {
        ended = handle.wait() => Ok(Body(OperationView::from(&ended?)).into_response()),
        // Not yet: what was known at first is still so.
        () = tokio::time::sleep(wait) => Ok(Body(OperationView::from(handle.operation())).into_response()),
        () = app.stop.cancelled() => {
            let detail = "The service is stopping. Please ask again in a moment.";
            Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, detail).retry_after(2))
        }
    }
}

/// What the page needs to know of plans and versions.
#[derive(Debug, Serialize)]
struct CatalogView {
    plans: &'static [Plan],
    versions: Vec<&'static str>,
    version_default: &'static str,
    /// What a dedicated VM costs in a month, asleep or awake, in dollars.
    vm_dollars: u32,
}

async fn catalog(State(app): Shared) -> Response {
    Body(CatalogView {
        plans: app.catalog.plans(),
        versions: app.catalog.versions(),
        version_default: app.catalog.version_default(),
        vm_dollars: 82,
    })
    .into_response()
}

async fn totals(State(app): Shared) -> Answer {
    Ok(Body(TotalsView::from(&app.control_plane.counts().await?)).into_response())
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Window {
    window: Option<u64>,
}

async fn slo(State(app): Shared, Search(window): Search<Window>) -> Answer {
    const DAY_SECONDS: u64 = 24 * 3600;
    let seconds = window.window.unwrap_or(DAY_SECONDS).clamp(1, 30 * DAY_SECONDS);
    let slo = app.control_plane.slo(Duration::from_secs(seconds)).await?;
    Ok(Body(SloView::new(seconds, &slo)).into_response())
}

/// 202, with the operation and where to ask for it again.
fn accepted(handle: &OperationHandle) -> Answer {
    let operation = handle.operation();
    let place =
        HeaderValue::try_from(format!("/api/operations/{}", operation.id)).expect("hexadecimal digits are fine");
    Ok((StatusCode::ACCEPTED, [(header::LOCATION, place)], Body(OperationView::from(operation))).into_response())
}

/// Who asks for everything but sign-ups: without a login, that is all that is known.
fn operator() -> Actor {
    Actor::new("operator").expect("it is one")
}

fn page_limit(limit: Option<usize>) -> Result<usize, Problem> {
    match limit.unwrap_or(PAGE_LIMIT) {
        limit @ 1..=PAGE_LIMIT_MAX => Ok(limit),
        _ => {
            let detail = format!("limit: expected 1 to {PAGE_LIMIT_MAX}.");
            Err(Problem::new(StatusCode::BAD_REQUEST, detail).with_field("limit"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_begins_right_before_its_first_id() {
        let ids = ["a", "a-1", "a-b", "a0", "a0-z", "ab", "ab-c", "abz", "ac", "b", "b1"]
            .map(|id| InstanceId::new(id).unwrap());
        for prefix in ["a", "a-", "a-b", "a0", "ab", "ab-", "abz", "b", "ac", "zz"] {
            let after = before_all(prefix);
            let found: Vec<_> = ids.iter().filter(|id| Some(*id) > after.as_ref()).collect();
            let begins: Vec<_> = ids.iter().filter(|id| id.as_str().starts_with(prefix)).collect();
            assert_eq!(found[..begins.len()], begins, "{prefix}: after {after:?}");
        }
        assert_eq!(before_all(""), None);
        assert_eq!(before_all("É"), None);
    }
}
