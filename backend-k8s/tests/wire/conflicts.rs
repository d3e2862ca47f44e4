//! Two writers at one thing, and answers that are lost.

use std::time::Duration;

use provisioner_core::{
    Effect, ErrorKind, Provisioner, Retry,
    types::{DataDisposition, Generation, Observed, Phase},
};
use serde_json::{Value, json};

use crate::{
    fixture::{Fixture, cx, cx_after_a_call, target},
    reasons::{BEYOND_QUOTA, warn, without_a_pod},
    server::{Answer, until},
    world::{World, key},
};

const GENERATION: &str = "provisioner.internal/generation";
const APPLIED: &str = "provisioner.internal/applied";

/// Everything that `create` writes, in its order.
const WRITES: [(&str, &str); 9] = [
    ("create", "namespaces"),
    ("apply", "resourcequotas"),
    ("apply", "limitranges"),
    ("apply", "networkpolicies"),
    ("apply", "serviceaccounts"),
    ("apply", "secrets"),
    ("apply", "persistentvolumeclaims"),
    ("create", "statefulsets"),
    ("apply", "services"),
];

fn set_generation(set: crate::world::Key, generation: &'static str) -> impl FnOnce(&mut World) + Send + 'static {
    move |world| world.change(&set, |set| applied_for(set, generation))
}

/// As somebody who applied it for this generation leaves it: said, and noted.
pub(crate) fn applied_for(object: &mut Value, generation: &str) {
    let annotations = &mut object["metadata"]["annotations"];
    annotations[GENERATION] = json!(generation);
    let mut noted: Value = serde_json::from_str(annotations[APPLIED].as_str().unwrap()).unwrap();
    noted["metadata"]["annotations"][GENERATION] = json!(generation);
    annotations[APPLIED] = json!(noted.to_string());
}

#[tokio::test]
async fn an_update_that_was_overtaken_looks_again_and_succeeds() {
    let conflict = Answer::refusal(409, "Conflict", "the object has been modified");
    for answer in [None, Some(conflict)] {
        let (fixture, _) = Fixture::with_instance().await;
        let set = fixture.key_of("statefulsets");
        fixture.server.before("patch", "statefulsets", set_generation(set.clone(), "2"), answer);
        fixture.backend.create(&cx(), &target(3)).await.unwrap();
        assert_eq!(fixture.server.count("patch", "statefulsets"), 2);
        let set = fixture.server.world(|world| world.objects[&set].clone());
        assert_eq!(set["metadata"]["annotations"][GENERATION], "3");
        assert_eq!(set["spec"]["template"]["spec"]["containers"][0]["image"], "registry.example/product:1.3");
        let Observed::Present(present) = fixture.observe(&target(3)).await else { panic!("it is there") };
        assert_eq!(present.generation, Generation(3));
    }
}

#[tokio::test]
async fn an_older_update_does_not_overwrite_a_newer_one() {
    let (fixture, _) = Fixture::with_instance().await;
    let set = fixture.key_of("statefulsets");
    fixture.server.before("patch", "statefulsets", set_generation(set.clone(), "9"), None);
    let error = fixture.backend.create(&cx(), &target(3)).await.unwrap_err();
    assert_eq!((error.kind(), error.field(), error.retry()), (ErrorKind::Conflict, Some("generation"), Retry::Never));
    let set = fixture.server.world(|world| world.objects[&set].clone());
    assert_eq!(set["metadata"]["annotations"][GENERATION], "9");
    assert_eq!(set["spec"]["template"]["spec"]["containers"][0]["image"], "registry.example/product:1.1");
}

#[tokio::test]
async fn a_conflict_that_says_nothing_new_is_left_to_the_engine() {
    let (fixture, target) = Fixture::with_instance().await;
    let conflict = Answer::refusal(409, "Conflict", "the object has been modified");
    fixture.server.answer("patch", "statefulsets", usize::MAX, conflict);
    let error = fixture.backend.scale_to_zero(&cx(), &target).await.unwrap_err();
    assert_eq!((error.kind(), error.retry(), error.effect()), (ErrorKind::Conflict, Retry::Backoff, Effect::None));
    assert_eq!(fixture.server.count("patch", "statefulsets"), 1);
    fixture.server.clear();
    fixture.backend.scale_to_zero(&cx(), &target).await.unwrap();
    fixture.until(&target, Phase::Zero).await;
}

#[tokio::test]
async fn a_namespace_of_somebody_else_is_left_alone() {
    let (fixture, target) = Fixture::with_instance().await;
    let namespace = fixture.namespace();
    fixture.backend.destroy(&cx(), &target, DataDisposition::Delete).await.unwrap();
    let others = json!({"metadata": {"name": namespace, "labels": {"team": "billing"}}});
    fixture.server.world(|world| world.create(&key("namespaces", "", &namespace), others)).unwrap();
    fixture.server.seen();
    let error = fixture.backend.create(&cx(), &target).await.unwrap_err();
    assert_eq!((error.kind(), error.field(), error.retry()), (ErrorKind::Conflict, Some("data"), Retry::Never));
    let seen = fixture.server.seen();
    let writes: Vec<_> = seen.iter().filter(|seen| ["apply", "patch", "delete"].contains(&seen.verb)).collect();
    assert!(writes.is_empty(), "{writes:?}");
}

#[tokio::test]
async fn a_create_whose_answer_is_lost_is_never_told_as_absent_and_converges() {
    for (verb, plural) in WRITES {
        let fixture = Fixture::new().await;
        fixture.observe(&target(1)).await;
        // Nothing of what happens is told, as if the watches were slow.
        fixture.server.world(|world| world.told_until = Some(world.version));
        fixture.server.answer(verb, plural, 1, Answer::ActAndCut);
        let error = fixture.backend.create(&cx(), &target(1)).await.unwrap_err();
        assert_eq!((error.kind(), error.effect()), (ErrorKind::Unavailable, Effect::Unknown), "{verb} {plural}");
        let seen = fixture.backend.observe(&cx_after_a_call(), &target(1)).await.unwrap();
        assert!(!matches!(seen, Observed::Absent), "{verb} {plural}: {seen:?}");
        fixture.server.world(|world| world.told_until = None);
        fixture.backend.create(&cx_after_a_call(), &target(1)).await.unwrap();
        fixture.until(&target(1), Phase::Running).await;
        for plural in WRITES.map(|(_, plural)| plural) {
            let ours = "provisioner.internal/instance=acme";
            assert_eq!(fixture.server.world(|world| world.list(plural, None, ours)).len(), 1, "{plural}");
        }
    }
}

#[tokio::test]
async fn a_create_that_was_cut_before_it_acted_converges() {
    for (verb, plural) in WRITES {
        let fixture = Fixture::new().await;
        fixture.server.answer(verb, plural, 1, Answer::Cut);
        let error = fixture.backend.create(&cx(), &target(1)).await.unwrap_err();
        assert_eq!((error.kind(), error.effect()), (ErrorKind::Unavailable, Effect::Unknown), "{verb} {plural}");
        fixture.backend.create(&cx_after_a_call(), &target(1)).await.unwrap();
        fixture.until(&target(1), Phase::Running).await;
    }
}

#[tokio::test]
async fn a_create_that_was_dropped_is_never_told_as_absent() {
    let fixture = Fixture::new().await;
    fixture.observe(&target(1)).await;
    fixture.server.world(|world| world.told_until = Some(world.version));
    fixture.server.answer("create", "namespaces", 1, Answer::Late(Duration::from_secs(60)));
    let (cx, made) = (cx(), target(1));
    let ours = "provisioner.internal/instance=acme";
    let is_made = || fixture.server.world(|world| !world.list("namespaces", None, ours).is_empty());
    tokio::select! {
        done = fixture.backend.create(&cx, &made) => panic!("it was answered: {done:?}"),
        () = until("its namespace is made", is_made) => {}
    }
    let seen = fixture.backend.observe(&cx_after_a_call(), &target(1)).await.unwrap();
    assert!(!matches!(seen, Observed::Absent), "{seen:?}");
}

#[tokio::test]
async fn an_answer_that_comes_after_its_object_is_gone_is_not_waited_for() {
    let fixture = Fixture::new().await;
    fixture.server.answer("apply", "services", 1, Answer::Late(Duration::from_millis(500)));
    let (cx, made) = (cx(), target(1));
    let gone = async {
        let is_made = || fixture.server.world(|world| !world.list("services", None, "").is_empty());
        until("its service is made", is_made).await;
        let namespace = key("namespaces", "", &fixture.namespace());
        fixture.server.world(|world| world.delete(&namespace, None)).unwrap();
    };
    let (done, ()) = tokio::join!(fixture.backend.create(&cx, &made), gone);
    done.unwrap();
    until_absent(&fixture).await;
}

async fn until_absent(fixture: &Fixture) {
    for _ in 0..150 {
        if fixture.observe(&target(1)).await == Observed::Absent {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("not told to be absent, with everything told");
}

#[tokio::test]
async fn who_has_a_quota_counted_anew_leaves_one_that_is_newer() {
    let fixture = without_a_pod(true).await;
    let quota = fixture.key_of("resourcequotas");
    warn(&fixture, "StatefulSet", &fixture.key_of("statefulsets").2, "FailedCreate", BEYOND_QUOTA);
    let (newer, changed) = (set_generation(quota.clone(), "9"), quota.clone());
    let act = move |world: &mut World| {
        newer(world);
        world.change(&changed, |quota| quota["spec"]["hard"]["pods"] = json!("7"));
    };
    fixture.server.before("apply", "resourcequotas", act, None);
    fixture.backend.create(&cx(), &target(1)).await.unwrap();
    let hard = fixture.server.world(|world| world.objects[&quota]["spec"]["hard"].clone());
    assert_eq!((&hard["pods"], &hard["replicationcontrollers"]), (&json!("7"), &json!(null)));
}

#[tokio::test]
async fn small_objects_are_applied_only_as_they_were_seen_and_unless_they_are_newer() {
    for (meanwhile, expected) in [("2", Ok("3")), ("9", Err(ErrorKind::Conflict))] {
        let (fixture, _) = Fixture::with_instance().await;
        for plural in ["resourcequotas", "services"] {
            let part = fixture.key_of(plural);
            fixture.server.before("apply", plural, set_generation(part, meanwhile), None);
        }
        let done = fixture.backend.create(&cx(), &target(3)).await;
        let quota = fixture.key_of("resourcequotas");
        let quota = fixture.server.world(|world| world.objects[&quota].clone());
        match expected {
            Ok(generation) => {
                done.unwrap();
                assert_eq!(quota["metadata"]["annotations"][GENERATION], generation);
                let Observed::Present(present) = fixture.observe(&target(3)).await else { panic!("it is there") };
                assert_eq!(present.generation, Generation(3));
            }
            Err(kind) => {
                let error = done.unwrap_err();
                assert_eq!((error.kind(), error.field()), (kind, Some("generation")));
                assert_eq!(quota["metadata"]["annotations"][GENERATION], meanwhile);
                assert_eq!(fixture.server.count("patch", "statefulsets"), 0);
            }
        }
    }
}
