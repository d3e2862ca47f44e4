//! What befalls control planes of which several share a store: each may be killed, stand still, be cut off, or be replaced, while
//! the others go on.

use std::{sync::Arc, time::Duration};

use provisioner_core::seams::Random;

use crate::{
    driver::{DOWN_MAX, STILL_MAX, dies_at},
    gate::{Cut, Life},
    world::{Process, World},
};

/// How long one may be cut off, and how long the store may answer nobody.
const CUT_MAX: Duration = Duration::from_secs(600);
const OUTAGE_MAX: Duration = Duration::from_secs(180);
/// How long one that outlasts its session stands still, mostly.
const STILL_MOSTLY: Duration = Duration::from_secs(300);
/// How long a place is empty while a control plane is replaced.
const REPLACED_WITHIN: Duration = Duration::from_secs(20);

/// Sees to it that dead control planes are replaced after a while.
pub fn see_to(world: &Arc<World>) {
    for place in 0..world.places.len() {
        let life = world.places[place].current.get().map(|process| process.gate.life());
        match life {
            Some(Life::Alive | Life::Paused) => {}
            Some(Life::Dead | Life::Buried) => {
                world.bury(place);
                start_after(world, place, world.random.up_to(DOWN_MAX));
            }
            None => start_after(world, place, Duration::ZERO),
        }
    }
}

/// Starts a control plane at this place, unless somebody does already.
fn start_after(world: &Arc<World>, place: usize, pause: Duration) {
    if !world.begin_seeing_to(place) {
        return;
    }
    let of = Arc::clone(world);
    world.spawn(async move {
        tokio::time::sleep(pause).await;
        of.start(place, dies_at(&of)).await;
        of.end_seeing_to(place);
    });
}

/// One that is at work, and its place.
fn one(world: &World, number: usize) -> Option<(usize, Process)> {
    let place = number % world.places.len();
    let process = world.places[place].current.get().filter(|process| process.gate.life() == Life::Alive)?;
    Some((place, process))
}

/// One is killed, or stands still: for less than its session lasts, for longer, or for hours.
pub fn crash(world: &Arc<World>, dice: u64) {
    let Some((place, process)) = one(world, usize::try_from(dice >> 8 & 0xff).unwrap_or(0)) else { return };
    let Some(sharing) = &world.scenario.sharing else { return };
    let random = &world.random;
    let still = match dice % 6 {
        0 | 1 => {
            world.bury(place);
            return start_after(world, place, random.up_to(DOWN_MAX));
        }
        2 => random.up_to(sharing.lapses_after),
        3 | 4 => sharing.lapses_after + random.up_to(STILL_MOSTLY),
        _ => sharing.lapses_after + random.up_to(STILL_MAX),
    };
    world.witness.note(&format!("{} stands still", process.gate.process));
    world.witness.somebody_stands_still();
    process.gate.pause();
    let of = Arc::clone(world);
    world.spawn(async move {
        tokio::time::sleep(still).await;
        of.witness.goes_on(process.gate.process);
        process.gate.resume();
    });
}

/// One cannot reach the store for a while. It can reach the providers.
pub fn cut_off(world: &Arc<World>, random: &Random, number: usize) {
    let (cut, spell) = (cut(random), random.up_to(CUT_MAX));
    let Some((_, process)) = one(world, number) else { return };
    world.witness.note(&format!("{} is cut off from the store, which {cut:?}", process.gate.process));
    world.witness.somebody_stands_still();
    process.gate.cut_off(Some(cut));
    let of = Arc::clone(world);
    world.spawn(async move {
        tokio::time::sleep(spell).await;
        of.witness.note(&format!("{} reaches the store again", process.gate.process));
        process.gate.cut_off(None);
    });
}

/// The store answers nobody for a while.
pub fn outage(world: &Arc<World>, random: &Random) {
    let (cut, spell) = (cut(random), random.up_to(OUTAGE_MAX));
    world.witness.note(&format!("the store answers nobody: {cut:?}"));
    world.witness.somebody_stands_still();
    world.outage.replace(Some(cut));
    let of = Arc::clone(world);
    world.spawn(async move {
        tokio::time::sleep(spell).await;
        of.witness.note("the store answers again");
        of.outage.replace(None);
    });
}

fn cut(random: &Random) -> Cut {
    if random.bits() & 1 == 0 { Cut::Fails } else { Cut::Hangs }
}

/// One is shut down gently and replaced: by one that is there before it is gone, or that comes a while later.
pub fn upgrade(world: &Arc<World>, random: &Random, number: usize) {
    let (is_early, pause) = (random.bits() & 1 == 0, random.up_to(REPLACED_WITHIN));
    let Some((place, process)) = one(world, number) else { return };
    if !world.begin_seeing_to(place) {
        return;
    }
    world.witness.note(&format!("{} is shut down, to be replaced", process.gate.process));
    world.places[place].current.replace(None);
    let of = Arc::clone(world);
    world.spawn(async move {
        if is_early {
            of.start(place, 0).await;
        }
        tokio::select! {
            biased;
            _ = process.plane.shutdown() => of.witness.note(&format!("{} is shut down", process.gate.process)),
            () = process.gate.died() => {}
        }
        process.gate.bury();
        if !is_early {
            tokio::time::sleep(pause).await;
            of.start(place, 0).await;
        }
        of.end_seeing_to(place);
    });
}
