//! Azure Resource Manager, as far as the backends need it.
//!
//! [`Arm`] signs requests in, paces them, follows long-running operations to their end and reads refusals. [`web`], [`storage`] and
//! [`containers`] are small models of what is read and written; the api-versions are pinned there. Nothing is retried here but a
//! request that was refused for an expired token: that did nothing.

mod answer;
mod client;
pub mod containers;
mod https;
mod operation;
mod refusal;
pub mod storage;
pub mod web;

pub use azure_core::{credentials::TokenCredential, http::Transport};

pub use crate::{
    client::{Arm, ArmOptions, Buckets, Calls, Scope, is_refused, signed_in},
    https::Https,
    refusal::Refused,
};
