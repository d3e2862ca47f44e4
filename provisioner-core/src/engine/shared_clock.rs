//! The clock of a store that several processes share, as one of them knows it.
//!
//! Each process writes times into rows that another one compares with its own: when something is due, how long ago it was called
//! for, since when it is absent. Machines' clocks differ, by hours where nobody looks after them. So who shares a store goes by
//! the store's clock, which every opening and renewal of a session tells, and by this machine's steady one in between.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use crate::{seams::Clock, types::Timestamp};

/// What was told is in whole milliseconds.
const ROUNDING_MS: i64 = 1;

/// The store's clock, carried on.
#[derive(Debug)]
pub(crate) struct SharedClock {
    origin: Instant,
    ahead: Mutex<Ahead>,
}

/// How far the store's clock is ahead of this machine's steady one, in milliseconds: what was told leaves it open between these,
/// as an answer may have taken its time on the way there or on the way back.
#[derive(Debug, Clone, Copy)]
struct Ahead {
    least: i64,
    most: i64,
}

impl SharedClock {
    /// A clock that showed this time between a question and its answer.
    pub(crate) fn starting(told: Timestamp, asked_at: Instant) -> Self {
        let origin = asked_at;
        Self { origin, ahead: Mutex::new(Ahead::told(told, origin, asked_at)) }
    }

    /// It showed this time between a question and its answer, which came just now.
    pub(crate) fn tell(&self, told: Timestamp, asked_at: Instant) {
        let told = Ahead::told(told, self.origin, asked_at);
        let mut ahead = self.ahead.lock().unwrap_or_else(PoisonError::into_inner);
        let both = Ahead { least: ahead.least.max(told.least), most: ahead.most.min(told.most) };
        // Where they contradict each other it was set, or does not go as fast as ours.
        *ahead = if both.least <= both.most { both } else { told };
    }

    /// By how much it may show something else than the store's.
    pub(crate) fn error(&self) -> Duration {
        let Ahead { least, most } = self.ahead();
        Duration::from_millis((most - least).unsigned_abs()) / 2
    }

    fn ahead(&self) -> Ahead {
        *self.ahead.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ahead {
    fn told(told: Timestamp, origin: Instant, asked_at: Instant) -> Self {
        let since_origin = |at: Instant| i64::try_from((at - origin).as_millis()).unwrap_or(i64::MAX);
        let told = told.unix_ms();
        let least = told.saturating_sub(since_origin(Instant::now())).saturating_sub(ROUNDING_MS);
        Self { least, most: told.saturating_sub(since_origin(asked_at)).saturating_add(ROUNDING_MS) }
    }
}

impl Clock for SharedClock {
    fn now(&self) -> Timestamp {
        let Ahead { least, most } = self.ahead();
        Timestamp::from_unix_ms(least + (most - least) / 2).after(self.origin.elapsed())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Timestamp = Timestamp::from_unix_ms(1_750_000_000_000);

    /// Asks a clock that is ahead of ours by so much, which takes so long there and so long back.
    async fn ask(clock: Option<&SharedClock>, began: Instant, ahead: i64, there: u64, back: u64) -> SharedClock {
        let asked_at = Instant::now();
        tokio::time::sleep(Duration::from_millis(there)).await;
        let told = Timestamp::from_unix_ms(START.unix_ms() + ahead).after(began.elapsed());
        tokio::time::sleep(Duration::from_millis(back)).await;
        if let Some(clock) = clock {
            clock.tell(told, asked_at);
        }
        SharedClock::starting(told, asked_at)
    }

    fn off_by(clock: &SharedClock, began: Instant, ahead: i64) -> i64 {
        clock.now().unix_ms() - START.unix_ms() - ahead - i64::try_from(began.elapsed().as_millis()).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_off_by_no_more_than_half_of_what_an_answer_took_and_quick_answers_mend_that() {
        let began = Instant::now();
        for (there, back) in [(900, 100), (100, 900), (1000, 0), (0, 1000)] {
            let clock = ask(None, began, 7000, there, back).await;
            assert!(off_by(&clock, began, 7000).abs() <= 501, "{there} {back}: {}", off_by(&clock, began, 7000));
            assert!(clock.error() <= Duration::from_millis(501));
            tokio::time::sleep(Duration::from_secs(60)).await;
            ask(Some(&clock), began, 7000, 3, 1).await;
            assert!(off_by(&clock, began, 7000).abs() <= 3);
            // A slow answer says less, and takes nothing away.
            ask(Some(&clock), began, 7000, 5000, 0).await;
            assert!(off_by(&clock, began, 7000).abs() <= 3);
            assert!(clock.error() <= Duration::from_millis(3));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_clock_that_is_set_is_followed_with_the_next_answer() {
        let began = Instant::now();
        let clock = ask(None, began, 0, 1, 1).await;
        for ahead in [10_800_000, -10_800_000, -10_800_005] {
            ask(Some(&clock), began, ahead, 2, 2).await;
            assert!(off_by(&clock, began, ahead).abs() <= 6, "{ahead}: {}", off_by(&clock, began, ahead));
        }
    }
}
