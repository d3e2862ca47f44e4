//! The layout for who may write in one namespace alone.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use kube::api::ApiResource;
use provisioner_core::types::{ControlPlaneId, Target};

use super::{Layout, NamespaceEach, Namespaces, Objects, Part, Subject, objects};

/// All customers in one namespace, which somebody else made: for a control plane that may write nowhere else. A config map
/// stands for each data set, and everything else of it belongs to that.
///
/// What holds for a whole namespace is for its owner to say: quotas, limits, and which security its pods must have. Each instance
/// has a network policy of its own.
#[derive(Debug, Clone)]
pub struct SharedNamespace {
    namespaces: Namespaces,
}

impl SharedNamespace {
    /// All of them in this namespace.
    #[must_use]
    pub fn new(namespace: impl Into<String>) -> Self {
        Self { namespaces: Namespaces::Shared(namespace.into()) }
    }
}

impl Layout for SharedNamespace {
    fn namespaces(&self) -> Namespaces {
        self.namespaces.clone()
    }

    fn objects(&self, subject: &Subject<'_>) -> Objects {
        let pods = LabelSelector { match_labels: Some(objects::selector(subject)), match_expressions: None };
        Objects {
            home: ObjectMeta { labels: Some(subject.labels()), ..ObjectMeta::default() },
            before: vec![Part::of(&objects::policy(subject, pods, true)), Part::of(&objects::account(subject))],
            ..NamespaceEach.objects(subject)
        }
    }

    fn routes(&self, control_plane: &ControlPlaneId, target: &Target) -> Vec<(ApiResource, String)> {
        NamespaceEach.routes(control_plane, target)
    }
}
