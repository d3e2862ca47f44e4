//! What must be so when nothing goes wrong any more: everything settles, the world is what was asked for, and then nothing
//! happens but the drift pass.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use provisioner_core::{
    memory::Thing,
    store::{DataState, InstanceFilter, Record},
    types::{CellName, DataId, Incarnation, InstanceId, Phase, TargetState, Timestamp},
};
use tokio::time::Instant;

use crate::{
    driver::see_to_the_processes,
    ledger::Ledger,
    operator::operate,
    world::{Process, World, owner},
};

/// How long it may take until everything has settled.
const SETTLING_MAX: Duration = Duration::from_secs(24 * 3600);
/// How often that is looked at.
const LOOK: Duration = Duration::from_secs(60);
/// How often the operator looks meanwhile.
const OPERATOR: Duration = Duration::from_secs(1800);
/// How long the rest is watched.
const REST: Duration = Duration::from_secs(24 * 3600);
const PAGE: usize = 1000;
/// How many pages of old rows are removed in it besides one in each pass.
const PRUNES_BESIDE_MAX: u64 = 100;

/// What came of waiting for the rest.
#[derive(Debug, Clone, Copy)]
pub struct Rested {
    /// How long it took to settle, in virtual seconds.
    pub settled_after: u64,
}

/// Waits until everything has settled, and checks it all.
///
/// # Errors
/// What is not as it must be.
pub async fn check(world: &Arc<World>, ledger: &Arc<Ledger>) -> Result<Rested, String> {
    world.calm();
    let began = Instant::now();
    let settled_after = until_settled(world, ledger, began).await?;
    // What arrived too late to be known is found by looking once more, or by the next drift passes.
    let late = world.scenario.config.drift_interval * 3 + Duration::from_secs(3600);
    let still_late = Instant::now() + late;
    while Instant::now() < still_late {
        tokio::time::sleep(OPERATOR).await;
        see_to_the_processes(world).await;
        operate(world, ledger).await;
    }
    until_settled(world, ledger, began).await?;
    world.witness.note("settled");
    let process = world.process().await;
    compare(world, ledger, &process).await?;
    check_rest(world).await?;
    Ok(Rested { settled_after: settled_after.as_secs() })
}

