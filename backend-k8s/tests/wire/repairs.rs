//! What is missing, or is left over, is seen and put right: routes, the environment, pods, and the claim that nobody may lose.

use std::sync::Arc;

use backend_k8s::KubernetesConfig;
use provisioner_core::{
    ErrorKind, Provisioner, Result, Retry,
    types::{DataDisposition, DataSource, Generation, Observed, Phase, Target},
};
use serde_json::json;

use crate::{
    fixture::{Fixture, cx, cx_after_a_call, target},
    server::{Answer, until},
    world::key,
};

/// One that has a host name.
pub(crate) fn routed(generation: u64) -> Target {
    let mut target = target(generation);
    Arc::make_mut(&mut target.spec).host_names.insert("acme.example.com".parse().unwrap());
    target
}

pub(crate) async fn with_route() -> (Fixture, Target) {
    let (fixture, target) = (Fixture::new().await, routed(1));
    fixture.backend.create(&cx(), &target).await.unwrap();
    fixture.until(&target, Phase::Running).await;
    assert_eq!(routes(&fixture), 1);
    fixture.server.seen();
    (fixture, target)
}

pub(crate) fn routes(fixture: &Fixture) -> usize {
    fixture.server.world(|world| world.list("ingresses", None, "")).len()
}

fn generation(seen: &Observed) -> Option<Generation> {
    seen.present().map(|present| present.generation)
}

