//! What a replica is told when it starts, what it is asked, and what it answers: a line of JSON each.

use std::{net::Ipv4Addr, path::PathBuf, time::Duration};

use provisioner_core::types::{Endpoint, Incarnation, Phase};
use serde::{Deserialize, Serialize};

use crate::stop::Stop;

/// The number of what a replica says unasked.
pub const UNASKED: u64 = 0;

/// How a replica is started: its one argument.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Options {
    /// What it is called in the store's record of sessions, and at the provider.
    pub name: String,
    /// The database, without parameters.
    pub url: String,
    /// The schema in it.
    pub schema: String,
    /// Where instances live.
    pub place: Place,
    /// After how much silence its session lapses.
    pub lapses_after: Duration,
    /// How long a call to the provider may take, and a transaction.
    pub call_timeout: Duration,
}

/// Where instances live.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Place {
    /// At a provider in memory that is served on this port.
    Memory {
        /// Of 127.0.0.1.
        port: u16,
    },
    /// As processes of this machine.
    Process {
        /// The backend's root.
        root: PathBuf,
        /// Where they listen.
        address: Ipv4Addr,
        /// What they run.
        product: PathBuf,
    },
}

/// One line to a replica.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Asked {
    /// By which the answer is known.
    pub number: u64,
    /// What is asked.
    pub ask: Ask,
}

/// What a replica can be asked.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ask {
    /// For an instance of the product, or for what becomes of it. The key makes it repeatable.
    Request {
        /// What for.
        verb: Verb,
        /// Which instance.
        name: String,
        /// The idempotency key.
        key: String,
    },
    /// How an operation ended, once it has.
    Wait {
        /// Its id.
        operation: String,
    },
    /// How an instance is.
    Look {
        /// Which.
        name: String,
    },
    /// To compare everything at the provider with the store.
    Drift,
    /// Which of its writes were refused so far.
    Report,
    /// To stop as a whole, as by a signal, once it is about to do this.
    Stop(Stop),
}

/// What a request is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "the words of the control plane")]
pub enum Verb {
    Create,
    Sleep,
    Wake,
    Destroy,
}

/// One line of a replica.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Answered {
    /// To which question.
    pub number: u64,
    /// What it says.
    pub answer: Answer,
}

/// What a replica says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// Unasked: it has a session, and takes requests.
    Ready,
    /// The request is on disk.
    Accepted {
        /// The operation that it is.
        operation: String,
    },
    /// The operation is over.
    Ended {
        /// As in the store: `done`, `failed` or `superseded`.
        state: String,
        /// Why it failed.
        failure: Option<String>,
    },
    /// The instance is like this.
    Instance(Instance),
    /// What was found to differ.
    Drift(Drift),
    /// What was refused so far.
    Report {
        /// In order.
        refused: Vec<Refused>,
    },
    /// It is done.
    Done,
    /// It could not be done.
    Failed {
        /// The kind of error.
        kind: String,
        /// All of it.
        text: String,
    },
}

/// An instance as a replica knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "as in the control plane")]
pub struct Instance {
    pub phase: Option<Phase>,
    pub endpoint: Option<Endpoint>,
    pub settled: bool,
    pub parked: bool,
    pub incarnation: Option<Incarnation>,
    pub reason: Option<String>,
}

/// What differs between provider and store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "as in the control plane")]
pub struct Drift {
    pub listed: u64,
    pub differing: u64,
    pub vanished: u64,
    pub remnants: u64,
    pub strangers: u64,
}

/// A write that the store did not take.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// Of which instance.
    pub instance: String,
    /// Why.
    pub why: Why,
}

/// Why a write was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Why {
    /// The session that it was made under is over.
    SessionLost,
    /// The row was written by somebody else, or is somebody else's to work on.
    Stale,
}
