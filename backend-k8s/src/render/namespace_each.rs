//! The usual layout.

use k8s_openapi::{
    api::networking::v1::Ingress,
    apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta},
};
use kube::api::ApiResource;
use provisioner_core::types::{ControlPlaneId, Target};

use super::{Layout, Namespaces, Objects, Part, Subject, objects};
use crate::names;

/// A namespace for each data set, with everything that one customer has in it: bounds, policies, account, claim, stateful set,
/// service and ingress.
#[derive(Debug, Clone, Copy, Default)]
pub struct NamespaceEach;

impl Layout for NamespaceEach {
    fn namespaces(&self) -> Namespaces {
        Namespaces::Each
    }

    fn objects(&self, subject: &Subject<'_>) -> Objects {
        Objects {
            home: home(subject),
            before: vec![
                Part::of(&objects::quota(subject)),
                Part::of(&objects::limits(subject)),
                Part::of(&objects::policy(subject, LabelSelector::default(), subject.config.beside.pods == 0)),
                Part::of(&objects::account(subject)),
            ],
            claim: objects::claim(subject),
            set: objects::set(subject),
            after: vec![Part::of(&objects::service(subject))],
            routes: objects::routes(subject),
            endpoint: objects::endpoint(subject),
        }
    }

    fn routes(&self, control_plane: &ControlPlaneId, target: &Target) -> Vec<(ApiResource, String)> {
        let name = names::making(control_plane, &target.id, target.incarnation);
        vec![(ApiResource::erase::<Ingress>(&()), name)]
    }
}

fn home(subject: &Subject<'_>) -> ObjectMeta {
    let mut labels = subject.labels();
    // Ignored by servers that do not know it; see
    // <https://kubernetes.io/docs/concepts/security/pod-security-admission/>.
    for mode in ["enforce", "audit", "warn"] {
        labels.insert(format!("pod-security.kubernetes.io/{mode}"), "restricted".to_owned());
    }
    ObjectMeta { labels: Some(labels), ..ObjectMeta::default() }
}
