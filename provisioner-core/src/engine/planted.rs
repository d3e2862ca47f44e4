//! Bugs that the simulation has to find, to prove that it can. None of them is compiled in without the feature
//! `planted-bugs`, which is for nothing else.

use std::{fmt, str::FromStr};

/// One bug of those that a control plane must not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum PlantedBug {
    /// Calls a provider for a row that is settled on disk: after a crash nobody would look.
    SkipsUnsettledWrite,
    /// Believes one absent read, and makes a second thing beside the first.
    TrustsOneAbsent,
    /// Makes things again under the name of one that has ended.
    ReusesIncarnation,
    /// Writes without its session's number, also when another session took over.
    IgnoresEpoch,
    /// Lets a newer request revive what is to be gone for ever.
    RevivesGone,
    /// Gives a making up when the answer to the call that makes it is lost, without looking: the next one is a second thing.
    EndsWithoutLooking,
    /// Works on what another process works on, and says of nothing that it works on it.
    IgnoresClaims,
    /// Takes work over as if the process that had it were gone for sure, and looks at it no more once it is done.
    ForgetsTakeover,
    /// Goes on calling providers when its session may be over.
    CallsWithoutSession,
}

impl PlantedBug {
    /// Every bug.
    pub const ALL: [Self; 9] = [
        Self::SkipsUnsettledWrite,
        Self::TrustsOneAbsent,
        Self::ReusesIncarnation,
        Self::IgnoresEpoch,
        Self::RevivesGone,
        Self::EndsWithoutLooking,
        Self::IgnoresClaims,
        Self::ForgetsTakeover,
        Self::CallsWithoutSession,
    ];

    /// The word for it, in kebab case.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::SkipsUnsettledWrite => "skips-unsettled-write",
            Self::TrustsOneAbsent => "trusts-one-absent",
            Self::ReusesIncarnation => "reuses-incarnation",
            Self::IgnoresEpoch => "ignores-epoch",
            Self::RevivesGone => "revives-gone",
            Self::EndsWithoutLooking => "ends-without-looking",
            Self::IgnoresClaims => "ignores-claims",
            Self::ForgetsTakeover => "forgets-takeover",
            Self::CallsWithoutSession => "calls-without-session",
        }
    }
}

impl fmt::Display for PlantedBug {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A text names no planted bug.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no planted bug {0:?}: expected one of {all}", all = PlantedBug::ALL.map(PlantedBug::as_str).join(", "))]
pub struct UnknownBug(String);

impl FromStr for PlantedBug {
    type Err = UnknownBug;

    fn from_str(text: &str) -> Result<Self, UnknownBug> {
        Self::ALL.into_iter().find(|bug| bug.as_str() == text).ok_or_else(|| UnknownBug(text.to_owned()))
    }
}
