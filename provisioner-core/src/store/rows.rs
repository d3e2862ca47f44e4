//! What the store keeps: decisions. Observations in here (phase, endpoint, reason) are a cache of the last look.
//!
//! These are stored types: bodies are JSON with a schema version, and a field that is added later has a default, so that
//! rows of the previous release stay readable.

use std::{collections::BTreeMap, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::{
    context::Priority,
    types::{
        CellName, DataId, Endpoint, Generation, HostName, Incarnation, InstanceId, InstanceSpec, Intent, OperationId,
        Phase, Reason, Revision, Size, TenantId, Timestamp,
    },
};

/// What is decided about one instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceRow {
    /// Its name.
    pub id: InstanceId,
    /// Its owner.
    pub tenant: TenantId,
    /// Where it lives: chosen before anything is made.
    pub cell: CellName,
    /// What the customer should have.
    pub intent: Intent,
    /// Rises with every accepted request.
    pub revision: Revision,
    /// The spec the customer wants.
    pub wanted: Generation,
    /// The spec that is worked with: the wanted one, or, after a failed update, a copy of the one applied last under a
    /// generation of its own.
    pub in_force: Generation,
    /// The last one that was seen ready.
    pub applied: Option<Generation>,
    /// The making that is alive, or may be.
    pub live: Option<LiveIncarnation>,
    /// The number of the last making.
    pub incarnations: u32,
    /// The data it runs on.
    pub data: DataId,
    /// Whether that data was ever seen in use: from then on it must exist.
    pub data_made: bool,
    /// Whether what is there was seen to be what is intended. A mutating call needs `false` on disk first.
    pub settled: bool,
    /// Since when it is settled, or was for the last time.
    pub settled_at: Option<Timestamp>,
    /// The phase seen last.
    pub phase: Option<Phase>,
    /// The endpoint seen last.
    pub endpoint: Option<Endpoint>,
    /// Why it is as it is: of the last look, the last failure, or why it is parked.
    pub reason: Option<Reason>,
    /// Whether the engine has given up until somebody asks for something.
    pub parked: bool,
    /// Failures in a row that count against it.
    pub attempts: u32,
    /// Failures since then of a provider that was busy or down: they slow the next try, and count against nobody.
    #[serde(default)]
    pub busy: u32,
    /// Until when a failure keeps it from acting.
    pub retry_at: Option<Timestamp>,
    /// Since when a move is under way: its deadline counts from here.
    pub moving_since: Option<Timestamp>,
    /// When to look at it by itself. None: at rest.
    pub due_at: Option<Timestamp>,
    /// Who waits for it.
    pub lane: Lane,
    /// The operation that is open.
    pub operation: Option<OperationId>,
    /// The operation that created it.
    pub created_by: OperationId,
    /// When it was accepted.
    pub created_at: Timestamp,
    /// When it is suspended for having expired.
    pub expires_at: Option<Timestamp>,
    /// When its work was taken over from a process that may not know yet that it lost it: until that one's last call can be no
    /// more, the instance is looked at again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub taken_over_at: Option<Timestamp>,
}

impl InstanceRow {
    /// The generation that the next change of the spec gets.
    #[must_use]
    pub fn next_generation(&self) -> Generation {
        self.wanted.max(self.in_force).next()
    }
}

/// The making that is alive, or may be: stored before its first call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LiveIncarnation {
    /// Which making.
    pub incarnation: Incarnation,
    /// Whether it was ever seen present. What was never seen may be called for again; what was seen and is absent now
    /// has ended, once that is confirmed.
    pub seen: bool,
    /// The first of the absent reads in a row.
    pub absent_since: Option<Timestamp>,
    /// The last mutating call on it that is on record.
    pub last_call: Option<Timestamp>,
}

/// The queue's lanes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Lane {
    /// Somebody waits.
    Interactive,
    /// Nobody waits.
    Background,
}

impl Lane {
    /// Every lane, most urgent first.
    pub const ALL: [Self; 2] = [Self::Interactive, Self::Background];
}

impl From<Lane> for Priority {
    fn from(lane: Lane) -> Self {
        match lane {
            Lane::Interactive => Self::Interactive,
            Lane::Background => Self::Background,
        }
    }
}

/// One making, for as long as anything of it may turn up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IncarnationRow {
    /// Which making.
    pub incarnation: Incarnation,
    /// Of which instance.
    pub instance: InstanceId,
    /// Whose.
    pub tenant: TenantId,
    /// Where.
    pub cell: CellName,
    /// On which data.
    pub data: DataId,
    /// How far it is.
    pub state: IncarnationState,
    /// When it ended.
    pub ended_at: Option<Timestamp>,
    /// When to look for remnants of it.
    pub due_at: Option<Timestamp>,
}

