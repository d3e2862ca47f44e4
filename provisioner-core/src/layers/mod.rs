//! Wrappers around any backend, each with one job.
//!
//! [`Chaos`] has calls go wrong, as scripted or at random from a seed, in every way of [`Fault`].

mod chaos;
mod fault;

pub use chaos::Chaos;
pub(crate) use fault::{Call, Faults, answer_later, given_up};
pub use fault::{Fault, RandomFaults};
