//! That nothing is given up as too late before its time, by the true time and not by a clock that is set.

use std::{collections::BTreeMap, time::Duration};

use provisioner_core::{
    store::InstanceRow,
    types::{InstanceId, Timestamp},
};
use tokio::time::Instant;

use super::Witness;

/// The code of what an instance is parked for that did not arrive in time.
const DEADLINE: &str = "deadline";
/// By how much the engine's time may run ahead after each setting of the clock, as it does not see small corrections as such.
const PER_SETTING: Duration = Duration::from_secs(5);
/// What the engine allows for between the times of two processes, as a shared store's clock is set.
const APART_MAX: Duration = Duration::from_secs(6);
/// Times on disk are in whole milliseconds.
const ROUNDING: Duration = Duration::from_millis(2);

/// When moves began, by the true time.
#[derive(Debug, Default)]
pub(super) struct Deadlines {
    /// How long a move may take; not known: nothing is checked.
    most: Option<Duration>,
    slack: Duration,
    begun: BTreeMap<InstanceId, (Timestamp, Instant)>,
}

impl Deadlines {
    /// Takes in a row as it was committed.
    pub(super) fn check(&mut self, row: &InstanceRow) -> Option<String> {
        let too_late = row.parked && row.reason.as_ref().is_some_and(|reason| reason.code == DEADLINE);
        self.moves(&row.id, row.moving_since, too_late)
    }

    /// An instance is moving since then, or no more; given up as too late, or not.
    fn moves(&mut self, id: &InstanceId, since: Option<Timestamp>, too_late: bool) -> Option<String> {
        if let Some(since) = since {
            let begun = self.begun.entry(id.clone()).or_insert((since, Instant::now()));
            if begun.0 != since {
                *begun = (since, Instant::now());
            }
            return None;
        }
        let (_, begun) = self.begun.remove(id)?;
        let (most, took) = (self.most?, begun.elapsed());
        (too_late && took + self.slack + ROUNDING < most)
            .then(|| format!("{} was given up as too late after {took:?}, and it had {most:?}", id))
    }
}

impl Witness {
    /// A move may take so long. Until it is told that, the witness checks no deadlines.
    pub fn expect_deadlines(&self, most: Duration) {
        self.state().deadlines.most = Some(most);
    }

    /// The clock that control planes go by is set.
    pub fn clock_is_set(&self) {
        self.state().deadlines.slack += PER_SETTING;
    }

    /// The clock of a store that several share is about to be set, by no more than they allow for: however often, their times differ by
    /// no more.
    pub fn store_clock_is_set(&self) {
        let now = self.now_ms();
        let mut state = self.state();
        state.deadlines.slack = state.deadlines.slack.max(APART_MAX);
        state.sessions.clock_is_set(now, APART_MAX);
    }

    /// A process stands still: from now on commits may be later than what they say, and nobody can tell when a move began.
    pub fn somebody_stands_still(&self) {
        self.state().deadlines.most = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_is_given_up_before_their_time_is_told_of() {
        let minutes = |count: u64| Duration::from_secs(count * 60);
        let mut deadlines = Deadlines { most: Some(minutes(10)), ..Deadlines::default() };
        let id = InstanceId::new("acme").unwrap();
        for (after, told) in [(minutes(9), true), (minutes(10), false)] {
            assert_eq!(deadlines.moves(&id, Some(Timestamp::from_unix_ms(1)), false), None);
            tokio::time::advance(after).await;
            assert_eq!(deadlines.moves(&id, None, true).is_some(), told, "{after:?}");
        }
        // Another move has a time of its own.
        for since in [2, 3] {
            assert_eq!(deadlines.moves(&id, Some(Timestamp::from_unix_ms(since)), false), None);
            tokio::time::advance(minutes(6)).await;
        }
        assert!(deadlines.moves(&id, None, true).is_some());
    }
}
