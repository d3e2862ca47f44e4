//! What each verb writes, request by request. Every one of them may be repeated, and may be the last one before a crash.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::{
        apps::v1::StatefulSet,
        core::v1::{Namespace, PersistentVolumeClaim, Pod, Secret, Service, ServiceAccount},
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{
    Resource,
    api::{ApiResource, DynamicObject},
};
use provisioner_core::{
    Effect, Error, ErrorKind, Result, Retry,
    secret::SecretString,
    types::{DataDisposition, DataSource, Generation, Incarnation, VariableName},
};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::{
    applied,
    cache::{Awaited, Cache, Intended, Kind, NamespaceDigest, SetDigest, Space, compare, incarnation_of, version_of},
    client::{Calls, operation, path_of},
    convert,
    error::Failure,
    names,
    render::{self, Layout, Objects, Part, Subject},
};

/// How often an update looks again because another one came in between.
const OVERTAKEN_MAX: usize = 32;

/// The secrets of a target, as the context resolved them.
type Secrets = Vec<(VariableName, SecretString)>;

/// One verb on one target.
pub(crate) struct Work<'a> {
    pub(crate) calls: Calls<'a>,
    pub(crate) cache: &'a Cache,
    pub(crate) namespace: &'a str,
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
        let is_watched = |part: &&mut Part| Kind::of(&part.resource).is_some();
        let parts = objects.before.iter_mut().chain(&mut objects.after).chain(&mut objects.routes);
        for part in parts.filter(is_watched) {
            for (key, value) in &labels {
                part.body["metadata"]["labels"][key] = Value::String(value.clone());
            }
            applied::note(part, generation);
        }
        let watched = |parts: &[Part]| parts.iter().filter(|part| Kind::of(&part.resource).is_some()).count();
        let parts = watched(&objects.before) + watched(&objects.after);
        let routes = watched(&objects.routes);
        let annotations = objects.set.metadata.annotations.get_or_insert_default();
        annotations.insert(names::ENDPOINT.to_owned(), objects.endpoint.clone());
        annotations.insert(names::PARTS.to_owned(), parts.to_string());
        annotations.insert(names::ROUTES.to_owned(), routes.to_string());
        annotations.insert(names::WRITTEN.to_owned(), "1".to_owned());
        let size = self.subject.target.spec.data.size_mib.to_string();
        objects.claim.metadata.annotations.get_or_insert_default().insert(names::SIZE.to_owned(), size);
        applied::note_labels(&mut objects.namespace);
        objects
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
        self.cache.await_written(self.namespace, Awaited::Version(kind, version_of(&object.metadata)));
    }

    // Running

    /// `create`, and `resume` without the making. `false`: there is nothing to wake.
    pub(crate) async fn run(&self, space: Option<Space>, make: bool) -> Result<bool> {
        let existing = matches!(self.subject.target.data, DataSource::Existing(_));
        self.keep_namespace(space.as_ref(), existing).await?;
        let space = space.filter(|space| space.namespace.is_some());
        let Some(space) = space else {
            if !make {
                return Ok(false);
            }
            if existing {
                return Err(self.data_missing("its namespace is not there"));
            }
            let (objects, secrets) = (self.objects(), self.secrets().await?);
            self.make_namespace(&objects).await?;
            return self.converge(None, None, None, &objects, &secrets).await.map(|()| true);
        };
        let namespace = space.namespace.as_ref().expect("it was filtered by that");
        if namespace.is_ending {
            let is_ours = namespace.incarnation == self.incarnation();
            return match (make, existing) {
                (false, _) if !is_ours => Ok(false),
                (_, true) => Err(self.data_missing("its namespace is being removed")),
                _ => Err(self.overtaken().with_message("its namespace is being removed")),
            };
        }
        if *namespace.tenant != *self.subject.target.tenant.digest() {
            return Err(self.conflict("data", "it is another tenant's"));
        }
        let set = space.set_of(self.incarnation());
        if let Some(other) = space.sets.iter().find(|set| set.incarnation != self.incarnation()) {
            return Err(self.conflict("data", format!("the making {} uses it", other.incarnation)));
        }
        let is_user = namespace.incarnation == self.incarnation() && namespace.released.is_none();
        if !make && (set.is_none() || !is_user) {
            return Ok(false);
        }
        self.check_generation(set)?;
        let claim = if existing || set.is_some() { Some(self.expect_claim().await?) } else { None };
        let is_up_to_date = is_user && set.is_some_and(|set| self.is_up_to_date(set, &space));
        if is_up_to_date && set.is_some_and(|set| set.intended == Intended::Running && set.replicas > 0) {
            return self.try_again(&space).await.map(|()| true);
        }
        let (objects, secrets) = (self.objects(), self.secrets().await?);
        if !is_user {
            self.take_over(namespace, &space).await?;
        }
        match set {
            Some(set) if is_up_to_date => self.wake(set, &space, &objects, &secrets).await,
            set => self.converge(set, claim.as_ref(), Some(&space), &objects, &secrets).await,
        }
        .map(|()| true)
    }

    /// Gives a namespace its labels back that somebody took away or changed: without them nobody sees that it is there. What
    /// is done next begins with another look.
    async fn keep_namespace(&self, space: Option<&Space>, is_wanted: bool) -> Result<()> {
        let known = space.and_then(|space| space.namespace.as_ref());
        let is_in_use = space.is_some_and(|space| space.claim.is_some() || space.has_any(self.incarnation()));
        if known.is_some_and(|known| !known.is_foreign || known.is_ending)
            || (known.is_none() && !is_in_use && !is_wanted)
        {
            return Ok(());
        }
        let found = self.calls.get::<Namespace>(None, self.namespace).await;
        let Some(found) = found.map_err(|failure| self.calls.reading(failure))? else { return Ok(()) };
        if found.metadata.deletion_timestamp.is_some() {
            return Ok(());
        }
        let has = found.metadata.labels.clone().unwrap_or_default();
        let tenant = self.subject.target.tenant.digest();
        // Whose it is tells its claim, where its own label does not.
        let is_ours = |labels: &BTreeMap<String, String>| {
            labels.get(names::DATA).is_some_and(|data| *data == self.subject.target.data.id().as_str())
                && labels.get(names::TENANT).is_none_or(|found| *found == tenant)
        };
        if known.is_none() && !is_ours(&has) {
            let claim = self.calls.get::<PersistentVolumeClaim>(Some(self.namespace), names::CLAIM).await;
            let claim = claim.map_err(|failure| self.calls.reading(failure))?;
            if !claim.and_then(|claim| claim.metadata.labels).is_some_and(|labels| is_ours(&labels)) {
                return Ok(());
            }
        }
        let rendered = self.objects().namespace.metadata;
        let (mut labels, mut annotations) = (has, found.metadata.annotations.unwrap_or_default());
        for (key, value) in rendered.labels.unwrap_or_default() {
            // Who used it last is not for this to say.
            let is_last_user = [names::INSTANCE, names::INCARNATION].contains(&key.as_str());
            if !(is_last_user && labels.contains_key(&key)) {
                labels.insert(key, value);
            }
        }
        annotations.extend(rendered.annotations.unwrap_or_default());
        let patch = json!([
            operation("test", "/metadata/uid", found.metadata.uid.unwrap_or_default()),
            operation("test", "/metadata/resourceVersion", found.metadata.resource_version.unwrap_or_default()),
            operation("add", "/metadata/labels", json!(labels)),
            operation("add", "/metadata/annotations", json!(annotations)),
        ]);
        let done = self.calls.patch(&resource::<Namespace>(), None, self.namespace, patch).await;
        let object = done.map_err(|failure| self.written(failure))?;
        self.note(Kind::Namespace, &object);
        Err(self.overtaken().with_message("its namespace had lost its labels, and has them again"))
    }

    /// Resolved before anything is written: without them nothing is made.
    async fn secrets(&self) -> Result<Secrets> {
        let resolved = self.calls.cx.resolve_secrets(self.calls.during.operation, self.subject.target).await;
        resolved.map_err(|error| self.calls.heeding(error))
    }

    fn data_missing(&self, message: &str) -> Error {
        self.calls.error(ErrorKind::DataMissing).with_message(message)
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

    /// The data must be there. Asked at the cluster, as a start without it would not be made good by an event.
    async fn expect_claim(&self) -> Result<PersistentVolumeClaim> {
        let claim = self.calls.get::<PersistentVolumeClaim>(Some(self.namespace), names::CLAIM).await;
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

    /// Whether a claim that is there has the room that is wanted, or can be given it.
    fn check_size(&self, claim: &PersistentVolumeClaim) -> Result<()> {
        let wanted = self.subject.target.spec.data.size_mib;
        let asked = claim.metadata.annotations.as_ref().and_then(|noted| noted.get(names::SIZE)?.parse::<u32>().ok());
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
    fn claim(&self, objects: &Objects, found: Option<&PersistentVolumeClaim>, is_new_making: bool) -> Option<Part> {
        let mut claim = objects.claim.clone();
        if let Some(found) = found {
            let grows = size_mib(found).is_some_and(|size| u64::from(self.subject.target.spec.data.size_mib) > size);
            let labels = |meta: &ObjectMeta| meta.labels.clone().unwrap_or_default();
            let (has, wants) = (labels(&found.metadata), labels(&claim.metadata));
            let is_labelled = wants.iter().all(|(key, value)| has.get(key) == Some(value));
            if !grows && !is_new_making && is_labelled {
                return None;
            }
            let (spec, found) = (claim.spec.get_or_insert_default(), found.spec.as_ref());
            spec.storage_class_name = found.and_then(|found| found.storage_class_name.clone());
            if !grows {
                spec.resources = found.and_then(|found| found.resources.clone());
            }
        }
        Some(Part::of(&claim))
    }

    async fn make_namespace(&self, objects: &Objects) -> Result<()> {
        match self.calls.create(&objects.namespace).await {
            Ok(object) => {
                self.note(Kind::Namespace, &object);
                Ok(())
            }
            Err(failure) if failure.is_already_there() => self.expect_own_namespace().await,
            Err(failure) => Err(self.calls.writing(failure)),
        }
    }

    /// Somebody made it before: this making, by a call that was cut, or another one.
    async fn expect_own_namespace(&self) -> Result<()> {
        let found = self.calls.get::<Namespace>(None, self.namespace).await;
        let found = found.map_err(|failure| self.calls.reading(failure))?;
        let found = found.as_ref().and_then(NamespaceDigest::of);
        match found {
            Some(found) if found.is_ending => Err(self.overtaken()),
            Some(found) if found.incarnation == self.incarnation() && found.released.is_none() => Ok(()),
            Some(_) => Err(self.overtaken()),
            None => Err(self.conflict("data", format!("the namespace {} is somebody else's", self.namespace))),
        }
    }

    /// Gives data that nobody uses to this making, and removes what is left of the one before.
    async fn take_over(&self, before: &NamespaceDigest, space: &Space) -> Result<()> {
        let incarnation = path_of("labels", names::INCARNATION);
        let mut patch = vec![
            operation("test", &incarnation, before.incarnation.to_string()),
            operation("replace", &incarnation, self.incarnation().to_string()),
            operation("replace", &path_of("labels", names::INSTANCE), self.subject.target.id.as_str()),
        ];
        if before.released.is_some() {
            patch.push(json!({"op": "remove", "path": path_of("annotations", names::RELEASED)}));
        }
        let done = self.calls.patch(&resource::<Namespace>(), None, self.namespace, Value::Array(patch)).await;
        let object = done.map_err(|failure| self.written(failure))?;
        self.note(Kind::Namespace, &object);
        if before.incarnation != self.incarnation() {
            for (resource, name) in space.parts_of(before.incarnation) {
                let done = self.calls.delete(&resource, Some(self.namespace), name, None).await;
                done.map_err(|failure| self.calls.writing(failure))?;
            }
            let of_before = format!("{}={}", names::INCARNATION, before.incarnation);
            let done = self.calls.delete_all::<Secret>(self.namespace, &of_before).await;
            done.map_err(|failure| self.calls.writing(failure))?;
        }
        Ok(())
    }

    fn is_up_to_date(&self, set: &SetDigest, space: &Space) -> bool {
        let is_kept = convert::is_kept(space);
        set.generation == self.subject.target.generation && !set.is_foreign && is_kept && space.is_whole(set)
    }

    /// Whether a set is the one that a verb that runs would make of it.
    fn is_as_wanted(&self, set: &SetDigest) -> bool {
        let is_running = set.intended == Intended::Running && set.replicas == 1;
        set.generation == self.subject.target.generation && !set.is_foreign && is_running
    }

    /// Nothing but its sleep has to end.
    async fn wake(&self, set: &SetDigest, space: &Space, objects: &Objects, secrets: &Secrets) -> Result<()> {
        // Nobody watches secrets: it may have been deleted meanwhile.
        self.apply_environment(secrets).await?;
        // Also what is seen to be there: it may be on its way out, by a suspension that is over.
        self.apply_all(&objects.routes, Some(space)).await?;
        let generation = path_of("annotations", names::GENERATION);
        let patch = json!([
            operation("test", &generation, set.generation.0.to_string()),
            operation("replace", &path_of("annotations", names::INTENDED), Intended::Running.as_str()),
            operation("replace", &path_of("annotations", names::WRITTEN), written(set, set.replicas != 1)),
            operation("replace", "/spec/replicas", 1),
        ]);
        self.patch_set(patch).await
    }

    async fn patch_set(&self, patch: Value) -> Result<()> {
        let set = resource::<StatefulSet>();
        let done = self.calls.patch(&set, Some(self.namespace), &self.name(), patch).await;
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
            let mut done = self.calls.patch(&set, Some(self.namespace), &self.name(), corrected).await;
            if done.as_ref().is_err_and(Failure::is_overtaken) {
                let unknown = json!([operation("replace", &path, "0")]);
                done = self.calls.patch(&set, Some(self.namespace), &self.name(), unknown).await;
            }
            object = done.map_err(|failure| self.written(failure))?;
        }
        self.note(Kind::Set, &object);
        Ok(())
    }

    /// What failed to start is tried from the beginning: the cluster's own next try may be minutes away.
    async fn try_again(&self, space: &Space) -> Result<()> {
        let failed = |pod: &&crate::cache::PodDigest| pod.trouble.as_ref().is_some_and(|trouble| trouble.is_failure);
        let failed: Vec<_> = space.pods_of(self.incarnation()).filter(|pod| !pod.is_ending).filter(failed).collect();
        if !failed.is_empty() {
            // It may be what is missing.
            self.apply_environment(&self.secrets().await?).await?;
        }
        for pod in failed {
            let done = self.calls.delete(&resource::<Pod>(), Some(self.namespace), &pod.name, Some(&pod.uid)).await;
            match done {
                Err(failure) if !failure.is_overtaken() => return Err(self.calls.writing(failure)),
                _ => {}
            }
        }
        Ok(())
    }

    /// Makes everything as the target says, in the order in which one thing needs another.
    async fn converge(
        &self,
        set: Option<&SetDigest>,
        claim: Option<&PersistentVolumeClaim>,
        space: Option<&Space>,
        objects: &Objects,
        secrets: &Secrets,
    ) -> Result<()> {
        if set.is_some() {
            // What it is refused for is refused before anything else is changed.
            self.apply_claim(objects, claim, false).await?;
        }
        self.apply_all(&objects.before, space).await?;
        self.apply_environment(secrets).await?;
        if set.is_none() {
            self.apply_claim(objects, claim, true).await?;
        }
        match set {
            None => self.make_set(objects).await?,
            Some(set) => self.update_set(set, objects).await?,
        }
        self.apply_all(&objects.after, space).await?;
        self.apply_all(&objects.routes, space).await?;
        if set.is_some() {
            // A name that is somebody else's by now must not lead here any more.
            self.drop_routes_but(&objects.routes).await?;
        }
        match set {
            Some(_) => self.drop_environments().await,
            None => Ok(()),
        }
    }

    async fn apply_claim(
        &self,
        objects: &Objects,
        found: Option<&PersistentVolumeClaim>,
        is_new_making: bool,
    ) -> Result<()> {
        let Some(claim) = self.claim(objects, found, is_new_making) else { return Ok(()) };
        let done = self.calls.apply(&claim.resource, Some(self.namespace), &claim.name, &claim.body).await;
        let object = done.map_err(|failure| self.claim_refused(failure))?;
        self.note(Kind::Claim, &object);
        Ok(())
    }

    fn claim_refused(&self, failure: Failure) -> Error {
        // A class that does not grow volumes refuses that as if rights were missing.
        let cannot_grow = failure.says("can be resized");
        let error = self.calls.writing(failure);
        match error.kind() {
            ErrorKind::Unauthorized if cannot_grow => self.conflict("data.size_mib", error.to_string()),
            ErrorKind::InvalidSpec => self.conflict("data.size_mib", error.to_string()),
            _ => error,
        }
    }

    async fn apply_all(&self, parts: &[Part], space: Option<&Space>) -> Result<()> {
        for part in parts {
            self.apply_part(part, space).await?;
        }
        Ok(())
    }

    /// Applies what is there only as what was seen of it, and unless that is newer: a call that comes late must not change
    /// what a newer one has made meanwhile.
    async fn apply_part(&self, part: &Part, space: Option<&Space>) -> Result<()> {
        let kind = Kind::of(&part.resource);
        let mut seen = space.zip(kind).and_then(|(space, kind)| space.part(kind, &part.name));
        for _ in 0..OVERTAKEN_MAX {
            let mut body = part.body.clone();
            if let Some((generation, version)) = seen {
                self.check_overtaken(generation)?;
                body["metadata"]["resourceVersion"] = Value::String(version.to_string());
            }
            match self.calls.apply(&part.resource, Some(self.namespace), &part.name, &body).await {
                Ok(object) => {
                    if let Some(kind) = kind {
                        self.note(kind, &object);
                    }
                    return Ok(());
                }
                Err(failure) if failure.is_overtaken() || (seen.is_some() && failure.is_not_found()) => {}
                Err(failure) => return Err(self.calls.writing(failure)),
            }
            let found = self.calls.find(&part.resource, self.namespace, &part.name).await;
            let found = found.map_err(|failure| self.calls.reading(failure))?;
            seen = found.map(|found| (applied::generation(&found.metadata), version_of(&found.metadata)));
        }
        Err(self.overtaken())
    }

    async fn apply_environment(&self, secrets: &Secrets) -> Result<()> {
        let secret = Part::of(&render::environment(&self.subject, secrets));
        let done = self.calls.apply(&secret.resource, Some(self.namespace), &secret.name, &secret.body).await;
        done.map(drop).map_err(|failure| self.calls.writing(failure))
    }

    /// Removes the environments of other generations, also those that a call before did not come to.
    async fn drop_environments(&self) -> Result<()> {
        let generation = self.subject.target.generation.0;
        let labels = format!("{}={},{}!={generation}", names::INCARNATION, self.incarnation(), names::GENERATION);
        let done = self.calls.delete_all::<Secret>(self.namespace, &labels).await;
        done.map_err(|failure| self.calls.writing(failure))
    }

    /// Made, not applied: a call that comes late must not change what a newer one has made meanwhile.
    async fn make_set(&self, objects: &Objects) -> Result<()> {
        match self.calls.create(&objects.set).await {
            Ok(object) => {
                self.note(Kind::Set, &object);
                Ok(())
            }
            Err(failure) if failure.is_already_there() => {
                let found = self.calls.get::<StatefulSet>(Some(self.namespace), &self.name()).await;
                let found = found.map_err(|failure| self.calls.reading(failure))?;
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

    /// Makes a set of our name, which cannot be told for ours any more, what it should be.
    async fn retake_set(&self, found: &StatefulSet, objects: &Objects) -> Result<()> {
        let mut body = serde_json::to_value(&objects.set).expect("an object of Kubernetes serializes");
        let edits = found.metadata.generation.unwrap_or_default() + 1;
        body["metadata"]["annotations"][names::WRITTEN] = Value::String(edits.to_string());
        let version = found.metadata.resource_version.as_deref().unwrap_or_default();
        self.patch_set(json!([
            operation("test", "/metadata/resourceVersion", version),
            operation("add", "/metadata/annotations", body["metadata"]["annotations"].clone()),
            operation("add", "/metadata/labels", body["metadata"]["labels"].clone()),
            operation("replace", "/spec", body["spec"].clone()),
        ]))
        .await
    }

    /// Replaces whatever is there, unless it is newer. Each time that somebody else was faster, it is newer than it was.
    async fn update_set(&self, set: &SetDigest, objects: &Objects) -> Result<()> {
        let mut seen = set.clone();
        for _ in 0..OVERTAKEN_MAX {
            match self.replace_set(&seen, objects).await {
                Err(error) if error.kind() == ErrorKind::Conflict => {}
                done => return done,
            }
            let found = self.calls.get::<StatefulSet>(Some(self.namespace), &self.name()).await;
            let found = found.map_err(|failure| self.calls.reading(failure))?;
            let version = found.as_ref().map(|found| version_of(&found.metadata)).unwrap_or_default();
            let Some(found) = found.as_ref().and_then(SetDigest::of) else { break };
            self.check_generation(Some(&found))?;
            if found.is_ending || (found.generation, found.edits) == (seen.generation, seen.edits) {
                break;
            }
            if self.is_as_wanted(&found) {
                self.cache.await_written(self.namespace, Awaited::Version(Kind::Set, version));
                return Ok(());
            }
            seen = found;
        }
        Err(self.overtaken())
    }

    /// With all of its spec: what somebody else added goes, and what they took away comes back.
    async fn replace_set(&self, seen: &SetDigest, objects: &Objects) -> Result<()> {
        let mut body = serde_json::to_value(&objects.set).expect("an object of Kubernetes serializes");
        body["metadata"]["annotations"][names::WRITTEN] = written(seen, true);
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

    // Resting

    pub(crate) async fn rest(&self, space: Option<Space>, intended: Intended) -> Result<()> {
        let Some(space) = space else { return Ok(()) };
        self.keep_namespace(Some(&space), false).await?;
        let Some(namespace) = &space.namespace else { return Ok(()) };
        let Some(set) = space.set_of(self.incarnation()) else { return Ok(()) };
        if namespace.is_ending || set.is_ending || namespace.released == Some(self.incarnation()) {
            return Ok(());
        }
        if set.replicas != 0 {
            self.expect_lasting_data(&space)?;
        }
        if set.intended != intended || set.replicas != 0 {
            let mut patch = vec![
                operation("test", "/metadata/uid", &*set.uid),
                operation("replace", &path_of("annotations", names::INTENDED), intended.as_str()),
                operation("replace", "/spec/replicas", 0),
            ];
            // What somebody else changed stays known for that.
            if !set.is_foreign {
                patch.push(operation(
                    "replace",
                    &path_of("annotations", names::WRITTEN),
                    written(set, set.replicas != 0),
                ));
            }
            match self.patch_set(Value::Array(patch)).await {
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                done => done?,
            }
        }
        match intended {
            Intended::Suspended => self.drop_routes_but(&[]).await,
            // It wakes by itself when a request comes, so there must be a way for one.
            _ if set.intended == Intended::Suspended && set.generation == self.subject.target.generation => {
                self.apply_all(&self.objects().routes, Some(&space)).await
            }
            _ => Ok(()),
        }
    }

    /// A claim that is being removed goes as soon as nothing runs on it any more.
    fn expect_lasting_data(&self, space: &Space) -> Result<()> {
        match &space.claim {
            Some(claim) if claim.is_ending => {
                Err(self.conflict("data", "its claim is being removed: without its pod, its data would be gone"))
            }
            _ => Ok(()),
        }
    }

    /// Takes away what may be there of routes, but for these.
    async fn drop_routes_but(&self, kept: &[Part]) -> Result<()> {
        for (resource, name) in self.layout.routes(self.subject.control_plane, self.subject.target) {
            if kept.iter().any(|part| part.resource == resource && part.name == name) {
                continue;
            }
            let done = self.calls.delete(&resource, Some(self.namespace), &name, None).await;
            done.map_err(|failure| self.calls.writing(failure))?;
        }
        Ok(())
    }

    // Removing

    pub(crate) async fn destroy(&self, space: Option<Space>, data: DataDisposition) -> Result<()> {
        let Some(space) = space else { return Ok(()) };
        if space.namespace.is_none() {
            self.keep_namespace(Some(&space), false).await?;
        }
        let Some(namespace) = &space.namespace else { return Ok(()) };
        if namespace.is_ending {
            return Ok(());
        }
        let is_user = namespace.incarnation == self.incarnation();
        // By its name: what is not seen may be there all the same, without its labels or a moment ahead of its watch.
        let keeps_data = data == DataDisposition::Retain && (space.claim.is_some() || self.has_claim().await?);
        if keeps_data && space.pods_of(self.incarnation()).next().is_some() {
            self.expect_lasting_data(&space)?;
        }
        if is_user && !keeps_data && space.sets.iter().all(|set| set.incarnation == self.incarnation()) {
            return remove_all(&self.calls, self.cache, namespace, &space).await;
        }
        if is_user && namespace.released.is_none() {
            self.release().await?;
        }
        self.remove_making(&space).await
    }

    async fn has_claim(&self) -> Result<bool> {
        let found = self.calls.get::<PersistentVolumeClaim>(Some(self.namespace), names::CLAIM).await;
        found.map(|found| found.is_some()).map_err(|failure| self.calls.reading(failure))
    }

    /// Says first that the making is on its way out: what is left half-way is known for that.
    async fn release(&self) -> Result<()> {
        let mut patch = vec![operation("test", &path_of("labels", names::INCARNATION), self.incarnation().to_string())];
        let found = self.calls.get::<Namespace>(None, self.namespace).await;
        let found = found.map_err(|failure| self.calls.reading(failure))?;
        if found.is_some_and(|found| found.metadata.annotations.is_none()) {
            patch.push(operation("add", "/metadata/annotations", json!({})));
        }
        let released = path_of("annotations", names::RELEASED);
        patch.push(operation("add", &released, self.incarnation().to_string()));
        let done = self.calls.patch(&resource::<Namespace>(), None, self.namespace, Value::Array(patch)).await;
        let object = done.map_err(|failure| self.written(failure))?;
        self.note(Kind::Namespace, &object);
        Ok(())
    }

    /// Everything but namespace and claim.
    async fn remove_making(&self, space: &Space) -> Result<()> {
        let remove = async |resource: &ApiResource, name: &str| {
            let done = self.calls.delete(resource, Some(self.namespace), name, None).await;
            done.map_err(|failure| self.calls.writing(failure))
        };
        if let Some(set) = space.set_of(self.incarnation())
            && !set.is_ending
            && remove(&resource::<StatefulSet>(), &set.name).await?
        {
            self.cache.await_written(self.namespace, Awaited::SetGone(set.uid.clone()));
        }
        if space.set_of(self.incarnation()).is_none() {
            // Whoever took the set away may have left its pods.
            for pod in space.pods_of(self.incarnation()).filter(|pod| !pod.is_ending) {
                remove(&resource::<Pod>(), &pod.name).await?;
            }
        }
        for (resource, name) in space.parts_of(self.incarnation()) {
            remove(&resource, name).await?;
        }
        // Another layout may have made what is not watched.
        let Objects { before, after, routes, .. } = self.objects();
        for part in before.iter().chain(&after).chain(&routes).filter(|part| Kind::of(&part.resource).is_none()) {
            remove(&part.resource, &part.name).await?;
        }
        let of_making = format!("{}={}", names::INCARNATION, self.incarnation());
        let done = self.calls.delete_all::<Secret>(self.namespace, &of_making).await;
        done.map_err(|failure| self.calls.writing(failure))
    }
}

/// How much a claim asks for.
fn size_mib(claim: &PersistentVolumeClaim) -> Option<u64> {
    let requests = claim.spec.as_ref()?.resources.as_ref()?.requests.as_ref()?;
    render::mib_of(requests.get("storage")?)
}

/// How often the spec of a set will have been changed after one more write of ours. Where somebody else writes at the same
/// moment, that is one too few, and their change is seen.
fn written(set: &SetDigest, changes_spec: bool) -> Value {
    Value::String((set.edits + i64::from(changes_spec)).to_string())
}

/// Removes a namespace with all that is in it.
async fn remove_all(calls: &Calls<'_>, cache: &Cache, namespace: &NamespaceDigest, space: &Space) -> Result<()> {
    let done = calls.delete(&resource::<Namespace>(), None, &namespace.name, Some(&namespace.uid)).await;
    if done.map_err(|failure| calls.writing(failure))? {
        cache.await_written(&namespace.name, Awaited::NamespaceGone(namespace.uid.clone()));
        hasten(calls, &namespace.name, space).await;
    }
    Ok(())
}

/// Ends compute and lets go of the volume at once. The cluster begins to empty a namespace five seconds after it was told to,
/// and when it finds a claim that somebody uses then, looks again eight seconds later at the earliest; see
/// <https://github.com/kubernetes/kubernetes/blob/v1.31.0/pkg/controller/namespace/namespace_controller.go>.
async fn hasten(calls: &Calls<'_>, namespace: &str, space: &Space) {
    let sets = space.sets.iter().map(|set| (resource::<StatefulSet>(), &*set.name));
    let claim = space.claim.as_ref().map(|_| (resource::<PersistentVolumeClaim>(), names::CLAIM));
    for (resource, name) in sets.chain(claim) {
        // Without it the removal takes longer, and it has begun.
        if let Err(failure) = calls.delete(&resource, Some(namespace), name, None).await {
            let error = calls.writing(failure);
            tracing::debug!(%error, "the removal takes its own time");
            return;
        }
    }
}

/// Removes retained data, and waits until it is gone: nothing else would tell.
pub(crate) async fn delete_data(calls: &Calls<'_>, cache: &Cache, namespace: &str) -> Result<()> {
    compare(calls, cache, namespace).await.map_err(|failure| calls.reading(failure))?;
    let deadline = calls.cx.deadline.unwrap_or_else(|| Instant::now() + std::time::Duration::from_secs(60));
    cache.catch_up(namespace, deadline).await;
    let Some(space) = cache.space(namespace) else { return Ok(()) };
    let Some(found) = &space.namespace else { return Ok(()) };
    if !found.is_ending {
        if let Some(set) = space.sets.first() {
            let message = format!("the making {} uses it", set.incarnation);
            return Err(calls.error(ErrorKind::Conflict).with_field("data").with_message(message));
        }
        remove_all(calls, cache, found, &space).await?;
    }
    if cache.until_gone(namespace, deadline).await {
        return Ok(());
    }
    let blocked = cache.space(namespace).and_then(|space| space.namespace).and_then(|namespace| namespace.blocked);
    let message = blocked.map_or_else(|| "it is not gone yet".to_owned(), String::from);
    Err(calls.error(ErrorKind::Timeout).with_effect(Effect::Unknown).with_message(message))
}

impl Kind {
    /// The kind of a rendered part, if it is one that is watched.
    fn of(resource: &ApiResource) -> Option<Self> {
        let is_it = |kind: &ApiResource| (&kind.group, &kind.kind) == (&resource.group, &resource.kind);
        Self::PARTS.into_iter().chain([Self::Ingress]).find(|kind| is_it(&kind.resource()))
    }

    fn resource(self) -> ApiResource {
        use k8s_openapi::api::{
            core::v1::{LimitRange, ResourceQuota},
            discovery::v1::EndpointSlice,
            networking::v1::{Ingress, NetworkPolicy},
        };
        match self {
            Self::Namespace => resource::<Namespace>(),
            Self::Quota => resource::<ResourceQuota>(),
            Self::Limits => resource::<LimitRange>(),
            Self::Policy => resource::<NetworkPolicy>(),
            Self::Account => resource::<ServiceAccount>(),
            Self::Claim => resource::<PersistentVolumeClaim>(),
            Self::Set => resource::<StatefulSet>(),
            Self::Pod => resource::<Pod>(),
            Self::Service => resource::<Service>(),
            Self::Slice => resource::<EndpointSlice>(),
            Self::Ingress => resource::<Ingress>(),
        }
    }
}

impl Space {
    /// The small objects of a making, by kind and name.
    fn parts_of(&self, incarnation: Incarnation) -> Vec<(ApiResource, &str)> {
        self.parts(incarnation).map(|(kind, name)| (kind.resource(), name)).collect()
    }
}
