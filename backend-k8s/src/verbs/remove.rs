//! Removing an instance, and data that nobody uses.

use std::{collections::BTreeSet, time::Duration};

use k8s_openapi::api::{
    apps::v1::StatefulSet,
    core::v1::{Namespace, PersistentVolumeClaim, Pod, Secret},
};
use kube::{
    ResourceExt,
    api::{ApiResource, ListParams, Preconditions},
};
use provisioner_core::{Effect, ErrorKind, Result, Retry, types::DataDisposition};
use tokio::time::Instant;

use super::{OVERTAKEN_MAX, Work, resource};
use crate::{
    cache::{Awaited, Cache, Kind, NamespaceDigest, Space, compare, incarnation_of, is_told},
    client::Calls,
    names,
    render::{self, Objects},
};

/// How long the watches have to tell of what another call of this process wrote.
const SHOWN_WITHIN: Duration = Duration::from_secs(2);

impl Work<'_> {
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
        // Asked at the cluster: what is not seen may be there all the same, without its labels or a moment ahead of its watch.
        let is_to_run = space.set_of(self.incarnation()).is_some_and(|set| set.replicas != 0);
        let is_used = is_to_run || space.pods_of(self.incarnation()).next().is_some();
        let keeps_data = data == DataDisposition::Retain && self.expect_lasting_data(is_used).await?;
        if is_user && !keeps_data && space.sets.iter().all(|set| set.incarnation == self.incarnation()) {
            return remove_all(&self.calls, self.cache, self.namespace, namespace, &space).await;
        }
        if is_user && namespace.released.is_none() {
            self.release().await?;
        }
        self.remove_making(&space).await?;
        if is_user { self.remove_what_came_between().await } else { Ok(()) }
    }

    /// A call of the same moment may have taken the namespace back, and made again what was being removed, or some of it: what
    /// nobody comes back for would be neither there nor gone.
    async fn remove_what_came_between(&self) -> Result<()> {
        for _ in 0..OVERTAKEN_MAX {
            let there = self.calls.get::<Namespace>(None, self.namespace).await;
            let there = there.map_err(|failure| self.calls.reading(failure))?;
            let taken_back = there.as_ref().and_then(NamespaceDigest::of).is_some_and(|there| {
                there.incarnation == self.incarnation() && there.released.is_none() && !there.is_ending
            });
            if !taken_back {
                return Ok(());
            }
            self.release().await?;
            // As new as what the other call wrote, if it was one of this process.
            self.cache.catch_up(self.namespace, Instant::now() + SHOWN_WITHIN).await;
            let space = self.cache.space(self.namespace).unwrap_or_default();
            self.remove_making(&space).await?;
        }
        Err(self.overtaken())
    }

    /// Everything but namespace and claim.
    pub(super) async fn remove_making(&self, space: &Space) -> Result<()> {
        let remove = async |resource: &ApiResource, name: &str| {
            let done = self.calls.delete(resource, Some(self.namespace), name, None).await;
            done.map_err(|failure| self.calls.writing(failure))
        };
        // First what nobody watches, as nobody comes back for it once the rest is gone: the environment, and what another layout
        // may have made.
        let of_making = format!("{}={}", names::INCARNATION, self.incarnation());
        let done = self.calls.delete_all::<Secret>(self.namespace, &of_making).await;
        done.map_err(|failure| self.calls.writing(failure))?;
        let Objects { before, after, .. } = self.objects();
        let is_last_user = space.namespace.as_ref().is_some_and(|it| it.incarnation == self.incarnation());
        for part in before.iter().chain(&after).filter(|part| Kind::of(&part.resource).is_none()) {
            self.remove_own(&part.resource, &part.name, is_last_user).await?;
        }
        for (resource, name) in self.layout.routes(self.subject.control_plane, self.subject.target) {
            match Kind::of(&resource).map(|kind| space.maker_of(kind, &name)) {
                Some(maker) if maker.is_none_or(|maker| maker == self.incarnation()) => {
                    remove(&resource, &name).await?;
                }
                Some(_) => {}
                None => self.remove_own(&resource, &name, is_last_user).await?,
            }
        }
        if is_last_user && self.subject.config.ingress.as_ref().is_some_and(|ingress| ingress.tls) {
            // Made for a route, by whoever issues certificates.
            remove(&resource::<Secret>(), render::TLS_SECRET).await?;
        }
        match space.set_of(self.incarnation()) {
            Some(set) if set.is_ending => {}
            Some(set) => {
                if remove(&resource::<StatefulSet>(), &set.name).await? {
                    self.cache.await_written(self.namespace, Awaited::SetGone(set.uid.clone()));
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
            let of_kind = |it: &Kind| it.resource().kind == kind;
            let Some(kind) = Kind::PARTS.into_iter().find(of_kind) else { continue };
            // A layout may give it the same name in each making.
            if space.maker_of(kind, name).is_none_or(|maker| maker == self.incarnation()) {
                remove(&kind.resource(), name).await?;
            }
        }
        remove(&resource::<Pod>(), &format!("{}-0", self.name())).await?;
        Ok(())
    }

    /// An object of a kind that nobody watches, unless it is another making's of the same name.
    async fn remove_own(&self, resource: &ApiResource, name: &str, is_last_user: bool) -> Result<()> {
        let found = self.calls.find(resource, self.namespace, name).await;
        let Some(found) = found.map_err(|failure| self.calls.reading(failure))? else { return Ok(()) };
        let is_own = incarnation_of(&found.metadata).map_or(is_last_user, |maker| maker == self.incarnation());
        if !is_own {
            return Ok(());
        }
        let as_seen = Preconditions { uid: found.metadata.uid, resource_version: found.metadata.resource_version };
        let done = self.calls.delete_as_seen(resource, Some(self.namespace), name, Some(as_seen)).await;
        done.map(drop).map_err(|failure| self.written(failure))
    }

    /// A set that lost its labels, or pods that whoever took the set away has left.
    async fn remove_unseen(&self, space: &Space) -> Result<()> {
        let found = self.calls.get::<StatefulSet>(Some(self.namespace), &self.name()).await;
        if let Some(found) = found.map_err(|failure| self.calls.reading(failure))? {
            if self.is_told(&found) {
                // Made a moment ago.
                return Err(self.overtaken());
            }
            let as_seen = Preconditions { uid: found.metadata.uid, resource_version: found.metadata.resource_version };
            let set = resource::<StatefulSet>();
            let done = self.calls.delete_as_seen(&set, Some(self.namespace), &self.name(), Some(as_seen)).await;
            done.map_err(|failure| self.written(failure))?;
        }
        for pod in space.pods_of(self.incarnation()).filter(|pod| !pod.is_ending) {
            let done = self.calls.delete(&resource::<Pod>(), Some(self.namespace), &pod.name, None).await;
            done.map_err(|failure| self.calls.writing(failure))?;
        }
        Ok(())
    }
}

/// Removes a namespace with all that is in it, as long as nobody else has taken it over.
async fn remove_all(
    calls: &Calls<'_>,
    cache: &Cache,
    namespace: &str,
    found: &NamespaceDigest,
    space: &Space,
) -> Result<()> {
    let there = calls.get::<Namespace>(None, namespace).await.map_err(|failure| calls.reading(failure))?;
    let Some(there) = there else { return Ok(()) };
    let user = NamespaceDigest::of(&there).map(|there| there.incarnation);
    if user.is_some_and(|user| user != found.incarnation) || there.metadata.uid.as_deref() != Some(&*found.uid) {
        let error = calls.error(ErrorKind::Conflict).with_field("data").with_retry(Retry::Backoff);
        return Err(error.with_message("another making has taken it over"));
    }
    let as_seen = Preconditions { uid: there.metadata.uid, resource_version: there.metadata.resource_version };
    let done = calls.delete_as_seen(&resource::<Namespace>(), None, namespace, Some(as_seen)).await;
    if done.map_err(|failure| calls.writing(failure))? {
        cache.await_written(namespace, Awaited::NamespaceGone(found.uid.clone()));
        hasten(calls, namespace, space).await;
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
    let deadline = calls.cx.deadline.unwrap_or_else(|| Instant::now() + Duration::from_secs(60));
    cache.catch_up(namespace, deadline).await;
    let space = cache.space(namespace).unwrap_or_default();
    let is_told = |there: &Namespace| {
        is_told(&calls.cx.control_plane, &there.metadata, namespace) && NamespaceDigest::of(there).is_some()
    };
    let too_late = || calls.error(ErrorKind::Timeout).with_message("the watches do not tell of it in time");
    if space.is_behind {
        return Err(too_late());
    }
    let Some(found) = &space.namespace else {
        // Not seen is not gone.
        let there = calls.get::<Namespace>(None, namespace).await.map_err(|failure| calls.reading(failure))?;
        return match there {
            None => Ok(()),
            Some(there) if is_told(&there) => Err(too_late()),
            Some(_) => {
                let message = format!("the namespace {namespace} holds it, and has lost its labels");
                let error = calls.error(ErrorKind::Conflict).with_field("data").with_retry(Retry::Backoff);
                Err(error.with_message(message))
            }
        };
    };
    if !found.is_ending {
        // Asked at the cluster: one that lost its labels uses it all the same, and no watch shows it.
        let sets = calls.list::<StatefulSet>(namespace, &ListParams::default()).await;
        let sets = sets.map_err(|failure| calls.reading(failure))?;
        if let Some(set) = sets.first() {
            let message = format!("the stateful set {} uses it", set.name_any());
            return Err(calls.error(ErrorKind::Conflict).with_field("data").with_message(message));
        }
        remove_all(calls, cache, namespace, found, &space).await?;
    }
    if cache.until_gone(namespace, deadline).await {
        return Ok(());
    }
    let blocked = cache.space(namespace).and_then(|space| space.namespace).and_then(|namespace| namespace.blocked);
    let message = blocked.map_or_else(|| "it is not gone yet".to_owned(), String::from);
    Err(calls.error(ErrorKind::Timeout).with_effect(Effect::Unknown).with_message(message))
}
