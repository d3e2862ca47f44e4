//! What was asked, and what happened: operations and events.

use serde::{Deserialize, Serialize};

use crate::types::{
    Actor, CellName, DataDisposition, Generation, Hold, IdempotencyKey, Incarnation, InstanceId, OperationId, Phase,
    Reason, Revision, Timestamp,
};

/// What a request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verb {
    /// A new instance.
    Create,
    /// Another spec.
    Update,
    /// The same spec again, with secrets read anew.
    Restart,
    /// To go to zero.
    Sleep,
    /// To come back from zero.
    Wake,
    /// One more hold.
    Suspend,
    /// One hold less.
    Lift,
    /// To be removed.
    Destroy,
    /// To try again after being parked.
    Retry,
    /// To take a stranger in.
    Adopt,
}

impl Verb {
    /// The word for it, as everywhere else.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Update => "update",
            Self::Restart => "restart",
            Self::Sleep => "sleep",
            Self::Wake => "wake",
            Self::Suspend => "suspend",
            Self::Lift => "lift",
            Self::Destroy => "destroy",
            Self::Retry => "retry",
            Self::Adopt => "adopt",
        }
    }
}

/// One accepted request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Operation {
    /// Its name.
    pub id: OperationId,
    /// About which instance.
    pub instance: InstanceId,
    /// What was asked.
    pub verb: Verb,
    /// The instance's revision from this request on.
    pub revision: Revision,
    /// Who asked.
    pub actor: Actor,
    /// Why, in the asker's words.
    pub reason: Option<String>,
    /// The key that makes it repeatable.
    pub key: Option<IdempotencyKey>,
    /// What was asked, as a hash: the same key with another request is refused.
    pub fingerprint: String,
    /// When it was accepted.
    pub accepted_at: Timestamp,
    /// How it stands.
    pub state: OperationState,
    /// When it ended.
    pub ended_at: Option<Timestamp>,
    /// Why it failed.
    pub failure: Option<Reason>,
}

impl Operation {
    /// Whether it is a request that waits in the inbox: nobody has judged it yet, so there is nothing to compare another one with.
    #[must_use]
    pub fn waits_in_inbox(&self) -> bool {
        self.state == OperationState::Pending && self.fingerprint.is_empty()
    }

    /// The same, ended like this.
    pub(crate) fn ended(self, end: OperationEnd) -> Self {
        Self { state: end.state, ended_at: Some(end.at), failure: end.failure, ..self }
    }
}

/// How a pending operation ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OperationEnd {
    /// Which.
    pub id: OperationId,
    /// How: any state but pending.
    pub state: OperationState,
    /// When.
    pub at: Timestamp,
    /// Why it failed.
    pub failure: Option<Reason>,
}

/// How an operation stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OperationState {
    /// Under way.
    Pending,
    /// What was asked is so.
    Done,
    /// The engine gave up; the failure says why.
    Failed,
    /// A newer request took its place.
    Superseded,
}

impl OperationState {
    /// Every state.
    pub const ALL: [Self; 4] = [Self::Pending, Self::Done, Self::Failed, Self::Superseded];

    /// Whether it will not change any more.
    #[must_use]
    pub const fn is_ended(self) -> bool {
        !matches!(self, Self::Pending)
    }

    /// The word for it, as everywhere else.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Superseded => "superseded",
        }
    }
}

/// Something that happened, before the store gave it a place in the order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewEvent {
    /// About which instance; none: about a cell or the whole control plane.
    pub instance: Option<InstanceId>,
    /// When.
    pub at: Timestamp,
    /// The instance's revision then.
    pub revision: Option<Revision>,
    /// Who caused it; none: the engine.
    pub actor: Option<Actor>,
    /// Why, in the asker's words.
    pub reason: Option<String>,
    /// What.
    pub what: EventKind,
}

/// Something that happened, at its place in the order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Its place: rises from event to event; a reader that goes on from the last one it saw misses nothing.
    pub position: u64,
    /// What happened.
    #[serde(flatten)]
    pub event: NewEvent,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
#[non_exhaustive]
pub enum EventKind {
    /// A request was accepted.
    Accepted {
        /// What was asked.
        verb: Verb,
        /// Its operation.
        operation: OperationId,
        /// The hold that was put on or lifted.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        hold: Option<Hold>,
    },
    /// A request of the inbox was refused.
    Refused {
        /// What was asked.
        verb: Verb,
        /// Its operation.
        operation: OperationId,
        /// Why.
        failure: Reason,
    },
    /// An operation ended.
    OperationEnded {
        /// Which.
        operation: OperationId,
        /// How.
        state: OperationState,
    },
    /// A new making begins.
    IncarnationStarted {
        /// Which.
        incarnation: Incarnation,
    },
    /// A making is over.
    IncarnationEnded {
        /// Which.
        incarnation: Incarnation,
    },
    /// Another phase was seen.
    PhaseChanged {
        /// The one before.
        from: Option<Phase>,
        /// The one seen; none: absent.
        to: Option<Phase>,
        /// Why, where there is something to say.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        detail: Option<Reason>,
    },
    /// What was settled is not what it should be any more.
    Drifted {
        /// What was found.
        found: String,
    },
    /// The provider is at a generation that the store never gave, as after a restore of an older backup: the store goes on
    /// above it, with the spec that it knows.
    NewerFound {
        /// What the provider has.
        found: Generation,
        /// What is worked with from now on.
        goes_on_at: Generation,
    },
    /// A step failed and will be tried again.
    Retrying {
        /// What went wrong.
        failure: Reason,
        /// Failures in a row.
        attempts: u32,
        /// In how many milliseconds it is tried again.
        again_ms: u64,
    },
    /// The engine gave up until somebody asks for something.
    Parked {
        /// Why.
        failure: Reason,
    },
    /// Something of an ended making was found and is being removed.
    RemnantFound {
        /// Which making.
        incarnation: Incarnation,
    },
    /// Something of ours that the store never knew was found. It is left alone until somebody decides.
    StrangerFound {
        /// Which making.
        incarnation: Incarnation,
        /// Where.
        cell: CellName,
    },
    /// Somebody decided about a stranger.
    StrangerResolved {
        /// Which making.
        incarnation: Incarnation,
        /// What was decided: `adopt` or `forget`.
        decision: String,
    },
    /// A cell's drift actions stopped: too much vanished at once.
    DriftFrozen {
        /// Which cell.
        cell: CellName,
        /// What was found.
        found: String,
    },
    /// Somebody confirmed what the drift pass found.
    DriftConfirmed {
        /// Which cell.
        cell: CellName,
    },
    /// All work at providers was stopped or let go on.
    Freeze {
        /// Whether it is stopped.
        frozen: bool,
    },
    /// The instance and all that was kept of it is gone. The last event of an instance.
    Forgotten {
        /// What became of its data.
        data: DataDisposition,
    },
}
