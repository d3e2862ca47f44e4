//! Conditions of a change that every store judges alike.
//!
//! Stores check in this order, so that a caller hears the most telling reason: the session, the keys (a repeated request
//! gets its operation, not "exists already"), the instance's version, host names, capacity, data.

use super::{
    Capacity, CellUsage, Change, DataRow, DataState, InstanceRow, InstanceWrite, KEY_KEPT, Operation, Reservation,
    StoreError,
};
use crate::types::{CellName, InstanceId, Timestamp};

/// A change that no store can carry out, because its parts contradict each other.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Malformed(&'static str);

impl InstanceWrite {
    /// The instance that is written.
    #[must_use]
    pub fn id(&self) -> &InstanceId {
        match self {
            Self::Insert(row) | Self::Update { row, .. } => &row.id,
            Self::Delete { id, .. } => id,
        }
    }

    /// Its new state; none when it is removed.
    #[must_use]
    pub fn row(&self) -> Option<&InstanceRow> {
        match self {
            Self::Insert(row) | Self::Update { row, .. } => Some(row),
            Self::Delete { .. } => None,
        }
    }
}

impl Change {
    /// The row that specs, reservation and data belong to.
    pub(super) fn row(&self) -> Option<&InstanceRow> {
        self.instance.as_ref().and_then(InstanceWrite::row)
    }

    /// Refuses a change whose parts belong to no instance, or that uses one key for two operations.
    pub(super) fn check_shape(&self) -> Result<(), StoreError> {
        let needs_row = !self.specs.is_empty()
            || self.keep_specs.is_some()
            || self.reservation.is_some()
            || self.take_data.is_some();
        if needs_row && self.row().is_none() {
            let problem = Malformed("specs, a reservation or data to be taken up, and no instance that gets them");
            return Err(StoreError::NotWritten(Box::new(problem)));
        }
        for (i, operation) in self.operations.iter().enumerate() {
            let twin = |other: &&Operation| other.key == operation.key && other.id != operation.id;
            if operation.key.is_some()
                && let Some(other) = self.operations[..i].iter().find(twin)
            {
                return Err(StoreError::KeyUsed(Box::new(other.clone())));
            }
        }
        Ok(())
    }
}

/// Whether a key that an operation of this age holds is still its own when another one of `accepted_at` asks for it.
pub(super) fn key_is_kept(held_since: Timestamp, accepted_at: Timestamp) -> bool {
    accepted_at < held_since.after(KEY_KEPT)
}

/// What one instance holds of a cell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Held {
    pub(super) cell: CellName,
    pub(super) usage: CellUsage,
}

impl Held {
    pub(super) fn of(reservation: &Reservation) -> Self {
        Self {
            cell: reservation.cell.clone(),
            usage: CellUsage {
                instances: 1,
                cpu_millis: reservation.size.cpu_millis.into(),
                memory_mib: reservation.size.memory_mib.into(),
                data_mib: reservation.data_mib.into(),
            },
        }
    }
}

impl CellUsage {
    /// This with so much more.
    #[must_use]
    pub(super) fn plus(&self, more: &Self) -> Self {
        Self {
            instances: self.instances.saturating_add(more.instances),
            cpu_millis: self.cpu_millis.saturating_add(more.cpu_millis),
            memory_mib: self.memory_mib.saturating_add(more.memory_mib),
            data_mib: self.data_mib.saturating_add(more.data_mib),
        }
    }

    /// This with so much less.
    #[must_use]
    pub(super) fn minus(&self, less: &Self) -> Self {
        Self {
            instances: self.instances.saturating_sub(less.instances),
            cpu_millis: self.cpu_millis.saturating_sub(less.cpu_millis),
            memory_mib: self.memory_mib.saturating_sub(less.memory_mib),
            data_mib: self.data_mib.saturating_sub(less.data_mib),
        }
    }
}

/// Refuses a reservation that its cell cannot hold: `used` is what the cell holds now, `held` what this instance has
/// of it (of any cell).
pub(super) fn check_capacity(
    capacity: &Capacity,
    used: &CellUsage,
    held: Option<&Held>,
    wanted: &Held,
) -> Result<(), StoreError> {
    let own = held.filter(|held| held.cell == wanted.cell).map(|held| held.usage.clone()).unwrap_or_default();
    let after = used.minus(&own).plus(&wanted.usage);
    match capacity.exceeded_by_growth(used, &after) {
        None => Ok(()),
        Some((resource, used, capacity)) => {
            Err(StoreError::CellFull { cell: wanted.cell.clone(), resource, used, capacity })
        }
    }
}

/// Whether an instance may take this data up. What was seen in use must be there: a row that would start blank without it is
/// refused.
pub(super) fn is_retained_for(data: &DataRow, row: &InstanceRow) -> bool {
    let free = match data.state {
        DataState::Used => false,
        DataState::Retained => row.data_made,
        DataState::Unseen => true,
    };
    free && data.tenant == row.tenant && data.cell == row.cell
}
