//! Requests through the store's inbox: put there once, as with a customer's own transaction, and looked for until it is known
//! what became of them.

use std::sync::Arc;

use provisioner_core::{
    store::{self, OperationState, Submitted, Verb},
    types::{Actor, IdempotencyKey},
};
use serde_json::{Value, json};

use super::{ASK_AGAIN, cell_of, id, is_accepted, spec, tenant};
use crate::{
    ledger::{Ask, Ledger},
    world::World,
};

/// What is counted: requests of the inbox that were accepted, and those that were refused.
pub const ACCEPTED: &str = "accepted from the inbox";
/// Likewise.
pub const REFUSED: &str = "refused from the inbox";

/// Puts it into the inbox, and waits until it is accepted or refused.
pub(super) async fn ask(world: &Arc<World>, ledger: &Ledger, number: usize, key: &str, ask: Ask) {
    let now = world.now();
    let operation = world.random.operation_id(now);
    let request = Submitted {
        number: 0,
        operation: operation.clone(),
        instance: id(number),
        ask: asked(world, number, &ask),
        actor: Actor::new("customer").expect("a name"),
        reason: None,
        key: Some(IdempotencyKey::new(key).expect("visible")),
        expected: None,
        at: now,
    };
    while world.submit(request.clone()).is_none() {
        tokio::time::sleep(ASK_AGAIN).await;
    }
    loop {
        let process = world.process().await;
        let found = tokio::select! {
            biased;
            found = process.plane.operation(&operation) => found,
            () = process.gate.died() => continue,
        };
        if let Ok(found) = found {
            let found = found.operation();
            // It waits in the inbox, and nobody has judged it yet.
            if found.waits_in_inbox() {
                tokio::time::sleep(ASK_AGAIN).await;
                continue;
            }
            // What is refused was never anything else.
            if found.state == OperationState::Failed && found.fingerprint.is_empty() {
                world.witness.count(REFUSED);
                return world.witness.note(&format!("{number} is refused {ask:?}, by {operation}"));
            }
            world.witness.note(&format!("{number} learns of {operation} for {ask:?}"));
            world.witness.count(ACCEPTED);
            return is_accepted(world, ledger, found, ask);
        }
        tokio::time::sleep(ASK_AGAIN).await;
    }
}

fn asked(world: &World, number: usize, ask: &Ask) -> store::Ask {
    let (verb, parameters): (Verb, Value) = match ask {
        Ask::Create(version, data) => {
            let mut create = json!({"tenant": tenant(number), "spec": spec(version), "cell": cell_of(world, number)});
            if let Some(data) = data {
                create["data"] = json!(data);
            }
            (Verb::Create, create)
        }
        Ask::Adopt(..) => (Verb::Adopt, json!({})),
        Ask::Update(version) => (Verb::Update, json!({"spec": spec(version)})),
        Ask::Restart => (Verb::Restart, json!({})),
        Ask::Sleep => (Verb::Sleep, json!({})),
        Ask::Wake => (Verb::Wake, json!({})),
        Ask::Suspend(hold) => (Verb::Suspend, json!({"hold": hold})),
        Ask::Lift(hold) => (Verb::Lift, json!({"hold": hold})),
        Ask::Destroy(data) => (Verb::Destroy, json!({"data": data})),
        Ask::Retry => (Verb::Retry, json!({})),
    };
    store::Ask { verb, parameters: Ok(parameters) }
}
