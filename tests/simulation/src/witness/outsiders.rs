//! What others did to the control plane's world, and what it may do about that.

use provisioner_core::{
    memory::Thing,
    store::{InstanceRow, Record},
    types::{CellName, DataId, DataSource, Incarnation, Target},
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

    /// Fresh data is made, unless what runs on it is there already: that had its data. Whether it may be was checked when the
    /// call was sent: nobody had seen any in use then.
    pub(super) fn data_is_made(&self, state: &mut State, target: &Target) {
        let cell = state.makings.get(&target.incarnation).map(|making| &making.cell);
        let there = cell.and_then(|cell| self.providers[cell].thing(&self.owner, target.incarnation));
        if let (DataSource::Fresh(data), None) = (&target.data, there) {
            state.lost.remove(data);
        }
    }

    /// Lost data that is there again is blank.
    pub(super) fn check_blank(&self, state: &State, row: &InstanceRow) -> Option<String> {
        let is_back = self.is_back(state, &row.cell, &row.data);
        is_back.then(|| format!("{} was started on blank data in place of what an outsider deleted", row.id))
    }

    fn is_back(&self, state: &State, cell: &CellName, data: &DataId) -> bool {
        state.lost.contains(data) && self.providers[cell].has_data(&self.owner, data)
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
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use provisioner_core::{
        OpContext, Provisioner,
        memory::{MemoryConfig, MemoryProvisioner},
        types::{DataDisposition, Generation},
    };

    use super::*;
    use crate::{
        customers::{id, spec, tenant},
        world::owner,
    };

    fn target() -> Target {
        Target {
            id: id(1),
            tenant: tenant(1),
            incarnation: Incarnation::new(1, 7),
            generation: Generation(1),
            spec: Arc::new(spec("1.0")),
            data: DataSource::Fresh(DataId::from_random(7)),
        }
    }

    fn witness() -> (Arc<Witness>, CellName, MemoryProvisioner) {
        let (cell, provider) = (CellName::new("cell").unwrap(), MemoryProvisioner::new(MemoryConfig::default()));
        (Witness::new(owner(), [(cell.clone(), provider.clone())].into(), 4), cell, provider)
    }

    #[tokio::test(start_paused = true)]
    async fn a_stranger_may_be_looked_at_and_nothing_else() {
        for operation in ["observe", "create", "suspend", "scale to zero", "resume", "destroy"] {
            let (witness, cell, _) = witness();
            witness.stranger_appears(&target());
            let _ = witness.calls(0, &cell, operation, &target());
            let told = witness.violation().is_some_and(|told| told.contains("a stranger that nobody has adopted"));
            assert_eq!(told, operation != "observe", "{operation}: {:?}", witness.violation());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_no_stranger_and_of_no_making_is_not_even_looked_at() {
        for operation in ["observe", "destroy"] {
            let (witness, cell, _) = witness();
            let _ = witness.calls(0, &cell, operation, &target());
            assert!(witness.violation().is_some(), "{operation}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_stranger_that_was_touched_is_not_as_it_was() {
        let (witness, _, provider) = witness();
        witness.stranger_appears(&target());
        let cx = OpContext::new(owner());
        for (generation, same) in [(1, true), (2, false)] {
            provider.create(&cx, &Target { generation: Generation(generation), ..target() }).await.unwrap();
            let thing = provider.thing(&owner(), target().incarnation).unwrap();
            assert_eq!(witness.is_stranger_as_it_was(&thing), same, "{thing:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn data_that_is_back_after_it_was_deleted_is_blank() {
        let (witness, cell, provider) = witness();
        let (cx, data) = (OpContext::new(owner()), target().data.id().clone());
        provider.create(&cx, &target()).await.unwrap();
        provider.destroy(&cx, &target(), DataDisposition::Retain).await.unwrap();
        witness.data_is_lost(&data);
        assert!(witness.is_back(&witness.state(), &cell, &data));
        provider.vanish_data(&owner(), &data);
        assert!(!witness.is_back(&witness.state(), &cell, &data) && witness.is_lost(&data));
    }
}
