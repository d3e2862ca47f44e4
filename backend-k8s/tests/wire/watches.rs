//! Watches that end, are too old, or lie still.

use std::time::Duration;

use provisioner_core::{
    Provisioner,
    types::{DataDisposition, DataId, DataSource, Incarnation, InstanceId, Observed, Phase},
};
use serde_json::json;

use crate::{
    fixture::{Fixture, cx, cx_after_a_call, target},
    server::{Answer, until},
};

const KINDS: [&str; 11] = [
    "namespaces",
    "resourcequotas",
    "limitranges",
    "networkpolicies",
    "serviceaccounts",
    "persistentvolumeclaims",
    "statefulsets",
    "pods",
    "services",
    "ingresses",
    "endpointslices",
];

/// The pod is not ready any more.
fn unready(fixture: &Fixture) {
    let pod = fixture.key_of("pods");
    fixture.server.world(|world| world.change(&pod, |pod| pod["status"]["conditions"][0]["status"] = json!("False")));
}

#[tokio::test]
async fn a_connection_that_is_cut_is_resumed_where_it_was() {
    let (fixture, target) = Fixture::with_instance().await;
    let version = fixture.server.world(|world| world.version);
    // It happens while nobody listens.
    fixture.server.world(|world| world.told_until = Some(version));
    unready(&fixture);
    fixture.server.cut_watches();
    fixture.server.world(|world| world.told_until = None);
    fixture.until(&target, Phase::Provisioning).await;
    until("every watch is open again", || KINDS.iter().all(|kind| fixture.server.count("watch", kind) == 1)).await;
    assert_eq!(fixture.server.seen().iter().filter(|seen| seen.verb == "list" && seen.namespace.is_none()).count(), 0);
}

#[tokio::test]
async fn a_watch_that_is_too_old_reads_everything_again_and_loses_nothing() {
    let as_event = None;
    let as_status = Some(Answer::refusal(410, "Expired", "too old resource version"));
    for answer in [as_event, as_status] {
        let (fixture, target) = Fixture::with_instance().await;
        fixture.server.world(|world| world.told_until = Some(world.version));
        unready(&fixture);
        if let Some(answer) = answer {
            fixture.server.answer("watch", "*", KINDS.len(), answer);
        } else {
            fixture.server.world(|world| world.compacted = world.version);
        }
        fixture.server.cut_watches();
        fixture.server.world(|world| world.told_until = None);
        fixture.until(&target, Phase::Provisioning).await;
        until("everything was read again", || KINDS.iter().all(|kind| fixture.server.count("list", kind) >= 1)).await;
        let everywhere = |kind: &str| {
            let seen = fixture.server.seen();
            seen.iter().filter(|seen| seen.verb == "list" && seen.namespace.is_none() && seen.plural == kind).count()
        };
        assert_eq!(everywhere("pods"), 1);
        // And what happens from now on is heard.
        let pod = fixture.key_of("pods");
        let ready = json!("True");
        fixture.server.world(|world| world.change(&pod, |pod| pod["status"]["conditions"][0]["status"] = ready));
        fixture.until(&target, Phase::Running).await;
    }
}

