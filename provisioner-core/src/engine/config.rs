//! How the engine goes about its work.

use std::time::Duration;

use crate::error::{Error, ErrorKind, Result};

/// How the engine goes about its work.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct EngineConfig {
    /// How long a move may take, retries included, before it is parked.
    pub move_deadline: Duration,
    /// How long one call to a backend may take before its answer counts as lost.
    pub call_timeout: Duration,
    /// The first delay after a failure; doubles from failure to failure, with full jitter.
    pub backoff_min: Duration,
    /// The longest delay after a failure.
    pub backoff_max: Duration,
    /// How many failures in a row park an instance.
    pub attempts_max: u32,
    /// How long an instance must have been settled for its next failure to count as the first.
    pub stable_after: Duration,
    /// How often each cell is compared with the store, give or take a quarter.
    pub drift_interval: Duration,
    /// How many instances of a cell may vanish at once before its drift actions freeze.
    pub vanished_max: u64,
    /// Which share of a cell's instances, in percent; of five at least.
    pub vanished_percent_max: u64,
    /// How long events, ended operations and ended makings are kept.
    pub kept: Duration,
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            move_deadline: Duration::from_secs(600),
            call_timeout: Duration::from_secs(60),
            backoff_min: Duration::from_millis(500),
            backoff_max: Duration::from_secs(300),
            attempts_max: 10,
            stable_after: Duration::from_secs(600),
            drift_interval: Duration::from_secs(3600),
            vanished_max: 20,
            vanished_percent_max: 20,
            kept: Duration::from_secs(30 * 24 * 3600),
        }
    }
}

impl EngineConfig {
    /// Checks the values against each other.
    pub(crate) fn check(&self) -> Result<()> {
        let wrong = [
            ("move_deadline", self.move_deadline.is_zero(), "more than zero"),
            ("call_timeout", self.call_timeout.is_zero(), "more than zero"),
            ("backoff_min", self.backoff_min.is_zero(), "more than zero"),
            ("backoff_max", self.backoff_max < self.backoff_min, "at least backoff_min"),
            ("attempts_max", self.attempts_max == 0, "1 or more"),
            ("drift_interval", self.drift_interval.is_zero(), "more than zero"),
            ("kept", self.kept < crate::store::KEY_KEPT, "24 hours at least, for idempotency keys are kept as long"),
        ]
        .into_iter()
        .find(|(_, wrong, _)| *wrong);
        wrong.map_or(Ok(()), |(field, _, expected)| {
            let error = Error::new(ErrorKind::InvalidSpec, "start");
            Err(error.with_field(field).with_message(format!("expected {expected}")))
        })
    }
}
