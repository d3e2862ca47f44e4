//! What callers see, as JSON. Types of their own, so that the API stays when the crates' types change.

use provisioner_core::{
    control_plane::{FleetCounts, Instance, ProvisioningSlo},
    store::{Event, EventKind, Operation, OperationState, Verb},
    types::{DataDisposition, Phase, Reason, TargetState},
};
use serde::Serialize;

use crate::catalog::Catalog;

/// A page of a listing.
#[derive(Debug, Serialize)]
pub(crate) struct PageView<T> {
    /// What is on it.
    pub(crate) items: Vec<T>,
    /// Whether more follows.
    pub(crate) more: bool,
}

/// One instance.
#[derive(Debug, Serialize)]
pub(crate) struct InstanceView {
    id: String,
    tenant: String,
    plan: Option<String>,
    version: String,
    /// The version that was seen ready last: another one while an upgrade is under way or after it failed.
    applied_version: Option<String>,
    /// `running`, `zero`, `suspended` or `gone`.
    intent: &'static str,
    holds: Vec<String>,
    phase: Option<&'static str>,
    settled: bool,
    parked: bool,
    endpoint: Option<String>,
    reason: Option<Reason>,
    cell: String,
    generation: u64,
    revision: u64,
    operation: Option<String>,
    created_at: String,
}

impl From<Instance> for InstanceView {
    fn from(instance: Instance) -> Self {
        Self {
            id: instance.id.into(),
            tenant: instance.tenant.into(),
            plan: Catalog::plan_of(&instance.spec).map(str::to_owned),
            version: instance.spec.workload.version,
            applied_version: instance.applied_version,
            intent: match instance.intent.target_state() {
                TargetState::Running => "running",
                TargetState::Zero => "zero",
                TargetState::Suspended => "suspended",
                TargetState::Gone(_) => "gone",
            },
            holds: instance.intent.holds.into_iter().map(Into::into).collect(),
            phase: instance.phase.map(Phase::as_str),
            settled: instance.settled,
            parked: instance.parked,
            endpoint: instance.endpoint.map(|endpoint| endpoint.to_string()),
            reason: instance.reason,
            cell: instance.cell.into(),
            generation: instance.generation.0,
            revision: instance.revision.0,
            operation: instance.operation.map(Into::into),
            created_at: instance.created_at.to_string(),
        }
    }
}

/// One accepted request.
#[derive(Debug, Serialize)]
pub(crate) struct OperationView {
    id: String,
    instance: String,
    verb: &'static str,
    revision: u64,
    actor: String,
    reason: Option<String>,
    state: &'static str,
    accepted_at: String,
    ended_at: Option<String>,
    failure: Option<Reason>,
}

impl From<&Operation> for OperationView {
    fn from(operation: &Operation) -> Self {
        Self {
            id: operation.id.to_string(),
            instance: operation.instance.to_string(),
            verb: operation.verb.as_str(),
            revision: operation.revision.0,
            actor: operation.actor.to_string(),
            reason: operation.reason.clone(),
            state: operation.state.as_str(),
            accepted_at: operation.accepted_at.to_string(),
            ended_at: operation.ended_at.map(|at| at.to_string()),
            failure: operation.failure.clone(),
        }
    }
}

/// Something that happened.
#[derive(Debug, Serialize)]
pub(crate) struct EventView {
    position: u64,
    instance: Option<String>,
    at: String,
    revision: Option<u64>,
    actor: Option<String>,
    reason: Option<String>,
    /// What happened, in plain words.
    text: String,
    #[serde(flatten)]
    what: EventKind,
}

impl From<Event> for EventView {
    fn from(Event { position, event }: Event) -> Self {
        Self {
            position,
            instance: event.instance.map(Into::into),
            at: event.at.to_string(),
            revision: event.revision.map(|revision| revision.0),
            actor: event.actor.map(Into::into),
            reason: event.reason,
            text: words(&event.what),
            what: event.what,
        }
    }
}

/// What happened, in plain words.
fn words(what: &EventKind) -> String {
    match what {
        EventKind::Accepted { verb, hold, .. } => {
            let hold = hold.as_ref().map(|hold| format!(": {hold}")).unwrap_or_default();
            format!("{}{hold}", asked(*verb))
        }
        EventKind::Refused { verb, failure, .. } => format!("Refused to {}: {}", verb.as_str(), failure.message),
        EventKind::OperationEnded { state, .. } => match state {
            OperationState::Pending => "Under way".into(),
            OperationState::Done => "Done".into(),
            OperationState::Failed => "Did not work out".into(),
            OperationState::Superseded => "Overtaken by a newer request".into(),
        },
        EventKind::IncarnationStarted { incarnation } => match incarnation.number() {
            1 => "Being made".into(),
            number => format!("Being made anew, for the {number}. time"),
        },
        EventKind::IncarnationEnded { .. } => "Taken down, and seen to be gone".into(),
        EventKind::PhaseChanged { to, detail, .. } => {
            let detail = detail.as_ref().map(|detail| format!(": {}", detail.message)).unwrap_or_default();
            format!("{}{detail}", seen(*to))
        }
        EventKind::Drifted { found } => format!("Not as it should be any more: {found}"),
        EventKind::Retrying { failure, attempts, again_ms } => {
            let seconds = again_ms.div_ceil(1000);
            format!("Attempt {attempts} failed, trying again within {seconds} s: {}", failure.message)
        }
        EventKind::Parked { failure } => format!("Given up until somebody asks for something: {}", failure.message),
        EventKind::RemnantFound { .. } => "A leftover was found and is being removed".into(),
        EventKind::StrangerFound { cell, .. } => format!("Something unknown of ours was found in {cell}"),
        EventKind::NewerFound { .. } => "It is newer than our records; it is brought to what they say.".into(),
        EventKind::StrangerResolved { decision, .. } => format!("What was unknown is settled: {decision}"),
        EventKind::DriftFrozen { cell, found } => {
            format!("Too much vanished at once in {cell}, nothing is done: {found}")
        }
        EventKind::DriftConfirmed { cell } => format!("What vanished in {cell} was confirmed"),
        EventKind::Freeze { frozen: true } => "All work was stopped".into(),
        EventKind::Freeze { frozen: false } => "Work goes on".into(),
        EventKind::Forgotten { data: DataDisposition::Delete } => "Gone, with its data".into(),
        EventKind::Forgotten { data: DataDisposition::Retain } => "Gone; its data is kept".into(),
        // A newer engine may tell of more.
        _ => "Something happened".into(),
    }
}

