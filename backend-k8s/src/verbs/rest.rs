//! Putting an instance to rest: to sleep, or suspended.

use k8s_openapi::api::{apps::v1::StatefulSet, core::v1::Pod};
use provisioner_core::{
    ErrorKind, Result,
    types::{DataSource, Observed},
};
use serde_json::{Value, json};

use super::{Work, resource, set::edits_after};
use crate::{
    applied,
    cache::{Intended, Kind, SetDigest, Space},
    client::{operation, path_of},
    convert, names,
    render::{Objects, Part},
};

impl Work<'_> {
    pub(crate) async fn rest(&self, space: Option<Space>, intended: Intended) -> Result<()> {
        let Some(space) = space else { return Ok(()) };
        if space.home.is_none() {
            self.keep_home(Some(&space), false).await?;
            if self.is_orphaned(&space, false) {
                return self.make_home_again(&space).await;
            }
        }
        let Some(home) = &space.home else { return Ok(()) };
        self.know_home(Some(&home.uid));
        if home.is_ending || home.released == Some(self.incarnation()) {
            return Ok(());
        }
        match space.set_of(self.incarnation()) {
            Some(set) if set.is_ending => Ok(()),
            Some(set) if set.has_other_marks => self.rest_unseen(&space, intended).await,
            Some(set) => self.rest_set(set, &space, intended).await,
            None if convert::uses(&space, self.incarnation()) => self.rest_unseen(&space, intended).await,
            None => Ok(()),
        }
    }

    async fn rest_set(&self, set: &SetDigest, space: &Space, intended: Intended) -> Result<()> {
        if set.replicas != 0 {
            self.expect_lasting_data(true).await?;
        }
        let objects = self.objects();
        // It wakes by itself when a request comes, so there must be a way for one.
        let lacks_routes = set.intended == Intended::Suspended || space.routes(self.incarnation()) < set.routes;
        let routes = (intended == Intended::Zero && lacks_routes).then(|| routes_of(&objects));
        if routes.is_some() {
            self.check_generation(Some(set))?;
        }
        // What runs is stopped first, whatever keeps the route from being made.
        if routes.is_some() && set.replicas == 0 {
            self.apply_all(&objects.routes, Some(space)).await?;
        }
        // With routes that nobody watches it is stopped first, and called suspended when they are gone.
        let hides = intended == Intended::Suspended && set.intended != intended && self.has_unwatched_routes();
        if set.intended != intended || set.replicas != 0 || routes.is_some_and(|routes| routes != set.routes) {
            let first = if hides { Intended::Zero } else { intended };
            let mut patch = vec![
                operation("test", "/metadata/uid", &*set.uid),
                operation("replace", &path_of("annotations", names::INTENDED), first.as_str()),
                operation("replace", "/spec/replicas", 0),
            ];
            // They may be those of a newer spec, which it wakes with.
            if let Some(routes) = routes {
                let generation = set.generation.0.to_string();
                patch.push(operation("test", &path_of("annotations", names::GENERATION), generation));
                patch.push(operation("add", &path_of("annotations", names::ROUTES), routes.to_string()));
            }
            // What somebody else changed stays known for that.
            if !set.is_foreign {
                let edits = edits_after(set, set.replicas != 0);
                patch.push(operation("replace", &path_of("annotations", names::WRITTEN), edits));
            }
            match self.patch_set(Value::Array(patch)).await {
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                done => done?,
            }
        }
        if routes.is_some() && set.replicas != 0 {
            self.apply_all(&objects.routes, Some(space)).await?;
        }
        if intended == Intended::Suspended {
            self.drop_routes_but(&[]).await?;
        }
        if hides {
            let patch = json!([
                operation("test", "/metadata/uid", &*set.uid),
                operation("replace", &path_of("annotations", names::INTENDED), intended.as_str()),
            ]);
            self.patch_set(patch).await?;
        }
        Ok(())
    }

    fn has_unwatched_routes(&self) -> bool {
        let routes = self.layout.routes(self.subject.control_plane, self.subject.target);
        routes.iter().any(|(resource, _)| Kind::of(resource).is_none())
    }

    /// Its set is not there, or cannot be told for ours: somebody took it or its labels away, or it was never made.
    async fn rest_unseen(&self, space: &Space, intended: Intended) -> Result<()> {
        let found = self.found_set().await?;
        let pods: Vec<_> = space.pods_of(self.incarnation()).filter(|pod| !pod.is_ending).collect();
        let is_to_run = |set: &StatefulSet| set.spec.as_ref().and_then(|spec| spec.replicas) != Some(0);
        let is_used = !pods.is_empty() || found.as_ref().is_some_and(is_to_run);
        let has_claim = self.expect_lasting_data(is_used).await?;
        if let Some(found) = found {
            return match self.is_told(&found) && applied::has_marks(&found.metadata) {
                // Made a moment ago.
                true => Err(self.overtaken()),
                false => self.rest_unlabelled(&found).await,
            };
        }
        for pod in &pods {
            let done =
                self.calls.delete(&resource::<Pod>(), Some(self.home.namespace()), &pod.name, Some(&pod.uid)).await;
            match done {
                Err(failure) if !failure.is_overtaken() => return Err(self.calls.writing(failure)),
                _ => {}
            }
        }
        let is_absent = convert::observed(Some(space), self.incarnation()) == Observed::Absent;
        if is_absent || !pods.is_empty() {
            return Ok(());
        }
        // Half made: what is asleep is remembered by its set, and made whole when it wakes.
        self.expect_own_home().await?;
        self.drop_others(space).await?;
        let objects = self.objects();
        if matches!(self.subject.target.data, DataSource::Fresh(_)) && !has_claim {
            self.apply_claim(&objects, None, true).await?;
        }
        // A way in for what sleeps, and none for what is suspended: before it is told to be that.
        match intended {
            Intended::Suspended => self.drop_routes_but(&[]).await?,
            _ => self.apply_all(&objects.routes, Some(space)).await?,
        }
        let mut set = objects.set;
        set.spec.get_or_insert_default().replicas = Some(0);
        let annotations = set.metadata.annotations.get_or_insert_default();
        annotations.insert(names::INTENDED.to_owned(), intended.as_str().to_owned());
        match self.calls.create(Some(self.home.namespace()), &Part::of(&set)).await {
            Ok(object) => {
                self.note(Kind::Set, &object);
                Ok(())
            }
            Err(failure) if failure.is_already_there() => Err(self.overtaken()),
            Err(failure) => Err(self.calls.writing(failure)),
        }
    }

    /// Stops a set and gives it its marks back; what is done next begins with another look. What else was changed of it stays
    /// known as foreign, and is put right when it wakes.
    async fn rest_unlabelled(&self, found: &StatefulSet) -> Result<()> {
        let meta = &found.metadata;
        if meta.deletion_timestamp.is_some() {
            return Ok(());
        }
        // Also of a newer generation than the caller knows: it stays at that, and rests.
        let mut ours = self.objects().set.metadata;
        let (generation, noted) = (applied::generation(meta).0.to_string(), ours.annotations.get_or_insert_default());
        noted.insert(names::GENERATION.to_owned(), generation);
        if let Some(routes) = applied::annotation(meta, names::ROUTES) {
            noted.insert(names::ROUTES.to_owned(), routes);
        }
        applied::note_marks(&mut ours, &names::CHANGING);
        let mut labels = meta.labels.clone().unwrap_or_default();
        labels.extend(ours.labels.unwrap_or_default());
        let mut annotations = meta.annotations.clone().unwrap_or_default();
        annotations.extend(ours.annotations.unwrap_or_default());
        annotations.insert(names::INTENDED.to_owned(), Intended::Zero.as_str().to_owned());
        annotations.insert(names::WRITTEN.to_owned(), "0".to_owned());
        let version = meta.resource_version.as_deref().unwrap_or_default();
        let mut patch = vec![
            operation("test", "/metadata/resourceVersion", version),
            operation("add", "/metadata/labels", json!(labels)),
            operation("add", "/metadata/annotations", json!(annotations)),
            operation("replace", "/spec/replicas", 0),
        ];
        patch.extend(self.attachment());
        self.patch_set(Value::Array(patch)).await?;
        Err(self.overtaken().with_message("its stateful set had lost its labels, and has them again"))
    }
}

/// How many watched routes there are to be.
fn routes_of(objects: &Objects) -> usize {
    let annotations = objects.set.metadata.annotations.as_ref();
    annotations.and_then(|annotations| annotations.get(names::ROUTES)?.parse().ok()).unwrap_or(0)
}
