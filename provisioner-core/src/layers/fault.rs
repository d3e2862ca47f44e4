//! What can go wrong with a call, scripted or at random, and what the caller hears of it.

use std::{collections::VecDeque, time::Duration};

use tokio::time::Instant;

use crate::{
    context::OpContext,
    error::{Effect, Error, ErrorKind, Result, Retry},
    seams::Random,
};

/// What happens to a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// It never arrives, and the caller is told so: an error of this kind, without effect.
    BeforeSend(ErrorKind),
    /// It has its effect, and the answer is lost: [`Timeout`](ErrorKind::Timeout), effect unknown.
    AfterApply,
    /// It has half of its effect: what it began stays on its way until the verb is called again. Only
    /// [`memory`](crate::memory) can do this; elsewhere it is [`AfterApply`](Self::AfterApply).
    HalfWay,
    /// It has its effect at once, and its answer comes so many milliseconds later, or not before the caller's deadline.
    Late {
        /// How late.
        after_ms: u64,
    },
    /// The caller waits until its own deadline, in vain; the call arrives and has its effect so many milliseconds after
    /// it was made.
    LateEffect {
        /// How late.
        after_ms: u64,
    },
    /// It never arrives, and nobody is told: the caller waits until its own deadline.
    Hang,
    /// It is refused for now: come back after so many milliseconds. Without effect.
    Throttled {
        /// When to come back.
        after_ms: u64,
    },
    /// There is no room in the place that the incarnation stands for, and another may be had ([`Retry::Anew`]). Without effect.
    NoRoomHere,
}

impl Fault {
    /// The error that the caller gets, where it gets one.
    pub(crate) fn to_error(self, operation: &'static str) -> Error {
        match self {
            Self::BeforeSend(kind) => Error::new(kind, operation),
            Self::AfterApply | Self::HalfWay | Self::Hang | Self::Late { .. } | Self::LateEffect { .. } => {
                Error::new(ErrorKind::Timeout, operation).with_effect(Effect::Unknown)
            }
            Self::NoRoomHere => Error::new(ErrorKind::CapacityExhausted, operation).with_retry(Retry::Anew),
            Self::Throttled { after_ms } => {
                Error::new(ErrorKind::Throttled, operation).with_retry(Retry::After(Duration::from_millis(after_ms)))
            }
        }
    }
}

/// Waits until the caller gives up, which is never when it has neither a deadline nor cancels.
pub(crate) async fn given_up(cx: &OpContext, operation: &'static str) -> Error {
    let deadline = async {
        match cx.deadline {
            Some(deadline) => tokio::time::sleep_until(deadline).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        biased;
        () = cx.cancel.cancelled() => Error::new(ErrorKind::Cancelled, operation).with_effect(Effect::Unknown),
        () = deadline => Fault::Hang.to_error(operation),
    }
}

/// Hands an answer over so many milliseconds late, unless the caller gives up before.
pub(crate) async fn answer_later<T: Send>(
    cx: &OpContext,
    operation: &'static str,
    after_ms: u64,
    answer: Result<T>,
) -> Result<T> {
    tokio::select! {
        biased;
        () = tokio::time::sleep(Duration::from_millis(after_ms)) => answer,
        error = given_up(cx, operation) => Err(error),
    }
}

/// Faults at random: which share of the calls, and how bad.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RandomFaults {
    /// The same faults for the same seed and the same calls in the same order.
    pub seed: u64,
    /// How many of a hundred calls go wrong.
    pub percent: u64,
    /// The longest that a late answer takes. Keep it shorter than callers' deadlines.
    pub late_max: Duration,
    /// The longest that a late effect takes; `None`: half of the backend's
    /// [`call_max`](crate::types::Capabilities::call_max), which leaves the other half to the call itself.
    pub late_effect_max: Option<Duration>,
    /// The longest that a throttled caller is told to stay away.
    pub throttle_max: Duration,
}

impl RandomFaults {
    /// So many of a hundred calls go wrong, in every way.
    #[must_use]
    pub const fn new(seed: u64, percent: u64) -> Self {
        Self {
            seed,
            percent,
            late_max: Duration::from_millis(250),
            late_effect_max: None,
            throttle_max: Duration::from_millis(250),
        }
    }
}

