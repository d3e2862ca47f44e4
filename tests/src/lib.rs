//! What the test targets share: a place for a control plane on the process backend, the requests that are made of it, and
//! a look at the processes that it leaves behind.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

pub mod http;
pub mod machine;
pub mod place;
pub mod plane;
pub mod processes;
pub mod verb;
pub mod watched;

use std::{future::Future, time::Duration};

use tokio::time::Instant;

/// How long anything may take before it counts as not happening.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Looks again and again until there is an answer.
///
/// # Panics
/// Saying what was waited for, when there is none in time.
pub async fn until<T, F: Future<Output = Option<T>>>(what: &str, mut look: impl FnMut() -> F) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// The README's snippet, so that it compiles.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
#[derive(Debug)]
pub struct Readme;

/// And that of the tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
#[derive(Debug)]
pub struct OwnReadme;
