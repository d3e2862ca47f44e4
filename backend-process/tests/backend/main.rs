//! The backend with real processes.

#![allow(clippy::unwrap_used)] // All of it is test code, helpers too.

mod crash;
mod data;
mod rest;
mod start;
#[allow(dead_code, reason = "shared with the other target")]
mod support;
