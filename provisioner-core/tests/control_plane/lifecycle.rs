//! From sign-up to the last trace.

use std::time::Duration;

use futures::StreamExt;
use provisioner_core::{
    ErrorKind,
    memory::MemoryConfig,
    store::{EventKind, OperationState},
    types::{DataDisposition, Generation, Phase},
};

use crate::harness::{World, by, config, done, ended, hold, id, new, plane_id, spec, tenant};

#[tokio::test(start_paused = true)]
async fn an_instance_is_made_sleeps_wakes_and_leaves_no_trace() {
    let world = World::new().await;
    let instance = world.create("acme").await;
    assert_eq!((instance.phase, instance.settled), (Some(Phase::Running), true));
    assert_eq!(instance.endpoint.unwrap().as_str(), "memory://acme/1.0");
    assert_eq!(instance.applied, Some(Generation(1)));
    world.sleep("acme").await;
    let instance = world.get("acme").await;
    assert_eq!((instance.phase, instance.endpoint), (Some(Phase::Zero), None));
    world.wake("acme").await;
    assert_eq!(world.get("acme").await.phase, Some(Phase::Running));
    assert_eq!(world.things().len(), 1, "one thing throughout");
    world.destroy("acme").await;
    assert!(world.things().is_empty());
    assert!(!world.provider.has_data(&plane_id(), &instance.data));
    let usage = world.store.usage(&instance.cell).await.unwrap();
    assert_eq!(usage.instances, 0, "its place is free again");
}

#[tokio::test(start_paused = true)]
async fn a_slow_lagging_provider_is_waited_for() {
    let slow = MemoryConfig {
        start: Duration::from_secs(20),
        stop: Duration::from_secs(8),
        lag: Duration::from_secs(3),
        ..MemoryConfig::default()
    };
    let world = World::with(slow, config()).await;
    world.create("acme").await;
    world.sleep("acme").await;
    world.wake("acme").await;
    done(&world.update("acme", "2.0").await).await;
    assert_eq!(world.things()[0].version, "2.0");
    assert_eq!(world.things().len(), 1);
    world.destroy("acme").await;
    assert!(world.things().is_empty());
}

