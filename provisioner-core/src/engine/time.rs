//! The engine's notion of time: near the wall clock, and never backwards.
//!
//! Times on disk are compared with times read hours or restarts later, and the machine's clock may be set in between. So:
//!
//! - Time never goes back, neither in a process nor from one to the next: it begins no earlier than the last event in the
//!   store. Whatever was to happen in five minutes happens in five minutes, also when the clock was set back by hours.
//! - While it is ahead of a clock that was set back it goes a tenth slower, until the clock has caught up.
//! - When the clock was set forward, or the machine was asleep, time follows at once: what was promised for a time of day is
//!   due. But how long ago things before the jump were is not known any more: no deadline counts from before it, no
//!   absence is confirmed across it, no call counts as long past because of it.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;
use tracing::warn;

use crate::{seams::Clock, types::Timestamp};

/// By how much the clock may be corrected without anybody being told. Within that, time follows it a tenth faster or slower:
/// a provider's settling time may be shorter than such a correction.
const TOLERANCE: Duration = Duration::from_secs(5);
const NANOS_PER_MS: i128 = 1_000_000;

/// The engine's notion of time.
#[derive(Debug)]
pub(crate) struct Time {
    clock: Arc<dyn Clock>,
    last: Mutex<Last>,
    /// When time last jumped, in Unix milliseconds; the earliest time there is when it never did.
    jumped_at: AtomicI64,
}

/// What time it was when it was asked for last.
#[derive(Debug)]
struct Last {
    /// In nanoseconds since the Unix epoch: asked for often, a slower time would lose its fractions otherwise.
    time: i128,
    steady: Instant,
    /// Whether time is ahead of a clock that was set back.
    is_ahead: bool,
}

impl Time {
    /// Time that begins now, and no earlier than what is on record.
    pub(crate) fn starting(clock: Arc<dyn Clock>, on_record: Option<Timestamp>) -> Self {
        let now = clock.now();
        let begins = on_record.map_or(now, |latest| latest.max(now));
        let last = Last { time: nanos(begins), steady: Instant::now(), is_ahead: false };
        Self { clock, last: Mutex::new(last), jumped_at: AtomicI64::new(i64::MIN) }
    }

    /// The time now.
    pub(crate) fn now(&self) -> Timestamp {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        // Asked for together, under the lock: a clock read before another thread's would look set back.
        let (clock, steady) = (nanos(self.clock.now()), Instant::now());
        let passed = steady.saturating_duration_since(last.steady);
        let straight = last.time + signed(passed);
        let tolerance = signed(TOLERANCE);
        let is_ahead = clock < straight - tolerance;
        let (slower, faster) = (last.time + signed(passed) * 9 / 10, last.time + signed(passed) * 11 / 10);
        if clock > straight + tolerance {
            self.jumped_at.store(timestamp(clock).unix_ms(), Ordering::SeqCst);
            let by = Duration::from_nanos(u64::try_from(clock - straight).unwrap_or(u64::MAX));
            warn!(?by, "the clock was set forward, or the machine was asleep; deadlines count from now on");
            last.time = clock;
        } else {
            if is_ahead && !last.is_ahead {
                let by = Duration::from_nanos(u64::try_from(straight - clock).unwrap_or(u64::MAX));
                warn!(?by, "the clock is behind the time on record; time goes on from there, a tenth slower");
            }
            last.time = clock.clamp(slower, faster);
        }
        last.is_ahead = is_ahead;
        last.steady = steady;
        timestamp(last.time)
    }

    /// When time last jumped. How long ago anything before that was is not known.
    pub(crate) fn jumped_at(&self) -> Timestamp {
        Timestamp::from_unix_ms(self.jumped_at.load(Ordering::SeqCst))
    }
}

fn nanos(time: Timestamp) -> i128 {
    i128::from(time.unix_ms()) * NANOS_PER_MS
}

fn signed(duration: Duration) -> i128 {
    i128::try_from(duration.as_nanos()).unwrap_or(i128::MAX / 16)
}

fn timestamp(nanos: i128) -> Timestamp {
    Timestamp::from_unix_ms(i64::try_from(nanos.div_euclid(NANOS_PER_MS)).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seams::{SettableClock, TokioClock};

    const START: Timestamp = Timestamp::from_unix_ms(1_750_000_000_000);
    const HOUR: Duration = Duration::from_secs(3600);

    fn time() -> (Time, Arc<SettableClock>) {
        let clock = Arc::new(SettableClock::starting_at(START));
        (Time::starting(Arc::clone(&clock) as Arc<dyn Clock>, None), clock)
    }

    #[tokio::test(start_paused = true)]
    async fn with_a_clock_that_nobody_sets_time_is_the_clock() {
        let time = Time::starting(Arc::new(TokioClock::starting_at(START)), None);
        let began = Instant::now();
        for _ in 0..100 {
            assert_eq!(time.now(), START.after(began.elapsed()));
            tokio::time::advance(Duration::from_micros(12_345_678)).await;
        }
        assert_eq!(time.now(), START.after(Duration::from_micros(1_234_567_800)));
        assert_eq!(time.jumped_at().unix_ms(), i64::MIN);
    }

    #[tokio::test(start_paused = true)]
    async fn a_clock_set_back_slows_time_down_until_it_has_caught_up() {
        let (time, clock) = time();
        clock.set_back(HOUR);
        assert_eq!(time.now(), START, "never backwards");
        let mut before = START;
        for minute in 1..=9 * 60 {
            // Asked for often, it loses nothing.
            for _ in 0..100 {
                tokio::time::advance(Duration::from_millis(600)).await;
                let now = time.now();
                assert!(now >= before);
                before = now;
            }
            let expected = START.after(Duration::from_secs(54 * minute));
            assert!(expected.since(before) <= TOLERANCE && before.since(expected) <= TOLERANCE, "{minute}: {before}");
        }
        tokio::time::advance(2 * HOUR).await;
        assert_eq!(time.now(), clock.now(), "they meet");
        assert_eq!(time.jumped_at().unix_ms(), i64::MIN);
    }

    #[tokio::test(start_paused = true)]
    async fn a_clock_set_forward_is_followed_and_noted() {
        let (time, clock) = time();
        clock.set_forward(TOLERANCE);
        assert_eq!(time.now(), START, "a correction is no jump");
        tokio::time::advance(Duration::from_secs(10)).await;
        assert_eq!(time.now(), START.after(Duration::from_secs(11)), "it is caught up with slowly");
        tokio::time::advance(Duration::from_secs(100)).await;
        assert_eq!(time.now(), clock.now());
        assert_eq!(time.jumped_at().unix_ms(), i64::MIN);
        clock.set_forward(3 * HOUR);
        assert_eq!(time.now(), clock.now());
        assert_eq!(time.jumped_at(), clock.now());
    }

    #[tokio::test(start_paused = true)]
    async fn time_begins_no_earlier_than_what_is_on_record() {
        let clock = Arc::new(TokioClock::starting_at(START));
        let later = START.after(5 * HOUR);
        let time = Time::starting(Arc::clone(&clock) as Arc<dyn Clock>, Some(later));
        assert_eq!(time.now(), later);
        tokio::time::advance(HOUR).await;
        assert_eq!(time.now(), later.after(HOUR * 9 / 10));
        let time = Time::starting(clock, Some(START));
        assert_eq!(time.now(), START.after(HOUR), "an older record changes nothing");
    }
}
