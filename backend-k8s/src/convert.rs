//! Between the words of the contract and those of the cluster.

use std::time::Duration;

use provisioner_core::{
    Error, ErrorKind, Result,
    types::{
        Capabilities, Generation, Incarnation, InstanceSpec, InvalidSpec, Observed, Owned, OwnedKind, Phase, Present,
        Reason,
    },
};

use crate::{
    cache::{Intended, Kind, PodDigest, SetDigest, Space},
    config::KubernetesConfig,
    reasons,
};

/// How soon to look again while the watches are behind what was written.
const CATCHING_UP: Duration = Duration::from_millis(100);

/// Checks a spec, and what of it cannot be changed in place.
pub(crate) fn check(
    wanted: &InstanceSpec,
    applied: Option<&InstanceSpec>,
    capabilities: &Capabilities,
    config: &KubernetesConfig,
    takes_host_names: bool,
) -> Result<()> {
    wanted.check_against(capabilities)?;
    if wanted.workload.image.is_none() {
        return Err(InvalidSpec::new("workload.image", "absent: expected a container image").into());
    }
    if wanted.workload.port.is_none() {
        return Err(InvalidSpec::new("workload.port", "absent: expected the port that the product listens on").into());
    }
    if wanted.workload.data_path.as_ref().is_some_and(|path| !path.starts_with('/') || path.contains(':')) {
        return Err(InvalidSpec::new("workload.data_path", "expected an absolute path without a colon").into());
    }
    let mounted = wanted.workload.data_path.as_deref().map(|path| path.trim_end_matches('/'));
    if mounted == Some("") || (mounted == Some("/tmp") && config.read_only_root) {
        let problem = "taken by the product itself, or by what it throws away: expected a folder of its own";
        return Err(InvalidSpec::new("workload.data_path", problem).into());
    }
    if let (false, Some(host)) = (takes_host_names, wanted.host_names.first()) {
        let problem = format!("{host}: this cell has no way in for host names: expected none");
        return Err(InvalidSpec::new("host_names", problem).into());
    }
    if let Some(applied) = applied {
        check_change(wanted, applied, config)?;
    }
    Ok(())
}

fn check_change(wanted: &InstanceSpec, applied: &InstanceSpec, config: &KubernetesConfig) -> Result<()> {
    let (wanted, applied) = (wanted.data.size_mib, applied.data.size_mib);
    if wanted == applied || (wanted > applied && config.volume_expansion) {
        return Ok(());
    }
    let expected = if config.volume_expansion { "or more" } else { "as its storage class cannot grow it" };
    let problem = format!("{wanted}: expected {applied}, {expected}");
    Err(Error::new(ErrorKind::Conflict, "validate").with_field("data.size_mib").with_message(problem))
}

/// That a pod which is to end is on a node that does not answer.
fn lost(space: &Space, incarnation: Incarnation) -> Option<Reason> {
    let troubles = space.pods_of(incarnation).filter(|pod| pod.is_ending).filter_map(|pod| pod.trouble.as_ref());
    let mut reasons = troubles.map(|trouble| &trouble.reason);
    reasons.find(|reason| reason.code == reasons::NODE_LOST).cloned()
}

/// Why a making, or what is left of its compute, does not end.
fn why_not_gone(space: &Space, incarnation: Incarnation) -> Option<Reason> {
    let blocked = space.blocked(incarnation).map(|why| Reason::new("removal-blocked", why));
    lost(space, incarnation).or(blocked)
}

/// What is seen of a making.
pub(crate) fn observed(space: Option<&Space>, incarnation: Incarnation) -> Observed {
    let Some(space) = space else { return Observed::Absent };
    if space.is_behind {
        return Observed::Unknown { again: CATCHING_UP };
    }
    let Some(home) = &space.home else {
        if !space.has_any(incarnation) {
            return Observed::Absent;
        }
        // It is the last to go, so it has lost its labels, its watch is ahead of others, or somebody took it away alone.
        if is_all_ending(space, incarnation) {
            return Present::new(Phase::Destroying, Generation(0), incarnation).into();
        }
        let present = Present::new(Phase::Provisioning, Generation(0), incarnation);
        return present
            .with_reason(Reason::new("home-missing", "what stands for its data is gone, or has lost its labels"))
            .into();
    };
    let is_user = home.incarnation == incarnation;
    let leaving = || {
        let mut present = Present::new(Phase::Destroying, generation(space, incarnation), incarnation);
        present.reason = why_not_gone(space, incarnation);
        present.into()
    };
    if home.is_ending {
        return if is_user || space.has_any(incarnation) { leaving() } else { Observed::Absent };
    }
    let is_released = home.released == Some(incarnation);
    match space.set_of(incarnation) {
        Some(set) if set.is_ending || is_released => leaving(),
        Some(set) => present(space, set).into(),
        None if is_released || !is_user => {
            if space.has_any(incarnation) {
                leaving()
            } else {
                Observed::Absent
            }
        }
        // Its service is made after it: somebody took the stateful set away. Its pods follow.
        // But nobody knows when one on a lost node does: whoever makes the set again has its pod come then.
        None if space.has(Kind::Service, incarnation)
            && lost(space, incarnation).is_none()
            && space.pods_of(incarnation).all(|pod| pod.is_ending) =>
        {
            match space.pods_of(incarnation).next() {
                Some(_) => leaving(),
                None => Observed::Absent,
            }
        }
        None => Present::new(Phase::Provisioning, Generation(0), incarnation).into(),
    }
}

