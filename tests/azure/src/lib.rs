//! Azure for tests: what the resource manager answers, and sites that run.
//!
//! There is no emulator of Azure, so this one was written after the contract and what is known of the service's behaviour. Plans,
//! sites, shares and certificates are what callers make of them. A site runs for real: its command as a process, its shares as
//! folders, behind a front door with an address of its own. It injects faults, too.

mod answer;
mod asynchronous;
mod authority;
mod behind;
mod bindings;
mod buckets;
mod client;
mod clusters;
mod door;
mod execute;
mod faults;
mod front;
mod line;
mod locks;
mod operations;
mod options;
mod pages;
mod plan;
mod plans;
mod program;
mod record;
mod request;
mod server;
mod service;
mod settings;
mod shares;
mod site;
mod sites;
mod stand;
mod table;
mod tokens;
mod words;
mod world;

pub use axum::http::{HeaderMap, Method};

pub use crate::{
    behind::Seen,
    buckets::{Bucket, Buckets},
    client::{Answer, Client},
    faults::{Lasting, Once},
    options::{Options, Style},
    stand::Azure,
};
