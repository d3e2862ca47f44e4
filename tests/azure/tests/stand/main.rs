//! The stand itself: that it does what the real service does.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod caller;
mod lives;
mod reads;
mod refusals;
mod writes;
