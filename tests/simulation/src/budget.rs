//! How many calls one instance may cost.

use std::{collections::BTreeMap, time::Duration};

use provisioner_core::types::InstanceId;
use tokio::time::Instant;

/// In one second, and in one hour: looks, verbs and all. A run is sixteen steps at most. What is stuck is looked at less and
/// less often until its deadline, and some such moves may begin within an hour.
const PER_SECOND_MAX: u32 = 32;
const PER_HOUR_MAX: u32 = 400;

/// What each instance has cost so far.
#[derive(Debug, Default)]
pub struct Budget {
    seconds: BTreeMap<InstanceId, Window>,
    hours: BTreeMap<InstanceId, Window>,
    busiest: (u32, u32),
}

/// How many calls an instance had in the window that began then.
#[derive(Debug, Clone, Copy)]
struct Window {
    since: Instant,
    calls: u32,
}

impl Budget {
    /// One more call for an instance; says so when that is one too many.
    pub fn spend(&mut self, id: &InstanceId) -> Option<String> {
        let second = count(&mut self.seconds, id, Duration::from_secs(1));
        let hour = count(&mut self.hours, id, Duration::from_secs(3600));
        self.busiest = (self.busiest.0.max(second), self.busiest.1.max(hour));
        (second > PER_SECOND_MAX || hour > PER_HOUR_MAX)
            .then(|| format!("{id} had {second} calls within a second, {hour} within an hour"))
    }

    /// The most calls that one instance had in one second, and in one hour.
    #[must_use]
    pub fn busiest(&self) -> (u32, u32) {
        self.busiest
    }
}

fn count(windows: &mut BTreeMap<InstanceId, Window>, id: &InstanceId, length: Duration) -> u32 {
    let now = Instant::now();
    let window = windows.entry(id.clone()).or_insert(Window { since: now, calls: 0 });
    if now - window.since > length {
        *window = Window { since: now, calls: 0 };
    }
    window.calls += 1;
    window.calls
}
