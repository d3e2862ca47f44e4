//! An old backup of the store put back in its place: the world is newer than what the store remembers.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use provisioner_core::{
    ErrorKind,
    control_plane::{Instance, NewInstance, OperationHandle},
    memory::{MemoryConfig, MemoryProvisioner, Thing},
    seams::{Random, TokioClock},
    store::{CommitMode, EventKind, InstanceFilter, InstanceRow, OperationState, SqliteStore, Store},
    types::{DataDisposition, DataId, Incarnation, Phase, TargetState, Timestamp},
};

use crate::harness::{World, by, cell, config, done, ended, hold, id, new, plane_id, spec};

const BEFORE: u64 = 300;
const REQUESTS: u64 = 600;

/// A control plane, and its store as the file that it is.
async fn start(provider: MemoryConfig) -> (World, Arc<SqliteStore>) {
    let folder = tempfile::tempdir().unwrap();
    let file = SqliteStore::open(folder.path().join("store.db"), plane_id(), CommitMode::Inline).await.unwrap();
    let store = Arc::clone(&file) as Arc<dyn Store>;
    let clock = TokioClock::starting_at(Timestamp::from_unix_ms(1_750_000_000_000));
    let provider = MemoryProvisioner::new(provider);
    let plane = World::builder(&store, &provider, clock).config(config()).start().await.unwrap();
    (World { plane, provider, store, clock, _folder: folder }, file)
}

async fn backup(world: &World, file: &SqliteStore) {
    file.backup(&world._folder.path().join("backup.db")).await.unwrap();
}

/// Opens the backup; nobody works on it yet.
async fn restored(world: &World) -> Arc<dyn Store> {
    world.plane.shutdown().await.unwrap();
    SqliteStore::open(world._folder.path().join("backup.db"), plane_id(), CommitMode::Inline).await.unwrap()
}

async fn rows(store: &Arc<dyn Store>) -> Vec<Arc<InstanceRow>> {
    let records = store.instances(&InstanceFilter::default(), None, 10_000).await.unwrap();
    records.into_iter().map(|record| record.row).collect()
}

async fn started(store: &Arc<dyn Store>, after: u64) -> Vec<Incarnation> {
    let events = store.events(None, after, 1_000_000).await.unwrap();
    let incarnations = events.into_iter().filter_map(|event| match event.event.what {
        EventKind::IncarnationStarted { incarnation } => Some(incarnation),
        _ => None,
    });
    incarnations.collect()
}

/// Compares the cell with the store, confirming what is not there, until all is at rest and stays so.
async fn until_at_rest(world: &World) {
    for _ in 0..100 {
        // What settled this very millisecond is left for the next pass.
        tokio::time::sleep(Duration::from_secs(1)).await;
        let report = world.plane.check_drift(&cell()).await.unwrap();
        if report.frozen {
            world.plane.confirm_drift(&cell(), by()).await.unwrap();
        }
        tokio::time::sleep(Duration::from_secs(30)).await;
        let at_rest = rows(&world.store).await.iter().all(|row| row.settled || row.parked);
        if at_rest && report.differing == 0 && report.vanished == 0 {
            return;
        }
    }
    let open: Vec<_> = rows(&world.store).await.into_iter().filter(|row| !row.settled && !row.parked).collect();
    panic!("no rest: {open:#?}");
}

fn by_incarnation(things: Vec<Thing>) -> BTreeMap<Incarnation, Thing> {
    things.into_iter().map(|thing| (thing.incarnation, thing)).collect()
}

