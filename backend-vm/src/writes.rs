//! What is to be seen of our writes, which the service may not show yet; see
//! <https://docs.aws.amazon.com/ec2/latest/devguide/eventual-consistency.html>.

use provisioner_core::types::Generation;

use crate::{
    digest::{Intended, State},
    seen::Seen,
};

/// What a write of ours will look like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Write {
    /// The machine is in one of these states.
    State(Box<str>, &'static [State]),
    /// The machine says so of itself.
    Generation(Box<str>, Generation),
    Intended(Box<str>, Intended),
    /// The machine has the volume.
    Attached(Box<str>, Box<str>),
    /// The making is the last to use the volume.
    TakenUp(Box<str>),
    /// The volume is marked by the making that used it.
    Marked(Box<str>),
    /// The volume is gone.
    Gone(Box<str>),
}

pub(crate) const STARTED: &[State] = &[State::Pending, State::Running];
pub(crate) const STOPPED: &[State] = &[State::Stopping, State::Stopped];
pub(crate) const ENDED: &[State] = &[State::ShuttingDown, State::Terminated];
pub(crate) const MADE: &[State] =
    &[State::Pending, State::Running, State::Stopping, State::Stopped, State::ShuttingDown, State::Terminated];

impl provisioner_account::Write for Write {
    type Seen = Seen;

    fn is_told(&self, seen: &Seen) -> bool {
        let machine = |id: &str| seen.machines.iter().find(|machine| *machine.id == *id);
        let volume = |id: &str| seen.volumes.iter().find(|volume| *volume.id == *id);
        match self {
            Self::State(id, states) => machine(id).is_some_and(|machine| states.contains(&machine.state)),
            Self::Generation(id, generation) => machine(id).is_some_and(|machine| machine.generation >= *generation),
            Self::Intended(id, intended) => machine(id).is_some_and(|machine| machine.intended == *intended),
            Self::Attached(id, volume) => machine(id).is_some_and(|machine| machine.volume.as_ref() == Some(volume)),
            // A machine tells of its volume.
            Self::TakenUp(id) => volume(id).is_some() || seen.living().is_some(),
            Self::Marked(id) => volume(id).is_none_or(|volume| volume.is_ending() || volume.is_released()),
            Self::Gone(id) => volume(id).is_none(),
        }
    }

    fn is_replaced_by(&self, later: &Self) -> bool {
        use Write::{Attached, Generation, Gone, Intended, Marked, State, TakenUp};
        match (self, later) {
            (State(one, _), State(other, _))
            | (Generation(one, _), Generation(other, _))
            | (Intended(one, _), Intended(other, _))
            | (Attached(one, _), Attached(other, _))
            | (Marked(one), Marked(other) | Gone(other))
            | (TakenUp(one), TakenUp(other) | Gone(other)) => one == other,
            // What has ended says nothing any more.
            (Generation(one, _) | Intended(one, _) | Attached(one, _), State(other, states)) => {
                one == other && *states == ENDED
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use provisioner_account::Write as _;

    use super::*;

    #[test]
    fn what_has_ended_says_nothing_any_more_and_what_is_gone_is_marked_no_more() {
        let ended = Write::State("i-1".into(), ENDED);
        assert!(Write::State("i-1".into(), STARTED).is_replaced_by(&ended));
        assert!(Write::Intended("i-1".into(), Intended::Running).is_replaced_by(&ended));
        assert!(!Write::Intended("i-2".into(), Intended::Running).is_replaced_by(&ended));
        assert!(Write::Marked("vol-1".into()).is_replaced_by(&Write::Gone("vol-1".into())));
        assert!(!ended.is_told(&Seen::default()) && Write::Gone("vol-1".into()).is_told(&Seen::default()));
    }
}
