//! The inbox: requests that others put there, each taken in by one process, in its instance's order.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use futures::StreamExt;
use provisioner_core::{store::*, types::*};

use crate::{
    fixture::{Inbox, inbox_rules, *},
    work::claim,
};

inbox_rules! {
    a_request_is_there_as_it_was_put_there,
    whoever_shares_the_store_is_told_of_a_request,
    the_oldest_request_of_each_instance_comes_first,
    a_request_is_claimed_by_one,
    a_request_is_answered_once,
    a_request_can_be_looked_up_before_it_is_taken_in,
    an_answer_that_is_refused_leaves_the_request,
}

fn answers(epoch: u64, number: u64, change: Change) -> Change {
    Change { epoch: Some(epoch), answers: Some(number), ..change }
}

async fn operations(store: &dyn Store, epoch: u64, limit: usize) -> Vec<OperationId> {
    store.inbox(epoch, limit).await.unwrap().into_iter().map(|request| request.operation).collect()
}

async fn a_request_is_there_as_it_was_put_there(store: Arc<dyn Store>, inbox: Inbox) {
    let epoch = claim(&*store).await.epoch;
    assert_eq!(store.inbox(epoch, 9).await.unwrap(), []);
    let operation = inbox.submit(Verb::Suspend, "a", Some("k")).await;
    let found = store.inbox(epoch, 9).await.unwrap().remove(0);
    let expected = Submitted {
        number: found.number,
        operation,
        instance: id("a"),
        ask: Ask { verb: Verb::Suspend, parameters: Ok(serde_json::json!({"number": 1, "text": "ümläut"})) },
        actor: Actor::new("signup").unwrap(),
        reason: Some("wanted".into()),
        key: Some(key("k")),
        expected: Some(Revision(3)),
        at: found.at,
    };
    assert_eq!(found, expected);
    assert!(matches!(store.inbox(epoch + 1, 9).await, Err(StoreError::SessionLost)));
}

async fn whoever_shares_the_store_is_told_of_a_request(store: Arc<dyn Store>, inbox: Inbox) {
    let mut signals = store.signals().unwrap();
    inbox.submit(Verb::Wake, "a", None).await;
    let told = async { while signals.next().await != Some(Signal::Submitted) {} };
    tokio::time::timeout(Duration::from_secs(20), told).await.expect("it is told");
}

async fn the_oldest_request_of_each_instance_comes_first(store: Arc<dyn Store>, inbox: Inbox) {
    let epoch = claim(&*store).await.epoch;
    let mut put = Vec::new();
    for instance in ["b", "a", "b", "c", "a"] {
        put.push(inbox.submit(Verb::Wake, instance, None).await);
    }
    assert_eq!(operations(&*store, epoch, 9).await, [0, 1, 3].map(|number: usize| put[number].clone()));
    assert_eq!(operations(&*store, epoch, 2).await, put[..2]);
    assert_eq!(operations(&*store, epoch, 0).await, []);
    let first = store.inbox(epoch, 1).await.unwrap().remove(0);
    store.commit(answers(epoch, first.number, Change::default())).await.unwrap();
    assert_eq!(operations(&*store, epoch, 9).await, [1, 2, 3].map(|number: usize| put[number].clone()));
}

async fn a_request_is_claimed_by_one(store: Arc<dyn Store>, inbox: Inbox) {
    let mut put = BTreeSet::new();
    for number in 0..40 {
        put.insert(inbox.submit(Verb::Wake, &format!("i-{number}"), None).await);
    }
    let mut epochs = Vec::new();
    for _ in 0..4 {
        epochs.push(claim(&*store).await.epoch);
    }
    let claims: Vec<_> = epochs
        .iter()
        .map(|epoch| {
            let (store, epoch) = (Arc::clone(&store), *epoch);
            tokio::spawn(async move { operations(&*store, epoch, 10).await })
        })
        .collect();
    let mut all = Vec::new();
    for claim in claims {
        all.extend(claim.await.unwrap());
    }
    let count = all.len();
    assert_eq!(count, BTreeSet::from_iter(all).len(), "each by one");
    // What one left, and what another gives up, is anybody's.
    for epoch in &epochs[1..] {
        store.close_session(*epoch).await.unwrap();
    }
    assert_eq!(BTreeSet::from_iter(operations(&*store, epochs[0], 99).await), put);
    let late = claim(&*store).await.epoch;
    assert_eq!(operations(&*store, late, 99).await, []);
}

async fn a_request_is_answered_once(store: Arc<dyn Store>, inbox: Inbox) {
    let epoch = claim(&*store).await.epoch;
    inbox.submit(Verb::Create, "a", None).await;
    let number = store.inbox(epoch, 9).await.unwrap().remove(0).number;
    let nothing = store.commit(answers(epoch, number + 1, insert(row("b")))).await;
    assert!(matches!(nothing, Err(StoreError::Answered)), "there is no such request: {nothing:?}");
    store.commit(answers(epoch, number, insert(row("a")))).await.unwrap();
    assert_eq!(store.inbox(epoch, 9).await.unwrap(), []);
    let again = store.commit(answers(epoch, number, insert(row("b")))).await;
    assert!(matches!(again, Err(StoreError::Answered)), "{again:?}");
    assert!(store.instance(&id("b")).await.unwrap().is_none());
}

async fn a_request_can_be_looked_up_before_it_is_taken_in(store: Arc<dyn Store>, inbox: Inbox) {
    let epoch = claim(&*store).await.epoch;
    let put = inbox.submit(Verb::Suspend, "a", Some("k")).await;
    let pending = store.operation(&put).await.unwrap().expect("it waits");
    let expected = Operation {
        id: put.clone(),
        verb: Verb::Suspend,
        actor: Actor::new("signup").unwrap(),
        reason: Some("wanted".into()),
        fingerprint: String::new(),
        ..operation(1, Some("k"), pending.accepted_at)
    };
    assert_eq!(pending, expected);
    assert_eq!(store.operation_of_key(&key("k")).await.unwrap(), Some(expected));
    assert_eq!(store.ended(std::slice::from_ref(&put)).await.unwrap(), []);
    let number = store.inbox(epoch, 9).await.unwrap().remove(0).number;
    let taken_in = Operation { id: put.clone(), ..operation(1, Some("k"), pending.accepted_at) };
    store.commit(answers(epoch, number, with_operation(taken_in.clone()))).await.unwrap();
    assert_eq!(store.operation(&put).await.unwrap(), Some(taken_in.clone()));
    assert_eq!(store.operation_of_key(&key("k")).await.unwrap(), Some(taken_in));
}

async fn an_answer_that_is_refused_leaves_the_request(store: Arc<dyn Store>, inbox: Inbox) {
    let epoch = claim(&*store).await.epoch;
    store.commit(insert(row("a"))).await.unwrap();
    let put = inbox.submit(Verb::Create, "a", None).await;
    let number = store.inbox(epoch, 9).await.unwrap().remove(0).number;
    let refused = store.commit(answers(epoch, number, insert(row("a")))).await;
    assert!(matches!(refused, Err(StoreError::Exists)), "{refused:?}");
    assert_eq!(operations(&*store, epoch, 9).await, [put]);
}
