#![doc = include_str!("../README.md")]

mod applied;
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
pub use config::{Beside, Connection, IngressConfig, KubernetesConfig, Peer, RunAs, Toleration};
