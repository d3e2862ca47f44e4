//! How the provider behaves.

use std::time::Duration;

use crate::{
    seams::Random,
    types::{Capabilities, SizeMax},
};

/// How the provider behaves. The default is instant, consistent, boundless and faultless.
#[derive(Debug, Clone)]
pub struct MemoryConfig {
    /// What it calls itself.
    pub identity: String,
    /// How long from a start to running.
    pub start: Duration,
    /// How long from a stop or a removal to its end.
    pub stop: Duration,
    /// How far reads lag behind writes.
    pub lag: Duration,
    /// How many things can be awake at once.
    pub capacity: usize,
    /// How many things a control plane may have.
    pub quota: usize,
    /// How many calls a second it takes; a burst of as many.
    pub calls_per_second: Option<u32>,
    /// How many of a hundred calls go wrong.
    pub fault_percent: u64,
    /// Where the faults' randomness comes from.
    pub random: Random,
    /// The largest size it takes.
    pub size_max: SizeMax,
    /// Whether it tells of changes; otherwise the engine polls.
    pub watch: bool,
    /// How many things one page of a listing holds. Each page is a call of its own, which may go wrong.
    pub page: usize,
    /// How many of a hundred looks miss what is there, as a replica that is behind does. It stays missed for
    /// [`lag`](Self::lag), and is seen for an hour after that.
    pub blink_percent: u64,
    /// After how long a thing that runs dies by itself, on average. No timer: it is found dead when somebody looks.
    pub lifetime: Option<Duration>,
}

impl Default for MemoryConfig {
    fn default() -> Self {
        Self {
            identity: "memory".into(),
            start: Duration::ZERO,
            stop: Duration::ZERO,
            lag: Duration::ZERO,
            capacity: usize::MAX,
            quota: usize::MAX,
            calls_per_second: None,
            fault_percent: 0,
            random: Random::from_seed(0),
            size_max: Capabilities::PLAIN.size_max,
            watch: true,
            page: usize::MAX,
            blink_percent: 0,
            lifetime: None,
        }
    }
}
