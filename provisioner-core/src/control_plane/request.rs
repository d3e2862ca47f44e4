//! What callers ask of a control plane.

use crate::types::{Actor, CellName, DataId, IdempotencyKey, InstanceId, InstanceSpec, Revision, TenantId};

/// Who asks, why, and under which conditions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Who asks.
    pub actor: Actor,
    /// Why, in the asker's words. Goes into the event log.
    pub reason: Option<String>,
    /// Makes the request repeatable for 24 hours: the same key again answers with the operation of the first time.
    pub key: Option<IdempotencyKey>,
    /// The revision that the asker has seen. Another one is a conflict.
    pub expected: Option<Revision>,
}

impl Request {
    /// A request by this actor, without reason, key or expectation.
    #[must_use]
    pub fn by(actor: Actor) -> Self {
        Self { actor, reason: None, key: None, expected: None }
    }

    /// The same with a reason.
    #[must_use]
    pub fn because(mut self, reason: impl Into<String>) -> Self {
        self.reason = Some(reason.into());
        self
    }

    /// The same with an idempotency key.
    #[must_use]
    pub fn with_key(mut self, key: IdempotencyKey) -> Self {
        self.key = Some(key);
        self
    }

    /// The same, on the condition that the instance is at this revision.
    #[must_use]
    pub fn expecting(mut self, revision: Revision) -> Self {
        self.expected = Some(revision);
        self
    }
}

/// A new instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewInstance {
    /// Its name.
    pub id: InstanceId,
    /// Its owner.
    pub tenant: TenantId,
    /// What it should be.
    pub spec: InstanceSpec,
    /// Where it should live; chosen by placement when absent.
    pub cell: Option<CellName>,
    /// Retained data of the same tenant to be taken up; a fresh set when absent.
    pub data: Option<DataId>,
}

impl NewInstance {
    /// An instance wherever placement puts it, on fresh data.
    #[must_use]
    pub fn new(id: InstanceId, tenant: TenantId, spec: InstanceSpec) -> Self {
        Self { id, tenant, spec, cell: None, data: None }
    }

    /// The same in this cell.
    #[must_use]
    pub fn in_cell(mut self, cell: CellName) -> Self {
        self.cell = Some(cell);
        self
    }

    /// The same on this retained data.
    #[must_use]
    pub fn on_data(mut self, data: DataId) -> Self {
        self.data = Some(data);
        self
    }
}