#[tokio::test(start_paused = true)]
async fn every_hold_must_be_lifted_before_it_wakes() {
    let world = World::new().await;
    world.create("acme").await;
    let acme = id("acme");
    done(&world.plane.suspend(&acme, hold("unpaid"), by()).await.unwrap()).await;
    done(&world.plane.suspend(&acme, hold("abuse"), by()).await.unwrap()).await;
    assert_eq!(world.get("acme").await.phase, Some(Phase::Suspended));
    let error = world.plane.wake(&acme, by()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert!(error.customer_message().contains("suspended"), "{}", error.customer_message());
    let error = world.plane.lift(&acme, &hold("expired"), by()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    done(&world.plane.lift(&acme, &hold("unpaid"), by()).await.unwrap()).await;
    assert_eq!(world.get("acme").await.phase, Some(Phase::Suspended), "one hold is left");
    // It goes to zero, not to running, when it was put to sleep meanwhile.
    done(&world.plane.sleep(&acme, by()).await.unwrap()).await;
    done(&world.plane.lift(&acme, &hold("abuse"), by()).await.unwrap()).await;
    assert_eq!(world.get("acme").await.phase, Some(Phase::Zero));
    world.wake("acme").await;
    assert_eq!(world.get("acme").await.phase, Some(Phase::Running));
}

#[tokio::test(start_paused = true)]
async fn an_update_is_applied_at_once_when_awake_and_at_the_next_wake_when_asleep() {
    let world = World::new().await;
    world.create("acme").await;
    done(&world.update("acme", "2.0").await).await;
    let instance = world.get("acme").await;
    assert_eq!(instance.endpoint.unwrap().as_str(), "memory://acme/2.0");
    assert_eq!((instance.generation, instance.applied), (Generation(2), Some(Generation(2))));
    world.sleep("acme").await;
    done(&world.update("acme", "3.0").await).await;
    assert_eq!(world.get("acme").await.phase, Some(Phase::Zero), "nothing is woken for it");
    assert_eq!(world.things()[0].version, "2.0");
    world.wake("acme").await;
    assert_eq!(world.get("acme").await.endpoint.unwrap().as_str(), "memory://acme/3.0");
}

#[tokio::test(start_paused = true)]
async fn a_restart_is_a_generation_of_its_own() {
    let world = World::new().await;
    world.create("acme").await;
    done(&world.plane.restart(&id("acme"), by()).await.unwrap()).await;
    let instance = world.get("acme").await;
    assert_eq!(instance.applied, Some(Generation(2)));
    assert_eq!(world.things()[0].generation, Generation(2));
}

#[tokio::test(start_paused = true)]
async fn retained_data_is_given_to_a_later_instance_of_the_same_tenant() {
    let world = World::new().await;
    let data = world.create("acme").await.data;
    done(&world.plane.destroy(&id("acme"), DataDisposition::Retain, by()).await.unwrap()).await;
    assert!(world.provider.has_data(&plane_id(), &data));
    let listed = world.plane.data(Some(&tenant()), None, 10).await.unwrap().items;
    assert_eq!(listed.len(), 1);
    let mut other = new("thief").on_data(data.clone());
    other.tenant = provisioner_core::types::TenantId::new("Somebody else").unwrap();
    assert_eq!(world.plane.create(other, by()).await.unwrap_err().kind(), ErrorKind::Conflict);
    done(&world.plane.create(new("acme-2").on_data(data.clone()), by()).await.unwrap()).await;
    assert_eq!(world.get("acme-2").await.data, data);
    let error = world.plane.create(new("acme-3").on_data(data), by()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict, "it is in use");
}

#[tokio::test(start_paused = true)]
async fn a_newer_request_supersedes_an_older_one_and_gone_is_final() {
    let slow = MemoryConfig { start: Duration::from_secs(30), stop: Duration::from_secs(5), ..MemoryConfig::default() };
    let world = World::with(slow, config()).await;
    let created = world.plane.create(new("acme"), by()).await.unwrap();
    let slept = world.plane.sleep(&id("acme"), by()).await.unwrap();
    assert_eq!(ended(&created).await.state, OperationState::Superseded);
    done(&slept).await;
    assert_eq!(world.get("acme").await.phase, Some(Phase::Zero));
    let woken = world.plane.wake(&id("acme"), by()).await.unwrap();
    let destroyed = world.plane.destroy(&id("acme"), DataDisposition::Delete, by()).await.unwrap();
    assert_eq!(ended(&woken).await.state, OperationState::Superseded);
    for refused in [
        world.plane.wake(&id("acme"), by()).await,
        world.plane.update(&id("acme"), spec("2.0"), by()).await,
        world.plane.suspend(&id("acme"), hold("abuse"), by()).await,
        world.plane.create(new("acme"), by()).await,
        world.plane.destroy(&id("acme"), DataDisposition::Retain, by()).await,
    ] {
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::Conflict);
    }
    done(&destroyed).await;
    assert!(world.things().is_empty());
    world.create("acme").await;
    assert_eq!(world.things().len(), 1, "the name is free again");
}

#[tokio::test(start_paused = true)]
async fn a_spec_that_changes_while_it_is_being_created_ends_as_the_new_one() {
    let slow = MemoryConfig { start: Duration::from_secs(30), ..MemoryConfig::default() };
    let world = World::with(slow, config()).await;
    let created = world.plane.create(new("acme"), by()).await.unwrap();
    tokio::time::sleep(Duration::from_secs(5)).await;
    let updated = world.update("acme", "2.0").await;
    assert_eq!(ended(&created).await.state, OperationState::Superseded);
    done(&updated).await;
    assert_eq!(world.things()[0].version, "2.0");
    assert_eq!(world.things().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn destroy_during_create_leaves_nothing() {
    let slow = MemoryConfig { start: Duration::from_secs(30), lag: Duration::from_secs(2), ..MemoryConfig::default() };
    let world = World::with(slow, config()).await;
    for wait in [0, 1, 100, 2000, 15_000] {
        world.plane.create(new("acme"), by()).await.unwrap();
        tokio::time::sleep(Duration::from_millis(wait)).await;
        world.destroy("acme").await;
        assert!(world.things().is_empty(), "after {wait} ms");
    }
}

#[tokio::test(start_paused = true)]
async fn an_expired_instance_is_suspended_by_itself_and_can_be_lifted() {
    let world = World::new().await;
    let mut trial = new("acme");
    trial.spec.expiry.suspend_after_seconds = Some(3600);
    done(&world.plane.create(trial, by()).await.unwrap()).await;
    tokio::time::sleep(Duration::from_secs(3590)).await;
    assert_eq!(world.get("acme").await.phase, Some(Phase::Running));
    let instance = world.until_phase("acme", Phase::Suspended).await;
    assert!(instance.intent.holds.contains(&hold("expired")));
    done(&world.plane.lift(&id("acme"), &hold("expired"), by()).await.unwrap()).await;
    tokio::time::sleep(Duration::from_secs(7200)).await;
    assert_eq!(world.get("acme").await.phase, Some(Phase::Running), "an expiry is served once");
}

#[tokio::test(start_paused = true)]
async fn events_tell_the_story_in_order_with_actor_and_reason() {
    let world = World::new().await;
    world.create("acme").await;
    let request = by().because("the customer asked");
    done(&world.plane.destroy(&id("acme"), DataDisposition::Delete, request).await.unwrap()).await;
    let events = world.plane.events(Some(&id("acme")), 0, 100).await.unwrap().items;
    assert!(events.windows(2).all(|pair| pair[0].position < pair[1].position));
    let kinds: Vec<&str> = events
        .iter()
        .map(|event| match &event.event.what {
            EventKind::Accepted { .. } => "accepted",
            EventKind::IncarnationStarted { .. } => "started",
            EventKind::PhaseChanged { .. } => "phase",
            EventKind::OperationEnded { .. } => "ended",
            EventKind::IncarnationEnded { .. } => "over",
            EventKind::Forgotten { .. } => "forgotten",
            _ => "other",
        })
        .collect();
    assert_eq!(kinds, ["accepted", "started", "phase", "ended", "accepted", "phase", "over", "ended", "forgotten"]);
    assert_eq!(events[4].event.reason.as_deref(), Some("the customer asked"));
    assert_eq!(events[4].event.actor.as_ref().unwrap().as_str(), "somebody");
    // A live stream tells the same, from any position.
    let followed: Vec<_> = world.plane.follow(Some(id("acme")), events[3].position).take(5).collect().await;
    let followed: Vec<_> = followed.into_iter().map(|event| event.unwrap().position).collect();
    assert_eq!(followed, events[4..].iter().map(|event| event.position).collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn progress_ends_with_the_operation() {
    let slow = MemoryConfig { start: Duration::from_secs(30), ..MemoryConfig::default() };
    let world = World::with(slow, config()).await;
    let operation = world.plane.create(new("acme"), by()).await.unwrap();
    let progress: Vec<_> = operation.progress().collect().await;
    let last = &progress.last().unwrap().as_ref().unwrap().event.what;
    assert!(matches!(last, EventKind::OperationEnded { state: OperationState::Done, .. }), "{last:?}");
    // Looked up later, it tells the same.
    let again = world.plane.operation(&operation.operation().id).await.unwrap();
    assert_eq!(again.progress().count().await, progress.len());
}

#[tokio::test(start_paused = true)]
async fn progress_of_what_ended_long_ago_ends_too() {
    let world = World::new().await;
    let created = world.plane.create(new("acme"), by()).await.unwrap();
    done(&created).await;
    world.destroy("acme").await;
    // The events of what is forgotten go, but for the last one; the operation is kept.
    tokio::time::sleep(Duration::from_secs(2 * 3600)).await;
    let left = world.plane.events(Some(&id("acme")), 0, 100).await.unwrap().items;
    assert_eq!(left.len(), 1, "reduced to a tombstone: {left:?}");
    assert!(matches!(left[0].event.what, EventKind::Forgotten { .. }));
    let again = world.plane.operation(&created.operation().id).await.unwrap();
    let progress = tokio::time::timeout(Duration::from_secs(60), again.progress().count()).await;
    assert_eq!(progress.expect("it ends"), 0);
}
