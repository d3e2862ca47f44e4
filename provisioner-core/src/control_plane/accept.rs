//! Which requests are accepted, and what they change: decided on a draft of the row, committed by the caller.

use std::sync::Arc;

use super::Request;
use crate::{
    engine::{cells::CellHandle, draft::Draft},
    error::{Error, ErrorKind, Result},
    placement::Cell,
    provisioner::Provisioner,
    store::{InstanceRow, Lane, Operation, OperationState, Reservation, StoreError, Verb},
    types::{DataDisposition, Generation, Hold, InstanceId, InstanceSpec, OperationId, Power, Revision, Timestamp},
};

/// What a request asks of an instance that exists.
#[derive(Debug, Clone)]
pub(super) enum Ask {
    Update(Arc<InstanceSpec>),
    Restart,
    Sleep,
    Wake,
    Suspend(Hold),
    Lift(Hold),
    Destroy(DataDisposition),
    Retry,
}

impl Ask {
    pub(super) fn verb(&self) -> Verb {
        match self {
            Self::Update(_) => Verb::Update,
            Self::Restart => Verb::Restart,
            Self::Sleep => Verb::Sleep,
            Self::Wake => Verb::Wake,
            Self::Suspend(_) => Verb::Suspend,
            Self::Lift(_) => Verb::Lift,
            Self::Destroy(_) => Verb::Destroy,
            Self::Retry => Verb::Retry,
        }
    }

    fn hold(&self) -> Option<Hold> {
        match self {
            Self::Suspend(hold) | Self::Lift(hold) => Some(hold.clone()),
            _ => None,
        }
    }

    /// What was asked, as a hash: the same key with another request is refused.
    pub(super) fn fingerprint(&self, id: &InstanceId) -> String {
        let detail = match self {
            Self::Update(spec) => json(spec),
            Self::Suspend(hold) | Self::Lift(hold) => hold.to_string(),
            Self::Destroy(data) => format!("{data:?}"),
            Self::Restart | Self::Sleep | Self::Wake | Self::Retry => String::new(),
        };
        fingerprint(self.verb(), id, &detail)
    }
}

pub(super) fn fingerprint(verb: Verb, id: &InstanceId, detail: &str) -> String {
    crate::types::hex_digest(&[verb.as_str(), id.as_str(), detail], 16)
}

/// A spec as the text that a fingerprint is taken of. Maps are ordered, so the same spec is the same text.
pub(super) fn json(spec: &InstanceSpec) -> String {
    serde_json::to_string(spec).expect("a spec has only strings as keys")
}

/// Checks a spec against what holds for all, and against its cell.
pub(super) fn validate(cell: &Cell, wanted: &InstanceSpec, applied: Option<&InstanceSpec>) -> Result<()> {
    wanted.check()?;
    cell.provisioner.validate(wanted, applied)
}

pub(super) fn reservation(cell: &Cell, spec: &InstanceSpec) -> Reservation {
    Reservation {
        cell: cell.name.clone(),
        capacity: cell.capacity,
        size: spec.size,
        data_mib: spec.data.size_mib,
        host_names: spec.host_names.iter().cloned().collect(),
    }
}

/// The operation of a request that is about to be accepted.
pub(super) fn operation(
    verb: Verb,
    instance: &InstanceId,
    revision: Revision,
    request: &Request,
    fingerprint: String,
    (id, now): (OperationId, Timestamp),
) -> Operation {
    Operation {
        id,
        instance: instance.clone(),
        verb,
        revision,
        actor: request.actor.clone(),
        reason: request.reason.clone(),
        key: request.key.clone(),
        fingerprint,
        accepted_at: now,
        state: OperationState::Pending,
        ended_at: None,
        failure: None,
    }
}

/// The row of a new instance, unsettled and due at once.
pub(super) fn new_row(
    new: &super::NewInstance,
    cell: &Cell,
    data: crate::types::DataId,
    created_by: OperationId,
    now: Timestamp,
) -> InstanceRow {
    InstanceRow {
        id: new.id.clone(),
        tenant: new.tenant.clone(),
        cell: cell.name.clone(),
        intent: crate::types::Intent::running(),
        revision: Revision::FIRST,
        wanted: Generation::FIRST,
        in_force: Generation::FIRST,
        applied: None,
        live: None,
        incarnations: 0,
        data,
        data_made: false,
        settled: false,
        settled_at: None,
        phase: None,
        endpoint: None,
        reason: None,
        parked: false,
        attempts: 0,
        busy: 0,
        retry_at: None,
        moving_since: Some(now),
        due_at: Some(now),
        lane: Lane::Interactive,
        operation: None,
        created_by,
        created_at: now,
        expires_at: expires_at(&new.spec, now),
        taken_over_at: None,
    }
}

fn expires_at(spec: &InstanceSpec, created_at: Timestamp) -> Option<Timestamp> {
    let seconds = spec.expiry.suspend_after_seconds?;
    Some(created_at.after(std::time::Duration::from_secs(seconds.into())))
}

