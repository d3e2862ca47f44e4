//! Wrappers around any backend, each with one job, each a backend itself.
//!
//! | layer | what it does |
//! |---|---|
//! | [`Measured`] | counts and times calls, through the facade `metrics` |
//! | [`Traced`] | has a span for each call |
//! | [`Limited`] | has so many calls at once, people before the background |
//! | [`Timed`] | has each call end in time |
//! | [`Chaos`] | has calls go wrong, as scripted or at random from a seed, in every way of [`Fault`]; for tests |
//!
//! # Which outside which
//!
//! ```
//! use std::{sync::Arc, time::Duration};
//! use provisioner_core::{Cell, layers::{Limited, Measured, Timed, Traced}, memory::MemoryProvisioner, types::CellName};
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let name = CellName::new("weu-1")?;
//! let backend = MemoryProvisioner::new(Default::default());
//! let timed = Timed::new(backend, Duration::from_secs(30)).with_reads(Duration::from_secs(5));
//! let backend = Measured::new(Traced::new(Limited::new(timed, 16)), &name);
//! assert_eq!(backend.to_string(), "Measured(Traced(Limited(Timed(Memory(memory)))))");
//! let cell = Cell::new(name, Arc::new(backend));
//! # Ok(()) }
//! ```
//!
//! From the outside in:
//!
//! 1. Who retries. That is the engine and no layer: a retry of its own here would be a third loop, beside the engine's and
//!    that of the backend's client. What it allows for the whole is the deadline of the context, which every layer keeps.
//! 2. `Measured` and `Traced`, in either order: they tell what the caller had of it, the wait for a place included, and also
//!    that a call was never sent. Put within `Limited`, they tell of the provider alone.
//! 3. `Limited`, around `Timed`: the time for one call begins when it has its place. The other way round, calls that wait in
//!    line would fail one after the other while the provider is well.
//! 4. `Timed`, around the backend: its client's transport retries count as part of the call.
//! 5. `Chaos`, in tests, where the provider would be.
//!
//! # With the engine
//!
//! The engine does without them, and they go around a cell's backend as above. It works on so many instances of a cell at once
//! ([`Cell::with_calls_max`](crate::Cell::with_calls_max)), each with one call under way, and gives up a call after
//! [`call_timeout`](crate::engine::EngineConfig::call_timeout). `Limited` is of use where several cells belong to one
//! account ([`Limited::share`]), or where others than the engine call the backend. Keep the limits of `Timed` below
//! `call_timeout`: then errors name what took too long, reads that hang are known to be without effect, and a wait for a place
//! has time of its own.

mod around;
mod chaos;
mod fault;
mod limited;
mod measured;
mod timed;
mod traced;

pub use chaos::Chaos;
pub(crate) use fault::{Call, Faults, answer_later, given_up};
pub use fault::{Fault, RandomFaults};
pub use limited::Limited;
pub use measured::Measured;
pub use timed::Timed;
pub use traced::Traced;

#[cfg(test)]
mod fixture;
