//! How several processes share a store: sessions, claims, and signals.

use std::{sync::Arc, time::Duration};

use futures::{StreamExt, stream::BoxStream};
use provisioner_core::store::*;

use crate::{
    fixture::{rules, *},
    work::{claim, claimed, due},
};

rules! {
    sessions_of_several_are_in_force_side_by_side,
    what_one_works_on_is_passed_over_by_the_others,
    each_due_row_is_claimed_by_one_of_many,
    a_write_of_who_does_not_work_on_it_is_refused,
    a_released_instance_is_anybodys,
    who_wrote_nothing_gives_its_claim_back,
    who_asks_leaves_the_work_to_whoever_has_it_and_tells_him,
    who_asks_takes_what_nobody_works_on,
    what_is_due_and_nobodys_is_told_to_all,
    a_freeze_is_told_to_all,
    a_session_that_ends_gives_its_work_up,
    a_making_is_looked_for_by_one,
    of_two_writers_one_is_taken,
    a_store_shows_what_another_process_wrote,
}

pub(crate) fn by(epoch: u64, claiming: Claiming, change: Change) -> Change {
    Change { epoch: Some(epoch), claiming, ..change }
}

/// Waits for a signal, past others.
async fn told(signals: &mut BoxStream<'static, Signal>, wanted: &Signal) {
    let seen = async {
        while let Some(signal) = signals.next().await {
            if signal == *wanted {
                return;
            }
        }
        panic!("the signals ended");
    };
    tokio::time::timeout(Duration::from_secs(20), seen).await.unwrap_or_else(|_| panic!("no {wanted:?}"));
}

async fn sessions_of_several_are_in_force_side_by_side(store: Arc<dyn Store>) {
    let one = store.open_session("one", at(0)).await.unwrap();
    let two = store.open_session("two", at(0)).await.unwrap();
    assert!(one.lapses_after.is_some() && one.epoch > 0 && two.epoch > one.epoch);
    for (epoch, name) in [(one.epoch, "a"), (two.epoch, "b")] {
        store.commit(by(epoch, Claiming::Take, insert(row(name)))).await.unwrap();
    }
    assert_eq!(store.renew_session(one.epoch).await.unwrap().in_force, [one.epoch, two.epoch]);
    store.close_session(one.epoch).await.unwrap();
    assert_eq!(store.renew_session(two.epoch).await.unwrap().in_force, [two.epoch]);
    assert!(matches!(store.renew_session(one.epoch).await, Err(StoreError::SessionLost)));
    let late = by(one.epoch, Claiming::Leave, insert(row("c")));
    assert!(matches!(store.commit(late).await, Err(StoreError::SessionLost)));
    assert!(matches!(store.claim_instance(one.epoch, &id("b")).await, Err(StoreError::SessionLost)));
    let never = by(0, Claiming::Leave, insert(row("c")));
    assert!(matches!(store.commit(never).await, Err(StoreError::SessionLost)));
    let three = store.open_session("one", at(0)).await.unwrap();
    assert!(three.epoch > two.epoch);
}

async fn what_one_works_on_is_passed_over_by_the_others(store: Arc<dyn Store>) {
    for name in ["a", "b", "c"] {
        store.commit(insert(due(name, 1))).await.unwrap();
    }
    let (one, two) = (claim(&*store).await, claim(&*store).await);
    assert_eq!(claimed(&*store, &Claim { limit: 2, ..one.clone() }).await, ["a", "b"]);
    assert_eq!(claimed(&*store, &two).await, ["c"]);
    assert_eq!(claimed(&*store, &one).await, ["a", "b"], "its own are its own");
    assert!(matches!(store.claim_instance(two.epoch, &id("a")).await.unwrap(), Taken::Elsewhere));
    assert!(matches!(store.claim_instance(two.epoch, &id("x")).await.unwrap(), Taken::Absent));
    let Taken::Here(record) = store.claim_instance(one.epoch, &id("a")).await.unwrap() else { panic!("its own") };
    assert!(record.version == 1 && !record.taken_over);
}

async fn each_due_row_is_claimed_by_one_of_many(store: Arc<dyn Store>) {
    for number in 0..60 {
        store.commit(insert(due(&format!("i-{number:02}"), 1))).await.unwrap();
    }
    let mut claims = Vec::new();
    for _ in 0..4 {
        let claim = Claim { limit: 10, ..claim(&*store).await };
        let store = Arc::clone(&store);
        claims.push(tokio::spawn(async move {
            let mut all = Vec::new();
            let mut after = None;
            loop {
                let page = store.claim(&Claim { after: after.clone(), ..claim.clone() }).await.unwrap();
                let Some(last) = page.last() else { return all };
                after = Some((last.row.due_at.unwrap(), last.row.id.clone()));
                all.extend(page.into_iter().map(|record| record.row.id.clone()));
            }
        }));
    }
    let mut all = Vec::new();
    for claim in claims {
        all.extend(claim.await.unwrap());
    }
    all.sort();
    let count = all.len();
    all.dedup();
    assert_eq!((count, all.len()), (60, 60), "each by one, and all of them");
}

