//! Removing an instance, and data that nobody uses.

use std::{collections::BTreeSet, time::Duration};

use k8s_openapi::api::{
    apps::v1::StatefulSet,
    core::v1::{PersistentVolumeClaim, Pod, Secret},
};
use kube::{
    ResourceExt,
    api::{ApiResource, ListParams},
};
use provisioner_core::{Effect, ErrorKind, Result, Retry, types::DataDisposition};
use tokio::time::Instant;

use super::{OVERTAKEN_MAX, Work, resource};
use crate::{
    cache::{Awaited, Cache, HomeDigest, Kind, Space, compare, incarnation_of, is_told},
    client::Calls,
    home::Home,
    render::Objects,
};

/// How long the watches have to tell of what another call of this process wrote.
const SHOWN_WITHIN: Duration = Duration::from_secs(2);

impl Work<'_> {
    pub(crate) async fn destroy(&self, space: Option<Space>, data: DataDisposition) -> Result<()> {
        let Some(space) = space else { return Ok(()) };
        if space.home.is_none() {
            self.keep_home(Some(&space), false).await?;
        }
        let Some(home) = &space.home else { return self.remove_remains(&space, data).await };
        if home.is_ending {
            let is_whole = home.incarnation == self.incarnation() && data == DataDisposition::Delete;
            return if is_whole { self.remove_independent(&space).await } else { Ok(()) };
        }
        let is_user = home.incarnation == self.incarnation();
        // Asked at the cluster: what is not seen may be there all the same, without its labels or a moment ahead of its watch.
        let is_to_run = space.set_of(self.incarnation()).is_some_and(|set| set.replicas != 0);
        let is_used = is_to_run || space.pods_of(self.incarnation()).next().is_some();
        let keeps_data = data == DataDisposition::Retain && self.expect_lasting_data(is_used).await?;
        if is_user && !keeps_data && space.sets.iter().all(|set| set.incarnation == self.incarnation()) {
            if self.home.is_shared() {
                if space.claim.as_ref().is_some_and(|claim| claim.is_foreign) {
                    self.attach_claim(home).await?;
                }
                self.remove_unwatched(&space).await?;
            }
            remove_all(&self.calls, self.cache, self.home, home, &space).await?;
            return self.remove_independent(&space).await;
        }
        let other = space.sets.iter().find(|set| set.incarnation != self.incarnation());
        if let Some(other) = other.filter(|_| is_user && !keeps_data) {
            // Who has the data is the last to be asked to delete them: they would stay, and nobody know of them.
            self.remove_making(&space).await?;
            let message = format!("the making {} is still there, on the same data", other.incarnation);
            return Err(self.overtaken().with_message(message));
        }
        if is_user && home.released.is_none() {
            self.release().await?;
        }
        self.remove_making(&space).await?;
        if is_user { self.remove_what_came_between().await } else { Ok(()) }
    }

    /// The home is on its way out, and nobody comes back for it. From a namespace everything goes with it; what shares one with
    /// others may have been made independent.
    async fn remove_independent(&self, space: &Space) -> Result<()> {
        if !self.home.is_shared() {
            return Ok(());
        }
        self.remove_making(space).await?;
        self.drop_others(space).await?;
        remove_claim(&self.calls, self.home).await
    }

    /// The home is gone, or not seen.
    async fn remove_remains(&self, space: &Space, data: DataDisposition) -> Result<()> {
        if !self.home.is_shared() || self.found_home().await?.is_some() {
            return Ok(());
        }
        if space.has_any(self.incarnation()) {
            self.remove_making(space).await?;
        }
        let claim = self.calls.get::<PersistentVolumeClaim>(Some(self.home.namespace()), self.home.claim()).await;
        let claim = claim.map_err(|failure| self.calls.reading(failure))?;
        let is_own = |claim: &PersistentVolumeClaim| incarnation_of(&claim.metadata) == Some(self.incarnation());
        let Some(claim) = claim.filter(|claim| data == DataDisposition::Delete && is_own(claim)) else { return Ok(()) };
        let kind = resource::<PersistentVolumeClaim>();
        let (namespace, name) = (Some(self.home.namespace()), self.home.claim());
        let done = self.calls.delete_as_seen(&kind, namespace, name, &claim.metadata).await;
        done.map(drop).map_err(|failure| self.written(failure))
    }

    /// A call of the same moment may have taken the home back, and made again what was being removed, or some of it: what
    /// nobody comes back for would be neither there nor gone.
    async fn remove_what_came_between(&self) -> Result<()> {
        for _ in 0..OVERTAKEN_MAX {
            let there = self.found_home().await?;
            let taken_back = there.as_ref().and_then(HomeDigest::of).is_some_and(|there| {
                there.incarnation == self.incarnation() && there.released.is_none() && !there.is_ending
            });
            if !taken_back {
                return Ok(());
            }
            self.release().await?;
            // As new as what the other call wrote, if it was one of this process.
            self.cache.catch_up(self.home, Instant::now() + SHOWN_WITHIN).await;
            let space = self.cache.space(self.home).unwrap_or_default();
            self.remove_making(&space).await?;
        }
        Err(self.overtaken())
    }

    /// Everything but home and claim.
    pub(super) async fn remove_making(&self, space: &Space) -> Result<()> {
        // First, as nobody comes back for it once the rest is gone.
        self.remove_unwatched(space).await?;
        let Objects { before, after, .. } = self.objects();
        match space.set_of(self.incarnation()) {
            Some(set) if set.is_ending => {}
            Some(set) => {
                if self.remove(&resource::<StatefulSet>(), &set.name).await? {
                    self.cache.await_written(self.home, Awaited::SetGone(set.uid.clone()));
                }
            }
            None => self.remove_unseen(space).await?,
        }
        // By their names too: without their labels they are not seen.
        let mut names: BTreeSet<_> =
            before.iter().chain(&after).map(|part| (part.resource.kind.as_str(), &*part.name)).collect();
        let seen = space.parts_of(self.incarnation());
        names.extend(seen.iter().map(|(resource, name)| (resource.kind.as_str(), *name)));
        for (kind, name) in names {
            let mut parts = Kind::PARTS.into_iter().filter_map(|part| Some((part, part.resource()?)));
            let Some((kind, resource)) = parts.find(|(_, resource)| resource.kind == kind) else { continue };
            // A layout may give it the same name in each making.
            if space.maker_of(kind, name).is_none_or(|maker| maker == self.incarnation()) {
                self.remove(&resource, name).await?;
            }
        }
        self.remove(&resource::<Pod>(), &format!("{}-0", self.name())).await?;
        Ok(())
    }

    async fn remove(&self, resource: &ApiResource, name: &str) -> Result<bool> {
        let done = self.calls.delete(resource, Some(self.home.namespace()), name, None).await;
        done.map_err(|failure| self.calls.writing(failure))
    }

    /// What nobody watches: environments, and what another layout may have made. With the routes, for which a certificate may have
    /// been issued.
    async fn remove_unwatched(&self, space: &Space) -> Result<()> {
        let done = self.calls.delete_all::<Secret>(self.home.namespace(), &self.of_making()).await;
        done.map_err(|failure| self.calls.writing(failure))?;
        let Objects { before, after, .. } = self.objects();
        let is_last_user = space.home.as_ref().is_some_and(|it| it.incarnation == self.incarnation());
        for part in before.iter().chain(&after).filter(|part| Kind::of(&part.resource).is_none()) {
            self.remove_own(&part.resource, &part.name, is_last_user).await?;
        }
        for (resource, name) in self.layout.routes(self.subject.control_plane, self.subject.target) {
            match Kind::of(&resource).map(|kind| space.maker_of(kind, &name)) {
                Some(maker) if maker.is_none_or(|maker| maker == self.incarnation()) => {
                    self.remove(&resource, &name).await?;
                }
                Some(_) => {}
                None => self.remove_own(&resource, &name, is_last_user).await?,
            }
        }
        if is_last_user && self.subject.config.ingress.as_ref().is_some_and(|ingress| ingress.tls) {
            // Made for a route, by whoever issues certificates.
            self.remove(&resource::<Secret>(), &self.home.certificate()).await?;
        }
        Ok(())
    }

    /// An object of a kind that nobody watches, unless it is another making's of the same name.
    async fn remove_own(&self, resource: &ApiResource, name: &str, is_last_user: bool) -> Result<()> {
        let found = self.calls.find(resource, Some(self.home.namespace()), name).await;
        let Some(found) = found.map_err(|failure| self.calls.reading(failure))? else { return Ok(()) };
        let is_own = incarnation_of(&found.metadata).map_or(is_last_user, |maker| maker == self.incarnation());
        if !is_own {
            return Ok(());
        }
        let done = self.calls.delete_as_seen(resource, Some(self.home.namespace()), name, &found.metadata).await;
        done.map(drop).map_err(|failure| self.written(failure))
    }

    /// A set that lost its labels, or pods that whoever took the set away has left.
    async fn remove_unseen(&self, space: &Space) -> Result<()> {
        let found = self.calls.get::<StatefulSet>(Some(self.home.namespace()), &self.name()).await;
        if let Some(found) = found.map_err(|failure| self.calls.reading(failure))? {
            if self.is_told(&found) {
                // Made a moment ago.
                return Err(self.overtaken());
            }
            let (set, seen) = (resource::<StatefulSet>(), &found.metadata);
            let done = self.calls.delete_as_seen(&set, Some(self.home.namespace()), &self.name(), seen).await;
            done.map_err(|failure| self.written(failure))?;
        }
        for pod in space.pods_of(self.incarnation()).filter(|pod| !pod.is_ending) {
            let done = self.calls.delete(&resource::<Pod>(), Some(self.home.namespace()), &pod.name, None).await;
            done.map_err(|failure| self.calls.writing(failure))?;
        }
        Ok(())
    }
}

