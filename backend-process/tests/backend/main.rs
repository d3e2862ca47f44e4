//! The backend with real processes.

#![allow(clippy::unwrap_used)] // All of it is test code, helpers too.

mod crash;
mod data;
mod disk;
mod isolation;
mod limits;
mod rest;
mod start;
mod support;
