//! How a stand behaves.

use std::{collections::BTreeSet, time::Duration};

use crate::buckets::Buckets;

/// Says how a stand behaves.
#[derive(Debug, Clone)]
pub struct Options {
    /// How long a machine is pending.
    pub start: Duration,
    /// How long a machine is stopping, at least: its product has to end.
    pub stop: Duration,
    /// How long a machine is shutting down, at least.
    pub terminate: Duration,
    /// How long the status checks of a running machine are initializing.
    pub checks: Duration,
    /// How long reads lag behind writes.
    pub lag: Duration,
    /// How many machines may run.
    pub quota: Option<usize>,
    /// How much is asked for before requests are throttled.
    pub buckets: Option<Buckets>,
    /// Whether machines run anything.
    pub boots: bool,
    /// Whether moto finds the tags of a thing by its id. As it is, it looks through all tags that there are for each thing, and so
    /// takes a time for an answer that grows with the square of what there is. For benchmarks with many machines.
    pub indexed_tags: bool,
    /// The actions that callers have the right to; all, where none are named.
    pub actions: Option<BTreeSet<String>>,
}

impl Default for Options {
    fn default() -> Self {
        let time = Duration::from_millis(150);
        Self {
            start: time,
            stop: time,
            terminate: time,
            checks: time,
            lag: Duration::ZERO,
            quota: None,
            buckets: None,
            boots: true,
            indexed_tags: false,
            actions: None,
        }
    }
}
