//! One thing at the provider, and what is seen of it.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use crate::types::{
    DataId, Generation, Incarnation, InstanceId, InstanceSpec, Observed, Owned, OwnedKind, Phase, Present, Reason,
};

/// A thing at the provider.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Thing {
    /// The instance it belongs to.
    pub id: InstanceId,
    /// The making it belongs to.
    pub incarnation: Incarnation,
    /// The spec it was made with or last updated to.
    pub generation: Generation,
    /// The version of the workload.
    pub version: String,
    /// The spec that it runs with, or will.
    pub spec: Arc<InstanceSpec>,
    /// The data it runs on.
    pub data: DataId,
    /// Where it stands or is going.
    pub phase: Phase,
    /// Why, when it failed.
    pub reason: Option<Reason>,
    /// When it gets there; on its way until then.
    pub(super) done_at: Instant,
    /// When it dies by itself, if it still runs then.
    pub(super) dies_at: Option<Instant>,
}

/// Longer than anybody waits: what is this far from being done has stalled.
const NEVER: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

impl Thing {
    /// Gets stuck on its way.
    pub(super) fn stall(&mut self) {
        self.done_at = Instant::now() + NEVER;
    }

    pub(super) fn has_stalled(&self) -> bool {
        self.done_at.saturating_duration_since(Instant::now()) > NEVER / 2
    }

    /// It, as a listing tells of it.
    pub(super) fn owned(&self) -> Owned {
        Owned {
            id: self.id.clone(),
            incarnation: self.incarnation,
            kind: OwnedKind::Instance,
            data: Some(self.data.clone()),
            observed: self.observed(),
        }
    }

    pub(super) fn observed(&self) -> Observed {
        let left = self.done_at.saturating_duration_since(Instant::now());
        let on_its_way = !left.is_zero();
        let phase = match self.phase {
            Phase::Running if on_its_way => Phase::Provisioning,
            Phase::Zero | Phase::Suspended if on_its_way => Phase::Running,
            phase => phase,
        };
        let mut present = Present::new(phase, self.generation, self.incarnation);
        if phase == Phase::Running && !on_its_way {
            present = present.with_endpoint(format!("memory://{}/{}", self.id, self.version));
        }
        if on_its_way && !self.has_stalled() {
            present = present.look_again(left);
        }
        present.reason = self.reason.clone();
        if self.has_stalled() {
            present.reason = Some(Reason::new("stalled", "it got stuck on its way, until the verb is called again"));
        }
        present.into()
    }
}
