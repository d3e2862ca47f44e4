//! Putting to rest what somebody interfered with, or what a call before left half done.

use std::time::Duration;

use provisioner_core::{
    ErrorKind, Provisioner, Retry,
    types::{DataDisposition, Generation, Phase, Target},
};
use serde_json::json;

use crate::{
    fixture::{Fixture, cx, target},
    repairs::routed,
    server::Answer,
};

async fn suspended() -> (Fixture, Target) {
    let (fixture, target) = (Fixture::new().await, routed(1));
    fixture.backend.create(&cx(), &target).await.unwrap();
    fixture.until(&target, Phase::Running).await;
    fixture.backend.suspend(&cx(), &target).await.unwrap();
    fixture.until(&target, Phase::Suspended).await;
    (fixture, target)
}

fn count(fixture: &Fixture, plural: &str) -> usize {
    fixture.server.world(|world| world.list(plural, None, "").len())
}

/// Takes labels of a set away, and waits until that is seen.
async fn unlabelled(fixture: &Fixture, target: &Target, lost: &str) -> crate::world::Key {
    let set = fixture.key_of("statefulsets");
    fixture.server.world(|world| {
        world.change(&set, |set| {
            set["metadata"]["labels"].as_object_mut().unwrap().retain(|key, _| !key.contains(lost))
        });
    });
    until_changed(fixture, target).await;
    set
}