async fn a_write_of_who_does_not_work_on_it_is_refused(store: Arc<dyn Store>) {
    let (one, two) = (claim(&*store).await.epoch, claim(&*store).await.epoch);
    store.commit(by(one, Claiming::Take, insert(due("a", 1)))).await.unwrap();
    for claiming in [Claiming::Keep, Claiming::Release] {
        let change = by(two, claiming, update(due("a", 1), 1));
        assert!(matches!(store.commit(change).await, Err(StoreError::Stale)), "{claiming:?}");
        let change = by(two, claiming, delete("a", 1));
        assert!(matches!(store.commit(change).await, Err(StoreError::Stale)), "{claiming:?}");
    }
    let kept = store.commit(by(one, Claiming::Keep, update(due("a", 2), 1))).await.unwrap();
    assert_eq!((kept.version, kept.worker), (2, Worker::Here));
    let gone = store.commit(by(one, Claiming::Release, delete("a", 2))).await.unwrap();
    assert_eq!(gone.worker, Worker::Nobody);
    // What comes after it is a new one.
    let new = store.commit(by(two, Claiming::Take, insert(due("a", 1)))).await.unwrap();
    assert!(new.version > 2);
    assert_eq!(new.worker, Worker::Here);
}

async fn a_released_instance_is_anybodys(store: Arc<dyn Store>) {
    let (one, two) = (claim(&*store).await, claim(&*store).await);
    store.commit(by(one.epoch, Claiming::Take, insert(due("a", 1)))).await.unwrap();
    assert_eq!(claimed(&*store, &two).await, [""; 0]);
    store.commit(by(one.epoch, Claiming::Release, update(due("a", 1), 1))).await.unwrap();
    let late = by(one.epoch, Claiming::Keep, update(due("a", 1), 2));
    assert!(matches!(store.commit(late).await, Err(StoreError::Stale)), "it has given it up");
    assert_eq!(claimed(&*store, &two).await, ["a"]);
    assert_eq!(claimed(&*store, &one).await, [""; 0]);
}

async fn who_wrote_nothing_gives_its_claim_back(store: Arc<dyn Store>) {
    let (one, two) = (claim(&*store).await.epoch, claim(&*store).await.epoch);
    let takes = async |epoch, name| match store.claim_instance(epoch, &id(name)).await.unwrap() {
        Taken::Here(record) => Some(record.taken_over),
        Taken::Elsewhere => None,
        Taken::Absent => panic!("{name} is there"),
    };
    for name in ["a", "b"] {
        store.commit(insert(row(name))).await.unwrap();
        assert_eq!(takes(one, name).await, Some(false));
    }
    assert_eq!(takes(two, "a").await, None);
    assert!(!store.release(two, &id("a"), 1).await.unwrap(), "it is not its own");
    assert!(store.release(one, &id("a"), 1).await.unwrap());
    assert_eq!(takes(two, "a").await, Some(false), "nobody was taken over");
    assert!(!store.release(one, &id("a"), 1).await.unwrap(), "it is another's by now");
    // Somebody asked for something meanwhile: who works on it is to see to that.
    store.commit(by(one, Claiming::Leave, update(row("b"), 1))).await.unwrap();
    assert!(!store.release(one, &id("b"), 1).await.unwrap());
    assert!(store.release(one, &id("b"), 2).await.unwrap());
    // That somebody was taken over is not forgotten before it is written down.
    store.close_session(two).await.unwrap();
    assert!(!store.release(two, &id("a"), 1).await.unwrap(), "its session is over");
    assert_eq!(takes(one, "a").await, Some(true));
    assert!(!store.release(one, &id("a"), 1).await.unwrap());
    assert_eq!(takes(one, "a").await, Some(true));
}

async fn who_asks_leaves_the_work_to_whoever_has_it_and_tells_him(store: Arc<dyn Store>) {
    let mut signals = store.signals().expect("it is shared");
    let (one, two) = (claim(&*store).await.epoch, claim(&*store).await.epoch);
    store.commit(by(one, Claiming::Take, insert(due("a", 1)))).await.unwrap();
    for (claiming, version) in [(Claiming::Take, 1), (Claiming::Leave, 2)] {
        let asked = store.commit(by(two, claiming, update(due("a", 1), version))).await.unwrap();
        assert_eq!((asked.version, asked.worker), (version + 1, Worker::Elsewhere));
        told(&mut signals, &Signal::Touched { epoch: one, instance: id("a") }).await;
    }
    let late = by(one, Claiming::Keep, update(due("a", 1), 1));
    assert!(matches!(store.commit(late).await, Err(StoreError::Stale)), "it has to read what was asked");
    let own = store.commit(by(one, Claiming::Take, update(due("a", 1), 3))).await.unwrap();
    assert_eq!(own.worker, Worker::Here);
}