/// What the dice have to know of a call.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Call {
    pub(crate) operation: &'static str,
    /// Who has no deadline would hang for ever.
    pub(crate) has_deadline: bool,
    /// Whether it can be cut half-way.
    pub(crate) can_be_halved: bool,
    /// The backend's longest call.
    pub(crate) call_max: Duration,
}

/// Which faults befall which calls: scripted ones first, then at random.
#[derive(Debug)]
pub(crate) struct Faults {
    script: VecDeque<(&'static str, Fault)>,
    random: Random,
    odds: RandomFaults,
    stopped: bool,
}

impl Faults {
    /// Dice that roll from here. The seed in the odds is only told.
    pub(crate) fn new(random: Random, odds: RandomFaults) -> Self {
        Self { script: VecDeque::new(), random, odds, stopped: false }
    }

    pub(crate) fn odds(&self) -> &RandomFaults {
        &self.odds
    }

    pub(crate) fn set_percent(&mut self, percent: u64) {
        self.odds.percent = percent;
    }

    pub(crate) fn script(&mut self, operation: &'static str, fault: Fault) {
        self.script.push_back((operation, fault));
    }

    /// No fault from now on.
    pub(crate) fn stop(&mut self) {
        self.stopped = true;
    }

    /// The fault of this call, if it has one.
    pub(crate) fn next(&mut self, call: Call) -> Option<Fault> {
        if self.stopped {
            return None;
        }
        if let Some(at) = self.script.iter().position(|(scripted, _)| *scripted == call.operation) {
            return self.script.remove(at).map(|(_, fault)| fault);
        }
        self.hits(self.odds.percent).then(|| self.pick(call))
    }

    /// Whether an event is lost: as scripted, or at random.
    pub(crate) fn loses_event(&mut self, operation: &'static str) -> bool {
        if self.stopped {
            return false;
        }
        let scripted = self.script.iter().position(|(scripted, _)| *scripted == operation);
        match scripted {
            Some(at) => self.script.remove(at).is_some(),
            None => self.hits(self.odds.percent),
        }
    }

    /// Throws the dice. Nothing is thrown where nothing can hit.
    pub(crate) fn hits(&self, percent: u64) -> bool {
        percent > 0 && self.random.bits() % 100 < percent
    }

    /// Evenly from 1 to `max`.
    pub(crate) fn up_to(&self, max: u64) -> u64 {
        1 + self.random.bits() % max.max(1)
    }

    fn pick(&self, call: Call) -> Fault {
        let starts = matches!(call.operation, "create" | "resume");
        let changes =
            starts || matches!(call.operation, "suspend" | "scale to zero" | "destroy" | "delete data" | "maintain");
        let ms = |max: Duration| self.up_to(u64::try_from(max.as_millis()).unwrap_or(u64::MAX));
        let late_effect_max = self.odds.late_effect_max.unwrap_or(call.call_max / 2);
        let ways = [
            (20, Fault::BeforeSend(ErrorKind::Unavailable)),
            (if starts { 10 } else { 0 }, Fault::BeforeSend(ErrorKind::CapacityExhausted)),
            (25, Fault::AfterApply),
            (15, Fault::Throttled { after_ms: ms(self.odds.throttle_max) }),
            (10, Fault::Late { after_ms: ms(self.odds.late_max) }),
            (if call.has_deadline { 10 } else { 0 }, Fault::Hang),
            (if changes && call.has_deadline { 10 } else { 0 }, Fault::LateEffect { after_ms: ms(late_effect_max) }),
            (if changes && call.can_be_halved { 10 } else { 0 }, Fault::HalfWay),
        ];
        let mut dice = self.random.bits() % ways.iter().map(|(weight, _)| weight).sum::<u64>();
        for (weight, fault) in ways {
            if dice < weight {
                return fault;
            }
            dice -= weight;
        }
        Fault::AfterApply
    }
}

impl Call {
    /// A call that cannot be cut half-way.
    pub(crate) fn new(operation: &'static str, cx: &OpContext, call_max: Duration) -> Self {
        Self {
            operation,
            has_deadline: cx.deadline.is_some_and(|at| at > Instant::now()),
            can_be_halved: false,
            call_max,
        }
    }
}
