//! What happens in the world, in an order that the seed decides: requests, outsiders, kills, standstills, operators.

use std::{sync::Arc, time::Duration};

use provisioner_core::{
    ErrorKind,
    memory::Fault,
    types::{CellName, Reason},
};

use crate::{
    customers::{self, ask, id},
    gate::Life,
    ledger::Ledger,
    operator::operate,
    replicas, scenario,
    trouble::Coming,
    world::World,
};

/// How long a control plane may be down.
pub(crate) const DOWN_MAX: Duration = Duration::from_secs(300);
/// How long a machine may stand still.
pub(crate) const STILL_MAX: Duration = Duration::from_secs(2 * 3600);
/// How often an operator looks.
const OPERATOR_INTERVAL: Duration = Duration::from_secs(1800);
/// A process that is to die by itself does so within so many kill points.
const DIES_WITHIN: u64 = 4000;

/// Drives the world until all that was to happen has happened, or something happened that must never.
pub async fn drive(world: &Arc<World>, ledger: &Arc<Ledger>, request: &scenario::Request) {
    let scenario = &world.scenario;
    let happenings = scenario.requests + scenario.meddlings + scenario.crashes;
    let pause = scenario.duration / u32::try_from(happenings.max(1)).unwrap_or(u32::MAX);
    for place in 0..world.places.len() {
        world.start(place, 0).await;
    }
    let mut troubles = Coming::of(request, scenario.duration, world.is_shared());
    let mut operator_at = tokio::time::Instant::now() + OPERATOR_INTERVAL;
    for count in 0..happenings {
        tokio::time::sleep(world.random.up_to(pause * 2)).await;
        if world.witness.violation().is_some() {
            return;
        }
        see_to_the_processes(world).await;
        if tokio::time::Instant::now() >= operator_at {
            operate(world, ledger).await;
            operator_at = tokio::time::Instant::now() + OPERATOR_INTERVAL;
        }
        troubles.befall(world).await;
        happen(world, ledger, request.instances, count).await;
    }
}

/// Starts a control plane where there is none that is alive.
pub async fn see_to_the_processes(world: &Arc<World>) {
    if world.is_shared() {
        return replicas::see_to(world);
    }
    let life = world.places[0].current.get().map(|process| process.gate.life());
    match life {
        Some(Life::Alive | Life::Paused) => {}
        Some(Life::Dead | Life::Buried) => {
            world.bury(0);
            tokio::time::sleep(world.random.up_to(DOWN_MAX)).await;
            world.start(0, dies_at(world)).await;
        }
        None => world.start(0, dies_at(world)).await,
    }
}

/// Of three processes one is to die by itself, at a kill point that comes soon.
pub(crate) fn dies_at(world: &World) -> u64 {
    let dice = world.random.bits();
    if world.scenario.crashes > 0 && dice.is_multiple_of(3) { 1 + (dice >> 32) % DIES_WITHIN } else { 0 }
}

async fn happen(world: &Arc<World>, ledger: &Arc<Ledger>, instances: usize, count: usize) {
    let scenario = &world.scenario;
    let dice = world.random.bits();
    let number = usize::try_from(dice >> 16).unwrap_or(0) % instances;
    let share = scenario.requests + scenario.meddlings + scenario.crashes;
    let happening = usize::try_from(world.random.bits() % share.max(1) as u64).unwrap_or(0);
    if happening < scenario.crashes {
        return crash(world, dice).await;
    }
    if happening < scenario.crashes + scenario.meddlings {
        return outsider(world, number, dice).await;
    }
    let wish = customers::wish(world, number, count).await;
    world.spawn(ask(Arc::clone(world), Arc::clone(ledger), number, format!("{number}-{count}"), wish));
}

/// The control plane is killed, stands still, or is replaced while it stands still and goes on later.
async fn crash(world: &Arc<World>, dice: u64) {
    if world.is_shared() {
        return replicas::crash(world, dice);
    }
    let Some(process) = world.places[0].current.get() else { return };
    let still = world.random.up_to(STILL_MAX);
    match dice % 3 {
        0 => {
            world.bury(0);
            tokio::time::sleep(world.random.up_to(DOWN_MAX)).await;
            world.start(0, dies_at(world)).await;
        }
        1 if !world.is_on_disk() => {
            world.witness.note(&format!("{} stands still and is replaced", process.gate.process));
            world.witness.somebody_stands_still();
            process.gate.pause();
            world.places[0].current.replace(None);
            world.start(0, 0).await;
            let left_behind = Arc::clone(world);
            world.spawn(async move {
                tokio::time::sleep(still).await;
                left_behind.witness.note(&format!("{} goes on, late", process.gate.process));
                process.gate.resume();
                // Whether it stops by itself is what is to be seen; when it has nothing to do, it does not know.
                tokio::time::sleep(Duration::from_secs(7200)).await;
                left_behind.end(process);
            });
        }
        _ => {
            world.witness.note(&format!("{} stands still", process.gate.process));
            world.witness.somebody_stands_still();
            process.gate.pause();
            tokio::time::sleep(still / 20).await;
            process.gate.resume();
        }
    }
}

/// Somebody changes something behind everybody's back.
async fn outsider(world: &Arc<World>, number: usize, dice: u64) {
    let owner = crate::world::owner();
    let id = id(number);
    let cells: Vec<_> = world.providers.keys().cloned().collect();
    let cell = &cells[number % cells.len()];
    let provider = &world.providers[cell];
    let spell = world.random.up_to(Duration::from_secs(900));
    world.witness.note(&format!("an outsider does {} to {id} in {cell}", dice % 10));
    match dice % 10 {
        0 | 1 => provider.vanish(&owner, &id),
        2 | 3 => provider.fail(&owner, &id, &Reason::new("exited", "with status 137")),
        4 => provider.stop_behind(&owner, &id),
        5 => for_a_spell(
            world,
            cell,
            spell,
            |provider| provider.deny(Some(ErrorKind::Unavailable)),
            |provider| {
                provider.deny(None);
            },
        ),
        6 => for_a_spell(
            world,
            cell,
            spell,
            |provider| provider.limit_capacity(1),
            |provider| {
                provider.limit_capacity(usize::MAX);
            },
        ),
        7 | 8 => {
            let calls = ["create", "resume", "suspend", "scale to zero", "destroy"];
            provider.script(calls[usize::try_from(dice >> 8 & 0xff).unwrap_or(0) % calls.len()], Fault::HalfWay);
        }
        // Before a cell is known to be one, it can be no other.
        _ if world.witness.row(&id).is_none_or(|row| row.live.is_none()) => {}
        _ => {
            let identity = format!("memory-{}", number % cells.len());
            provider.become_another("another");
            let provider = provider.clone();
            world.spawn(async move {
                tokio::time::sleep(spell).await;
                provider.become_another(identity);
            });
        }
    }
}

fn for_a_spell(
    world: &World,
    cell: &CellName,
    spell: Duration,
    begin: impl FnOnce(&provisioner_core::memory::MemoryProvisioner),
    end: impl FnOnce(&provisioner_core::memory::MemoryProvisioner) + Send + 'static,
) {
    let provider = world.providers[cell].clone();
    begin(&provider);
    world.spawn(async move {
        tokio::time::sleep(spell).await;
        end(&provider);
    });
}
