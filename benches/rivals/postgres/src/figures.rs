//! What one run gave.

use crate::report::Samples;

/// What one run gave.
#[derive(Debug, Clone)]
pub struct Figures {
    /// Steps or requests.
    pub count: usize,
    pub seconds: f64,
    /// From a request to its commit, where somebody waits for it.
    pub samples: Option<Samples>,
    /// What the processes of the clients used of all processors meanwhile. What the server used is not in it.
    pub cpu_seconds: f64,
}

impl Figures {
    /// So many in a second.
    pub fn speed(&self) -> f64 {
        self.count as f64 / self.seconds
    }
}
