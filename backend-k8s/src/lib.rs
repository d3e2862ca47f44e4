#![doc = include_str!("../README.md")]

mod aks;
mod applied;
mod backend;
mod cache;
mod client;
mod cluster;
mod config;
mod convert;
mod error;
mod explain;
mod home;
mod names;
mod reasons;
pub mod render;
mod verbs;

pub use aks::AksCluster;
pub use backend::KubernetesBackend;
pub use config::{Beside, Connection, IngressConfig, KubernetesConfig, Peer, RunAs, Toleration};
#[cfg(feature = "aks")]
pub use provisioner_azure::{Https, TokenCredential};