/// Waits until what somebody changed is seen.
async fn until_changed(fixture: &Fixture, target: &Target) {
    for _ in 0..500 {
        if fixture.observe(target).await.present().is_some_and(|it| it.generation == Generation(0)) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("it is not seen");
}

/// Repeats a verb, as the engine does, until it is seen in this phase.
async fn rest_until(fixture: &Fixture, target: &Target, phase: Phase) {
    for _ in 0..500 {
        let done = match phase {
            Phase::Zero => fixture.backend.scale_to_zero(&cx(), target).await,
            _ => fixture.backend.suspend(&cx(), target).await,
        };
        match done {
            Ok(seen) if seen.phase() == Some(phase) => return,
            Err(error) => assert_ne!(error.retry(), Retry::Never, "{error}"),
            Ok(_) => {}
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("not {phase:?} in time: {:?}", fixture.observe(target).await);
}

async fn wakes(fixture: &Fixture, target: &Target) {
    for _ in 0..500 {
        if let Err(error) = fixture.backend.create(&cx(), target).await {
            assert_ne!(error.retry(), Retry::Never, "{error}");
        }
        let seen = fixture.observe(target).await;
        if seen.present().is_some_and(|it| it.phase == Phase::Running && it.generation == target.generation) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("it does not wake: {:?}", fixture.observe(target).await);
}

#[tokio::test]
async fn from_suspension_it_is_not_asleep_before_a_route_leads_there_again() {
    let (fixture, target) = suspended().await;
    fixture.server.answer("apply", "ingresses", 1, Answer::refusal(500, "InternalError", "etcd is away"));
    fixture.backend.scale_to_zero(&cx(), &target).await.unwrap_err();
    assert_ne!(fixture.observe(&target).await.phase(), Some(Phase::Zero));
    rest_until(&fixture, &target, Phase::Zero).await;
    assert_eq!(count(&fixture, "ingresses"), 1);
    assert_eq!(fixture.observe(&target).await.present().unwrap().generation, Generation(1));
}

#[tokio::test]
async fn from_suspension_with_a_newer_spec_the_routes_are_the_newer_ones() {
    for (newer, routes) in [(routed(2), 1), (target(2), 0)] {
        let (fixture, _) = suspended().await;
        rest_until(&fixture, &newer, Phase::Zero).await;
        assert_eq!(count(&fixture, "ingresses"), routes);
        wakes(&fixture, &newer).await;
        assert_eq!(count(&fixture, "ingresses"), routes);
    }
}

#[tokio::test]
async fn a_route_that_somebody_took_away_from_a_sleeper_is_made_again() {
    let (fixture, target) = suspended().await;
    rest_until(&fixture, &target, Phase::Zero).await;
    let route = fixture.key_of("ingresses");
    fixture.server.world(|world| world.delete(&route, None)).unwrap();
    for _ in 0..500 {
        if fixture.observe(&target).await.phase() != Some(Phase::Zero) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_ne!(fixture.observe(&target).await.phase(), Some(Phase::Zero), "nobody can wake it");
    rest_until(&fixture, &target, Phase::Zero).await;
    assert_eq!(count(&fixture, "ingresses"), 1);
}

#[tokio::test]
async fn a_set_that_lost_its_labels_is_put_to_rest_and_wakes() {
    let lost =
        ["", "provisioner.internal/data", "provisioner.internal/control-plane", "provisioner.internal/incarnation"];
    let ways = [true, false].into_iter().flat_map(|sleeps| [(sleeps, Phase::Zero), (sleeps, Phase::Suspended)]);
    for (lost, (sleeps, phase)) in lost.into_iter().flat_map(|lost| ways.clone().map(move |way| (lost, way))) {
        let (fixture, target) = Fixture::with_instance().await;
        if sleeps {
            rest_until(&fixture, &target, Phase::Zero).await;
        }
        let set = unlabelled(&fixture, &target, lost).await;
        rest_until(&fixture, &target, phase).await;
        assert_eq!(fixture.server.world(|world| world.objects[&set]["spec"]["replicas"].clone()), 0);
        assert_eq!(count(&fixture, "pods"), 0);
        wakes(&fixture, &target).await;
    }
}

#[tokio::test]
async fn what_was_never_made_whole_is_put_to_rest_and_wakes() {
    for plural in ["resourcequotas", "persistentvolumeclaims", "statefulsets"] {
        let (fixture, target) = (Fixture::new().await, routed(1));
        let verb = if plural == "statefulsets" { "create" } else { "apply" };
        fixture.server.answer(verb, plural, 1, Answer::refusal(500, "InternalError", "etcd is away"));
        fixture.backend.create(&cx(), &target).await.unwrap_err();
        rest_until(&fixture, &target, Phase::Zero).await;
        assert_eq!([count(&fixture, "pods"), count(&fixture, "ingresses")], [0, 1], "{plural}");
        wakes(&fixture, &target).await;
        assert_eq!(count(&fixture, "ingresses"), 1, "{plural}");
    }
}

#[tokio::test]
async fn a_pod_on_a_claim_that_is_being_removed_is_not_stopped_whatever_its_set_has_lost() {
    for orphans in [false, true] {
        let (fixture, target) = crate::repairs::with_ending_claim().await;
        if orphans {
            let set = fixture.key_of("statefulsets");
            fixture.server.world(|world| world.orphan(&set));
        } else {
            unlabelled(&fixture, &target, "").await;
        }
        for _ in 0..50 {
            let error = fixture.backend.scale_to_zero(&cx(), &target).await.unwrap_err();
            assert_eq!((error.kind(), error.field()), (ErrorKind::Conflict, Some("data")), "{error}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(count(&fixture, "pods"), 1);
    }
}

#[tokio::test]
async fn a_claim_that_is_being_removed_is_looked_for_at_the_cluster() {
    let (fixture, target) = Fixture::with_instance().await;
    let claim = fixture.key_of("persistentvolumeclaims");
    fixture.server.world(|world| {
        world.change(&claim, |claim| {
            claim["metadata"]["labels"] = json!({});
            claim["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        });
    });
    until_changed(&fixture, &target).await;
    for stopped in [
        fixture.backend.scale_to_zero(&cx(), &target).await,
        fixture.backend.suspend(&cx(), &target).await,
        fixture.backend.destroy(&cx(), &target, DataDisposition::Retain).await,
    ] {
        let error = stopped.unwrap_err();
        assert_eq!((error.kind(), error.field()), (ErrorKind::Conflict, Some("data")), "{error}");
    }
    assert_eq!(count(&fixture, "pods"), 1);
}

#[tokio::test]
async fn what_is_to_run_on_a_claim_that_is_being_removed_is_not_stopped_though_no_pod_of_it_is_seen() {
    let (fixture, target) = Fixture::with_instance().await;
    let (claim, pod) = (fixture.key_of("persistentvolumeclaims"), fixture.key_of("pods"));
    fixture.server.world(|world| {
        world.is_uncontrolled = true;
        world.change(&pod, |pod| pod["metadata"]["labels"] = json!({}));
        world.change(&claim, |claim| claim["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z"));
    });
    for _ in 0..500 {
        if fixture.observe(&target).await.phase() != Some(Phase::Running) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_ne!(fixture.observe(&target).await.phase(), Some(Phase::Running));
    for stopped in [
        fixture.backend.scale_to_zero(&cx(), &target).await,
        fixture.backend.destroy(&cx(), &target, DataDisposition::Retain).await,
    ] {
        let error = stopped.unwrap_err();
        assert_eq!((error.kind(), error.field()), (ErrorKind::Conflict, Some("data")), "{error}");
    }
    assert!(fixture.server.world(|world| world.objects.contains_key(&pod)));
}

#[tokio::test]
async fn a_suspension_does_not_wait_for_what_a_namespace_enforces() {
    let (fixture, target) = Fixture::with_instance().await;
    let namespace = crate::world::key("namespaces", "", &fixture.namespace());
    fixture.server.world(|world| {
        world.change(&namespace, |it| {
            it["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] = json!("privileged")
        });
    });
    until_changed(&fixture, &target).await;
    fixture.backend.suspend(&cx(), &target).await.unwrap();
    fixture.until(&target, Phase::Suspended).await;
}

#[tokio::test]
async fn a_suspended_set_that_lost_a_note_falls_asleep_all_the_same() {
    for note in ["routes", "generation"] {
        let (fixture, target) = suspended().await;
        let set = fixture.key_of("statefulsets");
        let note = format!("provisioner.internal/{note}");
        fixture.server.world(|world| {
            world.change(&set, |set| match note.ends_with("generation") {
                true => set["metadata"]["annotations"][&note] = json!("no number"),
                false => drop(set["metadata"]["annotations"].as_object_mut().unwrap().remove(&note)),
            });
        });
        rest_until(&fixture, &target, Phase::Zero).await;
        assert_eq!(count(&fixture, "ingresses"), 1, "{note}");
        wakes(&fixture, &target).await;
    }
}

#[tokio::test]
async fn a_late_call_of_an_older_generation_brings_no_route() {
    let (fixture, _) = suspended().await;
    let newer = target(2);
    wakes(&fixture, &newer).await;
    rest_until(&fixture, &newer, Phase::Suspended).await;
    let error = fixture.backend.scale_to_zero(&cx(), &routed(1)).await.unwrap_err();
    assert_eq!((error.kind(), error.field()), (ErrorKind::Conflict, Some("generation")));
    assert_eq!(count(&fixture, "ingresses"), 0);
}

#[tokio::test]
async fn what_runs_is_stopped_also_where_its_route_cannot_be_made() {
    let (fixture, target) = (Fixture::new().await, routed(1));
    fixture.backend.create(&cx(), &target).await.unwrap();
    fixture.until(&target, Phase::Running).await;
    let route = fixture.key_of("ingresses");
    fixture.server.world(|world| world.delete(&route, None)).unwrap();
    fixture.server.answer(
        "apply",
        "ingresses",
        usize::MAX,
        Answer::refusal(500, "InternalError", "its webhook is away"),
    );
    until_changed(&fixture, &target).await;
    fixture.backend.scale_to_zero(&cx(), &target).await.unwrap_err();
    assert_eq!(count(&fixture, "pods"), 0);
    assert_ne!(fixture.observe(&target).await.phase(), Some(Phase::Zero), "nobody can wake it");
    fixture.server.clear();
    rest_until(&fixture, &target, Phase::Zero).await;
}

#[tokio::test]
async fn it_is_not_asleep_before_its_controller_has_seen_that() {
    let (fixture, target) = Fixture::with_instance().await;
    rest_until(&fixture, &target, Phase::Zero).await;
    fixture.server.world(|world| world.is_uncontrolled = true);
    fixture.backend.resume(&cx(), &target).await.unwrap();
    for _ in 0..10 {
        let seen = fixture.backend.scale_to_zero(&cx(), &target).await.unwrap();
        assert_ne!(seen.phase(), Some(Phase::Zero), "its pod may be on its way");
    }
    let set = fixture.key_of("statefulsets");
    // Its controller has seen that, and a pod of before still ends, which no watch has told of yet.
    fixture.server.world(|world| {
        world.change(&set, |set| {
            let seen = set["metadata"]["generation"].clone();
            set["status"] = json!({"observedGeneration": seen, "replicas": 1});
        });
    });
    for _ in 0..10 {
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert_ne!(fixture.observe(&target).await.phase(), Some(Phase::Zero), "a pod of it ends");
    }
    fixture.server.world(|world| {
        world.is_uncontrolled = false;
        world.change(&set, |set| set["metadata"]["labels"]["touched"] = json!("yes"));
    });
    fixture.until(&target, Phase::Zero).await;
}
