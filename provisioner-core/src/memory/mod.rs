//! A provider in memory: what the engine is tested on, and a model of how providers misbehave.
//!
//! As [configured](MemoryConfig), things take time to start and stop, reads and listings lag behind writes and miss for a moment
//! what is there, room and quotas run out, a token bucket throttles (first come, first served: it knows no priorities), listings
//! come in pages that can fail one by one, what runs dies by itself, and calls are lost in every way of [`Fault`]. A test can be
//! the outsider who stops, breaks and deletes things, takes rights and room away, or scripts what happens to the next calls.
//!
//! It has no timers: what happens by itself is found to have happened when somebody looks. The same seed and the same calls in
//! the same order give the same answers.

mod backend;
mod config;
mod outsider;
mod thing;
mod world;

pub use backend::MemoryProvisioner;
pub use config::MemoryConfig;
pub use thing::Thing;

pub use crate::layers::Fault;

#[cfg(test)]
mod tests;
