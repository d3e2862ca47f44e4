//! No durable write and no provider call is made without a place before it and one after it: else a kill there would
//! never be tried.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use provisioner_core::{
    Cell, ControlPlane,
    memory::{MemoryConfig, MemoryProvisioner},
    seams::{Clock, KillPoints, Seams, SystemClock},
    store::{MemoryStore, Store},
    types::Timestamp,
};
use tests::{
    place::{by, cell, control_plane},
    plane::{Counter, Options, Plane, done, quick},
    until,
    verb::Verb,
    watched::{Watch, WatchedBackend, WatchedStore},
};

use crate::life::Life;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_durable_write_and_provider_call_of_every_verb_has_a_place_before_it_and_one_after_it() {
    for verb in Verb::ALL {
        let life = Life::prepare(verb).await;
        let (watch, counter) = (Arc::<Watch>::default(), Arc::<Counter>::default());
        let options = Options {
            kill_points: Arc::clone(&counter) as Arc<dyn KillPoints>,
            watch: Some(Arc::clone(&watch)),
            ..Options::default()
        };
        let plane = Plane::start(&life.place, options).await;
        if verb == Verb::Adopt {
            let stranger = plane.plane.strangers().await.unwrap().remove(0);
            plane.plane.forget(stranger.incarnation, by()).await.unwrap();
            assert_eq!(plane.plane.check_drift(&cell()).await.unwrap().strangers, 1);
        }
        done(&verb.ask(&plane.plane, &life.place).await.unwrap()).await;
        decide(&plane, &watch).await;
        plane.stop().await;
        check(&format!("{verb:?}"), &watch, &counter);
    }
}

/// What operators decide, too.
async fn decide(plane: &Plane, watch: &Watch) {
    plane.plane.check_drift(&cell()).await.unwrap();
    plane.plane.freeze(true, by()).await.unwrap();
    plane.plane.freeze(false, by()).await.unwrap();
    let calls = watch.calls();
    plane.plane.confirm_drift(&cell(), by()).await.unwrap();
    // The pass that comes of it asks who the provider is, what it has, and has it see to its upkeep.
    until("a drift pass", || async { (watch.calls() >= calls + 3).then_some(()) }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn removing_old_rows_has_a_place_before_it_and_one_after_it() {
    let (watch, counter, clock) = (Arc::<Watch>::default(), Arc::<Counter>::default(), Arc::<Leaping>::default());
    let store: Arc<dyn Store> = MemoryStore::new(control_plane());
    let mut config = quick();
    config.drift_interval = Duration::from_millis(20);
    let kill_points = Arc::clone(&counter) as Arc<dyn KillPoints>;
    let plane = ControlPlane::builder(Arc::new(WatchedStore::new(store, Arc::clone(&watch))))
        .cell(Cell::new(
            cell(),
            Arc::new(WatchedBackend::new(
                Arc::new(MemoryProvisioner::new(MemoryConfig::default())),
                Arc::clone(&watch),
            )),
        ))
        .config(config)
        .seams(Seams { kill_points, clock: Arc::clone(&clock) as Arc<dyn Clock>, ..Seams::default() })
        .start()
        .await
        .unwrap();
    until("the cell is known", || async { (watch.writes() == 2).then_some(()) }).await;
    clock.0.store(2 * 3600, Ordering::SeqCst);
    until("old rows are removed", || async { (watch.writes() == 3).then_some(()) }).await;
    plane.shutdown().await.unwrap();
    check("removing old rows", &watch, &counter);
}

/// The machine's clock, so many seconds ahead.
#[derive(Debug, Default)]
struct Leaping(AtomicU64);

impl Clock for Leaping {
    fn now(&self) -> Timestamp {
        SystemClock.now().after(Duration::from_secs(self.0.load(Ordering::SeqCst)))
    }
}

fn check(what: &str, watch: &Watch, counter: &Counter) {
    let (writes, calls) = (watch.writes(), watch.calls());
    println!("{what}: {writes} durable writes, {calls} provider calls");
    let passed =
        ["before a commit", "after a commit", "before a call", "after a call"].map(|place| counter.passed(place));
    assert_eq!(passed, [writes, writes, calls, calls], "{what}");
    assert_eq!(counter.all(), 2 * (writes + calls), "{what}: places of other names");
}
