//! What is not asked.

use std::time::Duration;

use futures::StreamExt;
use provisioner_core::{
    Provisioner,
    types::{DataDisposition, DataSource, Incarnation, Phase},
};

use crate::fixture::{Fixture, cx, target};

/// Lets what is under way come through, however the clock stands: a paused one does not run while a thread is waited for.
async fn settle() {
    tokio::task::spawn_blocking(|| std::thread::sleep(Duration::from_millis(50))).await.unwrap();
}

#[tokio::test]
async fn at_rest_nothing_is_asked_but_watches_are_opened_again_now_and_then() {
    let (fixture, target) = Fixture::with_instance().await;
    settle().await;
    fixture.server.seen();
    tokio::time::pause();
    for _ in 0..120 {
        tokio::time::advance(Duration::from_secs(10)).await;
        settle().await;
    }
    let seen = fixture.server.seen();
    assert!(seen.iter().all(|seen| seen.verb == "watch"), "{seen:?}");
    // Twenty minutes, eleven kinds, and at most one opening of each in four minutes.
    assert!((22..=55).contains(&seen.len()), "{}", seen.len());
    tokio::time::resume();
    fixture.until(&target, Phase::Running).await;
}

#[tokio::test]
async fn reads_cost_nothing_while_the_watches_are_open() {
    let (fixture, target) = Fixture::with_instance().await;
    settle().await;
    fixture.server.seen();
    for _ in 0..100 {
        fixture.observe(&target).await;
    }
    fixture.backend.observe_many(&cx(), &[target.clone(), target]).await;
    assert_eq!(fixture.backend.list(&cx()).collect::<Vec<_>>().await.len(), 1);
    assert_eq!(fixture.server.seen(), []);
}

#[tokio::test]
async fn verbs_that_change_nothing_write_nothing() {
    let (fixture, target) = Fixture::with_instance().await;
    fixture.backend.create(&cx(), &target).await.unwrap();
    fixture.backend.resume(&cx(), &target).await.unwrap();
    let seen = fixture.server.seen();
    assert!(seen.iter().all(|seen| ["get", "watch"].contains(&seen.verb)), "{seen:?}");
    fixture.backend.scale_to_zero(&cx(), &target).await.unwrap();
    fixture.until(&target, Phase::Zero).await;
    fixture.server.seen();
    fixture.backend.scale_to_zero(&cx(), &target).await.unwrap();
    assert_eq!(fixture.server.seen(), []);
}

#[tokio::test]
async fn secrets_are_never_watched_and_their_values_never_read() {
    let fixture = Fixture::new().await;
    let (backend, first) = (&fixture.backend, target(1));
    backend.create(&cx(), &first).await.unwrap();
    fixture.until(&first, Phase::Running).await;
    let second = target(2);
    backend.create(&cx(), &second).await.unwrap();
    fixture.until(&second, Phase::Running).await;
    backend.scale_to_zero(&cx(), &second).await.unwrap();
    fixture.until(&second, Phase::Zero).await;
    backend.resume(&cx(), &second).await.unwrap();
    backend.suspend(&cx(), &second).await.unwrap();
    backend.destroy(&cx(), &second, DataDisposition::Retain).await.unwrap();
    assert_eq!(fixture.server.world(|world| world.list("secrets", None, "")).len(), 0);
    let mut heir = target(3);
    heir.incarnation = Incarnation::new(2, 8);
    heir.data = DataSource::Existing(heir.data.id().clone());
    let mut made = backend.create(&cx(), &heir).await;
    for _ in 0..100 {
        if made.is_ok() {
            break;
        }
        settle().await;
        made = backend.create(&cx(), &heir).await;
    }
    made.unwrap();
    backend.destroy(&cx(), &heir, DataDisposition::Delete).await.unwrap();

    let seen = fixture.server.seen();
    let secrets: Vec<_> = seen.iter().filter(|seen| seen.plural == "secrets").collect();
    assert!(secrets.iter().any(|seen| seen.verb == "apply") && secrets.iter().any(|seen| seen.verb == "delete"));
    for seen in secrets {
        assert!(["apply", "delete"].contains(&seen.verb) && seen.namespace.is_some(), "{seen:?}");
    }
}
