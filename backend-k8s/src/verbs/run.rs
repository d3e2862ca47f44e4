//! Making an instance, bringing it to its spec, waking it.

use k8s_openapi::{
    api::{
        apps::v1::StatefulSet,
        core::v1::{PersistentVolumeClaim, Pod},
    },
    jiff::Timestamp,
};
use provisioner_core::{Error, ErrorKind, Result, types::DataSource};
use serde_json::json;
use tracing::warn;

use super::{Secrets, Work, resource, set::edits_after};
use crate::{
    cache::{Intended, PodDigest, SetDigest, Space},
    client::{operation, path_of},
    convert, explain, names,
    render::Objects,
};

impl Work<'_> {
    /// `create`, and `resume` without the making.
    pub(crate) async fn run(&self, space: Option<Space>, make: bool) -> Result<()> {
        let existing = self.wants_existing();
        self.keep_home(space.as_ref(), existing).await?;
        let (space, left) = match space {
            Some(space) if space.home.is_some() => (Some(space), None),
            left => (None, left),
        };
        let Some(space) = space else {
            if let Some(left) = left.filter(|left| self.is_orphaned(left, make)) {
                return self.make_home_again(&left).await;
            }
            if !make {
                return Ok(());
            }
            if existing {
                return Err(self.data_missing(&format!("its {} is not there", self.home.word())));
            }
            let secrets = self.secrets().await?;
            self.make_home().await?;
            return self.converge(None, None, None, &self.objects(), &secrets).await;
        };
        let home = space.home.as_ref().expect("it was filtered by that");
        self.know_home(Some(&home.uid));
        if home.is_ending {
            let message = format!("its {} is being removed", self.home.word());
            return match (make, existing) {
                // What is on its way out stays so.
                (false, _) => Ok(()),
                (_, true) => Err(self.data_missing(&message)),
                _ => Err(self.overtaken().with_message(message)),
            };
        }
        if *home.tenant != *self.subject.target.tenant.digest() {
            return Err(self.conflict("data", "it is another tenant's"));
        }
        let set = space.set_of(self.incarnation());
        // One that has our name is ours, whatever somebody wrote on it.
        let is_other = |set: &&SetDigest| set.incarnation != self.incarnation() && *set.name != *self.name();
        if let Some(other) = space.sets.iter().find(is_other) {
            // No event takes the word back: it is asked for at the cluster.
            let there = self.calls.get::<StatefulSet>(Some(self.home.namespace()), &other.name).await;
            let there = there.map_err(|failure| self.calls.reading(failure))?;
            if there.is_none_or(|there| there.metadata.deletion_timestamp.is_some()) {
                return Err(self.overtaken().with_message("another making still ends"));
            }
            return Err(self.conflict("data", format!("the making {} uses it", other.incarnation)));
        }
        if space.pods.iter().any(|pod| pod.incarnation != self.incarnation()) {
            return Err(self.overtaken().with_message("a pod of another making still ends"));
        }
        let is_user = home.incarnation == self.incarnation() && home.released.is_none();
        if !make && (set.is_none() || !is_user) {
            return Ok(());
        }
        self.check_generation(set)?;
        let claim = if existing || set.is_some() { Some(self.expect_claim().await?) } else { None };
        let is_up_to_date = is_user && set.is_some_and(|set| self.is_up_to_date(set, &space));
        if is_up_to_date && set.is_some_and(|set| set.intended == Intended::Running && set.replicas > 0) {
            return self.try_again(&space).await;
        }
        let (objects, secrets) = (self.objects(), self.secrets().await?);
        if !is_user {
            self.take_over(home).await?;
        }
        if set.is_none() || (self.home.is_shared() && !is_up_to_date) {
            // Read after the claim: what is written now must not belong to a home that is gone, with which it would go.
            self.expect_own_home().await?;
        }
        if set.is_none() {
            // Also what a taking over that was cut did not come to.
            self.drop_others(&space).await?;
        }
        match set {
            Some(set) if is_up_to_date => self.wake(set, &space, &objects, &secrets).await,
            set => self.converge(set, claim.as_ref(), Some(&space), &objects, &secrets).await,
        }
    }

    /// Whether it is to run on data that are there.
    pub(super) fn wants_existing(&self) -> bool {
        matches!(self.subject.target.data, DataSource::Existing(_))
    }

    /// Resolved before anything is written: without them nothing is made.
    pub(super) async fn secrets(&self) -> Result<Secrets> {
        let resolved = self.calls.cx.resolve_secrets(self.calls.during.operation, self.subject.target).await;
        resolved.map_err(|error| self.calls.heeding(error))
    }

    pub(super) fn data_missing(&self, message: &str) -> Error {
        self.calls.error(ErrorKind::DataMissing).with_message(message)
    }

    pub(super) fn is_up_to_date(&self, set: &SetDigest, space: &Space) -> bool {
        let is_kept = convert::is_kept(space);
        set.generation == self.subject.target.generation && !set.is_foreign && is_kept && space.is_whole(set)
    }

    /// Nothing but its sleep has to end.
    pub(super) async fn wake(
        &self,
        set: &SetDigest,
        space: &Space,
        objects: &Objects,
        secrets: &Secrets,
    ) -> Result<()> {
        // Nobody watches secrets: it may have been deleted meanwhile.
        self.apply_environment(secrets).await?;
        // Also what is seen to be there: it may be on its way out, by a suspension that is over.
        self.apply_all(&objects.routes, Some(space)).await?;
        let generation = path_of("annotations", names::GENERATION);
        let patch = json!([
            operation("test", &generation, set.generation.0.to_string()),
            operation("replace", &path_of("annotations", names::INTENDED), Intended::Running.as_str()),
            operation("replace", &path_of("annotations", names::WRITTEN), edits_after(set, set.replicas != 1)),
            operation("replace", "/spec/replicas", 1),
        ]);
        self.patch_set(patch).await
    }

    /// What failed to start is tried from the beginning: the cluster's own next try may be minutes away.
    pub(super) async fn try_again(&self, space: &Space) -> Result<()> {
        let Some(set) = space.set_of(self.incarnation()) else { return Ok(()) };
        if space.pods_of(self.incarnation()).next().is_none() {
            return self.try_pod_again(set, space).await;
        }
        // One of an older spec that is not ready: some releases let it use up what may be unavailable, and never replace it; see
        // <https://github.com/kubernetes/kubernetes/issues/137409>.
        let is_stuck = |pod: &PodDigest| !pod.is_ready && set.revision != pod.revision;
        let is_failed = |pod: &PodDigest| pod.trouble.as_ref().is_some_and(|trouble| trouble.is_failure);
        let failed = |pod: &&PodDigest| is_failed(pod) || is_stuck(pod);
        let failed: Vec<_> = space.pods_of(self.incarnation()).filter(|pod| !pod.is_ending).filter(failed).collect();
        if !failed.is_empty() {
            // It may be what is missing.
            self.apply_environment(&self.secrets().await?).await?;
        }
        for pod in failed {
            let done =
                self.calls.delete(&resource::<Pod>(), Some(self.home.namespace()), &pod.name, Some(&pod.uid)).await;
            match done {
                Err(failure) if !failure.is_overtaken() => return Err(self.calls.writing(failure)),
                _ => {}
            }
        }
        Ok(())
    }

    /// A pod that was refused is tried at once by the controller of its set where that changes.
    async fn try_pod_again(&self, set: &SetDigest, space: &Space) -> Result<()> {
        let refusal = explain::refusal(&self.calls, self.home, &set.name).await.filter(|refusal| refusal.is_failure);
        let Some(refusal) = refusal else { return Ok(()) };
        if refusal.is_by_quota()
            && let Err(error) = self.have_quotas_counted(space).await
        {
            warn!(%error, "what a quota charges is not counted anew");
        }
        let now = Timestamp::now().as_second().to_string();
        let patch = json!([
            operation("test", "/metadata/uid", &*set.uid),
            operation("add", &path_of("annotations", names::TRIED), now),
        ]);
        self.patch_set(patch).await
    }

    /// Makes everything as the target says, in the order in which one thing needs another.
    pub(super) async fn converge(
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
}
