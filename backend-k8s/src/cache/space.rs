//! What is known of one home, and of all that is in it.

use provisioner_core::types::{Generation, Incarnation};
use serde::{Deserialize, Serialize};

use super::{
    Kind,
    digest::{ClaimDigest, HomeDigest, Intended, PodDigest, SetDigest},
    packed::{identifier, incarnation},
};

/// What is known of one home, and of all that is in it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Space {
    pub(crate) home: Option<HomeDigest>,
    pub(crate) claim: Option<ClaimDigest>,
    pub(crate) sets: Vec<SetDigest>,
    pub(crate) pods: Vec<PodDigest>,
    pub(super) parts: Vec<PartDigest>,
    /// The pods that the service leads to.
    pub(super) served: Vec<Served>,
    /// Whether all this is older than what we wrote. Known to who looks at it alone.
    #[serde(skip)]
    pub(crate) is_behind: bool,
}

/// An object of which nobody needs to know more than that it is there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct PartDigest {
    pub(super) kind: Kind,
    pub(super) name: Box<str>,
    #[serde(with = "incarnation")]
    pub(super) incarnation: Incarnation,
    pub(super) version: u64,
    pub(super) generation: Generation,
    /// Whether somebody else changed what we said.
    pub(super) is_foreign: bool,
    /// What keeps it from ending.
    pub(super) held: Option<Box<str>>,
}

/// A pod that a slice of the service's endpoints names as ready.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Served {
    pub(super) slice: Box<str>,
    /// Its uid.
    #[serde(with = "identifier")]
    pub(super) pod: Box<str>,
}

impl Space {
    pub(super) fn is_empty(&self) -> bool {
        self.home.is_none()
            && self.claim.is_none()
            && self.sets.is_empty()
            && self.pods.is_empty()
            && self.parts.is_empty()
            && self.served.is_empty()
    }

    /// The stateful set of a making.
    pub(crate) fn set_of(&self, incarnation: Incarnation) -> Option<&SetDigest> {
        self.sets.iter().find(|set| set.incarnation == incarnation)
    }

    /// The pods of a making.
    pub(crate) fn pods_of(&self, incarnation: Incarnation) -> impl Iterator<Item = &PodDigest> {
        self.pods.iter().filter(move |pod| pod.incarnation == incarnation)
    }

    /// What keeps a making from going away.
    pub(crate) fn blocked(&self, incarnation: Incarnation) -> Option<String> {
        let set = self.set_of(incarnation).and_then(|set| Some(("stateful set", &set.name, set.held.as_ref()?)));
        let mut pods = self.pods_of(incarnation).filter_map(|pod| Some(("pod", &pod.name, pod.held.as_ref()?)));
        let own = self.parts.iter().filter(|part| part.incarnation == incarnation);
        let mut parts = own.filter_map(|part| Some((part.kind.word(), &part.name, part.held.as_ref()?)));
        let held = set.or_else(|| pods.next()).or_else(|| parts.next());
        let home = self.home.as_ref().and_then(|home| home.blocked.as_deref()).map(String::from);
        home.or_else(|| held.map(|(kind, name, by)| format!("the finalizers of the {kind} {name}: {by}")))
            .or_else(|| self.data_blocked())
    }

    /// What keeps the data from going away.
    pub(crate) fn data_blocked(&self) -> Option<String> {
        let home = self.home.as_ref().and_then(|home| home.blocked.as_deref()).map(String::from);
        let claim = self.claim.as_ref().and_then(|claim| claim.held.as_deref());
        home.or_else(|| claim.map(|by| format!("the finalizers of the claim: {by}")))
    }

    /// Whether the service leads to a pod.
    pub(crate) fn leads_to(&self, pod: &PodDigest) -> bool {
        self.served.iter().any(|served| served.pod == pod.uid)
    }

    /// Whether the making has an object of this kind.
    pub(crate) fn has(&self, kind: Kind, incarnation: Incarnation) -> bool {
        self.parts.iter().any(|part| part.kind == kind && part.incarnation == incarnation)
    }

    /// Whether the making of this set has all that it should have, of the same generation, and nobody else changed it.
    pub(crate) fn is_whole(&self, set: &SetDigest) -> bool {
        let own = || self.parts.iter().filter(|part| part.incarnation == set.incarnation);
        let has_routes = set.intended == Intended::Suspended || self.routes(set.incarnation) == set.routes;
        let parts = own().filter(|part| part.kind != Kind::Ingress).count();
        parts == set.parts && has_routes && own().all(|part| part.generation == set.generation && !part.is_foreign)
    }

    /// For which generation an object of a making was applied, and its version.
    pub(crate) fn part(&self, kind: Kind, name: &str) -> Option<(Generation, u64)> {
        let part = self.parts.iter().find(|part| part.kind == kind && *part.name == *name)?;
        Some((part.generation, part.version))
    }

    /// Whose an object is.
    pub(crate) fn maker_of(&self, kind: Kind, name: &str) -> Option<Incarnation> {
        self.parts.iter().find(|part| part.kind == kind && *part.name == *name).map(|part| part.incarnation)
    }

    /// How many routes lead to the making.
    pub(crate) fn routes(&self, incarnation: Incarnation) -> usize {
        self.parts.iter().filter(|part| part.kind == Kind::Ingress && part.incarnation == incarnation).count()
    }

    /// Its small objects.
    pub(crate) fn parts(&self, incarnation: Incarnation) -> impl Iterator<Item = (Kind, &str)> {
        let own = self.parts.iter().filter(move |part| part.incarnation == incarnation);
        own.map(|part| (part.kind, &*part.name))
    }

    /// Whether anything at all of the making is left.
    pub(crate) fn has_any(&self, incarnation: Incarnation) -> bool {
        self.set_of(incarnation).is_some()
            || self.pods_of(incarnation).next().is_some()
            || self.parts.iter().any(|part| part.incarnation == incarnation)
    }

    /// The makings that something of is here.
    pub(crate) fn makings(&self) -> Vec<Incarnation> {
        let home = self.home.iter().map(|home| home.incarnation);
        let sets = self.sets.iter().map(|set| set.incarnation);
        let pods = self.pods.iter().map(|pod| pod.incarnation);
        let parts = self.parts.iter().map(|part| part.incarnation);
        let mut makings: Vec<_> = home.chain(sets).chain(pods).chain(parts).collect();
        makings.sort_unstable();
        makings.dedup();
        makings
    }
}
