//! The stateful set. It is made only if it is absent, and changed by patches that test what was seen.

use k8s_openapi::api::apps::v1::StatefulSet;
use provisioner_core::{ErrorKind, Result};
use serde_json::{Value, json};

use super::{OVERTAKEN_MAX, Work, resource};
use crate::{
    applied,
    cache::{Awaited, Intended, Kind, SetDigest, is_told, version_of},
    client::{operation, path_of},
    error::Failure,
    names,
    render::{Objects, Part},
};

impl Work<'_> {
    /// Whether a set is the one that a verb that runs would make of it.
    pub(super) fn is_as_wanted(&self, set: &SetDigest) -> bool {
        let is_running = set.intended == Intended::Running && set.replicas == 1;
        set.generation == self.subject.target.generation && !set.is_foreign && is_running
    }

    /// What the cluster has under our name, whatever is written on it.
    pub(super) async fn found_set(&self) -> Result<Option<StatefulSet>> {
        let found = self.calls.get::<StatefulSet>(Some(self.home.namespace()), &self.name()).await;
        found.map_err(|failure| self.calls.reading(failure))
    }

    /// Whether watches tell of a set as one of ours.
    pub(super) fn is_told(&self, set: &StatefulSet) -> bool {
        let is_ours = SetDigest::of(set).is_some_and(|set| set.incarnation == self.incarnation());
        is_ours && is_told(self.subject.control_plane, &set.metadata, self.home.name())
    }

    /// Made, not applied: a call that comes late must not change what a newer one has made meanwhile.
    pub(super) async fn make_set(&self, objects: &Objects) -> Result<()> {
        match self.calls.create(Some(self.home.namespace()), &Part::of(&objects.set)).await {
            Ok(object) => {
                self.note(Kind::Set, &object);
                Ok(())
            }
            Err(failure) if failure.is_already_there() => {
                let found = self.found_set().await?;
                match found.as_ref().map(|found| (found, SetDigest::of(found))) {
                    Some((_, Some(set))) if set.is_ending => Err(self.overtaken()),
                    Some((_, Some(set))) => {
                        self.check_generation(Some(&set))?;
                        self.update_set(&set, objects).await
                    }
                    // Somebody took its labels or annotations away.
                    Some((found, None)) => self.retake_set(found, objects).await,
                    None => Err(self.overtaken()),
                }
            }
            Err(failure) => Err(self.calls.writing(failure)),
        }
    }

    /// Makes a set of our name, which cannot be told for ours any more, what it should be. As far as it still says its
    /// generation, a newer one is left alone.
    pub(super) async fn retake_set(&self, found: &StatefulSet, objects: &Objects) -> Result<()> {
        if found.metadata.deletion_timestamp.is_some() {
            return Err(self.overtaken());
        }
        self.check_overtaken(applied::generation(&found.metadata))?;
        let mut body = serde_json::to_value(&objects.set).expect("an object of Kubernetes serializes");
        let edits = found.metadata.generation.unwrap_or_default() + 1;
        body["metadata"]["annotations"][names::WRITTEN] = Value::String(edits.to_string());
        let version = found.metadata.resource_version.as_deref().unwrap_or_default();
        let mut patch = vec![
            operation("test", "/metadata/resourceVersion", version),
            operation("add", "/metadata/annotations", body["metadata"]["annotations"].clone()),
            operation("add", "/metadata/labels", body["metadata"]["labels"].clone()),
            operation("replace", "/spec", body["spec"].clone()),
        ];
        patch.extend(self.attachment());
        self.patch_set(Value::Array(patch)).await
    }

    /// Has the set belong to the home again. Only where what was seen of it did not, or nobody knows.
    pub(super) fn attachment(&self) -> Option<Value> {
        self.owner_references().map(|owners| operation("add", "/metadata/ownerReferences", json!(owners)))
    }

    /// Replaces whatever is there, unless it is newer. Each time that somebody else was faster, it is newer than it was.
    pub(super) async fn update_set(&self, set: &SetDigest, objects: &Objects) -> Result<()> {
        let mut seen = set.clone();
        for _ in 0..OVERTAKEN_MAX {
            if seen.has_other_marks {
                // What is on it is no test of what was seen.
                return match self.found_set().await? {
                    Some(found) => self.retake_set(&found, objects).await,
                    None => Err(self.overtaken()),
                };
            }
            match self.replace_set(&seen, objects).await {
                Err(error) if error.kind() == ErrorKind::Conflict => {}
                done => return done,
            }
            let found = self.found_set().await?;
            let version = found.as_ref().map(|found| version_of(&found.metadata)).unwrap_or_default();
            let Some(found) = found.as_ref().and_then(SetDigest::of) else { break };
            self.check_generation(Some(&found))?;
            if found.is_ending || (found.generation, found.edits) == (seen.generation, seen.edits) {
                break;
            }
            if self.is_as_wanted(&found) {
                self.cache.await_written(self.home, Awaited::Version(Kind::Set, version));
                return Ok(());
            }
            seen = found;
        }
        Err(self.overtaken())
    }

    /// With all of its spec: what somebody else added goes, and what they took away comes back.
    pub(super) async fn replace_set(&self, seen: &SetDigest, objects: &Objects) -> Result<()> {
        let mut body = serde_json::to_value(&objects.set).expect("an object of Kubernetes serializes");
        body["metadata"]["annotations"][names::WRITTEN] = edits_after(seen, true);
        let patch = json!([
            operation("test", "/metadata/uid", &*seen.uid),
            operation("test", &path_of("annotations", names::GENERATION), seen.generation.0.to_string()),
            operation("test", "/metadata/generation", seen.edits),
            operation("replace", "/metadata/annotations", body["metadata"]["annotations"].clone()),
            operation("replace", "/metadata/labels", body["metadata"]["labels"].clone()),
            operation("replace", "/spec", body["spec"].clone()),
        ]);
        self.patch_set(patch).await
    }

    pub(super) async fn patch_set(&self, patch: Value) -> Result<()> {
        let set = resource::<StatefulSet>();
        let done = self.calls.patch(&set, Some(self.home.namespace()), &self.name(), patch).await;
        let mut object = done.map_err(|failure| self.written(failure))?;
        let annotations = object.metadata.annotations.as_ref();
        let written = annotations.and_then(|annotations| annotations.get(names::WRITTEN)?.parse::<i64>().ok());
        if let (Some(edits), Some(written)) = (object.metadata.generation, written)
            && written > edits
        {
            // It was as it should be already. Left so, the next change by somebody else would pass for ours. If that has come
            // already, nothing is said to be ours.
            let version = object.metadata.resource_version.clone().unwrap_or_default();
            let path = path_of("annotations", names::WRITTEN);
            let corrected = json!([
                operation("test", "/metadata/resourceVersion", version),
                operation("replace", &path, edits.to_string()),
            ]);
            let mut done = self.calls.patch(&set, Some(self.home.namespace()), &self.name(), corrected).await;
            if done.as_ref().is_err_and(Failure::is_overtaken) {
                let unknown = json!([operation("replace", &path, "0")]);
                done = self.calls.patch(&set, Some(self.home.namespace()), &self.name(), unknown).await;
            }
            object = done.map_err(|failure| self.written(failure))?;
        }
        self.note(Kind::Set, &object);
        Ok(())
    }
}

/// How often the spec of a set will have been changed after one more write of ours. Where somebody else writes at the same
/// moment, that is one too few, and their change is seen.
pub(super) fn edits_after(set: &SetDigest, changes_spec: bool) -> Value {
    Value::String((set.edits + i64::from(changes_spec)).to_string())
}
