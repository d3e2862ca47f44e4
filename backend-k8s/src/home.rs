//! Where one data set lives at the cluster.
//!
//! Its *home* is an object that stands for the data: it says who uses them, and with it everything else goes. Where each data set
//! has a namespace of its own, that is it. Where several share one, it is a config map beside the rest, which the rest
//! belongs to: the cluster removes what belongs to it before it; see
//! <https://kubernetes.io/docs/concepts/architecture/garbage-collection/#foreground-deletion>.

use k8s_openapi::{
    api::core::v1::{ConfigMap, Namespace},
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference},
};
use kube::api::{ApiResource, DeleteParams, ListParams};
use provisioner_core::types::{ControlPlaneId, DataId};

use crate::{
    applied,
    cache::Kind,
    names,
    render::{Namespaces, Part},
};

/// The home of one data set.
#[derive(Debug, Clone)]
pub(crate) struct Home {
    name: String,
    /// The namespace that it shares with others.
    shared: Option<String>,
    /// What it holds, where that is known.
    data: Option<DataId>,
}

/// By its name alone, whether its data is known or not.
impl PartialEq for Home {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Home {
    pub(crate) fn of(namespaces: &Namespaces, control_plane: &ControlPlaneId, data: &DataId) -> Self {
        Self { data: Some(data.clone()), ..Self::named(namespaces, names::home(control_plane, data)) }
    }

    /// The one of this name, which is one of [`names::home`].
    pub(crate) fn named(namespaces: &Namespaces, name: String) -> Self {
        Self { name, shared: namespaces.shared().map(str::to_owned), data: None }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Whether an object of this kind may be the home's, by its name: of some kinds it has one alone.
    pub(crate) fn could_hold(&self, kind: Kind, name: &str) -> bool {
        match kind {
            Kind::Home => name == self.name,
            Kind::Claim => name == self.claim(),
            _ => true,
        }
    }

    /// The namespace that everything else is in.
    pub(crate) fn namespace(&self) -> &str {
        self.shared.as_deref().unwrap_or(&self.name)
    }

    /// The namespace that the home itself is in. `None`: it is one.
    pub(crate) fn scope(&self) -> Option<&str> {
        self.shared.as_deref()
    }

    pub(crate) fn is_shared(&self) -> bool {
        self.shared.is_some()
    }

    /// What the home is.
    pub(crate) fn resource(&self) -> ApiResource {
        resource(self.shared.as_deref())
    }

    /// The home itself, with these labels and annotations.
    pub(crate) fn part(&self, meta: ObjectMeta) -> Part {
        let namespace = self.shared.clone();
        let metadata = ObjectMeta { name: Some(self.name.clone()), namespace, ..meta };
        match self.shared {
            None => Part::of(&Namespace { metadata, ..Namespace::default() }),
            Some(_) => Part::of(&ConfigMap { metadata, ..ConfigMap::default() }),
        }
    }

    /// What an operator calls it.
    pub(crate) fn word(&self) -> &'static str {
        if self.is_shared() { "config map" } else { "namespace" }
    }

    /// The name of the claim.
    pub(crate) fn claim(&self) -> &str {
        if self.is_shared() { &self.name } else { "data" }
    }

    /// The name of the secret that holds the certificate of its host names.
    pub(crate) fn certificate(&self) -> String {
        if self.is_shared() { format!("{}-tls", self.name) } else { "tls".to_owned() }
    }

    /// How it is removed so that it is gone last.
    pub(crate) fn removal(&self) -> DeleteParams {
        // A namespace is emptied before it goes, whatever is asked for.
        if self.is_shared() { DeleteParams::foreground() } else { DeleteParams::background() }
    }

    /// What tells the objects of the home from others in its namespace: their data, as they are known here or the home itself
    /// names them. `None`: nothing does.
    pub(crate) fn selector(&self, found: Option<&ObjectMeta>) -> Option<ListParams> {
        if !self.is_shared() {
            return Some(ListParams::default());
        }
        let said = found.and_then(|found| {
            applied::noted_labels(found)
                .remove(names::DATA)
                .or_else(|| found.labels.as_ref()?.get(names::DATA).cloned())
        });
        let data = self.data.as_ref().map(ToString::to_string).or(said)?;
        Some(ListParams::default().labels(&format!("{}={data}", names::DATA)))
    }

    /// What says of an object that it belongs to the home with this uid, where its namespace does not.
    pub(crate) fn owners(&self, uid: &str) -> Option<Vec<OwnerReference>> {
        let resource = self.resource();
        self.is_shared().then(|| {
            vec![OwnerReference {
                api_version: resource.api_version,
                kind: resource.kind,
                name: self.name.clone(),
                uid: uid.to_owned(),
                // It waits for this object.
                block_owner_deletion: Some(true),
                controller: None,
            }]
        })
    }
}

impl Namespaces {
    /// The kind of what stands for data sets.
    pub(crate) fn home_kind(&self) -> ApiResource {
        resource(self.shared())
    }
}

fn resource(shared: Option<&str>) -> ApiResource {
    match shared {
        None => ApiResource::erase::<Namespace>(&()),
        Some(_) => ApiResource::erase::<ConfigMap>(&()),
    }
}
