//! The backend and its own client against a scripted cluster on loopback: what a healthy cluster does not do.
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod conflicts;
mod fixture;
mod layouts;
mod marks;
mod outages;
mod quiet;
mod reasons;
mod refusals;
mod removal;
mod repairs;
mod rest;
mod server;
mod shared;
mod watches;
mod world;
