//! Clusters of Azure by name: a stand-in for Resource Manager leads to a scripted cluster behind TLS, whose door looks at who comes.
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod connecting;
mod credential;
mod door;
// Everything in these is used by the target `wire`, and a part of it here.
#[allow(dead_code)]
#[path = "../wire/fixture.rs"]
mod fixture;
mod refusals;
mod renewal;
#[allow(dead_code)]
#[path = "../wire/server.rs"]
mod server;
mod stand;
#[allow(dead_code)]
#[path = "../wire/world.rs"]
mod world;
