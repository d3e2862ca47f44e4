//! Requests that callers put into the store's inbox inside their own transactions.
//!
//! They are judged like any other request, here instead of when they are made: one that is refused becomes an operation that
//! failed, so that whoever holds its id learns why.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use futures::FutureExt;
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;
use tokio::time::Instant;
use tracing::{error, info, warn};

use super::{ControlPlane, NewInstance, Request, accept::Ask, origin::Origin};
use crate::{
    error::{Chain, Error, ErrorKind, Result},
    store::{Change, EventKind, NewEvent, Operation, OperationState, StoreError, Submitted, Verb},
    types::{CellName, DataDisposition, DataId, Hold, InstanceId, InstanceSpec, Revision, TenantId},
};

/// How many requests are taken at a time.
const PAGE: usize = 64;
/// How long to wait before what failed for reasons outside the request is tried again.
const PAUSE: Duration = Duration::from_secs(1);
/// How many requests that failed are remembered: each is read again with every page.
const LATER_MAX: usize = 1024;

/// Requests that could be neither accepted nor refused, by number, and when each is tried again. Without it, a page of them would be
/// read again and again, and nobody behind them would ever be answered.
type Later = BTreeMap<u64, Instant>;

/// Takes requests in as they come, until the engine is cancelled. A store of one process has no inbox.
pub(super) async fn serve(plane: ControlPlane) {
    let engine = &plane.engine;
    if engine.tenure.lapses_after().is_none() {
        return;
    }
    let mut later = Later::new();
    while !engine.cancel.is_cancelled() {
        let again = match take_in(&plane, &mut later).await {
            Ok(taken) if taken > 0 => continue,
            Ok(_) => (!later.is_empty()).then_some(PAUSE),
            Err(error) => {
                warn!(error = %Chain(&error), "could not read the inbox; trying again");
                Some(PAUSE)
            }
        };
        let pause = async {
            match again {
                Some(pause) => tokio::time::sleep(pause).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = engine.cancel.cancelled() => return,
            () = engine.inbox.notified() => {}
            () = pause => {}
        }
    }
}

/// Takes a page of requests in, and tells how many were answered. Those that failed come after all others, and not before their time.
async fn take_in(plane: &ControlPlane, later: &mut Later) -> Result<usize> {
    let engine = &plane.engine;
    let epoch = engine.tenure.epoch();
    if epoch == 0 {
        // Told again once there is a session.
        return Ok(0);
    }
    let requests = engine.store.inbox(epoch, PAGE + later.len()).await.map_err(|error| {
        engine.store_error(&error, epoch);
        error.into_error("take in")
    })?;
    // Each is of another instance, and none waits for another one's sake.
    let answers = choose(requests, later).into_iter().map(|request| {
        let (number, instance) = (request.number, request.instance.clone());
        let answer = std::panic::AssertUnwindSafe(answer(plane, request)).catch_unwind();
        async move {
            let answered = answer.await.unwrap_or_else(|_| {
                error!(%instance, "taking in a request of the inbox ended with a panic");
                Err(Error::new(ErrorKind::Internal, "take in").with_instance(&instance).with_message("it panicked"))
            });
            (number, answered)
        }
    });
    let mut taken = 0;
    for (number, answered) in futures::future::join_all(answers).await {
        match answered {
            Ok(()) => {
                taken += 1;
                later.remove(&number);
            }
            Err(error) => {
                if later.insert(number, Instant::now() + PAUSE).is_none() {
                    warn!(error = %Chain(&error), "could not take in a request of the inbox; trying again");
                }
            }
        }
    }
    while later.len() > LATER_MAX {
        later.pop_last();
    }
    Ok(taken)
}

/// Those of the oldest requests that are to be tried now: a page of them, those that have not failed yet first.
fn choose(mut requests: Vec<Submitted>, later: &mut Later) -> Vec<Submitted> {
    // What others have answered is forgotten.
    let there: BTreeSet<u64> = requests.iter().map(|request| request.number).collect();
    later.retain(|number, _| there.contains(number));
    let now = Instant::now();
    requests.retain(|request| later.get(&request.number).is_none_or(|at| *at <= now));
    requests.sort_by_key(|request| later.get(&request.number).copied());
    requests.truncate(PAGE);
    requests
}

/// Accepts or refuses one request. An error: neither, for a reason outside of it.
async fn answer(plane: &ControlPlane, submitted: Submitted) -> Result<()> {
    let origin = Origin { operation: Some(submitted.operation.clone()), request: Some(submitted.number) };
    let request = Request {
        actor: submitted.actor.clone(),
        reason: submitted.reason.clone(),
        key: submitted.key.clone(),
        expected: submitted.expected,
    };
    let id = &submitted.instance;
    let accepted = match Asked::of(&submitted) {
        Ok(Asked::Create(new)) => plane.create_as(*new, request, origin).await,
        Ok(Asked::Of(ask)) => plane.ask_as(id, ask, request, origin).await,
        Err(error) => Err(error),
    };
    let error = match accepted {
        Ok(handle) if handle.operation().id == submitted.operation => return Ok(()),
        Ok(other) => {
            let message = format!("the same was asked before: it is operation {}", other.operation().id);
            Error::new(ErrorKind::Conflict, submitted.ask.verb.as_str()).with_instance(id).with_message(message)
        }
        Err(error) => error,
    };
    let elsewhere = matches!(
        error.kind(),
        ErrorKind::Unavailable
            | ErrorKind::SessionLost
            | ErrorKind::StoreFull
            | ErrorKind::StoreRefused
            | ErrorKind::Timeout
            | ErrorKind::Internal
    );
    if elsewhere { Err(error) } else { refuse(plane, &submitted, &error).await }
}

/// Writes down that a request was refused, and why.
async fn refuse(plane: &ControlPlane, submitted: &Submitted, error: &Error) -> Result<()> {
    let engine = &plane.engine;
    info!(instance = %submitted.instance, operation = %submitted.operation, error = %Chain(error), "refused");
    let (now, failure) = (engine.now(), error.to_reason());
    let operation = Operation {
        id: submitted.operation.clone(),
        instance: submitted.instance.clone(),
        verb: submitted.ask.verb,
        revision: Revision::FIRST,
        actor: submitted.actor.clone(),
        reason: submitted.reason.clone(),
        // It may be another operation's, which may be why.
        key: None,
        fingerprint: String::new(),
        accepted_at: submitted.at,
        state: OperationState::Failed,
        ended_at: Some(now),
        failure: Some(failure.clone()),
    };
    let event = |what| NewEvent {
        instance: Some(submitted.instance.clone()),
        at: now,
        revision: None,
        actor: Some(submitted.actor.clone()),
        reason: submitted.reason.clone(),
        what,
    };
    let (verb, id) = (submitted.ask.verb, submitted.operation.clone());
    let events = vec![
        event(EventKind::Refused { verb, operation: id.clone(), failure }),
        event(EventKind::OperationEnded { operation: id, state: OperationState::Failed }),
    ];
    let change = Change {
        epoch: Some(engine.tenure.epoch()),
        answers: Some(submitted.number),
        operations: vec![operation],
        events,
        ..Change::default()
    };
    match engine.commit(change).await {
        Ok(_) => {
            engine.waiters.ended(&submitted.operation);
            Ok(())
        }
        // Another process was faster.
        Err(StoreError::Answered) => Ok(()),
        Err(error) => Err(error.into_error("refuse")),
    }
}

/// What a request of the inbox asks, read.
#[derive(Debug)]
enum Asked {
    Create(Box<NewInstance>),
    Of(Ask),
}

impl Asked {
    fn of(submitted: &Submitted) -> Result<Self> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Create {
            tenant: TenantId,
            spec: InstanceSpec,
            cell: Option<CellName>,
            data: Option<DataId>,
        }
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Update {
            spec: InstanceSpec,
        }
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Held {
            hold: Hold,
        }
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Destroy {
            data: DataDisposition,
        }
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Nothing {}

        let verb = submitted.ask.verb;
        let id = &submitted.instance;
        let parameters = submitted.ask.parameters.as_ref().map_err(|why| unreadable(verb, id, "parameters", why))?;
        Ok(Self::Of(match verb {
            Verb::Create => {
                let Create { tenant, spec, cell, data } = read(verb, id, parameters)?;
                return Ok(Self::Create(Box::new(NewInstance { id: id.clone(), tenant, spec, cell, data })));
            }
            Verb::Update => Ask::Update(std::sync::Arc::new(read::<Update>(verb, id, parameters)?.spec)),
            Verb::Suspend => Ask::Suspend(read::<Held>(verb, id, parameters)?.hold),
            Verb::Lift => Ask::Lift(read::<Held>(verb, id, parameters)?.hold),
            Verb::Destroy => Ask::Destroy(read::<Destroy>(verb, id, parameters)?.data),
            Verb::Restart => read::<Nothing>(verb, id, parameters).map(|_| Ask::Restart)?,
            Verb::Sleep => read::<Nothing>(verb, id, parameters).map(|_| Ask::Sleep)?,
            Verb::Wake => read::<Nothing>(verb, id, parameters).map(|_| Ask::Wake)?,
            Verb::Retry => read::<Nothing>(verb, id, parameters).map(|_| Ask::Retry)?,
            Verb::Adopt => {
                let error = Error::new(ErrorKind::InvalidSpec, verb.as_str()).with_instance(id).with_field("verb");
                return Err(error.with_message("an operator's decision cannot be put into the inbox"));
            }
        }))
    }
}

/// Reads the parameters of a verb. An error names the field, as when a spec is read from a file.
fn read<T: DeserializeOwned>(verb: Verb, id: &InstanceId, parameters: &Value) -> Result<T> {
    serde_path_to_error::deserialize(parameters).map_err(|error| {
        let path = error.path().to_string();
        let field = if matches!(path.as_str(), "." | "?") { "parameters" } else { &path };
        unreadable(verb, id, field, &error.inner().to_string())
    })
}

fn unreadable(verb: Verb, id: &InstanceId, field: &str, why: &str) -> Error {
    Error::new(ErrorKind::InvalidSpec, verb.as_str()).with_instance(id).with_field(field).with_message(why)
}
