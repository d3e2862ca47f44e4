//! What the customer should have.

use std::{collections::BTreeSet, fmt};

use serde::{Deserialize, Serialize};

use super::id::Hold;

/// Advances by one on every accepted change of a spec, and on a restart; not on sleep or wake. Durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Generation(pub u64);

impl Generation {
    /// The generation of a spec that was just created.
    pub const FIRST: Self = Self(1);

    /// The one after this.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Advances by one on every accepted request about an instance. Durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Revision(pub u64);

impl Revision {
    /// The revision of an instance that was just created.
    pub const FIRST: Self = Self(1);

    /// The one after this.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Whether an instance that is not held should have compute.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Power {
    /// Awake.
    Running,
    /// Asleep to save money; wakes by itself when a request comes.
    Zero,
}

/// What becomes of an instance's data when the instance is destroyed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DataDisposition {
    /// It is removed with the instance.
    Delete,
    /// It is kept, listed as data, and can be given to a later instance of the same tenant.
    Retain,
}

/// What the customer should have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Intent {
    /// Why the instance is suspended. Suspended means that this is not empty.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub holds: BTreeSet<Hold>,
    /// Whether it should be awake once nothing holds it.
    pub power: Power,
    /// Set once it is to be destroyed. Final until forgotten.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gone: Option<DataDisposition>,
}

/// Where an intent leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TargetState {
    /// Awake and ready.
    Running,
    /// Asleep.
    Zero,
    /// Stopped by decision.
    Suspended,
    /// Removed.
    Gone(DataDisposition),
}

impl Intent {
    /// The intent of somebody who just signed up.
    #[must_use]
    pub fn running() -> Self {
        Self { holds: BTreeSet::new(), power: Power::Running, gone: None }
    }

    /// The one state that this intent asks for: gone outweighs holds, holds outweigh power.
    #[must_use]
    pub fn target_state(&self) -> TargetState {
        match (self.gone, self.holds.is_empty(), self.power) {
            (Some(disposition), _, _) => TargetState::Gone(disposition),
            (None, false, _) => TargetState::Suspended,
            (None, true, Power::Zero) => TargetState::Zero,
            (None, true, Power::Running) => TargetState::Running,
        }
    }
}