async fn who_asks_takes_what_nobody_works_on(store: Arc<dyn Store>) {
    let (one, two) = (claim(&*store).await.epoch, claim(&*store).await.epoch);
    store.commit(insert(due("a", 1))).await.unwrap();
    let asked = store.commit(by(one, Claiming::Take, update(due("a", 1), 1))).await.unwrap();
    assert_eq!(asked.worker, Worker::Here);
    assert!(matches!(store.claim_instance(two, &id("a")).await.unwrap(), Taken::Elsewhere));
    // Without a session there is nobody to take it.
    let nobody = Change { claiming: Claiming::Take, ..insert(due("b", 1)) };
    assert_eq!(store.commit(nobody).await.unwrap().worker, Worker::Nobody);
}

async fn what_is_due_and_nobodys_is_told_to_all(store: Arc<dyn Store>) {
    let mut signals = [store.signals().unwrap(), store.signals().unwrap()];
    let epoch = claim(&*store).await.epoch;
    let left = store.commit(by(epoch, Claiming::Leave, insert(due("a", 1)))).await.unwrap();
    assert_eq!(left.worker, Worker::Nobody);
    for signals in &mut signals {
        told(signals, &Signal::Due(cell("one"))).await;
    }
}

async fn a_freeze_is_told_to_all(store: Arc<dyn Store>) {
    let mut signals = store.signals().unwrap();
    store.commit(Change { frozen: Some(true), ..Change::default() }).await.unwrap();
    told(&mut signals, &Signal::Decided).await;
    let row = CellRow { name: cell("one"), identity: None, drift_frozen: Some("why".into()) };
    store.commit(Change { cells: vec![row], ..Change::default() }).await.unwrap();
    told(&mut signals, &Signal::Decided).await;
}

async fn a_session_that_ends_gives_its_work_up(store: Arc<dyn Store>) {
    let (one, two) = (claim(&*store).await, claim(&*store).await);
    for name in ["a", "b"] {
        store.commit(by(one.epoch, Claiming::Take, insert(due(name, 1)))).await.unwrap();
    }
    store.close_session(one.epoch).await.unwrap();
    let asked = store.commit(by(two.epoch, Claiming::Take, update(due("a", 1), 1))).await.unwrap();
    assert_eq!(asked.worker, Worker::TakenOver, "nobody knows whether it left calls behind");
    assert_eq!(claimed(&*store, &two).await, ["a", "b"]);
}

async fn a_making_is_looked_for_by_one(store: Arc<dyn Store>) {
    let (one, two) = (claim(&*store).await.epoch, claim(&*store).await.epoch);
    let ended = |due_at: Option<i64>| IncarnationRow {
        ended_at: Some(at(0)),
        ..making(1, IncarnationState::Ended, due_at.map(at))
    };
    store.commit(Change { incarnations: vec![ended(Some(1))], ..Change::default() }).await.unwrap();
    let claimed = async |epoch| store.claim_incarnations(epoch, &cell("one"), at(5), 9).await.unwrap().len();
    assert_eq!((claimed(one).await, claimed(two).await, claimed(one).await), (1, 0, 1));
    store.commit(Change { incarnations: vec![ended(Some(2))], ..Change::default() }).await.unwrap();
    assert_eq!((claimed(two).await, claimed(one).await), (1, 0), "what was written down is anybody's");
    store.close_session(two).await.unwrap();
    assert_eq!(claimed(one).await, 1);
}

async fn of_two_writers_one_is_taken(store: Arc<dyn Store>) {
    let epochs = [claim(&*store).await.epoch, claim(&*store).await.epoch];
    for round in 0..20 {
        let name = format!("i-{round}");
        let race = epochs.map(|epoch| {
            let change = Change {
                reservation: Some(reservation(&[&format!("{name}.example.com")])),
                operations: vec![operation(1000 + round * 2 + epoch, Some(&name), at(0))],
                events: vec![happened(&name, at(0))],
                ..by(epoch, Claiming::Take, insert(due(&name, 1)))
            };
            let store = Arc::clone(&store);
            tokio::spawn(async move { store.commit(change).await })
        });
        let mut taken = 0;
        for commit in race {
            match commit.await.unwrap() {
                Ok(_) => taken += 1,
                Err(error) => assert!(matches!(error, StoreError::KeyUsed(_)), "{error:?}"),
            }
        }
        assert_eq!(taken, 1);
    }
    assert_eq!(store.events(None, 0, 99).await.unwrap().len(), 20);
    assert_eq!(store.usage(&cell("one")).await.unwrap().instances, 20);
}

async fn a_store_shows_what_another_process_wrote(store: Arc<dyn Store>) {
    let mut positions = store.positions();
    store.commit(with_event(happened("a", at(0)))).await.unwrap();
    let shown = positions.wait_for(|position| *position == 1);
    tokio::time::timeout(Duration::from_secs(20), shown).await.expect("it is told").unwrap();
    assert_eq!(store.ended(&[operation_id(1)]).await.unwrap(), []);
    let ended =
        |number| Operation { state: OperationState::Done, ended_at: Some(at(1)), ..operation(number, None, at(0)) };
    store.commit(Change { operations: vec![ended(1), operation(2, None, at(0))], ..Change::default() }).await.unwrap();
    let asked = [1, 2, 3].map(operation_id);
    assert_eq!(store.ended(&asked).await.unwrap(), [operation_id(1)]);
}
