//! What happens, as it happens: server-sent events.

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{
    extract::State,
    http::{HeaderMap, StatusCode},
    response::{
        IntoResponse, Sse,
        sse::{Event, KeepAlive},
    },
};
use futures::{StreamExt, future, stream};
use provisioner_core::Chain;
use serde::Deserialize;
use serde_json::json;

use crate::{
    api::{Answer, App},
    extract::Search,
    problem::Problem,
    view::EventView,
};

/// How often a comment shows that the connection is alive.
const HEARTBEAT: Duration = Duration::from_secs(15);

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct From {
    /// The position after which to begin. A browser that comes back says it in a header instead.
    after: Option<u64>,
}

/// The fleet's events after `Last-Event-ID`, or after `?after=`, or from now on; each named by its kind, with its
/// position as id. The first is `ready` and tells the position that the stream begins after.
pub(crate) async fn follow(State(app): State<Arc<App>>, headers: HeaderMap, Search(from): Search<From>) -> Answer {
    let place = Arc::clone(&app.watchers).try_acquire_owned().map_err(|_| {
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, "Too many are watching at the moment.").retry_after(10)
    })?;
    let newest = app.control_plane.position();
    let last = headers.get("last-event-id").and_then(|id| id.to_str().ok()?.parse().ok());
    // A position that is yet to come is from another store than this one.
    let after = last.or(from.after).unwrap_or(newest).min(newest);

    let ready = Event::default().event("ready").id(after.to_string()).json_data(json!({ "position": after }));
    let followed = app.control_plane.follow(None, after).scan((), |(), event| {
        future::ready(match event {
            Ok(event) => Some(named(event)),
            Err(error) => {
                // Ending the stream makes the browser come back, and say where it was.
                tracing::warn!(error = %Chain(&error), "following events ended");
                None
            }
        })
    });
    let stop = app.stop.clone();
    let events = stream::iter([ready])
        .chain(followed)
        .filter_map(|event| future::ready(event.ok()))
        .map(move |event| {
            let _watching = &place;
            Ok::<_, Infallible>(event)
        })
        .take_until(stop.cancelled_owned());
    Ok(Sse::new(events).keep_alive(KeepAlive::new().interval(HEARTBEAT).text("alive")).into_response())
}

/// One event, named by its kind.
fn named(event: provisioner_core::store::Event) -> Result<Event, axum::Error> {
    let position = event.position.to_string();
    let json = serde_json::to_value(EventView::from(event)).map_err(axum::Error::new)?;
    let kind = json["kind"].as_str().unwrap_or("event").to_owned();
    Event::default().event(kind).id(position).json_data(json)
}