fn asked(verb: Verb) -> &'static str {
    match verb {
        Verb::Create => "Signed up",
        Verb::Update => "Upgrade asked for",
        Verb::Restart => "Restart asked for",
        Verb::Sleep => "Sleep asked for",
        Verb::Wake => "Wake-up asked for",
        Verb::Suspend => "Suspension asked for",
        Verb::Lift => "Lifting asked for",
        Verb::Destroy => "Deletion asked for",
        Verb::Retry => "Another try asked for",
        Verb::Adopt => "Taken in",
    }
}

fn seen(phase: Option<Phase>) -> &'static str {
    match phase {
        Some(Phase::Provisioning) => "On the way",
        Some(Phase::Running) => "Running",
        Some(Phase::Zero) => "Asleep",
        Some(Phase::Suspended) => "Suspended",
        Some(Phase::Destroying) => "Being removed",
        Some(Phase::Failed) => "Failed",
        None => "Nothing is there",
    }
}

/// The fleet in numbers.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct TotalsView {
    all: u64,
    running: u64,
    asleep: u64,
    suspended: u64,
    failed: u64,
    /// On the way: not seen yet, starting, or being removed.
    moving: u64,
}

impl From<&FleetCounts> for TotalsView {
    fn from(counts: &FleetCounts) -> Self {
        let mut totals = Self::default();
        for (phase, count) in counts.by_cell.values().flatten() {
            totals.all += count;
            *match phase {
                Some(Phase::Running) => &mut totals.running,
                Some(Phase::Zero) => &mut totals.asleep,
                Some(Phase::Suspended) => &mut totals.suspended,
                Some(Phase::Failed) => &mut totals.failed,
                Some(Phase::Provisioning | Phase::Destroying) | None => &mut totals.moving,
            } += count;
        }
        totals
    }
}

/// How sign-ups went.
#[derive(Debug, Serialize)]
pub(crate) struct SloView {
    window_seconds: u64,
    succeeded: u64,
    failed: u64,
    success_rate: f64,
    p50_ms: Option<u128>,
    p99_ms: Option<u128>,
}

impl SloView {
    /// Of this window of time.
    pub(crate) fn new(window_seconds: u64, slo: &ProvisioningSlo) -> Self {
        Self {
            window_seconds,
            succeeded: slo.succeeded,
            failed: slo.failed,
            success_rate: slo.success_rate(),
            p50_ms: slo.p50.map(|time| time.as_millis()),
            p99_ms: slo.p99.map(|time| time.as_millis()),
        }
    }
}

#[cfg(test)]
mod tests {
    use provisioner_core::{
        store::NewEvent,
        types::{Hold, InstanceId, OperationId, Timestamp},
    };

    use super::*;

    #[test]
    fn an_event_is_told_in_words_and_in_fields() {
        let event = Event {
            position: 7,
            event: NewEvent {
                instance: Some(InstanceId::new("acme").unwrap()),
                at: Timestamp::from_unix_ms(0),
                revision: None,
                actor: None,
                reason: Some("no payment".into()),
                what: EventKind::Accepted {
                    verb: Verb::Suspend,
                    operation: OperationId::from_parts(1, 1),
                    hold: Some(Hold::new("unpaid").unwrap()),
                },
            },
        };
        let json = serde_json::to_value(EventView::from(event)).unwrap();
        assert_eq!(json["text"], "Suspension asked for: unpaid");
        assert_eq!(json["kind"], "accepted");
        assert_eq!(json["verb"], "suspend");
        assert_eq!(json["at"], "1970-01-01T00:00:00Z");
    }

    #[test]
    fn totals_add_up() {
        let phases = Phase::ALL.into_iter().map(Some).chain([None]).map(|phase| (phase, 2)).collect();
        let cell = provisioner_core::types::CellName::new("here").unwrap();
        let totals = TotalsView::from(&FleetCounts { by_cell: [(cell, phases)].into() });
        assert_eq!(totals, TotalsView { all: 14, running: 2, asleep: 2, suspended: 2, failed: 2, moving: 6 });
    }
}
