#![doc = include_str!("../README.md")]

mod backend;
mod check;
mod config;
mod digest;
mod group;
mod health;
mod names;
mod plans;
mod render;
mod seen;
mod verbs;
mod writes;

pub use backend::AppServiceBackend;
pub use config::{AppServiceConfig, PlanPolicy, SharedIdentity};
pub use provisioner_azure::{Buckets, Https, Scope, TokenCredential};
