//! Which cell a new instance goes to.

mod choose;

use std::{fmt, sync::Arc};

pub use choose::{NamedOrOnly, Placement};

use crate::{provisioner::Provisioner, store::Capacity, types::CellName};

/// One place that holds instances.
#[derive(Debug, Clone)]
pub struct Cell {
    pub(crate) name: CellName,
    pub(crate) provisioner: Arc<dyn Provisioner>,
    pub(crate) capacity: Capacity,
    pub(crate) state: CellState,
    pub(crate) calls_max: usize,
}

/// Whether a cell takes new instances.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CellState {
    /// It does.
    Open,
    /// It does not, and those it has are to move elsewhere.
    Draining,
    /// It does not.
    Closed,
}

impl fmt::Display for CellState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Open => "open",
            Self::Draining => "draining",
            Self::Closed => "closed",
        })
    }
}

impl Cell {
    /// An open cell of unbounded capacity that runs up to 64 instances' work at once.
    #[must_use]
    pub fn new(name: CellName, provisioner: Arc<dyn Provisioner>) -> Self {
        Self { name, provisioner, capacity: Capacity::UNBOUNDED, state: CellState::Open, calls_max: 64 }
    }

    /// The same with a capacity.
    #[must_use]
    pub fn with_capacity(mut self, capacity: Capacity) -> Self {
        self.capacity = capacity;
        self
    }

    /// The same in another state.
    #[must_use]
    pub fn with_state(mut self, state: CellState) -> Self {
        self.state = state;
        self
    }

    /// The same with another bound on how many instances are worked on at once, 1 at least.
    #[must_use]
    pub fn with_calls_max(mut self, calls_max: usize) -> Self {
        self.calls_max = calls_max.max(1);
        self
    }
}