/// Whether nothing is left of a making but what is on its way out.
fn is_all_ending(space: &Space, incarnation: Incarnation) -> bool {
    space.parts(incarnation).next().is_none()
        && space.set_of(incarnation).is_none_or(|set| set.is_ending)
        && space.pods_of(incarnation).all(|pod| pod.is_ending)
}

/// Whether a making is the last one that used the data.
pub(crate) fn is_last_user(space: &Space, incarnation: Incarnation) -> bool {
    space.home.as_ref().is_some_and(|home| home.incarnation == incarnation && !home.is_ending)
}

/// Whether a making uses the data, and is not on its way out of it.
pub(crate) fn uses(space: &Space, incarnation: Incarnation) -> bool {
    let is_released = space.home.as_ref().is_some_and(|home| home.released == Some(incarnation));
    is_last_user(space, incarnation) && !is_released
}

/// What somebody else changed is of no generation of ours: it has to be applied again.
fn generation(space: &Space, incarnation: Incarnation) -> Generation {
    match space.set_of(incarnation) {
        Some(set) if !set.is_foreign && is_kept(space) && space.is_whole(set) => set.generation,
        _ => Generation(0),
    }
}

/// Whether home and claim are as they were made.
pub(crate) fn is_kept(space: &Space) -> bool {
    space.claim.as_ref().is_some_and(|claim| !claim.is_foreign)
        && space.home.as_ref().is_some_and(|home| !home.is_foreign)
}

fn present(space: &Space, set: &SetDigest) -> Present {
    let incarnation = set.incarnation;
    let present = |phase| Present::new(phase, generation(space, incarnation), incarnation);
    let mut pods = space.pods_of(incarnation).peekable();
    match set.intended {
        Intended::Zero | Intended::Suspended if set.replicas == 0 => {
            let is_empty = set.is_seen() && set.pods == 0 && pods.peek().is_none();
            match (is_empty, set.intended, space.routes(incarnation)) {
                // A request that comes there wakes it.
                (true, Intended::Zero, routes) if routes >= set.routes => present(Phase::Zero),
                // Nobody may come there.
                (true, Intended::Suspended, 0) => present(Phase::Suspended),
                // Without an endpoint: on its way to sleep.
                _ => {
                    let mut present = present(Phase::Running);
                    present.reason = why_not_gone(space, incarnation);
                    present
                }
            }
        }
        _ => running(space, set, present(Phase::Provisioning)),
    }
}

fn running(space: &Space, set: &SetDigest, mut present: Present) -> Present {
    let pod = space.pods_of(set.incarnation).find(|pod| !pod.is_ending && pod.revision == set.revision);
    let serving = pod.filter(|pod| set.is_seen() && set.replicas > 0 && is_serving(space, pod));
    match &space.claim {
        // While a pod uses it, it cannot go: it has lost its labels.
        None if serving.is_some() => {}
        None => return failed(present, Reason::new("data-missing", "its claim is gone")),
        Some(claim) if claim.is_lost => return failed(present, Reason::new("data-missing", "its volume is gone")),
        Some(_) => {}
    }
    let Some(pod) = pod.filter(|_| set.is_seen() && set.replicas > 0) else {
        // Nothing takes the place of a pod that nobody knows to have ended.
        present.reason = lost(space, set.incarnation);
        return present;
    };
    if serving.is_some() {
        present.phase = Phase::Running;
        if space.claim.as_ref().is_some_and(|claim| claim.is_ending) {
            present.reason = Some(Reason::new("data-ending", "its claim is being removed, as soon as its pod ends"));
        }
        return present.with_endpoint(&*set.endpoint);
    }
    match &pod.trouble {
        Some(trouble) if trouble.is_failure => failed(present, trouble.reason.clone()),
        Some(trouble) => present.with_reason(trouble.reason.clone()),
        None => present,
    }
}

/// Ready, and the cluster leads there: its word that the endpoint answers, as far as it gives one.
fn is_serving(space: &Space, pod: &PodDigest) -> bool {
    pod.is_ready && space.leads_to(pod) && pod.trouble.as_ref().is_none_or(|trouble| !trouble.is_failure)
}

fn failed(mut present: Present, reason: Reason) -> Present {
    present.phase = Phase::Failed;
    present.with_reason(reason)
}

/// What a home holds of ours: instances, and the data of one that is gone.
pub(crate) fn owned(space: &Space) -> Vec<Owned> {
    let Some(home) = &space.home else { return Vec::new() };
    let mut all = Vec::new();
    for incarnation in space.makings() {
        let seen = observed(Some(space), incarnation);
        let is_user = home.incarnation == incarnation;
        let owned = |kind, observed| Owned {
            id: home.instance.clone(),
            incarnation,
            kind,
            data: Some(home.data.clone()),
            observed,
        };
        let is_released = home.released == Some(incarnation);
        match seen {
            Observed::Absent if is_user => {
                let asleep = Present::new(Phase::Zero, Generation(0), incarnation);
                all.push(owned(OwnedKind::Data, asleep.into()));
            }
            Observed::Absent => {}
            Observed::Present(_) if home.is_ending && is_released => all.push(owned(OwnedKind::Data, seen)),
            seen => all.push(owned(OwnedKind::Instance, seen)),
        }
    }
    all
}
