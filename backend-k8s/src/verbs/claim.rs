//! The claim: the data must be there, last, and have the room that is wanted.

use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use provisioner_core::{Error, ErrorKind, Result};
use serde_json::json;

use super::{Work, resource};
use crate::{
    applied,
    cache::{HomeDigest, Kind, incarnation_of},
    client::operation,
    error::Failure,
    names,
    render::{self, Objects, Part},
};

impl Work<'_> {
    /// The data must be there. Asked at the cluster, as a start without it would not be made good by an event.
    pub(super) async fn expect_claim(&self) -> Result<PersistentVolumeClaim> {
        let claim = self.calls.get::<PersistentVolumeClaim>(Some(self.home.namespace()), self.home.claim()).await;
        let claim = claim.map_err(|failure| self.calls.reading(failure))?;
        let Some(claim) = claim else { return Err(self.data_missing("its claim is not there")) };
        if claim.metadata.deletion_timestamp.is_some() {
            return Err(self.data_missing("its claim is being removed"));
        }
        if claim.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Lost") {
            return Err(self.data_missing("its volume is gone"));
        }
        self.check_size(&claim)?;
        Ok(claim)
    }

    /// Whether there is a claim. One that is being removed goes as soon as nothing runs on it any more, so as long as something
    /// does, nothing may stop that. Asked at the cluster: no event would bring the data back.
    pub(super) async fn expect_lasting_data(&self, is_used: bool) -> Result<bool> {
        let claim = self.calls.get::<PersistentVolumeClaim>(Some(self.home.namespace()), self.home.claim()).await;
        let Some(claim) = claim.map_err(|failure| self.calls.reading(failure))? else { return Ok(false) };
        if is_used && claim.metadata.deletion_timestamp.is_some() {
            return Err(self.conflict("data", "its claim is being removed: without its pod, its data would be gone"));
        }
        Ok(true)
    }

    /// Whether a claim that is there has the room that is wanted, or can be given it.
    pub(super) fn check_size(&self, claim: &PersistentVolumeClaim) -> Result<()> {
        let wanted = self.subject.target.spec.data.size_mib;
        let asked = applied::annotation(&claim.metadata, names::SIZE).and_then(|asked| asked.parse::<u32>().ok());
        let is_own = incarnation_of(&claim.metadata) == Some(self.incarnation());
        let problem = match size_mib(claim) {
            Some(size) if u64::from(wanted) > size && !self.subject.config.volume_expansion => {
                format!("{wanted}: its volume has {size}, and its storage class cannot grow it")
            }
            // Data that is taken up may be larger than it need be.
            _ if is_own && asked.is_some_and(|asked| wanted < asked) => format!("{wanted}: a volume does not shrink"),
            _ => return Ok(()),
        };
        Err(self.conflict("data.size_mib", problem))
    }

    /// The claim as it is to be applied. Of one that is there only its size may change, and only upwards; and nothing at
    /// all of one that is fine as it is.
    pub(super) fn claim(
        &self,
        objects: &Objects,
        found: Option<&PersistentVolumeClaim>,
        is_new_making: bool,
    ) -> Option<Part> {
        let mut claim = objects.claim.clone();
        if let Some(found) = found {
            let grows = size_mib(found).is_some_and(|size| u64::from(self.subject.target.spec.data.size_mib) > size);
            let is_own = incarnation_of(&found.metadata) == Some(self.incarnation());
            if !grows && !is_new_making && is_own && applied::has_marks(&found.metadata) {
                return None;
            }
            let (spec, found) = (claim.spec.get_or_insert_default(), found.spec.as_ref());
            spec.storage_class_name = found.and_then(|found| found.storage_class_name.clone());
            if !grows {
                spec.resources = found.and_then(|found| found.resources.clone());
            }
        }
        let mut part = Part::of(&claim);
        if let Some(found) = found.filter(|_| self.home.is_shared()) {
            // Whatever has happened since, it must not be said to belong to a home that is gone: the cluster would remove it.
            part.body["metadata"]["uid"] = json!(found.metadata.uid);
            part.body["metadata"]["resourceVersion"] = json!(found.metadata.resource_version);
        }
        Some(part)
    }

    pub(super) async fn apply_claim(
        &self,
        objects: &Objects,
        found: Option<&PersistentVolumeClaim>,
        is_new_making: bool,
    ) -> Result<()> {
        let there = match found {
            // A call before may have come to it.
            None if self.home.is_shared() => {
                let there = self.calls.get(Some(self.home.namespace()), self.home.claim()).await;
                there.map_err(|failure| self.calls.reading(failure))?
            }
            _ => None,
        };
        let found = found.or(there.as_ref());
        let Some(claim) = self.claim(objects, found, is_new_making) else { return Ok(()) };
        let namespace = Some(self.home.namespace());
        let done = match found {
            None if self.home.is_shared() => self.calls.create(namespace, &claim).await,
            _ => self.calls.apply(&claim.resource, namespace, &claim.name, &claim.body).await,
        };
        let object = done.map_err(|failure| self.claim_refused(failure))?;
        self.note(Kind::Claim, &object);
        Ok(())
    }

    /// Has the claim go with the home, where somebody made it independent. Nothing is written unless the home is the one that was seen.
    pub(super) async fn attach_claim(&self, home: &HomeDigest) -> Result<()> {
        let claim = self.calls.get::<PersistentVolumeClaim>(Some(self.home.namespace()), self.home.claim()).await;
        let Some(claim) = claim.map_err(|failure| self.calls.reading(failure))? else { return Ok(()) };
        self.know_home(Some(&home.uid));
        let there = self.found_home().await?;
        let is_known = there.is_some_and(|there| {
            there.metadata.uid.as_deref() == Some(&*home.uid) && there.metadata.deletion_timestamp.is_none()
        });
        let Some(owners) = self.owner_references().filter(|_| is_known) else { return Err(self.overtaken()) };
        let patch = json!([
            operation("test", "/metadata/resourceVersion", claim.metadata.resource_version.unwrap_or_default()),
            operation("add", "/metadata/ownerReferences", json!(owners)),
        ]);
        let kind = resource::<PersistentVolumeClaim>();
        let done = self.calls.patch(&kind, Some(self.home.namespace()), self.home.claim(), patch).await;
        done.map(drop).map_err(|failure| self.written(failure))
    }

    pub(super) fn claim_refused(&self, failure: Failure) -> Error {
        if failure.is_already_there() || (self.home.is_shared() && failure.is_overtaken()) {
            return self.overtaken();
        }
        // A class that does not grow volumes refuses that as if rights were missing.
        let cannot_grow = failure.says("can be resized");
        let error = self.calls.writing(failure);
        match error.kind() {
            ErrorKind::Unauthorized if cannot_grow => self.conflict("data.size_mib", error.to_string()),
            ErrorKind::InvalidSpec => self.conflict("data.size_mib", error.to_string()),
            _ => error,
        }
    }
}

/// How much a claim asks for.
fn size_mib(claim: &PersistentVolumeClaim) -> Option<u64> {
    let requests = claim.spec.as_ref()?.resources.as_ref()?.requests.as_ref()?;
    render::mib_of(requests.get("storage")?)
}
