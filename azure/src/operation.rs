//! Long-running operations: the four ways in which the service says that something has ended; see
//! <https://learn.microsoft.com/azure/azure-resource-manager/management/async-operations>.

use std::time::Duration;

use azure_core::http::{Method, Url};
use provisioner_account::{Failure, until};
use provisioner_core::{ErrorKind, Retry};
use serde_json::Value;
use tokio::time::Instant;

use crate::{
    answer::Answer,
    client::{Calls, Sent},
    refusal::{failure_of, failure_of_operation},
};

/// The first pause, where the service names none: most operations take no longer.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// However soon the service wants to be asked again.
const LEAST_PAUSE: Duration = Duration::from_millis(50);

/// How it is told that an operation has ended.
#[derive(Debug)]
enum Told {
    /// By a status at an address of its own; then the resource is read.
    Status(Url),
    /// By an address that answers 202 until then.
    Location(Url),
    /// By the resource itself.
    Resource,
}

/// Waits until what an answer has accepted has ended: the resource as it is then. `resource`: where it is.
///
/// What goes wrong with asking is asked for again, as the operation goes on meanwhile, until the caller's deadline.
pub(crate) async fn finished(calls: &Calls<'_>, first: Answer, resource: &Url) -> Result<Answer, Failure> {
    let mut told = match (&first.async_operation, &first.location) {
        (Some(link), _) => Told::Status(calls.own(link)?),
        (None, Some(link)) if first.status == 202 => Told::Location(calls.own(link)?),
        _ => Told::Resource,
    };
    let call = first.call.clone();
    if matches!(told, Told::Resource) && first.status != 202 && state(&first).is_none_or(is_good) {
        return Ok(first);
    }
    let (mut pause, mut answer) = (FIRST_PAUSE, first);
    loop {
        let wait = answer.retry_after.unwrap_or(pause).max(LEAST_PAUSE);
        pause = (pause * 2).min(calls.poll_every());
        wait_for(calls, wait, &call).await?;
        let url = match &told {
            Told::Status(url) | Told::Location(url) => url,
            Told::Resource => resource,
        };
        answer = match calls.send(Sent { method: Method::Get, url, body: None }).await {
            Ok(answer) => answer,
            // The deadline, or the caller: nothing more is asked.
            Err(failure) if matches!(failure.kind, ErrorKind::Timeout | ErrorKind::Cancelled) => {
                return Err(failure.in_doubt());
            }
            Err(failure) => {
                tracing::debug!(call, ?failure, "it is asked again whether it has ended");
                continue;
            }
        };
        match answer.status {
            202 => continue,
            // Made a moment ago, or an operation that is so old that it is forgotten.
            404 if matches!(told, Told::Resource) => continue,
            404 => return shown(calls, resource, &call).await,
            408 | 429 | 500.. => continue,
            // There is no right to ask there: the resource itself tells, later.
            401 | 403 if !matches!(told, Told::Resource) => {
                told = Told::Resource;
                continue;
            }
            _ if !answer.is_success() => return Err(failure_of(&answer).in_doubt()),
            _ => {}
        }
        match &told {
            Told::Location(_) if answer.value().is_object() => return Ok(answer),
            Told::Location(_) => return shown(calls, resource, &call).await,
            _ => {}
        }
        match (state(&answer).as_deref(), &told) {
            (Some(bad @ ("Failed" | "Canceled")), _) => {
                return Err(failure_of_operation(&call, bad, &answer));
            }
            (Some("Succeeded"), Told::Status(_)) => return shown(calls, resource, &call).await,
            // An operation of App Service that has ended well has nothing more to say.
            (None, Told::Status(_)) if answer.status == 204 => return shown(calls, resource, &call).await,
            (None | Some("Succeeded"), Told::Resource) => return Ok(answer),
            _ => {}
        }
    }
}

/// Waits until a removal that was accepted has ended: its resource is not there any more.
pub(crate) async fn gone(calls: &Calls<'_>, first: Answer, resource: &Url) -> Result<(), Failure> {
    let (call, mut pause, mut wait) = (first.call.clone(), FIRST_PAUSE, first.retry_after);
    loop {
        wait_for(calls, wait.unwrap_or(pause), &call).await?;
        pause = (pause * 2).min(calls.poll_every());
        let answer = calls.send(Sent { method: Method::Get, url: resource, body: None }).await;
        let answer = answer.map_err(Failure::in_doubt)?;
        match answer.status {
            404 => return Ok(()),
            200..300 | 408 | 429 | 500.. => wait = answer.retry_after,
            _ => return Err(failure_of(&answer).in_doubt()),
        }
    }
}

/// The state in an answer: of an operation, or of a resource.
fn state(answer: &Answer) -> Option<String> {
    let body = answer.value();
    let found = match body.get("status") {
        Some(Value::String(status)) => Some(status),
        _ => match body.pointer("/properties/provisioningState") {
            Some(Value::String(state)) => Some(state),
            _ => None,
        },
    };
    found.cloned()
}

fn is_good(state: String) -> bool {
    state == "Succeeded"
}

async fn wait_for(calls: &Calls<'_>, pause: Duration, call: &str) -> Result<(), Failure> {
    let wake = Instant::now() + pause;
    let cut = |kind, why| Err(Failure::new(kind, format!("{call}: {why}")).in_doubt());
    if calls.cx.deadline.is_some_and(|deadline| deadline <= wake) {
        let late: Result<(), Failure> = cut(ErrorKind::Timeout, "it was accepted, and has not ended in time");
        return late.map_err(|failure| Failure { retry: Some(Retry::After(pause)), ..failure });
    }
    tokio::select! {
        () = until(Some(wake)) => Ok(()),
        () = calls.cx.cancel.cancelled() => cut(ErrorKind::Cancelled, "it was accepted, and its end was not waited for"),
    }
}

/// The resource, when it is shown: reads lag behind what was done.
async fn shown(calls: &Calls<'_>, resource: &Url, call: &str) -> Result<Answer, Failure> {
    let mut pause = FIRST_PAUSE;
    loop {
        let answer = calls.send(Sent { method: Method::Get, url: resource, body: None }).await;
        let answer = answer.map_err(Failure::in_doubt)?;
        match answer.status {
            200..300 => return Ok(answer),
            404 | 408 | 429 | 500.. => {}
            _ => {
                let failure = failure_of(&answer).in_doubt();
                return Err(Failure {
                    message: format!("{call}: it has ended, and then: {}", failure.message),
                    ..failure
                });
            }
        }
        wait_for(calls, answer.retry_after.unwrap_or(pause), call).await?;
        pause = (pause * 2).min(calls.poll_every());
    }
}
