//! What others did to the control plane's world, and what it may do about that.

use provisioner_core::{
    store::{InstanceRow, Record},
    types::{DataId, DataSource, Target},
};

use super::{State, Witness};

/// The code of what an instance is parked for whose data is not there.
const DATA_MISSING: &str = "data-missing";

impl Witness {
    /// An outsider deletes data. From now on it is gone: never must it be there again, blank.
    pub fn data_is_lost(&self, data: &DataId) {
        self.state().lost.insert(data.clone());
    }

    /// Whether an outsider deleted this data.
    #[must_use]
    pub fn is_lost(&self, data: &DataId) -> bool {
        self.state().lost.contains(data)
    }

    /// Whether an instance is parked as it must be when its data is gone.
    #[must_use]
    pub fn is_parked_for_its_data(&self, record: &Record) -> bool {
        let row = &record.row;
        let parked = row.parked && row.reason.as_ref().is_some_and(|reason| reason.code == DATA_MISSING);
        parked && self.is_lost(&row.data)
    }

    /// Lost data that is there again is blank.
    pub(super) fn check_blank(&self, state: &State, row: &InstanceRow) -> Option<String> {
        let is_back = state.lost.contains(&row.data) && self.providers[&row.cell].has_data(&self.owner, &row.data);
        is_back.then(|| format!("{} was started on blank data in place of what an outsider deleted", row.id))
    }
}

impl State {
    /// Fresh data is made: whether it may be was checked when the call was sent. Nobody had seen any in use then.
    pub(super) fn data_is_made(&mut self, target: &Target) {
        if let DataSource::Fresh(data) = &target.data {
            self.lost.remove(data);
        }
    }
}
