//! Has a worker look for jobs at an interval.

use std::{
    task::{Context, Poll},
    time::Duration,
};

use apalis::prelude::{PollSnapshot, PollStrategy};
use tokio::time::{Interval, MissedTickBehavior, interval};

/// Wakes the worker at an interval, whatever else does.
///
/// The interval of apalis leaves no waker behind when it is over. Where a notification comes at the same time and the look
/// finds nothing, the worker stands still until its next heartbeat, which is after 30 seconds.
#[derive(Debug)]
pub struct Ticks(Interval);

impl Ticks {
    pub fn new(period: Duration) -> Self {
        let mut interval = interval(period);
        interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self(interval)
    }
}

impl PollStrategy for Ticks {
    fn poll_drive(&mut self, cx: &mut Context<'_>, _: &PollSnapshot) -> Poll<Option<()>> {
        // Not ready in the end, so that the timer is armed.
        while self.0.poll_tick(cx).is_ready() {}
        Poll::Pending
    }
}
