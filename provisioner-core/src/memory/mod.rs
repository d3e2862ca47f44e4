//! A provider in memory: what the engine is tested on, and a model of how providers misbehave.
//!
//! It can be slow (things take time to start and stop), eventually consistent (reads lag behind writes), short of
//! capacity, throttled, and lossy (calls that never arrive, answers that never come back), each as configured; and a
//! test can be the outsider who kills, stops and deletes things, takes rights and room away, or scripts what happens to
//! the next calls. Its token bucket knows no priorities: first come, first served.

mod backend;
mod world;

pub use backend::{MemoryConfig, MemoryProvisioner};
pub use world::Thing;

pub use crate::layers::Fault;

#[cfg(test)]
mod tests;