/// Takes a request in: the draft is as it will be once it is committed.
pub(super) fn accept(
    draft: &mut Draft,
    cell: &CellHandle,
    ask: &Ask,
    request: &Request,
    (id, now): (OperationId, Timestamp),
) -> Result<()> {
    let row = &draft.row;
    if let Some(expected) = request.expected.filter(|expected| *expected != row.revision) {
        return Err(conflict(row, format!("revision {} was expected, and it is at {}", expected, row.revision)));
    }
    if row.intent.gone.is_some() && !matches!(ask, Ask::Destroy(_) | Ask::Retry) {
        return Err(conflict(row, "it is being deleted, and that is final".into()));
    }
    // An update that has failed so far gives way at once to whoever asks for something else. Failures are counted from its
    // acceptance on, so one that was not tried yet stays.
    if row.attempts > 0 && matches!(ask, Ask::Sleep | Ask::Wake | Ask::Suspend(_) | Ask::Lift(_)) {
        draft.fall_back();
    }
    let row = &draft.row;
    let before = (row.intent.clone(), row.in_force);
    let moving = !row.settled && !row.parked;
    match ask {
        Ask::Update(spec) => update(draft, cell, spec)?,
        Ask::Restart => restart(draft),
        Ask::Sleep => draft.row.intent.power = Power::Zero,
        Ask::Wake => wake(draft)?,
        Ask::Suspend(hold) => drop(draft.row.intent.holds.insert(hold.clone())),
        Ask::Lift(hold) => lift(draft, hold)?,
        Ask::Destroy(data) => destroy(draft, *data)?,
        Ask::Retry => retry(draft)?,
    }
    draft.keep_only_needed_specs();
    draft.row.revision = draft.row.revision.next();
    // Asking again for what is under way is no reason to hurry it past its back-off or its deadline.
    if !moving || before != (draft.row.intent.clone(), draft.row.in_force) {
        draft.row.attempts = 0;
        draft.row.busy = 0;
        if draft.row.parked {
            draft.row.reason = None;
        }
        draft.begin_move(Lane::Interactive);
    }
    let fingerprint = ask.fingerprint(&draft.row.id);
    let operation = operation(ask.verb(), &draft.row.id.clone(), draft.row.revision, request, fingerprint, (id, now));
    draft.open_operation(operation, ask.hold());
    Ok(())
}

fn update(draft: &mut Draft, cell: &CellHandle, spec: &Arc<InstanceSpec>) -> Result<()> {
    let applied = draft.row.applied.map(|applied| Arc::clone(&draft.specs[&applied]));
    validate(&cell.cell, spec, applied.as_deref()).map_err(|error| error.with_instance(&draft.row.id))?;
    draft.reserve(reservation(&cell.cell, spec));
    // An expiry that was served, or lifted, does not come back with an update of something else.
    if spec.expiry != draft.specs[&draft.row.wanted].expiry {
        draft.row.expires_at = expires_at(spec, draft.row.created_at);
    }
    next_spec(draft, Arc::clone(spec));
    Ok(())
}

/// Puts a spec in force under a generation of its own.
fn next_spec(draft: &mut Draft, spec: Arc<InstanceSpec>) {
    let generation = draft.row.next_generation();
    draft.put_spec(generation, spec);
    draft.row.wanted = generation;
    draft.row.in_force = generation;
}

/// The same spec under a generation of its own. After a failed update that is the one in force, not the one that failed.
fn restart(draft: &mut Draft) {
    let (wanted, in_force) = (draft.row.wanted, draft.row.in_force);
    let spec = Arc::clone(&draft.specs[&in_force]);
    next_spec(draft, spec);
    if wanted != in_force {
        draft.row.wanted = wanted;
    }
}

fn wake(draft: &mut Draft) -> Result<()> {
    if let Some(hold) = draft.row.intent.holds.first() {
        let message = format!("it is suspended ({hold}): lift the hold first");
        return Err(conflict(&draft.row, message));
    }
    draft.row.intent.power = Power::Running;
    Ok(())
}

fn lift(draft: &mut Draft, hold: &Hold) -> Result<()> {
    if draft.row.intent.holds.remove(hold) {
        return Ok(());
    }
    Err(conflict(&draft.row, format!("it is not held for {hold}")))
}

fn destroy(draft: &mut Draft, data: DataDisposition) -> Result<()> {
    match draft.row.intent.gone {
        // Whoever wanted the data kept must not lose it to somebody who asks later.
        Some(other) if other != data => {
            Err(conflict(&draft.row, "it is being deleted with another word about its data, and that is final".into()))
        }
        _ => {
            draft.row.intent.gone = Some(data);
            Ok(())
        }
    }
}

fn retry(draft: &mut Draft) -> Result<()> {
    // What failed as an update and gave way to the spec before is tried once more, under a generation above both.
    let gave_way = draft.row.in_force != draft.row.wanted;
    if !draft.row.parked && !gave_way {
        return Err(conflict(&draft.row, "it is not parked, and no update of it has failed".into()));
    }
    if gave_way {
        let spec = Arc::clone(&draft.specs[&draft.row.wanted]);
        next_spec(draft, spec);
    }
    Ok(())
}

fn conflict(row: &InstanceRow, message: String) -> Error {
    Error::new(ErrorKind::Conflict, "accept")
        .with_instance(&row.id)
        .with_customer_message(format!("{}: {message}", row.id))
        .with_message(message)
}

/// The public error for a commit that was refused: words about the request where it is to blame.
pub(super) fn refused(error: StoreError, operation: &'static str, instance: &InstanceId) -> Error {
    let (field, message) = match &error {
        StoreError::HostNameTaken(host) => ("host_names", format!("{host} is taken")),
        StoreError::Exists => ("id", format!("{instance} is taken")),
        StoreError::KeyUsed(_) => ("key", "the idempotency key was used for another request".into()),
        StoreError::CellFull { cell, resource, .. } => ("cell", format!("no {resource} left in {cell}")),
        StoreError::DataNotRetained(data) => ("data", format!("no retained data {data} of this tenant here")),
        _ => return error.into_error(operation).with_instance(instance),
    };
    let customer = match &error {
        StoreError::CellFull { .. } => "There is no room for this at the moment.".to_owned(),
        _ => message.clone(),
    };
    let refused =
        error.into_error(operation).with_instance(instance).with_message(message).with_customer_message(customer);
    refused.with_field(field)
}
