//! An old backup of the store is put back in its place, under real processes that went on meanwhile.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::{collections::BTreeSet, fs, os::unix::process::ExitStatusExt, process::Stdio};

use provisioner_core::{
    control_plane::Instance,
    seams::Random,
    types::{DataDisposition, Hold, Incarnation},
};
use tests::{
    http,
    place::{Place, by, cell, id, set},
    plane::{Options, Plane, done, ended},
    processes, until,
    verb::Verb,
};
use tokio::process::Command;

const CONTROL_PLANE: &str = env!("CARGO_BIN_EXE_tests-control-plane");
/// How many times all of it is gone through, each with other places to be killed at; and at most, until there was a kill
/// before the restore and one after it.
const ROUNDS: usize = 4;
const ROUNDS_MAX: usize = 20;
/// A creation, and a comparison after a restore, have about so many places.
const CREATE_PLACES: u64 = 20;
const DRIFT_PLACES: u64 = 120;
const PRODUCT: &str = env!("CARGO_BIN_EXE_tests-product");

/// Makes an instance that has its own name in its data.
async fn make(place: &Place, plane: &Plane, name: &str, note: &str) -> Instance {
    done(&plane.plane.create(place.new_instance(name), by()).await.unwrap()).await;
    http::text(&plane.endpoint(name).await, &format!("/write/{note}")).await;
    plane.get(name).await
}

async fn note(plane: &Plane, name: &str) -> String {
    http::text(&plane.endpoint(name).await, "/note").await
}

/// The process of an instance, by the data it works on.
fn process(place: &Place, instance: &Instance) -> Option<i32> {
    let works_on = |pid: &i32| {
        processes::variable(*pid, "DATA_PATH").is_some_and(|path| path.contains(&instance.data.to_string()))
    };
    place.products().into_iter().find(works_on)
}

/// Puts the backup in the place of the store, as the documentation says.
fn restore(place: &Place) {
    fs::copy(place.folder().join("backup.db"), &place.store).unwrap();
    for log in ["store.db-wal", "store.db-shm"] {
        let _ = fs::remove_file(place.folder().join(log));
    }
}

/// What was made since the backup.
struct Since {
    /// Under an id of its own.
    new: Instance,
    /// Under an id that the backup knows.
    again: Instance,
    /// Removed, but for its data.
    kept: Instance,
    /// It never answered.
    failed: Instance,
}

async fn go_on(place: &Place, plane: &Plane) -> Since {
    let new = make(place, plane, "since", "since").await;
    let kept = make(place, plane, "kept", "kept").await;
    done(&plane.plane.destroy(&id("kept"), DataDisposition::Retain, by()).await.unwrap()).await;
    done(&plane.plane.update(&id("updated"), place.spec("2.0"), by()).await.unwrap()).await;
    done(&plane.plane.sleep(&id("slept"), by()).await.unwrap()).await;
    done(&plane.plane.wake(&id("woken"), by()).await.unwrap()).await;
    done(&plane.plane.suspend(&id("held"), Hold::new("unpaid").unwrap(), by()).await.unwrap()).await;
    for (name, data) in [("deleted", DataDisposition::Delete), ("retained", DataDisposition::Retain)] {
        done(&plane.plane.destroy(&id(name), data, by()).await.unwrap()).await;
    }
    done(&plane.plane.destroy(&id("again"), DataDisposition::Delete, by()).await.unwrap()).await;
    let again = make(place, plane, "again", "second").await;
    let mut fails = place.new_instance("fails");
    set(&mut fails.spec, "EXIT_CODE", "3");
    ended(&plane.plane.create(fails, by()).await.unwrap()).await;
    let failed = plane.get("fails").await;
    assert!(failed.parked);
    Since { new, again, kept, failed }
}

/// Compares with the store, confirming what is not there, until nothing differs and everything is at rest.
async fn until_at_rest(plane: &Plane, names: &[&str]) {
    until("nothing differs from the store", || async {
        let report = plane.plane.check_drift(&cell()).await.unwrap();
        if report.frozen {
            plane.plane.confirm_drift(&cell(), by()).await.unwrap();
        }
        let mut at_rest = report.differing == 0 && report.vanished == 0;
        for name in names {
            let instance = plane.get(name).await;
            at_rest &= instance.parked || instance.settled;
        }
        at_rest.then_some(())
    })
    .await;
}