#[tokio::test(start_paused = true)]
async fn what_was_updated_since_the_backup_goes_on_above_the_generation_that_the_provider_has() {
    let (mut world, file) = start(MemoryConfig::default()).await;
    world.create("runs").await;
    world.create("sleeps").await;
    world.sleep("sleeps").await;
    backup(&world, &file).await;
    for version in ["2.0", "3.0"] {
        done(&world.update("runs", version).await).await;
    }
    world.wake("sleeps").await;
    done(&world.update("sleeps", "2.0").await).await;
    world.sleep("sleeps").await;
    let before = by_incarnation(world.things());
    world.store = restored(&world).await;
    world.start_again().await;
    until_at_rest(&world).await;
    let runs = world.get("runs").await;
    assert!(runs.settled && !runs.parked, "{runs:#?}");
    assert_eq!(runs.endpoint.unwrap().to_string(), "memory://runs/1.0", "it is what the restored store wants");
    let sleeps = world.get("sleeps").await;
    assert!(sleeps.settled && sleeps.phase == Some(Phase::Zero), "not woken for it: {sleeps:#?}");
    world.wake("sleeps").await;
    assert_eq!(world.get("sleeps").await.endpoint.unwrap().to_string(), "memory://sleeps/1.0");
    done(&world.update("runs", "4.0").await).await;
    let after = by_incarnation(world.things());
    assert!(before.keys().eq(after.keys()), "the same makings: {after:#?}");
    let told = world.store.events(Some(&id("runs")), 0, 1000).await.unwrap();
    let told = told.iter().filter(|event| matches!(event.event.what, EventKind::NewerFound { .. })).count();
    assert_eq!(told, 1, "told once");
}

#[tokio::test(start_paused = true)]
async fn an_update_right_after_the_restore_is_made_though_the_provider_has_another_spec_of_that_number() {
    let (mut world, file) = start(MemoryConfig::default()).await;
    for name in ["runs", "sleeps"] {
        world.create(name).await;
    }
    backup(&world, &file).await;
    for name in ["runs", "sleeps"] {
        done(&world.update(name, "2.0").await).await;
    }
    world.sleep("sleeps").await;
    world.store = restored(&world).await;
    world.start_again().await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    // No drift pass has found anything yet; to the store this is the second generation, as the other one was.
    for name in ["runs", "sleeps"] {
        done(&world.update(name, "3.0").await).await;
        assert_eq!(world.get(name).await.endpoint.unwrap().to_string(), format!("memory://{name}/3.0"));
    }
    // An update that nobody made before is told of nobody.
    done(&world.update("runs", "4.0").await).await;
    let told = world.store.events(Some(&id("runs")), 0, 1000).await.unwrap();
    let told = told.iter().filter(|event| matches!(event.event.what, EventKind::NewerFound { .. })).count();
    assert_eq!(told, 1);
}

#[tokio::test(start_paused = true)]
async fn what_was_made_again_since_the_backup_is_a_stranger_until_the_old_row_is_removed() {
    let (mut world, file) = start(MemoryConfig::default()).await;
    world.create("acme").await;
    backup(&world, &file).await;
    world.destroy("acme").await;
    let newer = world.create("acme").await;
    world.store = restored(&world).await;
    world.start_again().await;
    until_at_rest(&world).await;
    let parked = world.get("acme").await;
    assert!(parked.parked && parked.reason.as_ref().unwrap().code == "data-missing", "{parked:#?}");
    assert_eq!(world.things().len(), 1, "nothing is doubled");
    let stranger = newer.incarnation.unwrap();
    assert!(world.plane.adopt(stranger, new("acme"), by()).await.is_err(), "its id is taken");
    world.destroy("acme").await;
    assert!(world.provider.has_data(&plane_id(), &newer.data), "that of the newer making is left alone");
    done(&world.plane.adopt(stranger, new("acme"), by()).await.unwrap()).await;
    let adopted = world.get("acme").await;
    assert_eq!((adopted.incarnation, adopted.data), (Some(stranger), newer.data));
    until_at_rest(&world).await;
    assert!(world.plane.strangers().await.unwrap().is_empty());
}

/// An instance that was made and destroyed since the backup, its data kept; and the backup in the place of the store.
async fn kept_since_the_backup(name: &str) -> (World, Instance) {
    let (mut world, file) = start(MemoryConfig::default()).await;
    backup(&world, &file).await;
    let made = world.create(name).await;
    done(&world.plane.destroy(&id(name), DataDisposition::Retain, by()).await.unwrap()).await;
    world.store = restored(&world).await;
    world.start_again().await;
    until_at_rest(&world).await;
    let strangers = world.plane.strangers().await.unwrap();
    assert_eq!(strangers.iter().map(|s| Some(s.incarnation)).collect::<Vec<_>>(), [made.incarnation]);
    (world, made)
}

