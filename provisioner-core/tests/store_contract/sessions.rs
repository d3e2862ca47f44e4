//! Who may write: sessions of a store that one process has to itself.

use std::sync::Arc;

use provisioner_core::store::*;

use crate::{
    fixture::{rules, *},
    work::{claim, claimed, due},
};

rules! {
    a_new_session_ends_the_one_before,
    a_session_that_was_closed_may_not_write,
    sessions_rise_and_hold_until_closed,
    whoever_has_the_store_works_on_everything,
}

async fn a_new_session_ends_the_one_before(store: Arc<dyn Store>) {
    store.commit(insert(due("a", 1))).await.unwrap();
    let old = claim(&*store).await;
    let write = |epoch, expected| Change { epoch: Some(epoch), ..update(due("a", 1), expected) };
    store.commit(write(old.epoch, 1)).await.unwrap();
    let new = claim(&*store).await;
    assert!(new.epoch > old.epoch);
    assert!(matches!(store.commit(write(old.epoch, 2)).await, Err(StoreError::SessionLost)));
    assert!(matches!(store.claim(&old).await, Err(StoreError::SessionLost)));
    assert_eq!(store.instance(&id("a")).await.unwrap().unwrap().version, 2);
    store.commit(write(new.epoch, 2)).await.unwrap();
    assert_eq!(claimed(&*store, &new).await, ["a"]);
    assert!(matches!(store.commit(write(new.epoch + 1, 3)).await, Err(StoreError::SessionLost)), "not begun yet");
}

async fn a_session_that_was_closed_may_not_write(store: Arc<dyn Store>) {
    let old = claim(&*store).await;
    let new = claim(&*store).await;
    store.close_session(old.epoch).await.unwrap();
    store.commit(Change { epoch: Some(new.epoch), ..insert(row("a")) }).await.unwrap();
    store.close_session(new.epoch).await.unwrap();
    store.close_session(new.epoch).await.unwrap();
    for epoch in [old.epoch, new.epoch] {
        let late = Change { epoch: Some(epoch), ..insert(row("b")) };
        assert!(matches!(store.commit(late).await, Err(StoreError::SessionLost)));
    }
    assert!(matches!(store.claim(&new).await, Err(StoreError::SessionLost)));
    let next = claim(&*store).await;
    assert!(next.epoch > new.epoch);
    store.commit(Change { epoch: Some(next.epoch), ..insert(row("b")) }).await.unwrap();
}

async fn sessions_rise_and_hold_until_closed(store: Arc<dyn Store>) {
    let mut last = 0;
    for _ in 0..3 {
        let session = store.open_session("one", at(0)).await.unwrap();
        assert!(session.epoch > last);
        assert_eq!(session.lapses_after, None);
        last = session.epoch;
    }
}

async fn whoever_has_the_store_works_on_everything(store: Arc<dyn Store>) {
    assert!(store.signals().is_none());
    let one = claim(&*store).await;
    assert_eq!(store.renew_session(one.epoch).await.unwrap().in_force, [one.epoch]);
    let insert = Change { epoch: Some(one.epoch), ..insert(due("a", 1)) };
    assert_eq!(store.commit(insert).await.unwrap().worker, Worker::Here);
    let keep = Change { epoch: Some(one.epoch), claiming: Claiming::Keep, ..update(due("a", 1), 1) };
    assert_eq!(store.commit(keep).await.unwrap().worker, Worker::Here);
    let Taken::Here(record) = store.claim_instance(one.epoch, &id("a")).await.unwrap() else { panic!("it is there") };
    assert!(!record.taken_over);
    assert!(matches!(store.claim_instance(one.epoch, &id("b")).await.unwrap(), Taken::Absent));
    let two = claim(&*store).await;
    assert!(matches!(store.renew_session(one.epoch).await, Err(StoreError::SessionLost)));
    assert!(matches!(store.claim_instance(one.epoch, &id("a")).await, Err(StoreError::SessionLost)));
    assert_eq!(claimed(&*store, &two).await, ["a"]);
    assert!(store.inbox(two.epoch, 9).await.unwrap().is_empty());
    let answers = Change { epoch: Some(two.epoch), answers: Some(1), ..Change::default() };
    assert!(matches!(store.commit(answers).await, Err(StoreError::Answered)), "there is no such request");
}
