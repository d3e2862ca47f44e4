//! How many calls one instance may cost.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use provisioner_core::types::InstanceId;
use tokio::time::Instant;

/// In one second, and in one hour: looks, verbs and all. A run is sixteen steps at most. What is stuck is looked at less and
/// less often until its deadline, and some such moves may begin within an hour.
const PER_SECOND_MAX: usize = 32;
const PER_HOUR_MAX: usize = 800;
const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);

/// What each instance has cost so far.
#[derive(Debug, Default)]
pub struct Budget {
    /// When each instance was called for, in the last hour.
    calls: BTreeMap<InstanceId, VecDeque<Instant>>,
    busiest: (usize, usize),
}

impl Budget {
    /// One more call for an instance; says so when that is one too many, in the second or the hour that ends now.
    pub fn spend(&mut self, id: &InstanceId) -> Option<String> {
        let now = Instant::now();
        let calls = self.calls.entry(id.clone()).or_default();
        calls.push_back(now);
        while calls.front().is_some_and(|at| now - *at >= HOUR) {
            calls.pop_front();
        }
        let hour = calls.len();
        let second = hour - calls.partition_point(|at| now - *at >= SECOND);
        self.busiest = (self.busiest.0.max(second), self.busiest.1.max(hour));
        (second > PER_SECOND_MAX || hour > PER_HOUR_MAX)
            .then(|| format!("{id} had {second} calls within a second, {hour} within an hour"))
    }

    /// The most calls that one instance had in one second, and in one hour.
    #[must_use]
    pub fn busiest(&self) -> (usize, usize) {
        self.busiest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn one_call_too_many_is_told_wherever_the_second_or_the_hour_begins() {
        for (most, length) in [(PER_SECOND_MAX, SECOND), (PER_HOUR_MAX, HOUR)] {
            let (mut budget, id) = (Budget::default(), InstanceId::new("acme").unwrap());
            // What is counted from the first call on is over before the second half.
            assert_eq!(budget.spend(&id), None);
            for pause in [length * 5 / 6, length / 5] {
                tokio::time::advance(pause).await;
                for call in 0..most / 2 {
                    assert_eq!(budget.spend(&id), None, "{call} in {length:?}");
                    tokio::time::advance(length / 3600).await;
                }
            }
            assert!(budget.spend(&id).is_some(), "{most} in {length:?}");
            tokio::time::advance(length).await;
            assert_eq!(budget.spend(&id), None);
        }
    }
}