/// That nobody uses the data. Asked at the cluster: what lost its labels uses it all the same, and no watch shows it.
async fn expect_unused(calls: &Calls<'_>, home: &Home) -> Result<()> {
    let sets = calls.list::<StatefulSet>(home.namespace(), &ListParams::default()).await;
    let sets = sets.map_err(|failure| calls.reading(failure))?;
    let Some(set) = sets.iter().find(|set| !home.is_shared() || mounts(set, home.claim())) else { return Ok(()) };
    let message = format!("the stateful set {} uses it", set.name_any());
    Err(calls.error(ErrorKind::Conflict).with_field("data").with_message(message))
}

fn mounts(set: &StatefulSet, claim: &str) -> bool {
    let pod = set.spec.as_ref().and_then(|spec| spec.template.spec.as_ref());
    let volumes = pod.into_iter().flat_map(|pod| pod.volumes.iter().flatten());
    volumes.filter_map(|volume| volume.persistent_volume_claim.as_ref()).any(|it| it.claim_name == claim)
}

/// Removes a home with all that is in it, as long as nobody else has taken it over.
async fn remove_all(calls: &Calls<'_>, cache: &Cache, home: &Home, found: &HomeDigest, space: &Space) -> Result<()> {
    let there = calls.home(home).await.map_err(|failure| calls.reading(failure))?;
    let Some(there) = there else { return Ok(()) };
    let user = HomeDigest::of(&there).map(|there| there.incarnation);
    if user.is_some_and(|user| user != found.incarnation) || there.metadata.uid.as_deref() != Some(&*found.uid) {
        let error = calls.error(ErrorKind::Conflict).with_field("data").with_retry(Retry::Backoff);
        return Err(error.with_message("another making has taken it over"));
    }
    let done = calls.delete_home(home, &there.metadata).await;
    if done.map_err(|failure| calls.writing(failure))? {
        cache.await_written(home, Awaited::HomeGone(found.uid.clone()));
        hasten(calls, home, space).await;
    }
    Ok(())
}

