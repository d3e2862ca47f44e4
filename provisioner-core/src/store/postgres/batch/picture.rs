//! What a batch of changes is about: as it was found, and as it will be.

use std::collections::{BTreeMap, BTreeSet};

use super::super::{
    super::{
        CellRow, CellUsage, DataRow, IncarnationRow, InstanceRow, Operation, OperationEnd, Stranger, condition::Held,
        format::Prepared,
    },
    notice::Outbox,
};
use crate::types::{CellName, DataId, HostName, IdempotencyKey, Incarnation, InstanceId, OperationId};

/// Everything that the changes of a batch read or write, by name and so in order.
///
/// What is written without being looked at (makings, cells, ends of operations) is here only once it is written.
#[derive(Debug, Default)]
pub(in super::super) struct Picture<'a> {
    /// The sessions in force.
    pub(super) sessions: BTreeSet<u64>,
    /// Those that lapsed and that something is taken from.
    pub(super) ended_sessions: BTreeSet<u64>,
    /// Requests of the inbox: whether they are there.
    pub(super) requests: BTreeMap<u64, Kept<()>>,
    pub(super) instances: BTreeMap<&'a InstanceId, Kept<Instance<'a>>>,
    /// The highest version of an instance that is gone, and what it was before.
    pub(super) version_used: u64,
    pub(super) version_used_before: u64,
    pub(super) specs: BTreeMap<&'a InstanceId, Specs<'a>>,
    pub(super) reservations: BTreeMap<&'a InstanceId, Kept<Held>>,
    pub(super) usage: BTreeMap<CellName, Kept<CellUsage>>,
    /// Whose each host name is.
    pub(super) host_names: BTreeMap<HostName, Kept<InstanceId>>,
    pub(super) operations: BTreeMap<OperationId, Kept<Asked<'a>>>,
    /// Which operation holds a key.
    pub(super) keys: BTreeMap<IdempotencyKey, OperationId>,
    /// Ends of operations that are not in the picture.
    pub(super) ended: BTreeMap<&'a OperationId, &'a OperationEnd>,
    /// By text, which is their order in the table.
    pub(super) incarnations: BTreeMap<String, &'a IncarnationRow>,
    pub(super) data: BTreeMap<DataId, Kept<DataRow>>,
    pub(super) strangers: BTreeMap<Incarnation, Option<&'a Stranger>>,
    pub(super) cells: BTreeMap<&'a CellName, &'a CellRow>,
    pub(super) frozen: Option<bool>,
    /// The changes that were taken, whose events are written in this order.
    pub(super) taken: Vec<&'a Prepared>,
    pub(super) events: u64,
    pub(super) outbox: Outbox,
}

/// A row as it was found and as it will be.
#[derive(Debug)]
pub(super) struct Kept<T> {
    /// Whether there is one in the database; when nobody looked, there may be.
    pub(super) stored: bool,
    /// Whether it is to be written, or removed.
    pub(super) changed: bool,
    pub(super) now: Option<T>,
}

impl<T> Kept<T> {
    /// As it was found.
    pub(super) fn found(row: T) -> Self {
        Self { stored: true, changed: false, now: Some(row) }
    }

    /// Nothing was found.
    pub(super) fn absent() -> Self {
        Self { stored: false, changed: false, now: None }
    }

    /// Nobody looked, and it is written over.
    pub(super) fn unseen() -> Self {
        Self { stored: true, changed: false, now: None }
    }

    pub(super) fn set(&mut self, row: Option<T>) {
        self.changed = true;
        self.now = row;
    }

    /// The row to be inserted.
    pub(super) fn inserted(&self) -> Option<&T> {
        self.now.as_ref().filter(|_| self.changed && !self.stored)
    }

    /// The row to be updated.
    pub(super) fn updated(&self) -> Option<&T> {
        self.now.as_ref().filter(|_| self.changed && self.stored)
    }

    pub(super) fn is_deleted(&self) -> bool {
        self.stored && self.changed && self.now.is_none()
    }
}

/// An instance's row: what conditions need of it, and what is written.
#[derive(Debug, Clone)]
pub(super) struct Instance<'a> {
    pub(super) version: u64,
    pub(super) claimed_by: Option<u64>,
    pub(super) taken_over: bool,
    /// The row and its body. None: as found, and not to be written.
    pub(super) row: Option<(&'a InstanceRow, &'a str)>,
}

/// What becomes of an instance's specs.
#[derive(Debug, Default)]
pub(super) struct Specs<'a> {
    /// Those that stay of the ones in the database. None: all of them.
    pub(super) kept: Option<BTreeSet<i64>>,
    pub(super) written: BTreeMap<i64, &'a str>,
}

impl Specs<'_> {
    /// Drops all but these.
    pub(super) fn keep(&mut self, generations: &BTreeSet<i64>) {
        self.written.retain(|generation, _| generations.contains(generation));
        match &mut self.kept {
            Some(kept) => kept.retain(|generation| generations.contains(generation)),
            None => self.kept = Some(generations.clone()),
        }
    }
}

/// An operation. Its body is written when it is given.
#[derive(Debug, Clone)]
pub(super) struct Asked<'a> {
    pub(super) operation: Operation,
    pub(super) body: Option<&'a str>,
}

impl Picture<'_> {
    /// Whether no change was taken.
    pub(in super::super) fn is_unchanged(&self) -> bool {
        self.taken.is_empty()
    }

    /// How many events are to be written.
    pub(in super::super) fn events(&self) -> u64 {
        self.events
    }
}
