//! A provider in memory: what the engine is tested on, and a model of how providers misbehave.
//!
//! It can be slow (things take time to start and stop), eventually consistent (reads lag behind writes), short of
//! capacity, throttled, and lossy (calls that never arrive, answers that never come back), each as configured; and a
//! test can be the outsider who kills and deletes things, or script what happens to the next calls.

mod backend;
mod faults;
mod world;

pub use backend::{MemoryConfig, MemoryProvisioner};
pub use faults::Fault;
pub use world::Thing;
