//! The verbs, as data.

use std::fmt;

use provisioner_core::{
    OpContext, Provisioner, Result,
    types::{DataDisposition, Observed, Phase, Target},
};

/// A verb of the contract.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// `create`.
    Create,
    /// `suspend`.
    Suspend,
    /// `scale_to_zero`.
    Zero,
    /// `resume`.
    Resume,
    /// `destroy`, and what becomes of the data.
    Destroy(DataDisposition),
}

impl Verb {
    /// `destroy` with the data.
    pub const DESTROY: Self = Self::Destroy(DataDisposition::Delete);

    /// `destroy` without the data.
    pub const RETAIN: Self = Self::Destroy(DataDisposition::Retain);

    /// Every verb.
    pub const ALL: [Self; 6] = [Self::Create, Self::Suspend, Self::Zero, Self::Resume, Self::DESTROY, Self::RETAIN];

    /// The verbs that end with nothing running.
    pub(crate) const SLEEP: [Self; 2] = [Self::Suspend, Self::Zero];
    /// The verbs that end with something running.
    pub(crate) const WAKE: [Self; 2] = [Self::Create, Self::Resume];

    /// What errors call it.
    #[must_use]
    pub const fn operation(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Suspend => "suspend",
            Self::Zero => "scale to zero",
            Self::Resume => "resume",
            Self::Destroy(_) => "destroy",
        }
    }

    /// Calls it.
    ///
    /// # Errors
    /// What the backend answers.
    pub async fn call(self, backend: &dyn Provisioner, cx: &OpContext, target: &Target) -> Result<Observed> {
        match self {
            Self::Create => backend.create(cx, target).await,
            Self::Suspend => backend.suspend(cx, target).await,
            Self::Zero => backend.scale_to_zero(cx, target).await,
            Self::Resume => backend.resume(cx, target).await,
            Self::Destroy(data) => backend.destroy(cx, target, data).await,
        }
    }

    /// The phase that it ends in; none: nothing is there.
    pub(crate) const fn end(self) -> Option<Phase> {
        match self {
            Self::Create | Self::Resume => Some(Phase::Running),
            Self::Suspend => Some(Phase::Suspended),
            Self::Zero => Some(Phase::Zero),
            Self::Destroy(_) => None,
        }
    }

    /// Whether what is seen is where the verb leads.
    pub(crate) fn is_reached(self, target: &Target, seen: &Observed) -> bool {
        match (self.end(), seen) {
            (None, Observed::Absent) => true,
            (Some(Phase::Running), Observed::Present(present)) => {
                present.phase == Phase::Running && present.generation >= target.generation
            }
            (Some(phase), Observed::Present(present)) => present.phase == phase,
            _ => false,
        }
    }
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::RETAIN => f.pad("destroy that retains the data"),
            verb => f.pad(verb.operation()),
        }
    }
}