pub(crate) async fn until_generation(fixture: &Fixture, target: &Target, expected: u64) {
    for _ in 0..1500 {
        if generation(&fixture.observe(target).await) == Some(Generation(expected)) {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    panic!("not of generation {expected} in time");
}

/// Calls a verb again when it says so, as the engine does.
pub(crate) async fn until_done(mut verb: impl AsyncFnMut() -> Result<Observed>) {
    for _ in 0..100 {
        match verb().await {
            Ok(_) => return,
            Err(error) => assert_ne!(error.retry(), Retry::Never, "{error}"),
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    panic!("it is not carried out");
}

/// The same for `create`.
pub(crate) async fn create(fixture: &Fixture, target: &Target) {
    until_done(async || fixture.backend.create(&cx_after_a_call(), target).await).await;
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
    until_generation(&fixture, &target, 0).await;
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

// Environments

fn environments(fixture: &Fixture) -> Vec<String> {
    let secrets = fixture.server.world(|world| world.list("secrets", None, ""));
    secrets.iter().map(|secret| secret["metadata"]["name"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn no_environment_of_another_generation_or_making_is_left() {
    let (fixture, target) = with_route().await;
    // The call ends before it comes to that.
    fixture.server.answer("delete", "secrets", 1, Answer::Cut);
    fixture.backend.create(&cx(), &routed(2)).await.unwrap_err();
    assert_eq!(environments(&fixture).len(), 2);
    fixture.backend.create(&cx(), &routed(3)).await.unwrap();
    assert_eq!(environments(&fixture).len(), 1);

    let set = fixture.key_of("statefulsets");
    fixture.server.world(|world| world.delete(&set, None)).unwrap();
    let mut heir = routed(1);
    heir.incarnation = provisioner_core::types::Incarnation::new(2, 8);
    heir.data = DataSource::Existing(target.data.id().clone());
    create(&fixture, &heir).await;
    let left = environments(&fixture);
    assert!(left.len() == 1 && left[0].ends_with("-g1"), "{left:?}");
}

// Data

#[tokio::test]
async fn a_claim_that_lost_a_label_while_it_is_used_gets_it_back() {
    let (fixture, target) = with_route().await;
    let claim = fixture.key_of("persistentvolumeclaims");
    fixture.server.world(|world| world.change(&claim, |claim| claim["metadata"]["labels"] = json!({})));
    until_generation(&fixture, &target, 0).await;
    assert_eq!(fixture.observe(&target).await.phase(), Some(Phase::Running), "its pod serves");
    create(&fixture, &target).await;
    until_generation(&fixture, &target, 1).await;
}

#[tokio::test]
async fn a_volume_that_cannot_grow_is_a_conflict_before_anything_is_changed() {
    let fixture = Fixture::new().await;
    let config = KubernetesConfig { connection: fixture.connection(), volume_expansion: true, ..Default::default() };
    let fixture = fixture.with_backend(config.build().unwrap());
    fixture.backend.create(&cx(), &target(1)).await.unwrap();
    fixture.until(&target(1), Phase::Running).await;
    fixture.server.seen();
    let message = "only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must support resize";
    let refusal = Answer::refusal(403, "Forbidden", message);
    fixture.server.answer("apply", "persistentvolumeclaims", 1, refusal);
    let mut larger = target(2);
    Arc::make_mut(&mut larger.spec).data.size_mib = 4096;
    let error = fixture.backend.create(&cx(), &larger).await.unwrap_err();
    assert_eq!((error.kind(), error.field()), (ErrorKind::Conflict, Some("data.size_mib")));
    let writes = fixture.server.seen().into_iter().filter(|seen| ["create", "apply", "patch"].contains(&seen.verb));
    assert_eq!(writes.count(), 1, "the claim alone");
    let mut smaller = target(2);
    Arc::make_mut(&mut smaller.spec).data.size_mib = 16;
    let error = fixture.backend.create(&cx(), &smaller).await.unwrap_err();
    assert_eq!((error.kind(), error.field()), (ErrorKind::Conflict, Some("data.size_mib")));
}

/// The claim is on its way out: somebody deleted it, and a pod still uses it.
pub(crate) async fn with_ending_claim() -> (Fixture, Target) {
    let (fixture, target) = with_route().await;
    let claim = fixture.key_of("persistentvolumeclaims");
    fixture.server.world(|world| {
        world.change(&claim, |claim| claim["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z"));
    });
    for _ in 0..1500 {
        let seen = fixture.observe(&target).await;
        if seen.present().and_then(|present| present.reason.as_ref()).is_some_and(|reason| reason.code == "data-ending")
        {
            assert_eq!(seen.phase(), Some(Phase::Running));
            return (fixture, target);
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    panic!("nobody says so");
}

#[tokio::test]
async fn what_runs_on_a_claim_that_is_being_removed_says_so_and_is_not_stopped() {
    let (fixture, target) = with_ending_claim().await;
    for stopped in [
        fixture.backend.scale_to_zero(&cx(), &target).await,
        fixture.backend.suspend(&cx(), &target).await,
        fixture.backend.destroy(&cx(), &target, DataDisposition::Retain).await,
    ] {
        let error = stopped.unwrap_err();
        assert_eq!((error.kind(), error.field(), error.retry()), (ErrorKind::Conflict, Some("data"), Retry::Never));
    }
    let error = fixture.backend.create(&cx(), &routed(2)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DataMissing);
    assert_eq!(fixture.server.world(|world| world.list("pods", None, "")).len(), 1);
    // Who wants all of it gone may have that.
    fixture.backend.destroy(&cx(), &target, DataDisposition::Delete).await.unwrap();
}

#[tokio::test]
async fn data_that_is_taken_up_keeps_its_class_and_refuses_a_size_that_it_cannot_have() {
    let (fixture, target) = with_route().await;
    let claim = fixture.key_of("persistentvolumeclaims");
    fixture.server.world(|world| world.change(&claim, |claim| claim["spec"]["storageClassName"] = json!("old")));
    fixture.backend.destroy(&cx(), &target, DataDisposition::Retain).await.unwrap();
    let mut heir = routed(1);
    heir.incarnation = provisioner_core::types::Incarnation::new(2, 8);
    heir.data = DataSource::Existing(heir.data.id().clone());
    Arc::make_mut(&mut heir.spec).data.size_mib = 2048;
    fixture.server.seen();
    let mut refused = fixture.backend.create(&cx_after_a_call(), &heir).await.unwrap_err();
    // Its predecessor may be on its way out.
    for _ in 0..1500 {
        if refused.field() == Some("data.size_mib") {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        refused = fixture.backend.create(&cx(), &heir).await.unwrap_err();
    }
    assert_eq!((refused.kind(), refused.field()), (ErrorKind::Conflict, Some("data.size_mib")));
    let writes = fixture.server.seen().into_iter().filter(|seen| ["create", "apply", "patch"].contains(&seen.verb));
    assert_eq!(writes.count(), 0);
    Arc::make_mut(&mut heir.spec).data.size_mib = 512;
    fixture.backend.create(&cx(), &heir).await.unwrap();
    let claim = fixture.server.world(|world| world.objects[&claim].clone());
    assert_eq!(claim["spec"]["storageClassName"], "old");
    assert_eq!(claim["spec"]["resources"]["requests"]["storage"], "1Gi");
    assert_eq!(claim["metadata"]["labels"]["provisioner.internal/incarnation"], heir.incarnation.to_string());
}

#[tokio::test]
async fn a_pod_of_an_older_spec_that_is_not_ready_is_in_nobodys_way() {
    let (fixture, target) = Fixture::with_instance().await;
    let pod = fixture.key_of("pods");
    fixture.server.world(|world| {
        // The controller leaves it.
        world.is_uncontrolled = true;
        world.change(&pod, |pod| {
            pod["metadata"]["labels"]["controller-revision-hash"] = json!("older");
            pod["status"]["conditions"][0]["status"] = json!("False");
        });
    });
    for _ in 0..500 {
        if fixture.observe(&target).await.phase() == Some(Phase::Provisioning) {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    create(&fixture, &target).await;
    assert_eq!(fixture.server.world(|world| world.list("pods", None, "").len()), 0);
}
