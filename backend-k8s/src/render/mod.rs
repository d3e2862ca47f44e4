//! Which objects an instance is made of: a pure function of the target and the cell's configuration.
//!
//! [`NamespaceEach`] is the usual [`Layout`], and [`SharedNamespace`] the one for who may write in a single namespace. Another one
//! wraps either and changes what it renders, or renders something of its own: a route of the Gateway API instead of an ingress, one
//! more policy, a sidecar.

mod namespace_each;
mod objects;
mod shared_namespace;
#[cfg(test)]
mod tests;

use std::fmt;

use k8s_openapi::{
    api::{apps::v1::StatefulSet, core::v1::PersistentVolumeClaim},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{Resource, api::ApiResource};
use provisioner_core::types::{ControlPlaneId, Target};
use serde::Serialize;
use serde_json::Value;

pub(crate) use self::objects::{environment, mib_of};
pub use self::{namespace_each::NamespaceEach, shared_namespace::SharedNamespace};
use crate::config::KubernetesConfig;

/// Where data sets live.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Namespaces {
    /// Each in a namespace of its own, which stands for it: everything else is in there, and goes with it.
    #[default]
    Each,
    /// All in this one, which somebody else made and keeps. A config map stands for each data set: everything else belongs to it,
    /// and goes with it. As everything is side by side, each name must be of its making or its data.
    Shared(String),
}

impl Namespaces {
    /// The one that they share.
    pub(crate) fn shared(&self) -> Option<&str> {
        match self {
            Self::Each => None,
            Self::Shared(namespace) => Some(namespace),
        }
    }
}

/// What is rendered, and with what.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Subject<'a> {
    /// Whose it is.
    pub control_plane: &'a ControlPlaneId,
    /// What it is to be.
    pub target: &'a Target,
    /// What the backend was told.
    pub config: &'a KubernetesConfig,
    /// What the layout said of where data sets live.
    pub namespaces: &'a Namespaces,
}

/// The objects of one instance.
#[derive(Debug, Clone, PartialEq)]
pub struct Objects {
    /// The labels and annotations of what stands for the data: of its namespace, or of its config map in a shared one. Those of
    /// [`Subject::labels`] must be among the former. Its name is not heeded.
    pub home: ObjectMeta,
    /// What is there before anything runs: bounds, policies, accounts. Applied in this order.
    pub before: Vec<Part>,
    /// Where the data is: called [`Subject::claim`], with [`Subject::labels`].
    pub claim: PersistentVolumeClaim,
    /// What runs: called [`Subject::name`], with [`Subject::labels`], which its pods have, too. It mounts the claim.
    pub set: StatefulSet,
    /// What leads there inside the cluster.
    pub after: Vec<Part>,
    /// What leads there from outside: taken away from what is suspended.
    pub routes: Vec<Part>,
    /// Where it answers: an absolute URL.
    pub endpoint: String,
}

/// One object, of any kind.
#[derive(Debug, Clone, PartialEq)]
pub struct Part {
    /// Its kind.
    pub resource: ApiResource,
    /// Its name.
    pub name: String,
    /// All of it, as it is applied.
    pub body: Value,
}

impl Part {
    /// An object of a kind that is known at compile time.
    ///
    /// # Panics
    /// When it has no name, or does not serialize as an object.
    pub fn of<K: Resource<DynamicType = ()> + Serialize>(object: &K) -> Self {
        Self {
            resource: ApiResource::erase::<K>(&()),
            name: object.meta().name.clone().expect("a rendered object has a name"),
            body: serde_json::to_value(object).expect("an object of Kubernetes serializes"),
        }
    }
}

/// Decides which objects an instance is made of.
pub trait Layout: fmt::Debug + Send + Sync + 'static {
    /// Where data sets live: the same at every call. A layout that wraps another says the same as that. It is part of the cell's
    /// identity: with another answer the cell is another one, and its instances are not looked for there.
    fn namespaces(&self) -> Namespaces;

    /// The objects of an instance. The same for the same subject, whatever is there already.
    ///
    /// All of them are in [`Subject::namespace`]. Each gets the labels of its making, and only that making removes it: a name may be
    /// the same for each making of the data, and in a shared namespace for no other data. Selectors must name the making there, as
    /// other customers' pods are beside its own. What an object belongs to (`ownerReferences`) is for the crate to say.
    ///
    /// Also asked for what is to be removed and whose spec is forgotten ([`InstanceSpec::forgotten`]). Objects of kinds that
    /// [`NamespaceEach`] makes are watched, and found whatever the spec was; of other kinds no name may depend on the spec. Those
    /// are read before they are removed, so that the control plane needs the right to `get` them, too.
    ///
    /// [`InstanceSpec::forgotten`]: provisioner_core::types::InstanceSpec::forgotten
    fn objects(&self, subject: &Subject<'_>) -> Objects;

    /// The names of the routes of an instance, with their kinds, whatever its spec is: what is removed when it is suspended
    /// and the spec is another one than it was made with.
    fn routes(&self, control_plane: &ControlPlaneId, target: &Target) -> Vec<(ApiResource, String)>;

    /// Whether instances can be reached under host names. Where they cannot, specs with any are refused.
    fn takes_host_names(&self, config: &KubernetesConfig) -> bool {
        config.ingress.is_some()
    }
}
