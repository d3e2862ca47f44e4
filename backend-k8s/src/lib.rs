#![doc = include_str!("../README.md")]

mod backend;
mod cache;
mod client;
mod config;
mod convert;
mod error;
mod explain;
mod names;
mod reasons;
pub mod render;
mod verbs;

pub use backend::KubernetesBackend;
pub use config::{Connection, Egress, IngressConfig, KubernetesConfig, RunAs, Toleration};
