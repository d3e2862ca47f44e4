//! The backend and its own client against a scripted cluster on loopback: what a healthy cluster does not do.
#![allow(missing_docs)]

mod conflicts;
mod fixture;
mod outages;
mod quiet;
mod refusals;
mod server;
mod watches;
mod world;
