//! Whether the watches are as new as the cluster: where they were interrupted, and where another process wrote.

use k8s_openapi::{
    api::{
        apps::v1::StatefulSet,
        core::v1::{Namespace, Pod},
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{ResourceExt, api::ListParams};

use super::{Awaited, Cache, Kind, NamespaceDigest, SetDigest, is_told, version_of};
use crate::{client::Calls, error::Failure, names};

/// Asks the cluster itself how new the things of a namespace are, and waits for the watches to tell of them.
pub(crate) async fn compare(calls: &Calls<'_>, cache: &Cache, namespace: &str) -> Result<(), Failure> {
    let known = cache.space(namespace);
    let found = calls.get::<Namespace>(None, namespace).await?;
    let Some(found) = found else {
        if let Some(known) = known.and_then(|space| space.namespace) {
            cache.await_written(namespace, Awaited::NamespaceGone(known.uid));
        }
        return Ok(());
    };
    // Of what lost its labels no watch tells.
    let is_told = |meta: &ObjectMeta| is_told(&calls.cx.control_plane, meta, namespace);
    if NamespaceDigest::of(&found).is_some() && is_told(&found.metadata) {
        cache.await_written(namespace, Awaited::Version(Kind::Namespace, version_of(&found.metadata)));
    }
    let sets = calls.list::<StatefulSet>(namespace, &ListParams::default()).await?;
    let told = sets.iter().filter(|set| is_told(&set.metadata));
    let found: Vec<_> = told.filter_map(|set| Some((SetDigest::of(set)?, version_of(&set.metadata)))).collect();
    for (_, version) in &found {
        cache.await_written(namespace, Awaited::Version(Kind::Set, *version));
    }
    let pods = calls.list::<Pod>(namespace, &ListParams::default()).await?;
    for pod in pods.iter().filter(|pod| is_told(&pod.metadata)) {
        cache.await_written(namespace, Awaited::Version(Kind::Pod, version_of(&pod.metadata)));
    }
    for gone in known.into_iter().flat_map(|space| space.sets) {
        if !found.iter().any(|(set, _)| set.uid == gone.uid) {
            cache.await_written(namespace, Awaited::SetGone(gone.uid));
        }
    }
    Ok(())
}

/// Fails where the cluster has a namespace of ours that is not known.
pub(crate) async fn compare_all(calls: &Calls<'_>, cache: &Cache) -> Result<(), Failure> {
    let labels = format!("{}={}", names::CONTROL_PLANE, calls.cx.control_plane);
    let found = calls.list_everywhere::<Namespace>(&ListParams::default().labels(&labels)).await?;
    let is_unknown = |found: &Namespace| {
        let (name, digest) = (found.name_any(), NamespaceDigest::of(found));
        // A copy under another name is none of ours.
        let is_ours = digest.is_some_and(|digest| names::namespace(&calls.cx.control_plane, &digest.data) == name);
        is_ours && cache.space(&name).is_none_or(|space| space.namespace.is_none())
    };
    if !found.iter().any(is_unknown) {
        return Ok(());
    }
    Err(Failure::Unanswered { was_sent: true, message: "the watches are behind".into() })
}
