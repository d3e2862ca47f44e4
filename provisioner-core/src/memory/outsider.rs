//! The provider's other door: what a test, or somebody behind everybody's back, sees and does.

use std::{collections::BTreeMap, sync::Arc};

use super::{backend::MemoryProvisioner, thing::Thing};
use crate::{
    error::ErrorKind,
    layers::Fault,
    types::{ControlPlaneId, DataId, Generation, Incarnation, InstanceId, InstanceSpec, Reason},
};

impl MemoryProvisioner {
    /// All things of a control plane.
    #[must_use]
    pub fn things(&self, owner: &ControlPlaneId) -> Vec<Thing> {
        self.state().world.of(owner)
    }

    /// One thing of a control plane.
    #[must_use]
    pub fn thing(&self, owner: &ControlPlaneId, incarnation: Incarnation) -> Option<Thing> {
        let mut state = self.state();
        state.world.tick(self.pace());
        state.world.get(owner, incarnation).cloned()
    }

    /// All data sets of a control plane, in use or not.
    #[must_use]
    pub fn data(&self, owner: &ControlPlaneId) -> Vec<DataId> {
        self.state().world.data_of(owner)
    }

    /// Whether a data set is there.
    #[must_use]
    pub fn has_data(&self, owner: &ControlPlaneId, data: &DataId) -> bool {
        self.state().world.has_data(owner, data)
    }

    /// How many calls of each operation arrived, or would have.
    #[must_use]
    pub fn calls(&self) -> BTreeMap<&'static str, u64> {
        self.state().calls.clone()
    }

    /// Has the next call of this operation go wrong; later ones follow in the order of the script.
    pub fn script(&self, operation: &'static str, fault: Fault) {
        self.state().faults.script(operation, fault);
    }

    /// Is another provider from now on, or itself again: it answers with this identity.
    pub fn become_another(&self, identity: impl Into<String>) {
        self.state().identity = identity.into();
    }

    /// Makes an instance fail by itself.
    pub fn fail(&self, owner: &ControlPlaneId, id: &InstanceId, reason: &Reason) {
        self.state().world.fail(owner, id, reason);
        self.tell(owner, id);
    }

    /// Deletes an instance behind everybody's back.
    pub fn vanish(&self, owner: &ControlPlaneId, id: &InstanceId) {
        self.state().world.vanish(owner, id);
        self.tell(owner, id);
    }

    /// Deletes data behind everybody's back.
    pub fn vanish_data(&self, owner: &ControlPlaneId, data: &DataId) {
        self.state().world.delete_data(owner, data);
    }

    /// Stops an instance behind everybody's back.
    pub fn stop_behind(&self, owner: &ControlPlaneId, id: &InstanceId) {
        self.state().world.stop_behind(owner, id);
        self.tell(owner, id);
    }

    /// Gives an instance the spec of a generation behind everybody's back, as a roll-back or an edit at the provider's console
    /// does.
    pub fn change(&self, owner: &ControlPlaneId, id: &InstanceId, generation: Generation, spec: &Arc<InstanceSpec>) {
        self.state().world.change_spec(owner, id, generation, spec);
        self.tell(owner, id);
    }

    /// Refuses every call with this kind, without effect, until it is told otherwise.
    pub fn deny(&self, kind: Option<ErrorKind>) {
        self.state().denied = kind;
    }

    /// Has room for so many things that are awake from now on. What is awake stays so.
    pub fn limit_capacity(&self, awake: usize) {
        self.state().capacity = awake;
    }

    /// Lets every control plane have so many things from now on. What is there stays.
    pub fn limit_quota(&self, things: usize) {
        self.state().quota = things;
    }

    /// Has so many of a hundred calls go wrong from now on.
    pub fn set_faults(&self, percent: u64) {
        self.state().faults.set_percent(percent);
    }

    /// Has nothing go wrong from now on: no fault, refusal, death or missed look, and room for all.
    pub fn calm(&self) {
        let mut state = self.state();
        state.faults.stop();
        state.denied = None;
        state.befalling = None;
        state.capacity = usize::MAX;
        state.quota = usize::MAX;
        state.identity.clone_from(&self.0.config.identity);
        state.world.calm();
    }

    /// Has every call from now on go wrong like this, or none (`None`).
    pub fn befall(&self, fault: Option<Fault>) {
        self.state().befalling = fault;
    }

    /// Writes a customer's note into data; whether the data is there.
    pub fn write_note(&self, owner: &ControlPlaneId, data: &DataId, note: &str) -> bool {
        let mut state = self.state();
        let there = state.world.note(owner, data);
        there.map(|there| *there = Some(note.to_owned())).is_some()
    }

    /// The customer's note in data, if there is one.
    #[must_use]
    pub fn note(&self, owner: &ControlPlaneId, data: &DataId) -> Option<String> {
        self.state().world.note(owner, data).and_then(|note| note.clone())
    }
}
