//! Whether the watches are as new as the cluster: where they were interrupted, and where another process wrote.

use std::collections::BTreeSet;

use k8s_openapi::api::{apps::v1::StatefulSet, core::v1::Namespace};
use kube::{ResourceExt, api::ListParams};

use super::{Awaited, Cache, Kind, NamespaceDigest, SetDigest, version_of};
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
    if NamespaceDigest::of(&found).is_some() {
        cache.await_written(namespace, Awaited::Version(Kind::Namespace, version_of(&found.metadata)));
    }
    let sets = calls.list::<StatefulSet>(namespace, &ListParams::default()).await?;
    let found: Vec<_> = sets.iter().filter_map(|set| Some((SetDigest::of(set)?, version_of(&set.metadata)))).collect();
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

/// Fails unless the cluster has the very namespaces that are known.
pub(crate) async fn compare_all(calls: &Calls<'_>, cache: &Cache) -> Result<(), Failure> {
    let labels = format!("{}={}", names::CONTROL_PLANE, calls.cx.control_plane);
    let found = calls.list_everywhere::<Namespace>(&ListParams::default().labels(&labels)).await?;
    let found: BTreeSet<_> = found.iter().map(ResourceExt::name_any).collect();
    let known = cache.page(None, usize::MAX).into_iter().filter(|(_, space)| space.namespace.is_some());
    let known: BTreeSet<_> = known.map(|(name, _)| name).collect();
    if found == known {
        return Ok(());
    }
    Err(Failure::Unanswered { was_sent: true, message: "the watches are behind".into() })
}