/// Removes the claim of a home that shares its namespace, and of no other: there, the claim goes with it. Somebody may have made
/// it independent of the home.
async fn remove_claim(calls: &Calls<'_>, home: &Home) -> Result<()> {
    if !home.is_shared() {
        return Ok(());
    }
    let claim = resource::<PersistentVolumeClaim>();
    let done = calls.delete(&claim, Some(home.namespace()), home.claim(), None).await;
    done.map(drop).map_err(|failure| calls.writing(failure))
}

/// Ends compute and lets go of the volume at once. The cluster begins to empty a namespace five seconds after it was told to,
/// and when it finds a claim that somebody uses then, looks again eight seconds later at the earliest; see
/// <https://github.com/kubernetes/kubernetes/blob/v1.31.0/pkg/controller/namespace/namespace_controller.go>.
async fn hasten(calls: &Calls<'_>, home: &Home, space: &Space) {
    if home.is_shared() {
        // The cluster begins at once.
        return;
    }
    let sets = space.sets.iter().map(|set| (resource::<StatefulSet>(), &*set.name));
    let claim = space.claim.as_ref().map(|_| (resource::<PersistentVolumeClaim>(), home.claim()));
    for (resource, name) in sets.chain(claim) {
        // Without it the removal takes longer, and it has begun.
        if let Err(failure) = calls.delete(&resource, Some(home.namespace()), name, None).await {
            let error = calls.writing(failure);
            tracing::debug!(%error, "the removal takes its own time");
            return;
        }
    }
}

