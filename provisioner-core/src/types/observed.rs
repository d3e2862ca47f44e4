//! What was seen at the provider.

use std::{fmt, time::Duration};

use serde::{Deserialize, Serialize};

use super::{incarnation::Incarnation, intent::Generation};

/// The state seen of one instance. "I do not know" is a state of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Observed {
    /// A call may have changed the world, or the reads lag behind the writes: look again before acting.
    Unknown {
        /// When looking again makes sense.
        again: Duration,
    },
    /// Looked, and nothing is there.
    Absent,
    /// Looked, and this is what was there.
    Present(Present),
}

/// What is there.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Present {
    /// Where it stands.
    pub phase: Phase,
    /// Where it answers; only while it runs.
    pub endpoint: Option<Endpoint>,
    /// The spec it was made with or last updated to.
    pub generation: Generation,
    /// Which making it is.
    pub incarnation: Incarnation,
    /// Why it is as it is, where there is something to say.
    pub reason: Option<Reason>,
    /// When to look again. `None`: nothing is in motion, or [`watch`](crate::Provisioner::watch) will tell.
    pub again: Option<Duration>,
    /// What it uses, where the backend can tell that cheaply.
    pub usage: Option<Usage>,
}

/// What an instance uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// The CPU time that it has used since it was started last. It rises; the difference of two looks tells the load.
    pub cpu: Duration,
    /// Bytes of memory that it uses now.
    pub memory_bytes: u64,
}

impl Present {
    /// What is there, with nothing more to say about it.
    #[must_use]
    pub fn new(phase: Phase, generation: Generation, incarnation: Incarnation) -> Self {
        Self { phase, endpoint: None, generation, incarnation, reason: None, again: None, usage: None }
    }

    /// The same with an endpoint.
    #[must_use]
    pub fn with_endpoint(mut self, endpoint: impl Into<Endpoint>) -> Self {
        self.endpoint = Some(endpoint.into());
        self
    }

    /// The same with a reason.
    #[must_use]
    pub fn with_reason(mut self, reason: Reason) -> Self {
        self.reason = Some(reason);
        self
    }

    /// The same with a time to look again.
    #[must_use]
    pub fn look_again(mut self, again: Duration) -> Self {
        self.again = Some(again);
        self
    }

    /// The same with what it uses.
    #[must_use]
    pub fn with_usage(mut self, usage: Option<Usage>) -> Self {
        self.usage = usage;
        self
    }
}

impl Observed {
    /// The phase, when something is there.
    #[must_use]
    pub fn phase(&self) -> Option<Phase> {
        self.present().map(|present| present.phase)
    }

    /// What is there, when something is.
    #[must_use]
    pub fn present(&self) -> Option<&Present> {
        match self {
            Self::Present(present) => Some(present),
            Self::Unknown { .. } | Self::Absent => None,
        }
    }
}

impl From<Present> for Observed {
    fn from(present: Present) -> Self {
        Self::Present(present)
    }
}

/// Where an instance stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// On its way to running: being made, started or updated.
    Provisioning,
    /// Ready: it answers at its endpoint. Without one, it is on its way to sleep and not there yet.
    Running,
    /// Asleep: no compute, data kept.
    Zero,
    /// Stopped by decision: no compute, data kept.
    Suspended,
    /// On its way out.
    Destroying,
    /// There, but not what it should be; the reason says why.
    Failed,
}

impl Phase {
    /// Every phase.
    pub const ALL: [Self; 6] =
        [Self::Provisioning, Self::Running, Self::Zero, Self::Suspended, Self::Destroying, Self::Failed];

    /// The word for it, as everywhere else.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Provisioning => "provisioning",
            Self::Running => "running",
            Self::Zero => "zero",
            Self::Suspended => "suspended",
            Self::Destroying => "destroying",
            Self::Failed => "failed",
        }
    }

    /// Whether compute is released and data is kept.
    #[must_use]
    pub const fn is_asleep(self) -> bool {
        matches!(self, Self::Zero | Self::Suspended)
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Where an instance answers, as a URL.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Endpoint(String);

impl Endpoint {
    /// The URL.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl<S: Into<String>> From<S> for Endpoint {
    fn from(url: S) -> Self {
        Self(url.into())
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// Why something is as it is: a stable code for programs and words for an operator. Never holds a secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reason {
    /// A stable word in kebab case, such as `exited` or `start-up-timeout`.
    pub code: String,
    /// What happened, for an operator.
    pub message: String,
}

impl Reason {
    /// A reason.
    pub fn new(code: impl Into<String>, message: impl Into<String>) -> Self {
        Self { code: code.into(), message: message.into() }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code, self.message)
    }
}