#[tokio::test]
async fn what_went_while_a_watch_was_too_old_is_gone() {
    let (fixture, target) = Fixture::with_instance().await;
    let namespace = fixture.key_of("statefulsets").1;
    fixture.server.world(|world| {
        world.told_until = Some(world.version);
        world.delete(&crate::world::key("namespaces", "", &namespace), None).unwrap();
        world.compacted = world.version;
    });
    fixture.server.cut_watches();
    fixture.server.world(|world| world.told_until = None);
    for _ in 0..1500 {
        if fixture.observe(&target).await == Observed::Absent {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("it is gone, and is told to be there");
}

#[tokio::test]
async fn what_is_made_during_a_reading_is_never_told_as_absent() {
    let fixture = Fixture::new().await;
    fixture.observe(&target(1)).await;
    until("the watch is open", || fixture.server.count("watch", "namespaces") == 1).await;
    fixture.server.world(|world| {
        world.version += 1;
        world.compacted = world.version;
    });
    fixture.server.seen();
    fixture.server.answer("list", "*", KINDS.len(), Answer::Late(Duration::from_millis(600)));
    fixture.server.cut_watches();
    until("everything is being read", || KINDS.iter().all(|kind| fixture.server.count("list", kind) == 1)).await;
    // Read already, and not arrived; and the watches that follow are slow.
    fixture.server.world(|world| world.told_until = Some(world.version));
    fixture.server.clear();
    fixture.backend.create(&cx(), &target(1)).await.unwrap();
    for _ in 0..4 {
        let seen = fixture.observe(&target(1)).await;
        assert!(!matches!(seen, Observed::Absent), "it was just made");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    fixture.server.world(|world| world.told_until = None);
    fixture.until(&target(1), Phase::Running).await;
}

#[tokio::test]
async fn what_is_old_is_compared_with_the_cluster_while_a_watch_cannot_be_opened() {
    let (fixture, target) = Fixture::with_instance().await;
    let set = fixture.key_of("statefulsets");
    fixture.server.answer("watch", "*", KINDS.len(), Answer::Hang);
    fixture.server.cut_watches();
    until("every watch hangs", || KINDS.iter().all(|kind| fixture.server.count("watch", kind) == 1)).await;
    fixture.server.world(|world| world.delete(&set, None)).unwrap();
    assert!(matches!(fixture.observe(&target).await, Observed::Unknown { .. }));
    assert!(fixture.server.count("get", "namespaces") >= 1);
    // What hangs is given up, and tried again.
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(31)).await;
    tokio::time::resume();
    fixture_sees_absent(&fixture, &target).await;
}

async fn fixture_sees_absent(fixture: &Fixture, target: &provisioner_core::types::Target) {
    for _ in 0..1500 {
        // Somebody took the stateful set away from what has a service: it is to be made again.
        if fixture.observe(target).await == Observed::Absent {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("the watches do not come back");
}

#[tokio::test]
async fn doubt_ends_when_everything_was_read_again_not_when_that_begins() {
    let (fixture, target) = Fixture::with_instance().await;
    let set = fixture.key_of("statefulsets");
    fixture.server.world(|world| {
        world.told_until = Some(world.version);
        world.change(&set, |set| set["metadata"]["annotations"]["provisioner.internal/generation"] = json!("9"));
        world.compacted = world.version;
    });
    fixture.server.answer("list", "statefulsets", 1, Answer::Hang);
    fixture.server.cut_watches();
    until("it is being read", || fixture.server.count("list", "statefulsets") == 1).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    let seen = fixture.observe(&target).await;
    assert!(matches!(&seen, Observed::Unknown { .. }), "{seen:?}");
}

#[tokio::test]
async fn a_server_that_ends_every_watch_at_once_is_not_asked_without_end() {
    let fixture = Fixture::new().await;
    fixture.server.answer("watch", "pods", usize::MAX, Answer::Status(200, String::new(), vec![]));
    let started = std::time::Instant::now();
    fixture.observe(&target(1)).await;
    tokio::time::sleep(Duration::from_millis(2500)).await;
    let (asked, most) = (fixture.server.count("watch", "pods"), started.elapsed().as_secs_f32() + 2.0);
    assert!(asked >= 2 && asked as f32 <= most, "{asked}");
}

#[tokio::test]
async fn readings_that_fail_become_rarer() {
    let fixture = Fixture::new().await;
    fixture.server.answer("list", "pods", usize::MAX, Answer::refusal(500, "InternalError", "no"));
    fixture.backend.observe(&cx(), &target(1)).await.unwrap_err();
    tokio::time::sleep(Duration::from_secs(4)).await;
    let asked = fixture.server.count("list", "pods");
    assert!((2..=7).contains(&asked), "{asked}");
}

#[tokio::test]
async fn what_another_process_made_behind_a_dead_watch_is_not_told_as_absent() {
    let (fixture, _) = Fixture::with_instance().await;
    fixture.server.world(|world| world.told_until = Some(world.version));
    let mut other = target(1);
    (other.id, other.incarnation) = (InstanceId::new("other").unwrap(), Incarnation::new(1, 2));
    other.data = DataSource::Fresh(DataId::from_random(2));
    fixture.another_backend().create(&cx(), &other).await.unwrap();
    for seen in [fixture.observe(&other).await, fixture.backend.resume(&cx(), &other).await.unwrap()] {
        assert!(matches!(seen, Observed::Unknown { .. }), "{seen:?}");
    }
    // The destruction of what is not seen is not over.
    let seen = fixture.backend.destroy(&cx(), &other, DataDisposition::Delete).await.unwrap();
    assert!(matches!(seen, Observed::Unknown { .. }), "{seen:?}");
}

#[tokio::test]
async fn what_another_process_wrote_is_looked_for_at_the_cluster() {
    let (fixture, target) = Fixture::with_instance().await;
    fixture.server.world(|world| world.told_until = Some(world.version));
    let other = fixture.another_backend();
    other.destroy(&cx(), &target, DataDisposition::Delete).await.unwrap();
    let mut cx = cx_after_a_call();
    // Its own last write is older than the one that it is told of.
    tokio::time::sleep(Duration::from_millis(5200)).await;
    cx.since_last_call = Some(Duration::ZERO);
    let seen = fixture.backend.observe(&cx, &target).await.unwrap();
    assert!(matches!(seen, Observed::Unknown { .. }), "{seen:?}");
}
