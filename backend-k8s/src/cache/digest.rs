//! What is kept of each object: as little as tells how an instance stands.

use k8s_openapi::{
    api::{
        apps::v1::StatefulSet,
        core::v1::{ConfigMap, Namespace, NamespaceCondition, PersistentVolumeClaim, Pod},
    },
    apimachinery::pkg::apis::meta::v1::{ManagedFieldsEntry, ObjectMeta},
    jiff::Timestamp,
};
use kube::api::DynamicObject;
use provisioner_core::types::{ControlPlaneId, DataId, Generation, Incarnation, InstanceId, Reason};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::packed::{identifier, incarnation};
use crate::{
    applied::{self, Lists},
    names, reasons,
};

/// What an instance is meant to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Intended {
    Running,
    Zero,
    Suspended,
}

impl Intended {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Zero => "zero",
            Self::Suspended => "suspended",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        [Self::Running, Self::Zero, Self::Suspended].into_iter().find(|intended| intended.as_str() == text)
    }
}

/// What stands for a data set: who uses it, and whose it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct HomeDigest {
    #[serde(with = "identifier")]
    pub(crate) uid: Box<str>,
    /// Who used it last.
    pub(crate) instance: InstanceId,
    #[serde(with = "incarnation")]
    pub(crate) incarnation: Incarnation,
    #[serde(with = "identifier")]
    pub(crate) data: DataId,
    pub(crate) tenant: Box<str>,
    /// Who is done with it, or on its way out of it.
    pub(crate) released: Option<Incarnation>,
    /// Whether somebody else changed its labels.
    pub(crate) is_foreign: bool,
    pub(crate) is_ending: bool,
    /// What keeps it from ending.
    pub(crate) blocked: Option<Box<str>>,
}

/// A stateful set: the instance itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SetDigest {
    #[serde(with = "identifier")]
    pub(crate) uid: Box<str>,
    pub(crate) name: Box<str>,
    #[serde(with = "incarnation")]
    pub(crate) incarnation: Incarnation,
    pub(crate) generation: Generation,
    pub(crate) intended: Intended,
    pub(crate) replicas: i32,
    /// How many pods its controller has counted, those that end among them.
    pub(crate) pods: i32,
    /// When it was changed, in seconds since 1970, if its controller has not acted on that yet. `None`: it has.
    pub(crate) unseen_since: Option<i64>,
    /// The revision that pods are to have.
    pub(crate) revision: Box<str>,
    pub(crate) is_ending: bool,
    /// What keeps it from ending.
    pub(crate) held: Option<Box<str>>,
    /// How often its spec was changed, as the cluster counts.
    pub(crate) edits: i64,
    /// Whether somebody else changed what we said.
    pub(crate) is_foreign: bool,
    /// Whether that is so of its labels or annotations.
    pub(crate) has_other_marks: bool,
    /// Where it answers when it runs.
    pub(crate) endpoint: Box<str>,
    /// How many objects of watched kinds belong to it, beside routes.
    pub(crate) parts: usize,
    /// How many routes of watched kinds lead there when it is not suspended.
    pub(crate) routes: usize,
}

/// A pod: what runs now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PodDigest {
    #[serde(with = "identifier")]
    pub(crate) uid: Box<str>,
    pub(crate) name: Box<str>,
    #[serde(with = "incarnation")]
    pub(crate) incarnation: Incarnation,
    pub(crate) revision: Box<str>,
    pub(crate) is_ready: bool,
    pub(crate) is_ending: bool,
    /// When it was made, in seconds since 1970.
    pub(crate) made_at: i64,
    /// Whether its node is about to start it, and nothing is wrong so far.
    pub(crate) is_starting: bool,
    /// What keeps it from ending.
    pub(crate) held: Option<Box<str>>,
    pub(crate) trouble: Option<Trouble>,
}

/// What is wrong with a pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Trouble {
    pub(crate) reason: Reason,
    /// Whether it does not go away by waiting.
    pub(crate) is_failure: bool,
    /// Whether the last lines of its log say more.
    pub(crate) has_log: bool,
}

/// A claim.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ClaimDigest {
    pub(crate) is_bound: bool,
    pub(crate) is_ending: bool,
    /// Its volume is gone.
    pub(crate) is_lost: bool,
    /// Whether somebody else changed its labels or annotations.
    pub(crate) is_foreign: bool,
    /// What keeps it from ending.
    pub(crate) held: Option<Box<str>>,
}

