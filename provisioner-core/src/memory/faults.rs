//! What can go wrong with a call, scripted or at random.

use std::collections::VecDeque;

use crate::{
    error::{Effect, Error, ErrorKind, Retry},
    seams::Random,
};

/// What happens to a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It never arrives, and the caller is told so.
    BeforeSend(ErrorKind),
    /// It has its effect, and the answer is lost.
    AfterApply,
    /// It has half of its effect: what it began stays on its way until the verb is called again.
    HalfWay,
    /// It has its effect at once, and its answer comes so many milliseconds later.
    Late {
        /// How late.
        after_ms: u64,
    },
    /// It never arrives, and nobody is told: the caller waits until its own deadline.
    Hang,
    /// It is refused for now: come back after so many milliseconds.
    Throttled {
        /// When to come back.
        after_ms: u64,
    },
}

impl Fault {
    /// The error that the caller gets, where it gets one.
    pub(super) fn to_error(self, operation: &'static str) -> Error {
        match self {
            Self::BeforeSend(kind) => Error::new(kind, operation),
            Self::AfterApply | Self::HalfWay => Error::new(ErrorKind::Timeout, operation).with_effect(Effect::Unknown),
            Self::Hang | Self::Late { .. } => Error::new(ErrorKind::Timeout, operation).with_effect(Effect::Unknown),
            Self::Throttled { after_ms } => Error::new(ErrorKind::Throttled, operation)
                .with_retry(Retry::After(std::time::Duration::from_millis(after_ms))),
        }
    }
}

/// Which faults befall which calls: scripted ones first, then at random.
#[derive(Debug, Default)]
pub(super) struct Faults {
    script: VecDeque<(&'static str, Fault)>,
}

impl Faults {
    pub(super) fn script(&mut self, operation: &'static str, fault: Fault) {
        self.script.push_back((operation, fault));
    }

    /// The fault of the next call of this operation, if it has one.
    pub(super) fn next(&mut self, operation: &'static str, percent: u64, random: &Random) -> Option<Fault> {
        if let Some(at) = self.script.iter().position(|(scripted, _)| *scripted == operation) {
            return self.script.remove(at).map(|(_, fault)| fault);
        }
        let dice = random.bits();
        if dice % 100 >= percent {
            return None;
        }
        Some(match (dice >> 32) % 4 {
            0 => Fault::BeforeSend(ErrorKind::Unavailable),
            1 => Fault::AfterApply,
            2 => Fault::Throttled { after_ms: 50 },
            _ => Fault::BeforeSend(ErrorKind::CapacityExhausted),
        })
    }
}
