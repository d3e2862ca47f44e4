//! The requests that a control plane is killed at.

use std::{fmt, str::FromStr};

use provisioner_core::{
    ControlPlane, Result,
    control_plane::OperationHandle,
    store,
    types::{DataDisposition, Hold, Incarnation},
};

use crate::place::{Site, id, keyed};

/// The instance that all of it is about.
pub const NAME: &str = "acme";

/// One request about one instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the words of the control plane")]
pub enum Verb {
    Create,
    Sleep,
    Wake,
    Suspend,
    Lift,
    Update,
    Restart,
    Delete,
    Retain,
    Retry,
    Adopt,
}

impl Verb {
    /// Every verb.
    pub const ALL: [Self; 11] = [
        Self::Create,
        Self::Sleep,
        Self::Wake,
        Self::Suspend,
        Self::Lift,
        Self::Update,
        Self::Restart,
        Self::Delete,
        Self::Retain,
        Self::Retry,
        Self::Adopt,
    ];

    /// What the store calls it.
    #[must_use]
    pub fn kind(self) -> store::Verb {
        match self {
            Self::Create => store::Verb::Create,
            Self::Sleep => store::Verb::Sleep,
            Self::Wake => store::Verb::Wake,
            Self::Suspend => store::Verb::Suspend,
            Self::Lift => store::Verb::Lift,
            Self::Update => store::Verb::Update,
            Self::Restart => store::Verb::Restart,
            Self::Delete | Self::Retain => store::Verb::Destroy,
            Self::Retry => store::Verb::Retry,
            Self::Adopt => store::Verb::Adopt,
        }
    }

    /// Asks for it, under its own key.
    ///
    /// # Errors
    /// What the control plane answers.
    pub async fn ask(self, plane: &ControlPlane, site: &Site) -> Result<OperationHandle> {
        let (id, request) = (id(NAME), keyed(&self.to_string()));
        let hold = Hold::new("unpaid").expect("a DNS label");
        match self {
            Self::Create => plane.create(site.new_instance(NAME), request).await,
            Self::Sleep => plane.sleep(&id, request).await,
            Self::Wake => plane.wake(&id, request).await,
            Self::Suspend => plane.suspend(&id, hold, request).await,
            Self::Lift => plane.lift(&id, &hold, request).await,
            Self::Update => plane.update(&id, site.spec("2.0"), request).await,
            Self::Restart => plane.restart(&id, request).await,
            Self::Delete => plane.destroy(&id, DataDisposition::Delete, request).await,
            Self::Retain => plane.destroy(&id, DataDisposition::Retain, request).await,
            Self::Retry => plane.retry(&id, request).await,
            Self::Adopt => plane.adopt(stranger(plane).await?, site.new_instance(NAME), request).await,
        }
    }
}

/// The making to adopt: the only stranger, or what was one before it was adopted.
async fn stranger(plane: &ControlPlane) -> Result<Incarnation> {
    let found = plane.strangers().await?.first().map(|stranger| stranger.incarnation);
    match found {
        Some(found) => Ok(found),
        None => Ok(plane.get(&id(NAME)).await?.incarnation.expect("what was adopted is of the making it was")),
    }
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

impl FromStr for Verb {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|verb| verb.to_string() == text).ok_or_else(|| format!("no verb {text}"))
    }
}