fn label<'a>(meta: &'a ObjectMeta, key: &str) -> Option<&'a str> {
    meta.labels.as_ref()?.get(key).map(String::as_str)
}

fn annotation<'a>(meta: &'a ObjectMeta, key: &str) -> Option<&'a str> {
    meta.annotations.as_ref()?.get(key).map(String::as_str)
}

/// The data that an object says to belong to. `None`: to none, or it said otherwise when it was written.
pub(super) fn data_of(meta: &ObjectMeta) -> Option<DataId> {
    let data = label(meta, names::DATA)?;
    let noted = applied::noted_labels(meta);
    noted.get(names::DATA).is_none_or(|noted| *noted == data).then(|| data.parse().ok())?
}

/// Whether watches tell of an object in this home, or of the home, as of one of ours.
pub(crate) fn is_told(control_plane: &ControlPlaneId, meta: &ObjectMeta, home: &str) -> bool {
    let is_ours = label(meta, names::CONTROL_PLANE) == Some(control_plane.as_str());
    is_ours && data_of(meta).is_some_and(|data| names::home(control_plane, &data) == home)
}

pub(crate) fn version_of(meta: &ObjectMeta) -> u64 {
    // Comparable as numbers: <https://kubernetes.io/docs/reference/using-api/api-concepts/#resource-versions>.
    meta.resource_version.as_deref().and_then(|version| version.parse().ok()).unwrap_or_default()
}

/// When an object was last written by such field managers, by the cluster's clock, in whole seconds. `None`: it says nothing of
/// that.
pub(crate) fn written_at(meta: &ObjectMeta, by: impl Fn(&str) -> bool) -> Option<Timestamp> {
    let theirs = |fields: &&ManagedFieldsEntry| fields.manager.as_deref().is_some_and(&by);
    let times = meta.managed_fields.iter().flatten().filter(theirs).filter_map(|fields| fields.time.as_ref());
    times.map(|time| time.0).max()
}

/// The making that an object belongs to: as it was noted, where that was noted.
pub(crate) fn incarnation_of(meta: &ObjectMeta) -> Option<Incarnation> {
    let noted = applied::noted_labels(meta).get(names::INCARNATION).and_then(|noted| noted.parse().ok());
    noted.or_else(|| label(meta, names::INCARNATION)?.parse().ok())
}

fn name_of(meta: &ObjectMeta) -> Box<str> {
    meta.name.as_deref().unwrap_or_default().into()
}

fn uid_of(meta: &ObjectMeta) -> Box<str> {
    meta.uid.as_deref().unwrap_or_default().into()
}

/// What keeps a thing that is to end from that: finalizers, but for those by which the cluster itself removes what belongs to
/// it first, or has a claim wait for its pod; see
/// <https://kubernetes.io/docs/concepts/architecture/garbage-collection/#foreground-deletion>.
pub(super) fn held(meta: &ObjectMeta) -> Option<Box<str>> {
    meta.deletion_timestamp.as_ref()?;
    let clusters_own = ["foregroundDeletion", "orphan", "kubernetes.io/pvc-protection"];
    let finalizers = meta.finalizers.iter().flatten().map(String::as_str).filter(|it| !clusters_own.contains(it));
    let finalizers: Vec<_> = finalizers.collect();
    (!finalizers.is_empty()).then(|| finalizers.join(", ").into())
}

impl HomeDigest {
    /// `None`: it is not one of ours, whatever its labels say.
    pub(crate) fn of(object: &DynamicObject) -> Option<Self> {
        let conditions: Vec<_> =
            serde_json::from_value(object.data["status"]["conditions"].clone()).unwrap_or_default();
        Self::with(&object.metadata, blocked_by(&conditions))
    }

    /// One that is a namespace.
    pub(super) fn of_namespace(namespace: &Namespace) -> Option<Self> {
        let conditions = namespace.status.as_ref().and_then(|status| status.conditions.as_deref());
        Self::with(&namespace.metadata, blocked_by(conditions.unwrap_or_default()))
    }

    /// One that is a config map.
    pub(super) fn of_config_map(map: &ConfigMap) -> Option<Self> {
        Self::with(
            &map.metadata,
            held(&map.metadata).map(|by| format!("the finalizers of its config map: {by}").into()),
        )
    }

