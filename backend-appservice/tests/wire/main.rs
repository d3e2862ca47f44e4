//! What the service does when it is not well, and what others do in the same resource group.
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod fixture;
mod lives;
mod neighbours;
mod packing;
mod refusals;
#[path = "../shared/stand.rs"]
mod stand;