/// How far a making is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum IncarnationState {
    /// It is the instance's making, or will be.
    Live,
    /// It is over, and is to be removed: a remnant of it was found, or it was gone before its removal was called for.
    Ending,
    /// It is over. Kept 30 days, so that a remnant is known as one.
    Ended,
}

/// One durable data set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DataRow {
    /// Which.
    pub id: DataId,
    /// Whose.
    pub tenant: TenantId,
    /// The instance that uses it, or used it last.
    pub instance: InstanceId,
    /// Where it lies.
    pub cell: CellName,
    /// Whether an instance uses it.
    pub state: DataState,
    /// Since when it is in this state.
    pub since: Timestamp,
}

/// Whether an instance uses a data set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DataState {
    /// One does.
    Used,
    /// None does, and it was kept on purpose.
    Retained,
    /// None does. It was to be kept, but its instance was never seen to run on it: it may be empty, or not exist at all.
    Unseen,
}

/// An instance's row with what is needed to act on it.
#[derive(Debug, Clone)]
pub struct Record {
    /// The row.
    pub row: Arc<InstanceRow>,
    /// Its version in the store.
    pub version: u64,
    /// The specs that the row refers to: wanted, in force, applied.
    pub specs: BTreeMap<Generation, Arc<InstanceSpec>>,
    /// Whether the session that worked on it lapsed meanwhile. Told until a write of the one who works on it now.
    pub taken_over: bool,
}

impl Record {
    /// The spec of a generation that the row refers to.
    ///
    /// # Panics
    /// When the store broke its promise to keep it.
    #[must_use]
    pub fn spec(&self, generation: Generation) -> &Arc<InstanceSpec> {
        self.specs.get(&generation).expect("a store keeps every spec that a row refers to")
    }
}

/// What one cell holds and has promised.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CellUsage {
    /// Instances that have a place there.
    pub instances: u64,
    /// Thousandths of a CPU promised.
    pub cpu_millis: u64,
    /// Mebibytes of memory promised.
    pub memory_mib: u64,
    /// Mebibytes of data promised.
    pub data_mib: u64,
}

/// How much one cell can hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capacity {
    /// Instances.
    pub instances: u64,
    /// Thousandths of a CPU.
    pub cpu_millis: u64,
    /// Mebibytes of memory.
    pub memory_mib: u64,
    /// Mebibytes of data.
    pub data_mib: u64,
}

impl Capacity {
    /// No bound.
    pub const UNBOUNDED: Self =
        Self { instances: u64::MAX, cpu_millis: u64::MAX, memory_mib: u64::MAX, data_mib: u64::MAX };

    /// Which resource this usage exceeds, if any: its name, how much is used, how much there is.
    #[must_use]
    pub fn exceeded_by(&self, usage: &CellUsage) -> Option<(&'static str, u64, u64)> {
        [
            ("instances", usage.instances, self.instances),
            ("cpu_millis", usage.cpu_millis, self.cpu_millis),
            ("memory_mib", usage.memory_mib, self.memory_mib),
            ("data_mib", usage.data_mib, self.data_mib),
        ]
        .into_iter()
        .find(|(_, used, capacity)| used > capacity)
    }

    /// Likewise, for a usage that was another one before: a resource that does not grow is no reason to refuse, so that
    /// instances of a cell whose capacity was lowered under them can still be changed.
    #[must_use]
    pub fn exceeded_by_growth(&self, before: &CellUsage, after: &CellUsage) -> Option<(&'static str, u64, u64)> {
        let grown = |before: u64, after: u64| if after > before { after } else { 0 };
        self.exceeded_by(&CellUsage {
            instances: grown(before.instances, after.instances),
            cpu_millis: grown(before.cpu_millis, after.cpu_millis),
            memory_mib: grown(before.memory_mib, after.memory_mib),
            data_mib: grown(before.data_mib, after.data_mib),
        })
    }
}

/// What is reserved for an instance, in the transaction that accepts its spec. Replaces what it had reserved before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reservation {
    /// In which cell.
    pub cell: CellName,
    /// How much that cell can hold.
    pub capacity: Capacity,
    /// Compute.
    pub size: Size,
    /// Mebibytes of data.
    pub data_mib: u32,
    /// Host names, unique in the control plane.
    pub host_names: Vec<HostName>,
}

/// What is recorded of a cell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CellRow {
    /// Its name.
    pub name: CellName,
    /// The provider's identity, as seen first.
    pub identity: Option<String>,
    /// Why its drift actions are frozen.
    pub drift_frozen: Option<String>,
}

/// Something of ours that the store never knew.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stranger {
    /// Which making.
    pub incarnation: Incarnation,
    /// Of which instance, by its mark.
    pub instance: InstanceId,
    /// Where it was found.
    pub cell: CellName,
    /// The data it runs on, as far as the provider tells.
    pub data: Option<DataId>,
    /// The spec it was made with or last updated to.
    pub generation: Generation,
    /// When it was found first.
    pub found_at: Timestamp,
}