/// Removes retained data, and waits until it is gone: nothing else would tell.
pub(crate) async fn delete_data(calls: &Calls<'_>, cache: &Cache, home: &Home) -> Result<()> {
    compare(calls, cache, home).await.map_err(|failure| calls.reading(failure))?;
    let deadline = calls.cx.deadline.unwrap_or_else(|| Instant::now() + Duration::from_secs(60));
    cache.catch_up(home, deadline).await;
    let space = cache.space(home).unwrap_or_default();
    let too_late = || calls.error(ErrorKind::Timeout).with_message("the watches do not tell of it in time");
    if space.is_behind {
        return Err(too_late());
    }
    let there = calls.home(home).await.map_err(|failure| calls.reading(failure))?;
    match (&space.home, &there) {
        (Some(found), _) if found.is_ending => {}
        (Some(found), Some(_)) => {
            expect_unused(calls, home).await?;
            remove_all(calls, cache, home, found, &space).await?;
            remove_claim(calls, home).await?;
        }
        (None, Some(there)) => {
            // Not seen is not gone.
            let is_told = is_told(&calls.cx.control_plane, &there.metadata, home.name());
            if is_told && HomeDigest::of(there).is_some() {
                return Err(too_late());
            }
            let message = format!("the {} {} holds it, and has lost its labels", home.word(), home.name());
            let error = calls.error(ErrorKind::Conflict).with_field("data").with_retry(Retry::Backoff);
            return Err(error.with_message(message));
        }
        (_, None) if home.is_shared() => {
            expect_unused(calls, home).await?;
            remove_claim(calls, home).await?;
        }
        (_, None) => {}
    }
    if cache.until_gone(home, deadline).await {
        return Ok(());
    }
    let blocked = cache.space(home).and_then(|space| space.data_blocked());
    let message = blocked.unwrap_or_else(|| "it is not gone yet".to_owned());
    Err(calls.error(ErrorKind::Timeout).with_effect(Effect::Unknown).with_message(message))
}
