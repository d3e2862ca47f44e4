//! How apalis is set up for a run, and which setups are tried.

use std::fmt;

use serde::{Deserialize, Serialize};

/// How the work is given to apalis.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Mode {
    /// Each request is a job, pushed by its caller.
    Jobs,
    /// The same, but pushes that come together share a transaction: something that a user writes around apalis.
    Gathered,
    /// Each life is a workflow of four steps. Nobody asks between them, so that it is less work.
    Workflow,
}

/// How apalis is set up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setup {
    pub mode: Mode,
    pub workers: usize,
    /// Jobs that a worker fetches at once; it acknowledges those together that end together.
    pub batch: usize,
    pub connections: u32,
    /// Between two looks of a worker that nobody wakes.
    pub poll_ms: u64,
    /// Whether a job is also marked as running, and not only as taken by a worker.
    pub lock: bool,
    /// Whether SQLite knows how many rows there are of what. Without, it looks for the jobs of an acknowledgement among
    /// all that the worker ever did, and gets slower with each.
    pub analyze: bool,
}

impl Setup {
    /// What apalis does by itself: batches of 10, ten connections, jobs marked as running, no statistics. Its examples
    /// poll every 100 ms or longer.
    pub const fn plain(mode: Mode) -> Self {
        Self { mode, workers: 1, batch: 10, connections: 10, poll_ms: 100, lock: true, analyze: false }
    }

    /// Where the search begins.
    pub const fn first(mode: Mode) -> Self {
        Self { mode, workers: 1, batch: 64, connections: 1, poll_ms: 2, lock: false, analyze: true }
    }

    /// The setups that differ from this one in one thing.
    pub fn neighbours(&self, round: usize) -> Vec<Self> {
        match round {
            0 => [10, 256].map(|batch| Self { batch, ..self.clone() }).into(),
            1 => [2, 4].map(|workers| Self { workers, ..self.clone() }).into(),
            2 => [2, 4].map(|connections| Self { connections, ..self.clone() }).into(),
            _ => vec![Self { poll_ms: 20, ..self.clone() }, Self { lock: true, ..self.clone() }],
        }
    }

    /// How many rounds of neighbours there are.
    pub const ROUNDS: usize = 4;
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Jobs => "apalis, a job for each request",
            Self::Gathered => "the same, pushes gathered by hand",
            Self::Workflow => "apalis, a workflow for each life",
        })
    }
}

impl fmt::Display for Setup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { mode: _, workers, batch, connections, poll_ms, lock, analyze } = self;
        let lock = if *lock { "marked as running" } else { "not marked as running" };
        let analyze = if *analyze { "ANALYZE" } else { "no ANALYZE" };
        write!(
            f,
            "{workers} workers, batches of {batch}, {connections} connections, poll {poll_ms} ms, {lock}, {analyze}"
        )
    }
}
