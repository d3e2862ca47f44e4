//! Whether the watches are as new as the cluster: where they were interrupted, and where another process wrote.

use k8s_openapi::{
    api::{apps::v1::StatefulSet, core::v1::Namespace},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{ResourceExt, api::ListParams};

use super::{Awaited, Cache, Kind, NamespaceDigest, SetDigest, version_of};
use crate::{client::Calls, error::Failure, names};

/// Asks the cluster itself how new the things of a namespace are, and waits for the watches to tell of them.
pub(crate) async fn compare(calls: &Calls<'_>, cache: &Cache, namespace: &str) -> Result<(), Failure> {
    let control_plane = calls.cx.control_plane.to_string();
    let known = cache.space(namespace);
    let found = calls.get::<Namespace>(None, namespace).await?;
    let Some(found) = found else {
        if let Some(known) = known.and_then(|space| space.namespace) {
            cache.await_written(namespace, Awaited::NamespaceGone(known.uid));
        }
        return Ok(());
    };
    let is_told = |meta: &ObjectMeta| {
        meta.labels.as_ref().is_some_and(|labels| labels.get(names::CONTROL_PLANE) == Some(&control_plane))
    };
    if NamespaceDigest::of(&found).is_some() && is_told(&found.metadata) {
        cache.await_written(namespace, Awaited::Version(Kind::Namespace, version_of(&found.metadata)));
    }
    let sets = calls.list::<StatefulSet>(namespace, &ListParams::default()).await?;
    // Of one that lost its labels no watch tells.
    let told = sets.iter().filter(|set| is_told(&set.metadata));
    let found: Vec<_> = told.filter_map(|set| Some((SetDigest::of(set)?, version_of(&set.metadata)))).collect();
    for (_, version) in &found {
        cache.await_written(namespace, Awaited::Version(Kind::Set, *version));
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
