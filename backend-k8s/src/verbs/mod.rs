//! What each verb writes, request by request. Every one of them may be repeated, and may be the last one before a crash.

mod claim;
mod home;
mod parts;
mod remove;
mod rest;
mod run;
mod set;

use std::sync::OnceLock;

use k8s_openapi::{
    api::core::v1::{Service, ServiceAccount},
    apimachinery::pkg::apis::meta::v1::OwnerReference,
};
use kube::{
    Resource,
    api::{ApiResource, DynamicObject},
};
use provisioner_core::{
    Error, ErrorKind, Result, Retry,
    secret::SecretString,
    types::{Generation, Incarnation, VariableName},
};
use serde_json::{Value, json};

pub(crate) use self::remove::delete_data;
use crate::{
    applied,
    cache::{Awaited, Cache, Kind, SetDigest, Space, version_of},
    client::Calls,
    error::Failure,
    home::Home,
    names,
    render::{Layout, Objects, Part, Subject},
};

/// How often an update looks again because another one came in between.
const OVERTAKEN_MAX: usize = 32;

/// The secrets of a target, as the context resolved them.
type Secrets = Vec<(VariableName, SecretString)>;

/// One verb on one target.
pub(crate) struct Work<'a> {
    pub(crate) calls: Calls<'a>,
    pub(crate) cache: &'a Cache,
    pub(crate) home: &'a Home,
    /// The uid of the home, once it is known. Before that nothing is rendered as belonging to it, and nothing may be written.
    pub(crate) home_uid: OnceLock<Box<str>>,
    pub(crate) subject: Subject<'a>,
    pub(crate) layout: &'a dyn Layout,
}

fn resource<K: Resource<DynamicType = ()>>() -> ApiResource {
    ApiResource::erase::<K>(&())
}

impl Work<'_> {
    fn incarnation(&self) -> Incarnation {
        self.subject.target.incarnation
    }

    fn name(&self) -> String {
        let target = self.subject.target;
        names::making(self.subject.control_plane, &target.id, target.incarnation)
    }

    /// What it is made of, with the notes that tell later whether it is still so. The set says how many routes are to be
    /// there: nothing else would tell that one is missing.
    fn objects(&self) -> Objects {
        let mut objects = self.layout.objects(&self.subject);
        let generation = self.subject.target.generation;
        let labels = objects.set.metadata.labels.clone().unwrap_or_default();
        for part in objects.before.iter_mut().chain(&mut objects.after).chain(&mut objects.routes) {
            for (key, value) in &labels {
                part.body["metadata"]["labels"][key] = Value::String(value.clone());
            }
            self.attach(part);
            if Kind::of(&part.resource).is_some() {
                applied::note(part, generation);
            }
        }
        let owners = self.owner_references();
        objects.set.metadata.owner_references.clone_from(&owners);
        objects.claim.metadata.owner_references = owners;
        let watched = |parts: &[Part]| parts.iter().filter(|part| Kind::of(&part.resource).is_some()).count();
        let parts = watched(&objects.before) + watched(&objects.after);
        let routes = watched(&objects.routes);
        let annotations = objects.set.metadata.annotations.get_or_insert_default();
        annotations.insert(names::ENDPOINT.to_owned(), objects.endpoint.clone());
        annotations.insert(names::PARTS.to_owned(), parts.to_string());
        annotations.insert(names::ROUTES.to_owned(), routes.to_string());
        annotations.insert(names::WRITTEN.to_owned(), "1".to_owned());
        applied::note_marks(&mut objects.set.metadata, &names::CHANGING);
        let size = self.subject.target.spec.data.size_mib.to_string();
        objects.claim.metadata.annotations.get_or_insert_default().insert(names::SIZE.to_owned(), size);
        applied::note_marks(&mut objects.claim.metadata, &[]);
        applied::note_labels(&mut objects.home);
        objects
    }

    fn owner_references(&self) -> Option<Vec<OwnerReference>> {
        self.home_uid.get().and_then(|uid| self.home.owners(uid))
    }

    /// Has an object belong to the home, where its namespace does not say that.
    fn attach(&self, part: &mut Part) {
        if let Some(owners) = self.owner_references() {
            part.body["metadata"]["ownerReferences"] = json!(owners);
        }
    }

    fn conflict(&self, field: &str, message: impl Into<String>) -> Error {
        self.calls.error(ErrorKind::Conflict).with_field(field).with_message(message)
    }

    /// Somebody else was faster: nothing is wrong, and what is there has to be looked at again.
    fn overtaken(&self) -> Error {
        let message = "it changed at the same moment";
        self.calls.error(ErrorKind::Conflict).with_retry(Retry::Backoff).with_message(message)
    }

    fn written(&self, failure: Failure) -> Error {
        if failure.is_overtaken() { self.overtaken() } else { self.calls.writing(failure) }
    }

    /// Notes what was written, as the cluster answered it.
    fn note(&self, kind: Kind, object: &DynamicObject) {
        self.cache.await_written(self.home, Awaited::Version(kind, version_of(&object.metadata)));
    }

    fn check_generation(&self, set: Option<&SetDigest>) -> Result<()> {
        set.map_or(Ok(()), |set| self.check_overtaken(set.generation))
    }

    fn check_overtaken(&self, found: Generation) -> Result<()> {
        let wanted = self.subject.target.generation;
        if found > wanted {
            return Err(self.conflict("generation", format!("{wanted}: it is at {found} already")));
        }
        Ok(())
    }
}

impl Kind {
    /// The kind of a rendered part, if it is one that is watched.
    fn of(resource: &ApiResource) -> Option<Self> {
        let is_it = |kind: ApiResource| (&kind.group, &kind.kind) == (&resource.group, &resource.kind);
        Self::PARTS.into_iter().chain([Self::Ingress]).find(|kind| kind.resource().is_some_and(is_it))
    }

    /// What a part of this kind is at the cluster. `None`: no part is of this kind.
    fn resource(self) -> Option<ApiResource> {
        use k8s_openapi::api::{
            core::v1::{LimitRange, ResourceQuota},
            networking::v1::{Ingress, NetworkPolicy},
        };
        match self {
            Self::Quota => Some(resource::<ResourceQuota>()),
            Self::Limits => Some(resource::<LimitRange>()),
            Self::Policy => Some(resource::<NetworkPolicy>()),
            Self::Account => Some(resource::<ServiceAccount>()),
            Self::Service => Some(resource::<Service>()),
            Self::Ingress => Some(resource::<Ingress>()),
            Self::Home | Self::Claim | Self::Set | Self::Pod | Self::Slice => None,
        }
    }
}

impl Space {
    /// The small objects of a making, by kind and name.
    fn parts_of(&self, incarnation: Incarnation) -> Vec<(ApiResource, &str)> {
        self.parts(incarnation).filter_map(|(kind, name)| Some((kind.resource()?, name))).collect()
    }
}
