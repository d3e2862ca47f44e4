//! What the customers know they have: what each of them asked for and was told is accepted. The control plane must agree.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use provisioner_core::{
    store::Operation,
    types::{DataDisposition, DataId, Hold, Incarnation, InstanceId, Intent, Power, Revision},
};

/// What a customer asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ask {
    /// A new instance of this version, on this retained data or on fresh data.
    Create(String, Option<DataId>),
    /// A stranger to be taken in, at this version. It is the operator who asks.
    Adopt(Incarnation, String),
    /// Another version.
    Update(String),
    /// The same again.
    Restart,
    /// To sleep.
    Sleep,
    /// To wake.
    Wake,
    /// To be suspended.
    Suspend(Hold),
    /// To be suspended no more.
    Lift(Hold),
    /// To be removed.
    Destroy(DataDisposition),
    /// To be tried again.
    Retry,
}

/// What the customers know.
#[derive(Debug, Default)]
pub struct Ledger(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// What was accepted of each instance, in the order of the commits, with the revision that it made.
    asked: BTreeMap<InstanceId, BTreeMap<u64, (Revision, Ask)>>,
    accepted: Vec<Operation>,
}

/// What a customer expects to have.
#[derive(Debug, PartialEq, Eq)]
pub struct Expected {
    /// The intent.
    pub intent: Intent,
    /// The version wanted last.
    pub version: String,
    /// The revision of the last request.
    pub revision: Revision,
}

impl Ledger {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A customer was told that this is accepted, and was with this commit. That tells its place among others: answers come in
    /// any order, and clocks are set.
    pub fn accepted(&self, operation: &Operation, commit: u64, ask: Ask) {
        let mut state = self.state();
        state.accepted.push(operation.clone());
        state.asked.entry(operation.instance.clone()).or_default().insert(commit, (operation.revision, ask));
    }

    /// Every operation that somebody was told of.
    #[must_use]
    pub fn operations(&self) -> Vec<Operation> {
        self.state().accepted.clone()
    }

    /// How many requests were accepted.
    #[must_use]
    pub fn count(&self) -> usize {
        self.state().accepted.len()
    }

    /// Every instance that somebody was told of.
    #[must_use]
    pub fn instances(&self) -> Vec<InstanceId> {
        self.state().asked.keys().cloned().collect()
    }

    /// What the customer of this instance expects; none when its creation was never accepted.
    #[must_use]
    pub fn expected(&self, id: &InstanceId) -> Option<Expected> {
        let state = self.state();
        let asked = state.asked.get(id)?;
        let begins = |(_, ask): &(Revision, Ask)| matches!(ask, Ask::Create(..) | Ask::Adopt(..));
        let (born, _) = asked.iter().rev().find(|(_, asked)| begins(asked))?;
        let mut expected = Expected { intent: Intent::running(), version: String::new(), revision: Revision::FIRST };
        for (revision, ask) in asked.range(born..).map(|(_, asked)| asked) {
            expected.revision = *revision;
            match ask {
                Ask::Create(version, _) | Ask::Adopt(_, version) | Ask::Update(version) => {
                    expected.version.clone_from(version)
                }
                Ask::Sleep => expected.intent.power = Power::Zero,
                Ask::Wake => expected.intent.power = Power::Running,
                Ask::Suspend(hold) => drop(expected.intent.holds.insert(hold.clone())),
                Ask::Lift(hold) => drop(expected.intent.holds.remove(hold)),
                Ask::Destroy(data) => expected.intent.gone = Some(*data),
                Ask::Restart | Ask::Retry => {}
            }
        }
        Some(expected)
    }
}
