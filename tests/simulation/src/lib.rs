//! The real engine and the real store logic on a virtual clock, with everything going wrong, from one seed.
//!
//! [`run()`] lives through a few hours of a fleet: customers ask for things, calls fail in every way, providers lag, lie for
//! a moment, refuse and lose things, outsiders meddle, and the control plane is killed, stands still, or is replaced while it
//! stands still and goes on later; in half of the seeds there are several at one store. A [`witness`](witness::Witness) sees
//! every commit and every call, knows the truth, and ends the run at the first thing that must never be. Then nothing goes
//! wrong any more, everything has to settle and be what was asked for, and for a day nothing may happen but the drift pass.
//! The same seed gives the same history, to the byte.

pub mod budget;
pub mod customers;
pub mod driver;
pub mod gate;
pub mod ledger;
pub mod operator;
pub mod provider;
pub mod replicas;
pub mod rest;
mod run;
pub mod scenario;
pub mod signal;
pub mod store;
pub mod trouble;
pub mod witness;
pub mod world;

pub use run::{Ends, Outcome, run};
pub use scenario::Request;