#[tokio::test(start_paused = true)]
async fn data_that_was_kept_since_the_backup_is_taken_up_through_the_stranger_that_tells_of_it() {
    let (world, before) = kept_since_the_backup("acme").await;
    let stranger = before.incarnation.unwrap();
    done(&world.plane.adopt(stranger, new("acme"), by()).await.unwrap()).await;
    let adopted = world.get("acme").await;
    assert_eq!((adopted.phase, &adopted.data), (Some(Phase::Running), &before.data));
    assert!(adopted.incarnation.unwrap().number() > stranger.number(), "a making of its own");
    until_at_rest(&world).await;
    assert!(world.plane.strangers().await.unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn without_its_data_nothing_is_made_of_a_stranger_that_was_only_data() {
    let (world, before) = kept_since_the_backup("acme").await;
    world.provider.vanish_data(&plane_id(), &before.data);
    let operation = world.plane.adopt(before.incarnation.unwrap(), new("acme"), by()).await.unwrap();
    assert_eq!(ended(&operation).await.state, OperationState::Failed);
    let parked = world.get("acme").await;
    assert_eq!(parked.reason.as_ref().unwrap().code, "data-missing", "{parked:#?}");
    assert!(world.things().is_empty() && !world.provider.has_data(&plane_id(), &before.data));
}

#[tokio::test(start_paused = true)]
async fn a_stranger_on_data_that_an_instance_uses_is_not_adopted() {
    let (mut world, file) = start(MemoryConfig::default()).await;
    let before = world.create("acme").await;
    backup(&world, &file).await;
    done(&world.plane.destroy(&id("acme"), DataDisposition::Retain, by()).await.unwrap()).await;
    let onto = NewInstance { data: Some(before.data.clone()), ..new("heir") };
    done(&world.plane.create(onto, by()).await.unwrap()).await;
    let heir = world.get("heir").await.incarnation.unwrap();
    world.store = restored(&world).await;
    world.start_again().await;
    world.plane.check_drift(&cell()).await.unwrap();
    let refused = world.plane.adopt(heir, new("heir"), by()).await.unwrap_err();
    assert_eq!((refused.kind(), refused.field()), (ErrorKind::Conflict, Some("data")), "{refused}");
    assert!(world.plane.get(&id("heir")).await.is_err(), "nothing was accepted");
}

/// What random requests are made of, and what they have asked for so far.
struct Customers<'a> {
    world: &'a World,
    random: Random,
    made: u64,
}

impl Customers<'_> {
    fn below(&self, end: u64) -> u64 {
        self.random.bits() % end
    }

    async fn create(&mut self) -> Option<OperationHandle> {
        self.made += 1;
        self.world.plane.create(new(&format!("i{}", self.made)), by()).await.ok()
    }

    /// One request about anybody; what is refused, as of one that is gone, is nothing.
    async fn ask(&mut self, gently: bool) -> Option<OperationHandle> {
        let (name, plane) = (format!("i{}", self.below(self.made) + 1), &self.world.plane);
        let id = id(&name);
        let asked = match self.below(if gently { 5 } else { 9 }) {
            0 => plane.update(&id, spec(&format!("{}.0", self.below(1000))), by()).await,
            1 => plane.sleep(&id, by()).await,
            2 => plane.wake(&id, by()).await,
            3 => plane.suspend(&id, hold("unpaid"), by()).await,
            4 => plane.lift(&id, &hold("unpaid"), by()).await,
            5 => plane.destroy(&id, DataDisposition::Delete, by()).await,
            6 => plane.destroy(&id, DataDisposition::Retain, by()).await,
            // Of one that was removed: made again under its name.
            7 => plane.create(new(&name), by()).await,
            _ => return self.create().await,
        };
        asked.ok()
    }
}

fn data_of(things: &BTreeMap<Incarnation, Thing>) -> BTreeSet<DataId> {
    things.values().map(|thing| thing.data.clone()).collect()
}

