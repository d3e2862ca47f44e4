//! Clusters of Azure Kubernetes Service by name: how one is reached is asked at Azure Resource Manager, and who asks there signs the
//! requests to the cluster, too.
//!
//! The name itself needs nothing of Azure and is always there, so that a program without the feature `aks` refuses it with a reason.

mod cluster;
#[cfg(feature = "aks")]
mod connect;
#[cfg(feature = "aks")]
mod kubeconfig;
#[cfg(feature = "aks")]
mod tokens;

pub use cluster::AksCluster;
#[cfg(feature = "aks")]
pub(crate) use connect::Azure;

use crate::error::Failure;

/// That a request was not sent as there is no token for it, if this error says so.
#[cfg(feature = "aks")]
pub(crate) fn unsigned(error: &(dyn std::error::Error + 'static)) -> Option<Failure> {
    error.downcast_ref::<tokens::NoToken>().map(|tokens::NoToken(failure)| Failure::Azure(Box::new(failure.clone())))
}

/// Nothing is signed by us.
#[cfg(not(feature = "aks"))]
pub(crate) fn unsigned(_: &(dyn std::error::Error + 'static)) -> Option<Failure> {
    None
}