/// Waits until nobody asks for anything, nothing is on its way, and every row is settled, or parked for data that is gone.
async fn until_settled(world: &Arc<World>, ledger: &Arc<Ledger>, began: Instant) -> Result<Duration, String> {
    let mut looked = 0_u32;
    loop {
        see_to_the_processes(world).await;
        let process = world.process().await;
        let records = read(&process).await?;
        if let Some(violation) = world.witness.violation() {
            return Err(violation);
        }
        let waiting =
            records.iter().find(|record| !record.row.settled && !world.witness.is_parked_for_its_data(record));
        let quiet = world.pending() == 0 && world.late_effects() == 0 && !looks_for_remnants(world, &process).await?;
        if waiting.is_none() && quiet {
            return Ok(began.elapsed());
        }
        if began.elapsed() > SETTLING_MAX {
            let what =
                waiting.map_or_else(|| format!("{} wait", world.pending()), |record| format!("{:?}", record.row));
            return Err(format!("not at rest {SETTLING_MAX:?} after the last fault: {what}"));
        }
        looked += 1;
        if looked.is_multiple_of(30) {
            operate(world, ledger).await;
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Whether a making that ended is still to be looked for.
async fn looks_for_remnants(world: &World, process: &Process) -> Result<bool, String> {
    let store = process.gate.store().await;
    let ever = Timestamp::from_unix_ms(i64::MAX);
    for cell in world.providers.keys() {
        let due = store.due_incarnations(cell, ever, 1).await;
        if !due.map_err(|error| format!("the store cannot be read: {error}"))?.is_empty() {
            return Ok(true);
        }
    }
    Ok(false)
}

async fn read(process: &Process) -> Result<Vec<Record>, String> {
    let store = process.gate.store().await;
    let (mut all, mut after): (Vec<Record>, Option<InstanceId>) = (Vec::new(), None);
    loop {
        let page = store.instances(&InstanceFilter::default(), after.as_ref(), PAGE).await;
        let page = page.map_err(|error| format!("the store cannot be read: {error}"))?;
        after = page.last().map(|record| record.row.id.clone());
        let last = page.len() < PAGE;
        all.extend(page);
        if last {
            return Ok(all);
        }
    }
}

/// The store is what the customers know, and the world is what the store says.
async fn compare(world: &World, ledger: &Ledger, process: &Process) -> Result<(), String> {
    let records = read(process).await?;
    customers_have_what_they_asked_for(ledger, &records)?;
    operations_have_ended(ledger, process).await?;
    if let Some(operation) = world.witness.unanswered() {
        return Err(format!("a request of the inbox was never answered: {operation}"));
    }
    let mut things: BTreeMap<Incarnation, (CellName, Thing)> = BTreeMap::new();
    for (cell, provider) in &world.providers {
        let there = provider.things(&owner()).into_iter();
        things.extend(there.map(|thing| (thing.incarnation, (cell.clone(), thing))));
    }
    for record in &records {
        let live = record.row.live.as_ref().map(|live| live.incarnation);
        let thing = live.and_then(|live| things.remove(&live));
        if let Some((cell, thing)) = &thing
            && (*cell != record.row.cell || thing.data != record.row.data || thing.id != record.row.id)
        {
            return Err(format!("it is elsewhere, or on other data: {thing:?} in {cell}, {:?}", record.row));
        }
        is_what_was_asked_for(world, record, thing.as_ref().map(|(_, thing)| thing))?;
    }
    strangers_are_as_they_were(world, process, things).await?;
    data_is_accounted_for(world, process, &records).await?;
    events_have_no_gaps(process).await
}

fn customers_have_what_they_asked_for(ledger: &Ledger, records: &[Record]) -> Result<(), String> {
    let rows: BTreeMap<_, _> = records.iter().map(|record| (&record.row.id, record)).collect();
    for id in ledger.instances() {
        let Some(expected) = ledger.expected(&id) else { continue };
        let gone = expected.intent.gone.is_some();
        let Some(record) = rows.get(&id) else {
            if gone {
                continue;
            }
            return Err(format!("{id} is lost: its customer expects {expected:?}"));
        };
        // Operators ask for things too, of which customers know nothing, and which change no intent.
        let version = &record.spec(record.row.wanted).workload.version;
        if record.row.intent != expected.intent
            || *version != expected.version
            || record.row.revision < expected.revision
        {
            return Err(format!(
                "{id}: its customer expects {expected:?}, and the store has {:?}, {version}",
                record.row
            ));
        }
    }
    Ok(())
}

async fn operations_have_ended(ledger: &Ledger, process: &Process) -> Result<(), String> {
    let store = process.gate.store().await;
    for accepted in ledger.operations() {
        let kept = store.operation(&accepted.id).await.map_err(|error| error.to_string())?;
        let Some(kept) = kept else { return Err(format!("an accepted operation is lost: {accepted:?}")) };
        if !kept.state.is_ended() {
            return Err(format!("an operation never ended: {kept:?}"));
        }
    }
    Ok(())
}

fn is_what_was_asked_for(world: &World, record: &Record, thing: Option<&Thing>) -> Result<(), String> {
    let row = &record.row;
    let provider = &world.providers[&row.cell];
    let has_data = provider.has_data(&owner(), &row.data);
    let phase = thing.map(|thing| thing.phase);
    let wrong = |what: &str| Err(format!("{what}: {thing:?}, {row:?}"));
    // What runs on data that an outsider deleted goes on until it is stopped; what does not is never started blank.
    let lost = world.witness.is_lost(&row.data);
    if lost && has_data {
        return wrong("it has blank data in place of what was deleted");
    }
    if row.data_made && !has_data && !lost {
        return wrong("its data is gone");
    }
    if world.witness.is_parked_for_its_data(record) {
        return Ok(());
    }
    match row.intent.target_state() {
        TargetState::Running => {
            let Some(thing) = thing else { return wrong("it is not there") };
            let version = &record.spec(row.in_force).workload.version;
            if thing.phase != Phase::Running || thing.generation != row.in_force || thing.version != *version {
                return wrong("it is not what it should be");
            }
            Ok(())
        }
        TargetState::Zero if phase.is_none_or(|phase| phase == Phase::Zero) => Ok(()),
        TargetState::Suspended if phase.is_none_or(|phase| phase == Phase::Suspended) => Ok(()),
        _ => wrong("it is not asleep as asked"),
    }
}

/// What is there and no instance's was never the control plane's: it is reported, and nothing was done to it.
async fn strangers_are_as_they_were(
    world: &World,
    process: &Process,
    things: BTreeMap<Incarnation, (CellName, Thing)>,
) -> Result<(), String> {
    let store = process.gate.store().await;
    let reported = store.strangers().await.map_err(|error| error.to_string())?;
    for (incarnation, (cell, thing)) in things {
        if !world.witness.is_stranger_as_it_was(&thing) {
            return Err(format!("an orphan in {cell}: {thing:?}"));
        }
        if !reported.iter().any(|stranger| stranger.incarnation == incarnation) {
            return Err(format!("a stranger in {cell} that is not reported: {thing:?}"));
        }
    }
    Ok(())
}

/// Every data set at the providers is in the store, in use or retained, and what the store retains is there.
async fn data_is_accounted_for(world: &World, process: &Process, records: &[Record]) -> Result<(), String> {
    let store = process.gate.store().await;
    let used: BTreeSet<_> = records.iter().map(|record| &record.row.data).collect();
    let (mut known, mut after): (BTreeSet<DataId>, Option<DataId>) = (BTreeSet::new(), None);
    loop {
        let page = store.data(None, after.as_ref(), PAGE).await.map_err(|error| error.to_string())?;
        after = page.last().map(|row| row.id.clone());
        let last = page.len() < PAGE;
        for row in page {
            let there = world.providers[&row.cell].has_data(&owner(), &row.id);
            let lost = world.witness.is_lost(&row.id);
            if row.state == DataState::Retained && !there && !lost && world.witness.was_made(&row.id) {
                return Err(format!("retained data is gone: {row:?}"));
            }
            if row.state == DataState::Used && !used.contains(&row.id) {
                return Err(format!("data is in use by nobody: {row:?}"));
            }
            known.insert(row.id);
        }
        if last {
            break;
        }
    }
    for (cell, provider) in &world.providers {
        let mut orphans = provider.data(&owner()).into_iter();
        if let Some(data) = orphans.find(|data| !known.contains(data) && !world.witness.is_strange_data(data)) {
            return Err(format!("data in {cell} that nobody knows of: {data}"));
        }
    }
    Ok(())
}

async fn events_have_no_gaps(process: &Process) -> Result<(), String> {
    let store = process.gate.store().await;
    let mut after = 0;
    loop {
        let page = store.events(None, after, PAGE).await.map_err(|error| error.to_string())?;
        if page.is_empty() {
            return Ok(());
        }
        for event in page {
            // Those of forgotten instances are pruned before their time.
            if event.position <= after {
                return Err(format!("event {} comes after {after}", event.position));
            }
            after = event.position;
        }
    }
}

/// For a day nothing happens but the drift pass.
async fn check_rest(world: &World) -> Result<(), String> {
    let before = world.witness.counts();
    tokio::time::sleep(REST).await;
    let after = world.witness.counts();
    let more = |name: &str| after.get(name).unwrap_or(&0) - before.get(name).unwrap_or(&0);
    // Sessions are not opened anew, and nothing is committed: what a pass writes is the removal of what is old.
    let allowed = ["call identity", "call list", "call maintain", "write prune"];
    // Those of several control planes are renewed.
    let renewed = |name: &str| world.is_shared() && name == "write renew session";
    for name in after.keys() {
        let more = more(name);
        if renewed(name) {
            continue;
        }
        if more > 0 && !name.starts_with("read ") && !allowed.contains(&name.as_str()) {
            return Err(format!("at rest, and {more} times: {name}"));
        }
    }
    let (passes, prunes) = (more("call list"), more("write prune"));
    // One in a pass; the first may have pages of what was forgotten before.
    if prunes > passes + PRUNES_BESIDE_MAX {
        return Err(format!("{prunes} removals of what is old in {passes} drift passes"));
    }
    // Several control planes compare as often as one does.
    let one = REST.as_secs() * 4 / 3 / world.scenario.config.drift_interval.as_secs();
    let most = (one + 2 * world.places.len() as u64) * world.providers.len() as u64;
    if passes > most {
        return Err(format!("{passes} drift passes in a day, expected {most} at most"));
    }
    Ok(())
}