#[tokio::test(start_paused = true)]
async fn whatever_happened_since_the_backup_nothing_is_lost_doubled_or_blank() {
    let seed = std::env::var("RESTORE_SEED").map_or_else(|_| Random::from_os().bits(), |seed| seed.parse().unwrap());
    println!("replay with RESTORE_SEED={seed}");
    let pace = MemoryConfig { start: Duration::from_secs(3), stop: Duration::from_secs(2), ..MemoryConfig::default() };
    let (mut world, file) = start(pace).await;
    let mut customers = Customers { world: &world, random: Random::from_seed(seed), made: 0 };
    for _ in 0..BEFORE {
        customers.create().await;
    }
    tokio::time::sleep(Duration::from_secs(300)).await;
    // In the middle of some of it, the backup is taken.
    for _ in 0..BEFORE / 3 {
        customers.ask(true).await;
    }
    backup(&world, &file).await;
    for _ in 0..REQUESTS {
        customers.ask(false).await;
        tokio::time::sleep(Duration::from_millis(customers.below(1000))).await;
    }
    let used: BTreeSet<_> = started(&world.store, 0).await.into_iter().collect();
    let store = restored(&world).await;
    // What was called for arrives.
    tokio::time::sleep(Duration::from_secs(60)).await;
    // What was being removed when the old control plane ended is on its way out, whatever the backup says.
    let mut before = by_incarnation(world.things());
    before.retain(|_, thing| thing.phase != Phase::Destroying);
    let position = store.events(None, 0, 1_000_000).await.unwrap().last().unwrap().position;
    let remembered = rows(&store).await;
    let live: BTreeSet<_> = remembered.iter().filter_map(|row| Some(row.live.as_ref()?.incarnation)).collect();
    let missing: Vec<_> =
        remembered.iter().filter(|row| row.data_made && !world.provider.has_data(&plane_id(), &row.data)).collect();
    let open: Vec<_> = remembered.iter().filter_map(|row| row.operation.clone()).collect();
    assert!(!open.is_empty() && !missing.is_empty(), "{} open, {} missing", open.len(), missing.len());
    world.store = store;
    world.start_again().await;
    until_at_rest(&world).await;

    let after = by_incarnation(world.things());
    let strangers: BTreeSet<_> = world.plane.strangers().await.unwrap().into_iter().map(|s| s.incarnation).collect();
    let made_since: BTreeSet<_> = before.keys().filter(|made| !live.contains(made)).copied().collect();
    assert!(!made_since.is_empty());
    assert!(strangers.is_superset(&made_since), "what was made since is reported");
    for only_data in strangers.difference(&made_since) {
        assert!(!live.contains(only_data), "{only_data} is known");
    }
    for made in &made_since {
        assert_eq!(after.get(made), before.get(made), "and left alone");
    }
    for row in &missing {
        assert!(!world.provider.has_data(&plane_id(), &row.data), "{} came back blank", row.id);
    }
    for data in data_of(&before) {
        assert!(world.provider.has_data(&plane_id(), &data), "{data} is lost");
    }
    for operation in open {
        let ended = world.store.operation(&operation).await.unwrap().unwrap();
        assert_ne!(ended.state, OperationState::Pending, "{ended:?}");
    }
    for incarnation in started(&world.store, position).await {
        assert!(!used.contains(&incarnation), "{incarnation} is used again");
    }
    assert_eq!(data_of(&after).len(), after.len(), "two on the same data");
    let mut accounted = made_since;
    for row in rows(&world.store).await {
        let thing = row.live.as_ref().and_then(|live| after.get(&live.incarnation));
        accounted.extend(thing.map(|thing| thing.incarnation));
        if missing.iter().any(|missing| missing.id == row.id) && row.intent.target_state() == TargetState::Running {
            assert!(row.parked && row.reason.as_ref().is_some_and(|why| why.code == "data-missing"), "{row:#?}");
            assert_eq!(thing, None);
            continue;
        }
        assert!(row.settled && !row.parked, "{row:#?}");
        if row.intent.target_state() == TargetState::Running {
            let thing = thing.unwrap_or_else(|| panic!("nothing of {row:#?}"));
            assert_eq!((thing.phase, thing.generation), (Phase::Running, row.in_force), "{row:#?}");
        }
    }
    assert!(accounted.iter().eq(after.keys()), "there is something that nobody knows of");
}
