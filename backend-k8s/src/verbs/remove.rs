//! Removing an instance, and data that nobody uses.

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

use super::{Work, resource};
use crate::{
    cache::{Awaited, Cache, Kind, NamespaceDigest, Space, compare},
    client::Calls,
    names,
    render::{self, Objects},
};

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
        // By its name: what is not seen may be there all the same, without its labels or a moment ahead of its watch.
        let keeps_data = data == DataDisposition::Retain && (space.claim.is_some() || self.has_claim().await?);
        if keeps_data && space.pods_of(self.incarnation()).next().is_some() {
            self.expect_lasting_data(&space)?;
        }
        if is_user && !keeps_data && space.sets.iter().all(|set| set.incarnation == self.incarnation()) {
            return remove_all(&self.calls, self.cache, self.namespace, namespace, &space).await;
        }
        if is_user && namespace.released.is_none() {
            self.release().await?;
        }
        self.remove_making(&space).await
    }

    /// Everything but namespace and claim.
    pub(super) async fn remove_making(&self, space: &Space) -> Result<()> {
        let remove = async |resource: &ApiResource, name: &str| {
            let done = self.calls.delete(resource, Some(self.namespace), name, None).await;
            done.map_err(|failure| self.calls.writing(failure))
        };
        // First what nobody watches, as nobody comes back for it once the rest is gone: secrets, and what another layout may
        // have made.
        let of_making = format!("{}={}", names::INCARNATION, self.incarnation());
        let done = self.calls.delete_all::<Secret>(self.namespace, &of_making).await;
        done.map_err(|failure| self.calls.writing(failure))?;
        if self.subject.config.ingress.as_ref().is_some_and(|ingress| ingress.tls) {
            remove(&resource::<Secret>(), render::TLS_SECRET).await?;
        }
        let Objects { before, after, routes, .. } = self.objects();
        for part in before.iter().chain(&after).chain(&routes).filter(|part| Kind::of(&part.resource).is_none()) {
            remove(&part.resource, &part.name).await?;
        }
        let set = space.set_of(self.incarnation());
        // By its name: one that is not seen may have lost its labels.
        if set.is_none_or(|set| !set.is_ending)
            && remove(&resource::<StatefulSet>(), &self.name()).await?
            && let Some(set) = set
        {
            self.cache.await_written(self.namespace, Awaited::SetGone(set.uid.clone()));
        }
        if set.is_none() {
            // Whoever took the set away may have left its pods.
            for pod in space.pods_of(self.incarnation()).filter(|pod| !pod.is_ending) {
                remove(&resource::<Pod>(), &pod.name).await?;
            }
        }
        for (resource, name) in space.parts_of(self.incarnation()) {
            remove(&resource, name).await?;
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
    let deadline = calls.cx.deadline.unwrap_or_else(|| Instant::now() + std::time::Duration::from_secs(60));
    cache.catch_up(namespace, deadline).await;
    let space = cache.space(namespace).unwrap_or_default();
    let too_late = || calls.error(ErrorKind::Timeout).with_message("the watches do not tell of it in time");
    let Some(found) = &space.namespace else {
        // Not seen is not gone.
        let there = calls.get::<Namespace>(None, namespace).await.map_err(|failure| calls.reading(failure))?;
        return match there {
            None => Ok(()),
            Some(there) if NamespaceDigest::of(&there).is_some() => Err(too_late()),
            Some(_) => {
                let message = format!("the namespace {namespace} holds it, and has lost its labels");
                let error = calls.error(ErrorKind::Conflict).with_field("data").with_retry(Retry::Backoff);
                Err(error.with_message(message))
            }
        };
    };
    if space.is_behind {
        return Err(too_late());
    }
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
