//! What the customers know they have: what each of them asked for and was told is accepted. The control plane must agree.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use provisioner_core::{
    store::{Operation, Verb},
    types::{DataDisposition, DataId, Hold, Incarnation, InstanceId, Intent, Power, Revision, Timestamp},
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

/// What was accepted of one instance since it was created.
#[derive(Debug, Default)]
struct Life {
    born: Option<Timestamp>,
    asked: BTreeMap<Revision, Ask>,
}

/// What the customers know.
#[derive(Debug, Default)]
pub struct Ledger(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    lives: BTreeMap<InstanceId, Life>,
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

    /// A customer was told that this is accepted.
    pub fn accepted(&self, operation: &Operation, ask: Ask) {
        let mut state = self.state();
        state.accepted.push(operation.clone());
        let life = state.lives.entry(operation.instance.clone()).or_default();
        let begins = matches!(operation.verb, Verb::Create | Verb::Adopt);
        if begins && life.born.is_none_or(|born| born < operation.accepted_at) {
            life.born = Some(operation.accepted_at);
            life.asked.clear();
        }
        // An answer of an earlier life may come when the next one has begun.
        if life.born.is_some_and(|born| born <= operation.accepted_at) {
            life.asked.insert(operation.revision, ask);
        }
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
        self.state().lives.keys().cloned().collect()
    }

    /// What the customer of this instance expects; none when its creation was never accepted.
    #[must_use]
    pub fn expected(&self, id: &InstanceId) -> Option<Expected> {
        let state = self.state();
        let life = state.lives.get(id)?;
        life.born?;
        let mut expected = Expected { intent: Intent::running(), version: String::new(), revision: Revision::FIRST };
        for (revision, ask) in &life.asked {
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