    fn with(meta: &ObjectMeta, blocked: Option<Box<str>>) -> Option<Self> {
        Some(Self {
            uid: uid_of(meta),
            instance: label(meta, names::INSTANCE)?.parse().ok()?,
            incarnation: incarnation_of(meta)?,
            data: label(meta, names::DATA)?.parse().ok()?,
            tenant: label(meta, names::TENANT)?.into(),
            is_foreign: !applied::is_intact(meta, &json!({"metadata": {"labels": meta.labels}}), Lists::Whole),
            released: annotation(meta, names::RELEASED).and_then(|text| text.parse().ok()),
            is_ending: meta.deletion_timestamp.is_some(),
            blocked,
        })
    }
}

/// What keeps a namespace from ending.
fn blocked_by(conditions: &[NamespaceCondition]) -> Option<Box<str>> {
    let tells = |it: &&NamespaceCondition| it.status == "True" && !is_usual(it);
    let told = conditions.iter().filter(tells).filter_map(|condition| {
        let message = condition.message.as_deref().filter(|message| !message.is_empty())?;
        Some(format!("{}: {message}", condition.type_))
    });
    let told: Vec<_> = told.collect();
    (!told.is_empty()).then(|| told.join("; ").into())
}

/// Whether it is so of every removal for a while: something is left, and its claim waits for its pod.
fn is_usual(condition: &NamespaceCondition) -> bool {
    let message = condition.message.as_deref().unwrap_or_default();
    let mut held = message.rsplit(": ").next().unwrap_or_default().split(", ");
    condition.type_ == "NamespaceContentRemaining"
        || condition.type_ == "NamespaceFinalizersRemaining"
            && held.all(|held| held.starts_with("kubernetes.io/pvc-protection "))
}

impl SetDigest {
    pub(crate) fn of(set: &StatefulSet) -> Option<Self> {
        let meta = &set.metadata;
        let status = set.status.as_ref();
        let is_seen = status.and_then(|status| status.observed_generation) >= meta.generation;
        let changed_at = || {
            written_at(meta, |by| by == names::FIELD_MANAGER)
                .or_else(|| meta.creation_timestamp.as_ref().map(|at| at.0))
        };
        annotation(meta, names::GENERATION)?.parse::<u64>().ok()?;
        let has_other_marks = !applied::has_marks(meta);
        Some(Self {
            name: name_of(meta),
            uid: uid_of(meta),
            incarnation: incarnation_of(meta)?,
            generation: applied::generation(meta),
            intended: Intended::parse(annotation(meta, names::INTENDED)?)?,
            replicas: set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1),
            pods: status.map_or(0, |status| status.replicas),
            unseen_since: (!is_seen).then(|| changed_at().map_or(0, Timestamp::as_second)),
            revision: status.and_then(|status| status.update_revision.as_deref()).unwrap_or_default().into(),
            is_ending: meta.deletion_timestamp.is_some(),
            held: held(meta),
            edits: meta.generation.unwrap_or_default(),
            is_foreign: meta.generation > annotation(meta, names::WRITTEN).and_then(|written| written.parse().ok())
                || has_other_marks,
            has_other_marks,
            endpoint: applied::annotation(meta, names::ENDPOINT).unwrap_or_default().into(),
            parts: annotation(meta, names::PARTS).and_then(|parts| parts.parse().ok()).unwrap_or(0),
            routes: annotation(meta, names::ROUTES).and_then(|routes| routes.parse().ok()).unwrap_or(0),
        })
    }

    /// Whether its controller has acted on its last change.
    pub(crate) fn is_seen(&self) -> bool {
        self.unseen_since.is_none()
    }
}

impl PodDigest {
    pub(crate) fn of(pod: &Pod) -> Option<Self> {
        let meta = &pod.metadata;
        let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
        let mut ready = conditions.filter(|condition| condition.type_ == "Ready");
        Some(Self {
            name: name_of(meta),
            uid: uid_of(meta),
            incarnation: incarnation_of(meta)?,
            revision: label(meta, "controller-revision-hash").unwrap_or_default().into(),
            is_ready: ready.any(|condition| condition.status == "True"),
            is_ending: meta.deletion_timestamp.is_some(),
            made_at: meta.creation_timestamp.as_ref().map_or(0, |at| at.0.as_second()),
            is_starting: reasons::is_starting(pod),
            held: held(meta),
            trouble: reasons::of_pod(pod),
        })
    }
}

impl ClaimDigest {
    pub(crate) fn of(claim: &PersistentVolumeClaim) -> Self {
        let phase = claim.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default();
        Self {
            is_bound: phase == "Bound",
            is_ending: claim.metadata.deletion_timestamp.is_some(),
            is_lost: phase == "Lost",
            is_foreign: !applied::has_marks(&claim.metadata),
            held: held(&claim.metadata),
        }
    }
}
