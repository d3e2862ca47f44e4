//! That no accepted intent is lost: what a customer should have changes with what is accepted, or expires, and with nothing
//! else.

use std::{collections::BTreeMap, sync::Arc};

use provisioner_core::{
    store::{Change, EventKind, InstanceRow, InstanceWrite, Verb},
    types::{Generation, Hold, InstanceId, InstanceSpec, Intent, Power},
};

/// The hold of an instance whose time is over, and what the event about that tells of.
const EXPIRED: &str = "expired";

/// The specs of each instance that are in the store.
#[derive(Debug, Default)]
pub(super) struct Intents(BTreeMap<InstanceId, BTreeMap<Generation, Arc<InstanceSpec>>>);

impl Intents {
    /// Takes in a change that was taken, of a row that was so before; says what was lost.
    pub(super) fn check(&mut self, before: Option<&InstanceRow>, change: &Change) -> Option<String> {
        let write = change.instance.as_ref()?;
        let Some(after) = write.row() else {
            self.0.remove(write.id());
            return None;
        };
        let wanted_before = before.and_then(|before| self.wanted(before)).cloned();
        self.take_in(write, change);
        let id = &after.id;
        let Some(wanted) = self.wanted(after) else {
            return Some(format!("{id} lost an intent: the spec that is wanted, {}", after.wanted));
        };
        let before = before?;
        let intended = intended(before, after, change);
        if after.intent != intended {
            return Some(format!("{id} lost an intent: {intended:?}, and now it is {:?}", after.intent));
        }
        let updated = verbs(change).any(|(verb, _)| verb == Verb::Update);
        if !updated && wanted_before.is_some_and(|before| before != *wanted) {
            return Some(format!("{id} lost an intent: the spec {}, and now it is {}", before.wanted, after.wanted));
        }
        let asked = verbs(change).next().is_some() || has_expired(change);
        (asked != (after.revision > before.revision)).then(|| {
            let (from, to) = (before.revision, after.revision);
            format!("{id} went from revision {from} to {to}, and something was asked for: {asked}")
        })
    }

    fn wanted(&self, row: &InstanceRow) -> Option<&Arc<InstanceSpec>> {
        self.0.get(&row.id)?.get(&row.wanted)
    }

    fn take_in(&mut self, write: &InstanceWrite, change: &Change) {
        let specs = self.0.entry(write.id().clone()).or_default();
        specs.extend(change.specs.iter().cloned());
        if let Some(kept) = &change.keep_specs {
            specs.retain(|generation, _| kept.contains(generation));
        }
    }
}

/// What the customer should have with this change: as before, but for what it accepts.
fn intended(before: &InstanceRow, after: &InstanceRow, change: &Change) -> Intent {
    let mut intent = before.intent.clone();
    for asked in verbs(change) {
        match asked {
            (Verb::Sleep, _) => intent.power = Power::Zero,
            (Verb::Wake, _) => intent.power = Power::Running,
            (Verb::Suspend, Some(hold)) => drop(intent.holds.insert(hold.clone())),
            (Verb::Lift, Some(hold)) => drop(intent.holds.remove(hold)),
            // What becomes of the data the event does not tell.
            (Verb::Destroy, _) => intent.gone = intent.gone.or(after.intent.gone),
            _ => {}
        }
    }
    if has_expired(change) {
        intent.holds.insert(Hold::new(EXPIRED).expect("a DNS label"));
    }
    intent
}

/// What is accepted with a change.
fn verbs(change: &Change) -> impl Iterator<Item = (Verb, Option<&Hold>)> {
    change.events.iter().filter_map(|event| match &event.what {
        EventKind::Accepted { verb, hold, .. } => Some((*verb, hold.as_ref())),
        _ => None,
    })
}

fn has_expired(change: &Change) -> bool {
    change.events.iter().any(|event| matches!(&event.what, EventKind::Drifted { found } if found == EXPIRED))
}
