//! What others did to the control plane's world, and what it may do about that.

use provisioner_core::{
    memory::Thing,
    store::{InstanceRow, Record},
    types::{DataId, DataSource, Incarnation, Target},
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

    /// Something is about to turn up that the control plane never made.
    pub fn stranger_appears(&self, target: &Target) {
        self.state().strangers.insert(target.incarnation, target.clone());
    }

    /// Whether this is a stranger that nobody has adopted, of the generation and on the data that it came with.
    #[must_use]
    pub fn is_stranger_as_it_was(&self, thing: &Thing) -> bool {
        let state = self.state();
        let came_as = state.strangers.get(&thing.incarnation).filter(|_| state.is_strange(thing.incarnation));
        came_as.is_some_and(|target| thing.generation == target.generation && thing.data == *target.data.id())
    }

    /// Whether this is the data of a stranger that nobody has adopted.
    #[must_use]
    pub fn is_strange_data(&self, data: &DataId) -> bool {
        let state = self.state();
        let mut of = state.strangers.values().filter(|target| target.data.id() == data);
        of.any(|target| state.is_strange(target.incarnation))
    }

    /// Lost data that is there again is blank.
    pub(super) fn check_blank(&self, state: &State, row: &InstanceRow) -> Option<String> {
        let is_back = state.lost.contains(&row.data) && self.providers[&row.cell].has_data(&self.owner, &row.data);
        is_back.then(|| format!("{} was started on blank data in place of what an outsider deleted", row.id))
    }
}

impl State {
    /// Whether the control plane never made this, and nobody has adopted it.
    pub(super) fn is_strange(&self, incarnation: Incarnation) -> bool {
        self.strangers.contains_key(&incarnation) && !self.makings.contains_key(&incarnation)
    }

    /// Whoever calls, a stranger is looked at and nothing else.
    pub(super) fn check_stranger(&self, operation: &str, target: &Target, verb: bool) -> Option<String> {
        (verb && self.is_strange(target.incarnation))
            .then(|| format!("{operation} of {} {}, a stranger that nobody has adopted", target.id, target.incarnation))
    }

    /// Fresh data is made: whether it may be was checked when the call was sent. Nobody had seen any in use then.
    pub(super) fn data_is_made(&mut self, target: &Target) {
        if let DataSource::Fresh(data) = &target.data {
            self.lost.remove(data);
        }
    }
}
