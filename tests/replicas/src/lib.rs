//! A control plane process that tests drive, and the provider that several of them share.
//!
//! The test has the other end of both: it asks over the process's standard input, and it is the provider.

pub mod command;
pub mod remote;
pub mod serve;
pub mod stop;
pub mod wire;

/// The README's snippet, so that it compiles.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
#[derive(Debug)]
pub struct Readme;
