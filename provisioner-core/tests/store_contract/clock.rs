//! The clock by which sessions lapse is set while they are in force.

use std::{sync::Arc, time::Duration};

use provisioner_core::store::*;

use crate::{
    fixture::{Inbox, inbox_rules, *},
    sharing::by,
    work::{claim, due},
};

inbox_rules! {
    a_session_that_is_not_renewed_lapses_and_its_work_is_taken_over,
    who_lapsed_is_in_force_again_where_nothing_was_taken_from_it,
    an_instance_that_is_due_is_not_its_own_again,
    an_instance_that_is_asked_for_is_not_its_own_again,
    an_instance_that_somebody_asks_something_of_is_not_its_own_again,
    a_making_is_not_its_own_again,
    a_request_is_not_its_own_again,
}

/// More than it takes a session of these rules to lapse.
const HOUR: Duration = Duration::from_secs(3600);

/// Two sessions: the first lapses, as the clock is set forward, and the second, which began then, takes something. Then the clock is
/// set back. Whether the first one is in force.
async fn comes_back(store: &dyn Store, inbox: &Inbox, one: u64, take: impl AsyncFnOnce(Claim)) -> bool {
    inbox.set_clock(true, HOUR).await;
    take(claim(store).await).await;
    inbox.set_clock(false, HOUR).await;
    match store.renew_session(one).await {
        Ok(_) => true,
        Err(StoreError::SessionLost) => false,
        Err(error) => panic!("{error:?}"),
    }
}

/// A session that works on an instance.
async fn works(store: &dyn Store) -> u64 {
    let epoch = claim(store).await.epoch;
    let change = Change { epoch: Some(epoch), claiming: Claiming::Take, ..insert(due("a", 1)) };
    store.commit(change).await.unwrap();
    epoch
}

async fn a_session_that_is_not_renewed_lapses_and_its_work_is_taken_over(store: Arc<dyn Store>, inbox: Inbox) {
    let one = claim(&*store).await;
    let lapses_after = store.open_session("another", at(0)).await.unwrap().lapses_after.unwrap();
    store.commit(by(one.epoch, Claiming::Take, insert(due("a", 1)))).await.unwrap();
    store.commit(by(one.epoch, Claiming::Take, insert(due("b", 1)))).await.unwrap();
    let most = lapses_after * 2 / 3;
    // As long as it is renewed, it is in force.
    for _ in 0..3 {
        inbox.set_clock(true, most).await;
        store.renew_session(one.epoch).await.unwrap();
    }
    store.commit(by(one.epoch, Claiming::Keep, update(due("a", 1), 1))).await.unwrap();
    let two = claim(&*store).await;
    // Asking keeps only the one who asks.
    for is_in_force in [true, false] {
        inbox.set_clock(true, most).await;
        let in_force = store.renew_session(two.epoch).await.unwrap().in_force;
        assert_eq!(in_force.contains(&one.epoch), is_in_force, "{in_force:?}");
    }
    for claiming in [Claiming::Keep, Claiming::Leave] {
        let late = by(one.epoch, claiming, update(due("a", 1), 2));
        assert!(matches!(store.commit(late).await, Err(StoreError::SessionLost)), "{claiming:?}");
    }
    assert!(matches!(store.renew_session(one.epoch).await, Err(StoreError::SessionLost)), "it does not come back");
    assert!(matches!(store.claim(&one).await, Err(StoreError::SessionLost)));
    let records = store.claim(&two).await.unwrap();
    assert_eq!(records.len(), 2);
    assert!(records.iter().all(|record| record.taken_over), "who goes on must know");
    let Taken::Here(again) = store.claim_instance(two.epoch, &id("a")).await.unwrap() else { panic!("its own") };
    assert!(again.taken_over, "until it has written");
    for (claiming, version) in [(Claiming::Leave, 1), (Claiming::Take, 2)] {
        let asked = store.commit(by(two.epoch, claiming, update(due("b", 1), version))).await.unwrap();
        assert_eq!(asked.worker, Worker::TakenOver, "{claiming:?}: a request is no work");
    }
    store.commit(by(two.epoch, Claiming::Keep, update(due("a", 1), 2))).await.unwrap();
    let Taken::Here(again) = store.claim_instance(two.epoch, &id("a")).await.unwrap() else { panic!("its own") };
    assert!(!again.taken_over);
}

async fn who_lapsed_is_in_force_again_where_nothing_was_taken_from_it(store: Arc<dyn Store>, inbox: Inbox) {
    let one = works(&*store).await;
    assert!(comes_back(&*store, &inbox, one, async |_| ()).await);
}

async fn an_instance_that_is_due_is_not_its_own_again(store: Arc<dyn Store>, inbox: Inbox) {
    let one = works(&*store).await;
    let take = async |two: Claim| assert_eq!(store.claim(&two).await.unwrap().len(), 1);
    assert!(!comes_back(&*store, &inbox, one, take).await);
}

async fn an_instance_that_is_asked_for_is_not_its_own_again(store: Arc<dyn Store>, inbox: Inbox) {
    let one = works(&*store).await;
    let take = async |two: Claim| {
        let taken = store.claim_instance(two.epoch, &id("a")).await.unwrap();
        assert!(matches!(taken, Taken::Here(record) if record.taken_over));
    };
    assert!(!comes_back(&*store, &inbox, one, take).await);
}

async fn an_instance_that_somebody_asks_something_of_is_not_its_own_again(store: Arc<dyn Store>, inbox: Inbox) {
    let one = works(&*store).await;
    let take = async |two: Claim| {
        let change = Change { epoch: Some(two.epoch), claiming: Claiming::Take, ..update(due("a", 1), 1) };
        assert_eq!(store.commit(change).await.unwrap().worker, Worker::TakenOver);
    };
    assert!(!comes_back(&*store, &inbox, one, take).await);
}

async fn a_making_is_not_its_own_again(store: Arc<dyn Store>, inbox: Inbox) {
    let one = claim(&*store).await;
    let incarnations = vec![making(1, IncarnationState::Ending, Some(at(40)))];
    store.commit(Change { incarnations, ..Change::default() }).await.unwrap();
    let take = async |by: &Claim| store.claim_incarnations(by.epoch, &cell("one"), at(40), 9).await.unwrap().len();
    assert_eq!(take(&one).await, 1);
    assert!(!comes_back(&*store, &inbox, one.epoch, async |two| assert_eq!(take(&two).await, 1)).await);
}

async fn a_request_is_not_its_own_again(store: Arc<dyn Store>, inbox: Inbox) {
    let one = claim(&*store).await.epoch;
    inbox.submit(Verb::Wake, "a", None).await;
    assert_eq!(store.inbox(one, 9).await.unwrap().len(), 1);
    let take = async |two: Claim| assert_eq!(store.inbox(two.epoch, 9).await.unwrap().len(), 1);
    assert!(!comes_back(&*store, &inbox, one, take).await);
}
