//! The control plane on the provider in memory: what is promised of requests, of faults, of restarts and of drift.
//!
//! Time is paused and jumps to the next timer, so hours take milliseconds and nothing sleeps in earnest.

// All of it is test code; clippy knows only of the tests themselves.
#![allow(clippy::unwrap_used)]

mod clock;
mod drift;
mod faults;
mod harness;
mod lifecycle;
mod load;
mod replicas;
mod requests;
mod restart;
mod restore;
