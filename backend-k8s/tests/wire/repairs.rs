//! What is missing, or is left over, is seen and put right: routes, the environment, pods, and the claim that nobody may lose.

use std::sync::Arc;

use provisioner_core::{
    Provisioner,
    types::{DataDisposition, Generation, Observed, Phase, Target},
};
use serde_json::json;

use crate::{
    fixture::{Fixture, cx, cx_after_a_call, target},
    server::{Answer, until},
    world::key,
};

/// One that has a host name.
fn routed(generation: u64) -> Target {
    let mut target = target(generation);
    Arc::make_mut(&mut target.spec).host_names.insert("acme.example.com".parse().unwrap());
    target
}

async fn with_route() -> (Fixture, Target) {
    let (fixture, target) = (Fixture::new().await, routed(1));
    fixture.backend.create(&cx(), &target).await.unwrap();
    fixture.until(&target, Phase::Running).await;
    assert_eq!(routes(&fixture), 1);
    fixture.server.seen();
    (fixture, target)
}

fn routes(fixture: &Fixture) -> usize {
    fixture.server.world(|world| world.list("ingresses", None, "")).len()
}

fn generation(seen: &Observed) -> Option<Generation> {
    seen.present().map(|present| present.generation)
}

#[tokio::test]
async fn a_host_name_that_a_spec_lost_leads_nowhere_any_more() {
    let (fixture, _) = with_route().await;
    fixture.backend.create(&cx(), &target(2)).await.unwrap();
    fixture.until(&target(2), Phase::Running).await;
    assert_eq!(routes(&fixture), 0);
    assert_eq!(generation(&fixture.observe(&target(2)).await), Some(Generation(2)));
    fixture.backend.create(&cx(), &routed(3)).await.unwrap();
    fixture.until(&routed(3), Phase::Running).await;
    assert_eq!(routes(&fixture), 1);
}

#[tokio::test]
async fn a_route_that_somebody_took_away_is_missed_and_made_again() {
    let (fixture, target) = with_route().await;
    let route = fixture.key_of("ingresses");
    fixture.server.world(|world| world.delete(&route, None)).unwrap();
    for _ in 0..1500 {
        if generation(&fixture.observe(&target).await) == Some(Generation(0)) {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    fixture.backend.create(&cx(), &target).await.unwrap();
    assert_eq!(routes(&fixture), 1);
    fixture.until(&target, Phase::Running).await;
    assert_eq!(generation(&fixture.observe(&target).await), Some(Generation(1)));
}

#[tokio::test]
async fn an_instance_is_not_suspended_while_a_route_leads_there() {
    let (fixture, target) = with_route().await;
    fixture.server.answer("delete", "ingresses", 1, Answer::refusal(500, "InternalError", "etcd is away"));
    fixture.backend.suspend(&cx(), &target).await.unwrap_err();
    until("its pod is gone", || fixture.server.world(|world| world.list("pods", None, "")).is_empty()).await;
    for _ in 0..10 {
        let seen = fixture.backend.observe(&cx_after_a_call(), &target).await.unwrap();
        assert_ne!(seen.phase(), Some(Phase::Suspended), "{seen:?}");
    }
    fixture.backend.suspend(&cx(), &target).await.unwrap();
    fixture.until(&target, Phase::Suspended).await;
    assert_eq!(routes(&fixture), 0);
    // What is seen of a route may be on its way out: a wake makes it sure.
    fixture.backend.resume(&cx(), &target).await.unwrap();
    fixture.until(&target, Phase::Running).await;
    assert_eq!(routes(&fixture), 1);
    fixture.backend.scale_to_zero(&cx(), &target).await.unwrap();
    fixture.until(&target, Phase::Zero).await;
    fixture.server.seen();
    fixture.backend.resume(&cx(), &target).await.unwrap();
    assert_eq!(fixture.server.count("apply", "ingresses"), 1);
}

#[tokio::test]
async fn an_environment_that_somebody_took_away_is_made_again_by_a_wake() {
    let (fixture, target) = Fixture::with_instance().await;
    let secret = fixture.key_of("secrets");
    fixture.backend.scale_to_zero(&cx(), &target).await.unwrap();
    fixture.until(&target, Phase::Zero).await;
    fixture.server.world(|world| world.delete(&secret, None)).unwrap();
    fixture.backend.resume(&cx(), &target).await.unwrap();
    assert!(fixture.server.world(|world| world.objects.contains_key(&secret)));
}

#[tokio::test]
async fn data_is_retained_also_where_its_claim_has_lost_its_labels() {
    let (fixture, target) = Fixture::with_instance().await;
    let claim = fixture.key_of("persistentvolumeclaims");
    fixture.server.world(|world| world.change(&claim, |claim| claim["metadata"]["labels"] = json!({})));
    // As if it had gone, for whoever watches by labels.
    for _ in 0..1500 {
        if fixture.observe(&target).await.phase() == Some(Phase::Failed) {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    fixture.backend.destroy(&cx(), &target, DataDisposition::Retain).await.unwrap();
    let namespace = key("namespaces", "", &claim.1);
    let there = fixture.server.world(|world| [&claim, &namespace].map(|key| world.objects.contains_key(key)));
    assert_eq!(there, [true, true]);
}

#[tokio::test]
async fn pods_that_lost_their_stateful_set_are_no_absence_and_go_with_their_making() {
    let (fixture, target) = Fixture::with_instance().await;
    let (set, pod) = (fixture.key_of("statefulsets"), fixture.key_of("pods"));
    fixture.server.world(|world| world.orphan(&set));
    until("the set is gone", || fixture.server.world(|world| !world.objects.contains_key(&set))).await;
    for _ in 0..25 {
        assert_ne!(fixture.observe(&target).await, Observed::Absent, "its pod runs");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    fixture.backend.destroy(&cx(), &target, DataDisposition::Retain).await.unwrap();
    assert!(!fixture.server.world(|world| world.objects.contains_key(&pod)));
}