/// A control plane in a process of its own that is killed at this place of what it does, if it comes there; whether it was.
async fn killed(place: &Place, what: &str, at: u64) -> bool {
    let status = Command::new(CONTROL_PLANE)
        .args([&place.store, &place.root])
        .arg(place.address.to_string())
        .arg(&place.product)
        .args(["0", &at.to_string(), what])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .kill_on_drop(true)
        .status()
        .await
        .unwrap();
    assert!(status.success() || status.signal() == Some(9), "{what}, to be killed at {at}: {status}");
    status.signal() == Some(9)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_old_backup_does_not_know_is_left_alone_and_what_it_knows_is_not_blank() {
    one_restore(None).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn likewise_when_control_planes_are_killed_before_and_after_the_restore() {
    let set = std::env::var("RESTORE_SEED").ok().map(|seed| seed.parse().expect("RESTORE_SEED: a number"));
    let seed = set.unwrap_or_else(|| Random::from_os().bits() % 1_000_000);
    println!("RESTORE_SEED={seed}");
    let random = Random::from_seed(seed);
    let (mut rounds, mut before, mut after) = (0, 0, 0);
    while rounds < ROUNDS || (rounds < ROUNDS_MAX && (before == 0 || after == 0)) {
        let places = [1 + random.bits() % CREATE_PLACES, 1 + random.bits() % DRIFT_PLACES];
        println!("killed at place {} of a creation, and at place {} of what follows the restore", places[0], places[1]);
        let killed = one_restore(Some(places)).await;
        rounds += 1;
        before += usize::from(killed[0]);
        after += usize::from(killed[1]);
    }
    println!("in {rounds} rounds {before} were killed before the restore, and {after} after it");
    assert!(before > 0, "no place of a creation was ever reached");
    assert!(after > 0, "no place of what follows the restore was ever reached");
}

/// A fleet, a backup, what happens since, and the backup in the place of the store. With places: a control plane is killed
/// there in the middle of a creation that the backup knows nothing of, and another one when it compares what it finds.
/// Whether each of them was.
async fn one_restore(places: Option<[u64; 2]>) -> [bool; 2] {
    let mut kills = [false; 2];
    let place = Place::new(PRODUCT);
    let plane = Plane::start(&place, Options::default()).await;
    let known = ["updated", "slept", "woken", "held", "deleted", "retained", "again"];
    for name in known {
        make(&place, &plane, name, name).await;
    }
    done(&plane.plane.sleep(&id("woken"), by()).await.unwrap()).await;
    plane.store.backup(&place.folder().join("backup.db")).await.unwrap();
    let Since { new: since, again, kept, failed } = go_on(&place, &plane).await;
    let deleted = place.names("data");
    let alive = [process(&place, &since).unwrap(), process(&place, &again).unwrap()];
    let used_before: BTreeSet<_> = place.names("instances");
    plane.stop().await;
    if let Some([at, _]) = places {
        kills[0] = killed(&place, &Verb::Create.to_string(), at).await;
    }
    restore(&place);
    if let Some([_, at]) = places {
        kills[1] = killed(&place, "drift", at).await;
    }

    let plane = Plane::start(&place, Options::default()).await;
    let lost: Vec<_> = [plane.get("deleted").await, plane.get("again").await].into_iter().map(|i| i.data).collect();
    until_at_rest(&plane, &known).await;
    let strangers: BTreeSet<_> = plane.plane.strangers().await.unwrap().into_iter().map(|s| s.incarnation).collect();
    let made = [&since, &again, &kept, &failed].map(|made| made.incarnation.unwrap());
    assert!(made.iter().all(|made| strangers.contains(made)), "{made:?} {strangers:?}");
    assert_eq!([process(&place, &kept), process(&place, &failed)], [None; 2], "nothing is started for a stranger");
    assert_eq!([process(&place, &since).unwrap(), process(&place, &again).unwrap()], alive, "their processes go on");
    for name in ["deleted", "again"] {
        let instance = plane.get(name).await;
        assert!(instance.parked && instance.reason.as_ref().unwrap().code == "data-missing", "{instance:#?}");
        assert_eq!(process(&place, &instance), None);
    }
    let after = place.names("data");
    assert!(lost.iter().all(|data| !after.contains(&data.to_string())), "blank data: {after:?}");
    assert!(after.is_superset(&deleted), "data is lost: {deleted:?} {after:?}");
    for name in ["updated", "slept", "held", "retained"] {
        assert_eq!(note(&plane, name).await, name);
    }
    assert_eq!(http::text(&plane.endpoint("updated").await, "/version").await, "1.0", "what the backup wants");
    done(&plane.plane.wake(&id("woken"), by()).await.unwrap()).await;
    assert_eq!(note(&plane, "woken").await, "woken");

    // No making is used for two: what has come since has a nonce of its own.
    let nonce = |name: &String| name.split_once('.').unwrap().1.parse::<Incarnation>().unwrap().nonce();
    let nonces: Vec<_> = place.names("instances").union(&used_before).map(nonce).collect();
    assert_eq!(nonces.iter().collect::<BTreeSet<_>>().len(), nonces.len(), "{nonces:?}");

    // What was made since is taken in; of one id the old row goes first.
    let (first, second) = (since.incarnation.unwrap(), again.incarnation.unwrap());
    done(&plane.plane.adopt(first, place.new_instance("since"), by()).await.unwrap()).await;
    assert_eq!(note(&plane, "since").await, "since");
    // So is data that was kept, and what failed, with a spec that works.
    done(&plane.plane.adopt(kept.incarnation.unwrap(), place.new_instance("kept"), by()).await.unwrap()).await;
    assert_eq!(note(&plane, "kept").await, "kept");
    done(&plane.plane.adopt(failed.incarnation.unwrap(), place.new_instance("fails"), by()).await.unwrap()).await;
    assert_eq!(plane.get("fails").await.data, failed.data);
    assert!(plane.plane.adopt(second, place.new_instance("again"), by()).await.is_err(), "its id is taken");
    done(&plane.plane.destroy(&id("again"), DataDisposition::Delete, by()).await.unwrap()).await;
    done(&plane.plane.adopt(second, place.new_instance("again"), by()).await.unwrap()).await;
    assert_eq!(note(&plane, "again").await, "second");
    for data in place.names("data") {
        assert_eq!(place.data_file(&data, "doubled"), None, "two processes on {data}");
    }
    plane.stop().await;
    kills
}
