//! How several control plane processes share one store: sessions, claims, and what they tell each other.
//!
//! A session is a process's right to write; one that is not renewed lapses. A claim says which session works on an instance, so
//! that no key runs twice at once; it holds as long as its session is in force. Both protect the store and not the provider: a
//! process that was paused may still make the call that it was about to make, so whoever takes its work over looks again once
//! that can be no more (see [`InstanceRow::taken_over_at`](super::InstanceRow::taken_over_at)).

use std::time::Duration;

use super::{Operation, OperationState, Record, Verb};
use crate::types::{Actor, CellName, IdempotencyKey, InstanceId, OperationId, Revision, Timestamp};

/// A control plane process's right to write, until a newer session takes over or it lapses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Session {
    /// Its number. No other session has it, ever; 0 is none's.
    pub epoch: u64,
    /// After how much silence it lapses, by the store's clock. None: it holds until closed, as nobody else can open the store.
    pub lapses_after: Option<Duration>,
    /// What the store's clock showed. Processes that share the store go by it, whatever their machines' clocks show. None where
    /// the store has no clock of its own.
    pub now: Option<Timestamp>,
}

/// A session that goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Renewal {
    /// The numbers of all sessions in force, this one among them, ascending.
    pub in_force: Vec<u64>,
    /// What the store's clock showed, as in [`Session::now`].
    pub now: Option<Timestamp>,
}

/// What a write does to the claim on its instance. Where a store is one process's, all of this is as if nobody else were there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Claiming {
    /// Of somebody who asks for something: who works on the instance goes on, and is told.
    #[default]
    Leave,
    /// The same; if nobody works on it, this session does from now on.
    Take,
    /// Of who works on it, and goes on. [`StoreError::Stale`](super::StoreError::Stale) unless this session does.
    Keep,
    /// Of who works on it, for the last time; likewise.
    Release,
}

/// Who works on an instance after a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Worker {
    /// This session.
    Here,
    /// This session, in place of one that lapsed while it worked on it: read the row again.
    TakenOver,
    /// Another session, which was told.
    Elsewhere,
    /// Nobody; when it is due, all were told.
    Nobody,
}

/// What came of claiming one instance.
#[derive(Debug, Clone)]
pub enum Taken {
    /// There is none of this id.
    Absent,
    /// Another session works on it.
    Elsewhere,
    /// This session works on it from now on.
    Here(Record),
}

/// What other processes wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Signal {
    /// Something of this cell is due that nobody works on.
    Due(CellName),
    /// Somebody wrote an instance that this session works on.
    Touched {
        /// Which session.
        epoch: u64,
        /// Which instance.
        instance: InstanceId,
    },
    /// A freeze began or ended, of all work or of a cell's.
    Decided,
    /// There are requests in the inbox.
    Submitted,
    /// What was told lately may have been missed.
    Missed,
}

/// A request in the inbox: accepted with its caller's transaction, and to be judged by the control plane.
#[derive(Debug, Clone, PartialEq)]
pub struct Submitted {
    /// Its place in the inbox.
    pub number: u64,
    /// The operation that it becomes.
    pub operation: OperationId,
    /// About which instance.
    pub instance: InstanceId,
    /// What is asked.
    pub ask: Ask,
    /// Who asks.
    pub actor: Actor,
    /// Why, in the asker's words.
    pub reason: Option<String>,
    /// The key that makes it repeatable.
    pub key: Option<IdempotencyKey>,
    /// The revision that the asker has seen.
    pub expected: Option<Revision>,
    /// When it was put there.
    pub at: Timestamp,
}

impl Submitted {
    /// The operation that it becomes, as far as that is known before the control plane has taken it in: pending, at the first
    /// revision, and without a fingerprint.
    #[must_use]
    pub fn pending(&self) -> Operation {
        Operation {
            id: self.operation.clone(),
            instance: self.instance.clone(),
            verb: self.ask.verb,
            revision: Revision::FIRST,
            actor: self.actor.clone(),
            reason: self.reason.clone(),
            key: self.key.clone(),
            fingerprint: String::new(),
            accepted_at: self.at,
            state: OperationState::Pending,
            ended_at: None,
            failure: None,
        }
    }
}

/// What a request in the inbox asks: the verb, and its parameters as the caller wrote them.
#[derive(Debug, Clone, PartialEq)]
pub struct Ask {
    /// What to do.
    pub verb: Verb,
    /// What the verb needs, an object; or why what the caller wrote cannot be read. The request is refused for that, so that it
    /// keeps nobody else up.
    pub parameters: Result<serde_json::Value, String>,
}
