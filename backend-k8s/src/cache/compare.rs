//! Whether the watches are as new as the cluster: where they were interrupted, and where another process wrote.

use k8s_openapi::{
    api::{apps::v1::StatefulSet, core::v1::Pod},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{ResourceExt, api::DynamicObject};

use super::{Awaited, Cache, HomeDigest, Kind, SetDigest, is_told, version_of};
use crate::{client::Calls, error::Failure, home::Home, render::Namespaces};

/// Asks the cluster itself how new the things of a home are, and waits for the watches to tell of them.
pub(crate) async fn compare(calls: &Calls<'_>, cache: &Cache, home: &Home) -> Result<(), Failure> {
    let known = cache.space(home);
    let found = calls.home(home).await?;
    // Of what lost its labels no watch tells.
    let is_told = |meta: &ObjectMeta| is_told(&calls.cx.control_plane, meta, home.name());
    match &found {
        None => {
            if let Some(known) = known.as_ref().and_then(|space| space.home.as_ref()) {
                cache.await_written(home, Awaited::HomeGone(known.uid.clone()));
            }
            if !home.is_shared() {
                return Ok(());
            }
        }
        Some(found) if HomeDigest::of(found).is_some() && is_told(&found.metadata) => {
            cache.await_written(home, Awaited::Version(Kind::Home, version_of(&found.metadata)));
        }
        Some(_) => {}
    }
    let Some(in_home) = home.selector(found.as_ref().map(|found| &found.metadata)) else { return Ok(()) };
    let sets = calls.list::<StatefulSet>(home.namespace(), &in_home).await?;
    let told = sets.iter().filter(|set| is_told(&set.metadata));
    let found: Vec<_> = told.filter_map(|set| Some((SetDigest::of(set)?, version_of(&set.metadata)))).collect();
    for (_, version) in &found {
        cache.await_written(home, Awaited::Version(Kind::Set, *version));
    }
    let pods = calls.list::<Pod>(home.namespace(), &in_home).await?;
    for pod in pods.iter().filter(|pod| is_told(&pod.metadata)) {
        cache.await_written(home, Awaited::Version(Kind::Pod, version_of(&pod.metadata)));
    }
    for gone in known.into_iter().flat_map(|space| space.sets) {
        if !found.iter().any(|(set, _)| set.uid == gone.uid) {
            cache.await_written(home, Awaited::SetGone(gone.uid));
        }
    }
    Ok(())
}

/// Fails where the cluster has a home of ours that is not known.
pub(crate) async fn compare_all(calls: &Calls<'_>, cache: &Cache, namespaces: &Namespaces) -> Result<(), Failure> {
    let found = calls.homes(namespaces).await?;
    let is_unknown = |found: &DynamicObject| {
        let Some(digest) = HomeDigest::of(found) else { return false };
        let home = Home::of(namespaces, &calls.cx.control_plane, &digest.data);
        // A copy under another name is none of ours.
        home.name() == found.name_any() && cache.space(&home).is_none_or(|space| space.home.is_none())
    };
    if !found.iter().any(is_unknown) {
        return Ok(());
    }
    Err(Failure::Unanswered { was_sent: true, message: "the watches are behind".into() })
}
