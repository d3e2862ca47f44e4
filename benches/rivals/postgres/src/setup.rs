//! How the queues are set up, and which setups are tried.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Jobs that a worker process does at once.
pub const AT_ONCE: usize = 64;

/// What is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Library {
    Apalis,
    Graphile,
}

/// How a worker process is set up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setup {
    pub settings: Settings,
    /// Of a process, to the server.
    pub connections: u32,
    /// Between two looks of a worker that nobody wakes.
    pub poll_ms: u64,
}

/// What only one of the libraries has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Settings {
    Apalis {
        /// Jobs fetched at once.
        batch: usize,
        /// Whether a job is also marked as running, and not only as taken by a worker.
        lock: bool,
    },
    Graphile {
        /// Jobs fetched at once into the worker's local queue. Without, each of the jobs at once is fetched by itself.
        local: Option<usize>,
        /// For how long completions are gathered. Without, each is a transaction by itself.
        gather_ms: Option<u64>,
    },
}

impl Setup {
    /// How many rounds of neighbours there are.
    pub const ROUNDS: usize = 4;

    /// What the library does by itself, with the pool that comes with it.
    pub const fn plain(library: Library) -> Self {
        match library {
            // Its examples poll every 100 ms or longer.
            Library::Apalis => {
                Self { settings: Settings::Apalis { batch: 10, lock: true }, connections: 10, poll_ms: 100 }
            }
            Library::Graphile => {
                Self { settings: Settings::Graphile { local: None, gather_ms: None }, connections: 20, poll_ms: 1_000 }
            }
        }
    }

    /// Where the search begins: with what the documentation of each offers for many small jobs.
    pub const fn first(library: Library) -> Self {
        let settings = match library {
            Library::Apalis => Settings::Apalis { batch: AT_ONCE, lock: false },
            Library::Graphile => Settings::Graphile { local: Some(100), gather_ms: Some(5) },
        };
        Self { settings, connections: 20, poll_ms: 10 }
    }

    /// The setups that differ from this one in one thing.
    pub fn neighbours(&self, round: usize) -> Vec<Self> {
        match (round, &self.settings) {
            (0, _) => [8, 48].map(|connections| Self { connections, ..self.clone() }).into(),
            (1, _) => [2, 100].map(|poll_ms| Self { poll_ms, ..self.clone() }).into(),
            (2, &Settings::Apalis { lock, .. }) => {
                [10, 256].map(|batch| self.with(Settings::Apalis { batch, lock })).into()
            }
            (_, &Settings::Apalis { batch, .. }) => vec![self.with(Settings::Apalis { batch, lock: true })],
            (2, &Settings::Graphile { gather_ms, .. }) => {
                [None, Some(400)].map(|local| self.with(Settings::Graphile { local, gather_ms })).into()
            }
            (_, &Settings::Graphile { local, .. }) => {
                [None, Some(1)].map(|gather_ms| self.with(Settings::Graphile { local, gather_ms })).into()
            }
        }
    }

    fn with(&self, settings: Settings) -> Self {
        Self { settings, ..self.clone() }
    }
}

impl fmt::Display for Library {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Apalis => "apalis-postgres",
            Self::Graphile => "graphile_worker",
        })
    }
}

impl fmt::Display for Setup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { settings, connections, poll_ms } = self;
        write!(f, "{connections} connections, poll {poll_ms} ms, ")?;
        match settings {
            Settings::Apalis { batch, lock } => {
                let lock = if *lock { "marked as running" } else { "not marked as running" };
                write!(f, "batches of {batch}, {lock}")
            }
            Settings::Graphile { local, gather_ms } => {
                match local {
                    Some(size) => write!(f, "local queue of {size}, ")?,
                    None => f.write_str("no local queue, ")?,
                }
                match gather_ms {
                    Some(ms) => write!(f, "completions gathered for {ms} ms"),
                    None => f.write_str("completions one by one"),
                }
            }
        }
    }
}
