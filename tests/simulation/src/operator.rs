//! What the operator does: confirms what vanished, has tried again what is parked, and decides about strangers.

use std::sync::Arc;

use provisioner_core::{
    ControlPlane, Result,
    control_plane::Request,
    seams::Random,
    store::{InstanceFilter, Stranger},
    types::{Actor, DataDisposition},
};

use crate::{
    customers::{ask, number_of},
    ledger::{Ask, Ledger},
    world::World,
};

/// More instances than that are not looked at at once.
const PAGE: usize = 1000;

fn request() -> Request {
    Request::by(Actor::new("operator").expect("a name"))
}

/// An operator looks at what is parked or frozen, has it tried again, and decides about strangers.
pub async fn operate(world: &Arc<World>, ledger: &Arc<Ledger>) {
    let Some(process) = world.somebody() else { return };
    let work = async {
        let plane = &process.plane;
        for status in plane.cells().await? {
            if status.drift_frozen {
                plane.confirm_drift(&status.name, request()).await?;
            }
        }
        let parked = InstanceFilter { parked: Some(true), ..InstanceFilter::default() };
        for instance in plane.list(&parked, None, PAGE).await?.items {
            // Somebody may have been faster.
            let _ = plane.retry(&instance.id, request()).await;
        }
        if let Some(to_adopt) = decide(world, plane).await? {
            world.spawn(adopt(Arc::clone(world), Arc::clone(ledger), to_adopt));
        }
        Ok::<_, provisioner_core::Error>(())
    };
    tokio::select! {
        biased;
        done = work => if let Err(error) = done {
            world.witness.note(&format!("the operator could not do it all: {error}"));
        },
        () = process.gate.died() => {}
    }
}

/// Forgets some strangers, leaves some alone, and answers with those that are to be adopted, unless others still are.
async fn decide(world: &World, plane: &ControlPlane) -> Result<Option<Vec<Stranger>>> {
    let Some(dice) = &world.operators_dice else { return Ok(None) };
    let mut to_adopt = Vec::new();
    for stranger in plane.strangers().await? {
        match dice.bits() % 4 {
            0 | 1 => to_adopt.push(stranger),
            // It comes back with the next drift pass, which would be a disturbance when all is to be at rest.
            2 if !world.is_calm() => plane.forget(stranger.incarnation, request()).await?,
            _ => {}
        }
    }
    Ok(world.begin_adopting().then_some(to_adopt))
}

/// Adopts strangers one after the other, and their customers go on with them. That one is gone, or its id is taken, is an answer
/// as well.
async fn adopt(world: Arc<World>, ledger: Arc<Ledger>, strangers: Vec<Stranger>) {
    for stranger in strangers {
        let (incarnation, number) = (stranger.incarnation, number_of(&stranger.instance));
        // The same words for the same stranger, however often it is asked for.
        let adoption = Ask::Adopt(incarnation, format!("adopted-{}", incarnation.nonce() % 1000));
        ask(Arc::clone(&world), Arc::clone(&ledger), number, format!("adopt-{incarnation}"), adoption).await;
        // Whatever is removed is looked for once more a while later, and when all is to be at rest it is too late for that.
        if world.is_calm() {
            continue;
        }
        let dice = world.operators_dice.as_ref().map_or(0, Random::bits);
        let next = match dice % 8 {
            0 => Ask::Destroy(DataDisposition::Delete),
            1 => Ask::Destroy(DataDisposition::Retain),
            2 | 3 => Ask::Sleep,
            4 => Ask::Update(format!("{}.0", dice >> 48)),
            _ => continue,
        };
        ask(Arc::clone(&world), Arc::clone(&ledger), number, format!("{number}-{dice}"), next).await;
    }
    world.end_adopting();
}
