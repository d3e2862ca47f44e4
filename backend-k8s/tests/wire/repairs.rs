//! What is missing, or is left over, is seen and put right: routes, the environment, pods, and the claim that nobody may lose.

use std::sync::Arc;

use backend_k8s::KubernetesConfig;
use futures::StreamExt;
use provisioner_core::{
    ErrorKind, Provisioner, Retry,
    types::{DataDisposition, DataSource, Generation, Observed, Phase, Target, TenantId},
};
use serde_json::{Value, json};

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

// What somebody else changed

/// Changes something, sees it told as of no generation of ours, and has it put back.
async fn assert_put_back(plural: &str, change: impl FnOnce(&mut Value)) {
    let (fixture, target) = with_route().await;
    let key = fixture.key_of(plural);
    let said = |fixture: &Fixture| fixture.server.world(|world| said(&world.objects[&key]));
    let before = said(&fixture);
    fixture.server.world(|world| world.change(&key, change));
    assert_ne!(said(&fixture), before, "{plural}: nothing was changed");
    until_generation(&fixture, &target, 0).await;
    fixture.backend.create(&cx(), &target).await.unwrap();
    assert_eq!(said(&fixture), before, "{plural}");
    until_generation(&fixture, &target, 1).await;
}

/// What an object says that only who means it changes.
fn said(object: &Value) -> Value {
    let mut marks = json!({"labels": object["metadata"]["labels"], "annotations": object["metadata"]["annotations"]});
    if let Some(annotations) = marks["annotations"].as_object_mut() {
        // How often it was written.
        annotations.remove("provisioner.internal/written");
    }
    json!({"marks": marks, "spec": object["spec"]})
}

async fn until_generation(fixture: &Fixture, target: &Target, expected: u64) {
    for _ in 0..1500 {
        if generation(&fixture.observe(target).await) == Some(Generation(expected)) {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    panic!("not of generation {expected} in time");
}

#[tokio::test]
async fn what_was_changed_or_taken_away_of_small_objects_is_put_back() {
    assert_put_back("resourcequotas", |quota| quota["spec"]["hard"]["pods"] = json!("5")).await;
    assert_put_back("resourcequotas", |quota| {
        quota["spec"]["hard"].as_object_mut().unwrap().remove("limits.memory");
    })
    .await;
    assert_put_back("networkpolicies", |policy| policy["spec"]["policyTypes"] = json!(["Egress"])).await;
    assert_put_back("services", |service| service["spec"]["selector"] = json!({"a": "b"})).await;
    assert_put_back("ingresses", |ingress| ingress["spec"]["rules"][0]["host"] = json!("evil.example.com")).await;
}

#[tokio::test]
async fn whatever_was_changed_of_the_stateful_set_is_put_back() {
    assert_put_back("statefulsets", |set| set["spec"]["replicas"] = json!(0)).await;
    assert_put_back("statefulsets", |set| set["spec"]["updateStrategy"] = json!({"type": "OnDelete"})).await;
    assert_put_back("statefulsets", |set| set["spec"]["minReadySeconds"] = json!(3600)).await;
    assert_put_back("statefulsets", |set| {
        set["spec"]["template"]["spec"]["containers"][0].as_object_mut().unwrap().remove("livenessProbe");
    })
    .await;
}

#[tokio::test]
async fn labels_and_annotations_of_set_and_claim_are_put_back() {
    for plural in ["statefulsets", "persistentvolumeclaims"] {
        for key in ["tenant", "instance"] {
            let label = format!("provisioner.internal/{key}");
            assert_put_back(plural, |object| object["metadata"]["labels"][&label] = json!("somebody-else")).await;
            assert_put_back(plural, |object| {
                object["metadata"]["labels"].as_object_mut().unwrap().remove(&label);
            })
            .await;
        }
    }
    for key in ["provisioner.internal/parts", "app.kubernetes.io/version", "provisioner.internal/applied"] {
        assert_put_back("statefulsets", |set| set["metadata"]["annotations"][key] = json!("0")).await;
    }
    let size = "provisioner.internal/size-mib";
    assert_put_back("persistentvolumeclaims", |claim| claim["metadata"]["annotations"][size] = json!("1")).await;
}

/// What verbs ask before they write is asked of what was noted.
#[tokio::test]
async fn numbers_that_somebody_raised_stop_nothing() {
    let generation = "provisioner.internal/generation";
    for plural in ["statefulsets", "resourcequotas", "services"] {
        assert_put_back(plural, |object| object["metadata"]["annotations"][generation] = json!("9")).await;
    }
    let size = "provisioner.internal/size-mib";
    assert_put_back("persistentvolumeclaims", |claim| claim["metadata"]["annotations"][size] = json!("999999")).await;
    let (making, other) = ("provisioner.internal/incarnation", "2-00000000000000000000000000000009");
    assert_put_back("statefulsets", |set| set["metadata"]["labels"][making] = json!(other)).await;
}

#[tokio::test]
async fn what_was_changed_of_its_marks_keeps_nothing_awake() {
    for (part, key) in [("annotations", "provisioner.internal/generation"), ("labels", "provisioner.internal/tenant")] {
        let (fixture, target) = with_route().await;
        let set = fixture.key_of("statefulsets");
        fixture.server.world(|world| world.change(&set, |set| set["metadata"][part][key] = json!("9")));
        until_generation(&fixture, &target, 0).await;
        let mut rested = false;
        for _ in 0..50 {
            rested = fixture.backend.suspend(&cx_after_a_call(), &target).await.is_ok();
            if rested {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        assert!(rested, "{part} {key}");
        fixture.until(&target, Phase::Suspended).await;
        create(&fixture, &target).await;
        fixture.until(&target, Phase::Running).await;
        until_generation(&fixture, &target, 1).await;
    }
}

/// What somebody says of whose it is keeps nothing from going.
#[tokio::test]
async fn what_is_called_another_makings_goes_with_its_own() {
    for (plural, data) in [
        ("statefulsets", DataDisposition::Delete),
        ("statefulsets", DataDisposition::Retain),
        ("services", DataDisposition::Retain),
        ("ingresses", DataDisposition::Retain),
    ] {
        let (fixture, target) = with_route().await;
        let changed = fixture.key_of(plural);
        let making = "provisioner.internal/incarnation";
        fixture.server.world(|world| {
            world.change(&changed, |object| {
                object["metadata"]["labels"][making] = json!("2-00000000000000000000000000000009");
            });
        });
        until_generation(&fixture, &target, 0).await;
        for _ in 0..100 {
            // Half-way it says to come back.
            let _ = fixture.backend.destroy(&cx_after_a_call(), &target, data).await;
            if fixture.observe(&target).await == Observed::Absent {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        let namespace = key("namespaces", "", &changed.1);
        let there = fixture.server.world(|world| [&changed, &namespace].map(|key| world.objects.contains_key(key)));
        assert_eq!(there, [false, data == DataDisposition::Retain], "{plural} {data:?}");
    }
}

/// A store that was restored from an older backup learns what there is, whatever somebody changed of it.
#[tokio::test]
async fn a_newer_generation_is_told_and_can_be_suspended_also_where_its_marks_were_changed() {
    let (fixture, older) = with_route().await;
    fixture.backend.create(&cx(), &routed(7)).await.unwrap();
    fixture.until(&routed(7), Phase::Running).await;
    let set = fixture.key_of("statefulsets");
    let tenant = "provisioner.internal/tenant";
    fixture.server.world(|world| world.change(&set, |set| set["metadata"]["labels"][tenant] = json!("nobody")));
    until_generation(&fixture, &older, 7).await;
    until_generation(&fixture, &routed(8), 0).await;
    let mut rested = false;
    for _ in 0..50 {
        rested = fixture.backend.suspend(&cx_after_a_call(), &older).await.is_ok();
        if rested {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    assert!(rested);
    fixture.until(&older, Phase::Suspended).await;
}

/// From suspension it goes to sleep by a newer spec, and its generation was changed meanwhile.
#[tokio::test]
async fn what_was_changed_while_it_was_suspended_keeps_it_from_no_sleep() {
    let (fixture, target) = with_route().await;
    fixture.backend.suspend(&cx(), &target).await.unwrap();
    fixture.until(&target, Phase::Suspended).await;
    let set = fixture.key_of("statefulsets");
    let generation = "provisioner.internal/generation";
    fixture.server.world(|world| world.change(&set, |set| set["metadata"]["annotations"][generation] = json!("9")));
    until_generation(&fixture, &target, 0).await;
    let mut slept = false;
    for _ in 0..50 {
        match fixture.backend.scale_to_zero(&cx_after_a_call(), &routed(2)).await {
            Ok(_) => {
                slept = true;
                break;
            }
            Err(error) => assert_ne!(error.retry(), Retry::Never, "{error}"),
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    assert!(slept);
    fixture.until(&routed(2), Phase::Zero).await;
    assert_eq!(routes(&fixture), 1);
    create(&fixture, &routed(2)).await;
    fixture.until(&routed(2), Phase::Running).await;
    until_generation(&fixture, &routed(2), 2).await;
}

#[tokio::test]
async fn an_endpoint_that_somebody_else_wrote_is_put_back() {
    let (fixture, target) = with_route().await;
    let endpoint = |seen: Observed| seen.present().and_then(|present| present.endpoint.clone());
    let before = endpoint(fixture.observe(&target).await);
    let (key, pod) = (fixture.key_of("statefulsets"), fixture.key_of("pods"));
    let uid = |fixture: &Fixture| fixture.server.world(|world| world.objects[&pod]["metadata"]["uid"].clone());
    let ran = uid(&fixture);
    let evil = json!("http://evil.example.com");
    let change = |set: &mut Value| set["metadata"]["annotations"]["provisioner.internal/endpoint"] = evil;
    fixture.server.world(|world| world.change(&key, change));
    until_generation(&fixture, &target, 0).await;
    assert_eq!(endpoint(fixture.observe(&target).await), before, "nobody is sent there meanwhile");
    fixture.backend.create(&cx(), &target).await.unwrap();
    until_generation(&fixture, &target, 1).await;
    assert_eq!(endpoint(fixture.observe(&target).await), before);
    // It runs on as it was: a mark is no reason to start it anew.
    assert_eq!(uid(&fixture), ran);
}

#[tokio::test]
async fn what_was_changed_while_it_slept_is_put_back_by_its_wake() {
    let (fixture, target) = with_route().await;
    let set = fixture.key_of("statefulsets");
    let spec = |fixture: &Fixture| fixture.server.world(|world| world.objects[&set]["spec"].clone());
    let before = spec(&fixture);
    fixture.server.world(|world| world.change(&set, |set| set["spec"]["template"]["spec"]["priority"] = json!(1)));
    fixture.backend.scale_to_zero(&cx_after_a_call(), &target).await.unwrap();
    fixture.until(&target, Phase::Zero).await;
    fixture.backend.resume(&cx(), &target).await.unwrap();
    assert_eq!(spec(&fixture), before);
    until_generation(&fixture, &target, 1).await;
}

#[tokio::test]
async fn a_late_apply_of_an_older_generation_is_seen_and_put_right() {
    let (fixture, _) = with_route().await;
    let quota = fixture.key_of("resourcequotas");
    let old = fixture.server.world(|world| world.objects[&quota].clone());
    let mut newer = routed(2);
    Arc::make_mut(&mut newer.spec).size.memory_mib = 512;
    fixture.backend.create(&cx(), &newer).await.unwrap();
    until_generation(&fixture, &newer, 2).await;
    fixture.server.world(|world| world.change(&quota, |quota| *quota = old));
    until_generation(&fixture, &newer, 0).await;
    fixture.backend.create(&cx(), &newer).await.unwrap();
    until_generation(&fixture, &newer, 2).await;
    let hard = fixture.server.world(|world| world.objects[&quota]["spec"]["hard"].clone());
    assert_eq!(hard["limits.memory"], "512Mi");
}

#[tokio::test]
async fn a_change_of_the_set_is_seen_also_after_a_repair_of_something_else() {
    let (fixture, target) = with_route().await;
    let (policy, set) = (fixture.key_of("networkpolicies"), fixture.key_of("statefulsets"));
    for _ in 0..2 {
        fixture.server.world(|world| world.delete(&policy, None)).unwrap();
        until_generation(&fixture, &target, 0).await;
        fixture.backend.create(&cx(), &target).await.unwrap();
        until_generation(&fixture, &target, 1).await;
    }
    fixture.server.world(|world| world.change(&set, |set| set["spec"]["template"]["spec"]["priority"] = json!(1)));
    until_generation(&fixture, &target, 0).await;
    fixture.backend.create(&cx(), &target).await.unwrap();
    until_generation(&fixture, &target, 1).await;
}

#[tokio::test]
async fn ports_that_others_add_to_a_service_are_left_to_them() {
    let (fixture, target) = with_route().await;
    let service = fixture.key_of("services");
    let port = json!({"name": "metrics", "port": 9090});
    let add = |service: &mut Value| service["spec"]["ports"].as_array_mut().unwrap().push(port.clone());
    fixture.server.world(|world| world.change(&service, add));
    let policy = fixture.key_of("networkpolicies");
    fixture.server.world(|world| world.delete(&policy, None)).unwrap();
    until_generation(&fixture, &target, 0).await;
    fixture.backend.create(&cx(), &target).await.unwrap();
    until_generation(&fixture, &target, 1).await;
    let ports = fixture.server.world(|world| world.objects[&service]["spec"]["ports"].clone());
    assert_eq!(ports.as_array().map(Vec::len), Some(2), "{ports}");
}

/// Calls it again when it says so, as the engine does.
pub(crate) async fn create(fixture: &Fixture, target: &Target) {
    for _ in 0..100 {
        match fixture.backend.create(&cx_after_a_call(), target).await {
            Ok(_) => return,
            Err(error) => assert_ne!(error.retry(), Retry::Never, "{error}"),
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    panic!("it is not made");
}

#[tokio::test]
async fn a_namespace_that_lost_a_label_is_no_absence_and_gets_it_back() {
    for label in ["control-plane", "tenant", "instance", "incarnation"] {
        let (fixture, target) = with_route().await;
        let namespace = key("namespaces", "", &fixture.namespace());
        let label = format!("provisioner.internal/{label}");
        let lose =
            |namespace: &mut Value| drop(namespace["metadata"]["labels"].as_object_mut().unwrap().remove(&label));
        fixture.server.world(|world| world.change(&namespace, lose));
        until_generation(&fixture, &target, 0).await;
        assert_ne!(fixture.observe(&target).await, Observed::Absent, "{label}");
        create(&fixture, &target).await;
        until_generation(&fixture, &target, 1).await;
        let labels = fixture.server.world(|world| world.objects[&namespace]["metadata"]["labels"].clone());
        assert!(labels[&label].is_string(), "{label}: {labels}");

        fixture.server.world(|world| world.change(&namespace, lose));
        until_generation(&fixture, &target, 0).await;
        for _ in 0..100 {
            if fixture.backend.destroy(&cx_after_a_call(), &target, DataDisposition::Delete).await.is_ok() {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        assert!(!fixture.server.world(|world| world.objects.contains_key(&namespace)), "{label}");
    }
}

#[tokio::test]
async fn what_namespaces_enforce_is_put_back() {
    let (fixture, target) = with_route().await;
    let namespace = key("namespaces", "", &fixture.namespace());
    let enforced = "pod-security.kubernetes.io/enforce";
    let weaken = |namespace: &mut Value| namespace["metadata"]["labels"][enforced] = json!("privileged");
    fixture.server.world(|world| world.change(&namespace, weaken));
    until_generation(&fixture, &target, 0).await;
    create(&fixture, &target).await;
    until_generation(&fixture, &target, 1).await;
    let labels = fixture.server.world(|world| world.objects[&namespace]["metadata"]["labels"].clone());
    assert_eq!(labels[enforced], "restricted");
}

#[tokio::test]
async fn another_tenants_namespace_is_not_taken_also_where_its_labels_were_changed() {
    let (fixture, target) = with_route().await;
    let namespace = key("namespaces", "", &fixture.namespace());
    fixture.backend.destroy(&cx(), &target, DataDisposition::Retain).await.unwrap();
    let mut thief = routed(1);
    thief.tenant = TenantId::new("Somebody else").unwrap();
    thief.incarnation = provisioner_core::types::Incarnation::new(2, 8);
    thief.data = DataSource::Existing(target.data.id().clone());
    for label in ["pod-security.kubernetes.io/enforce", "provisioner.internal/tenant"] {
        let lose = |namespace: &mut Value| drop(namespace["metadata"]["labels"].as_object_mut().unwrap().remove(label));
        fixture.server.world(|world| world.change(&namespace, lose));
        for _ in 0..5 {
            let error = fixture.backend.create(&cx_after_a_call(), &thief).await.unwrap_err();
            assert_eq!(error.retry(), Retry::Never, "{label}: {error}");
        }
        let labels = fixture.server.world(|world| world.objects[&namespace]["metadata"]["labels"].clone());
        assert_ne!(labels["provisioner.internal/tenant"], thief.tenant.digest(), "{label}");
    }
}

#[tokio::test]
async fn a_set_that_cannot_be_told_for_ours_is_taken_again() {
    for annotation in ["intended", "generation"] {
        let (fixture, target) = with_route().await;
        let set = fixture.key_of("statefulsets");
        let annotation = format!("provisioner.internal/{annotation}");
        let lose = |set: &mut Value| drop(set["metadata"]["annotations"].as_object_mut().unwrap().remove(&annotation));
        fixture.server.world(|world| world.change(&set, lose));
        until_generation(&fixture, &target, 0).await;
        create(&fixture, &target).await;
        until_generation(&fixture, &target, 1).await;
        fixture.until(&target, Phase::Running).await;
    }
}

#[tokio::test]
async fn a_sleeping_set_that_lost_its_labels_is_no_absence() {
    let (fixture, target) = with_route().await;
    fixture.backend.scale_to_zero(&cx(), &target).await.unwrap();
    fixture.until(&target, Phase::Zero).await;
    let set = fixture.key_of("statefulsets");
    fixture.server.world(|world| world.change(&set, |set| set["metadata"]["labels"] = json!({})));
    until_generation(&fixture, &target, 0).await;
    assert_ne!(fixture.observe(&target).await, Observed::Absent);
    create(&fixture, &target).await;
    until_generation(&fixture, &target, 1).await;
}

#[tokio::test]
async fn a_set_without_labels_that_is_newer_is_left_alone() {
    let (fixture, target) = with_route().await;
    let set = fixture.key_of("statefulsets");
    fixture.server.world(|world| {
        world.change(&set, |set| {
            set["metadata"]["labels"] = json!({});
            // By a newer one.
            crate::conflicts::applied_for(set, "9");
        });
    });
    until_generation(&fixture, &target, 0).await;
    let before = fixture.server.world(|world| world.objects[&set].clone());
    let error = fixture.backend.create(&cx(), &target).await.unwrap_err();
    assert_eq!((error.kind(), error.field()), (ErrorKind::Conflict, Some("generation")));
    assert_eq!(fixture.server.world(|world| world.objects[&set].clone()), before);
}

#[tokio::test]
async fn data_under_a_set_that_lost_its_labels_is_not_deleted() {
    let (fixture, target) = with_route().await;
    fixture.backend.scale_to_zero(&cx(), &target).await.unwrap();
    fixture.until(&target, Phase::Zero).await;
    let set = fixture.key_of("statefulsets");
    fixture.server.world(|world| world.change(&set, |set| set["metadata"]["labels"] = json!({})));
    until_generation(&fixture, &target, 0).await;
    let error = fixture.backend.delete_data(&cx(), target.data.id()).await.unwrap_err();
    assert_eq!((error.kind(), error.field()), (ErrorKind::Conflict, Some("data")));
    assert!(fixture.server.world(|world| world.objects.contains_key(&key("namespaces", "", &set.1))));
}

#[tokio::test]
async fn a_copy_of_a_namespace_is_not_taken_for_it() {
    let (fixture, target) = with_route().await;
    let namespace = fixture.namespace();
    fixture.server.world(|world| {
        for plural in ["namespaces", "persistentvolumeclaims", "statefulsets", "services"] {
            let home = if plural == "namespaces" { "" } else { namespace.as_str() };
            let mut copy = world.list(plural, Some(home), "provisioner.internal/instance=acme")[0].clone();
            let name = if plural == "namespaces" { "a-copy".into() } else { copy["metadata"]["name"].clone() };
            copy["metadata"]["name"] = name.clone();
            let home = if plural == "namespaces" { "" } else { "a-copy" };
            world.create(&key(plural, home, name.as_str().unwrap()), copy).unwrap();
        }
    });
    let other = fixture.another_backend();
    let listed: Vec<_> = other.list(&cx()).collect().await;
    assert_eq!(listed.len(), 1, "{listed:?}");
    other.scale_to_zero(&cx(), &target).await.unwrap();
    let replicas = |home: &str| {
        fixture.server.world(|world| world.list("statefulsets", Some(home), "")[0]["spec"]["replicas"].clone())
    };
    assert_eq!([replicas(&namespace), replicas("a-copy")], [json!(0), json!(1)]);
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

// What is in the way

#[tokio::test]
async fn a_finalizer_that_keeps_a_stateful_set_is_named() {
    let (fixture, target) = with_route().await;
    let set = fixture.key_of("statefulsets");
    fixture.server.world(|world| {
        world.change(&set, |set| {
            set["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
            set["metadata"]["finalizers"] = json!(["foregroundDeletion", "example.com/backup"]);
        });
    });
    fixture.until(&target, Phase::Destroying).await;
    let Observed::Present(present) = fixture.observe(&target).await else { panic!("it is there") };
    let reason = present.reason.expect("a reason");
    assert_eq!(reason.code, "removal-blocked");
    assert!(reason.message.contains(&set.2) && reason.message.ends_with("example.com/backup"), "{reason:?}");
}

/// The reason that is told of an instance in trouble.
async fn reason(fixture: &Fixture, target: &Target, phase: Phase) -> (String, String) {
    for _ in 0..250 {
        if let Observed::Present(present) = fixture.observe(target).await
            && present.phase == phase
            && let Some(reason) = present.reason
        {
            return (reason.code.to_string(), reason.message.to_string());
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    panic!("no reason in time: {:?}", fixture.observe(target).await);
}

/// A warning about something, which the cluster keeps as an event.
fn warn(fixture: &Fixture, kind: &str, name: &str, why: &str, message: &str) {
    let namespace = fixture.namespace();
    let event = json!({"metadata": {"name": "e"}, "involvedObject": {"kind": kind, "name": name}, "type": "Warning",
        "reason": why, "message": message, "lastTimestamp": "2026-01-01T00:00:00Z"});
    fixture.server.world(|world| world.create(&key("events", &namespace, "e"), event)).unwrap();
}

fn old_pod(fixture: &Fixture, change: impl FnOnce(&mut Value)) {
    let pod = fixture.key_of("pods");
    fixture.server.world(|world| {
        world.change(&pod, |pod| {
            pod["metadata"]["creationTimestamp"] = json!("2026-01-01T00:00:00Z");
            change(pod);
        });
    });
}

#[tokio::test]
async fn a_quota_that_keeps_its_pod_from_being_made_is_told() {
    for (message, code) in [("pods \"a-0\" is forbidden: exceeded quota: product", "quota"), ("no", "not-made")] {
        let fixture = Fixture::new().await;
        fixture.server.world(|world| world.is_uncontrolled = true);
        fixture.backend.create(&cx(), &target(1)).await.unwrap();
        let set = fixture.key_of("statefulsets");
        // Its controller has seen it, and makes no pod.
        fixture.server.world(|world| {
            world.change(&set, |set| set["status"] = json!({"observedGeneration": 1, "replicas": 0}));
        });
        warn(&fixture, "StatefulSet", &set.2, "FailedCreate", message);
        let told = reason(&fixture, &target(1), Phase::Provisioning).await;
        assert_eq!((told.0.as_str(), told.1.as_str()), (code, message));
    }
}

#[tokio::test]
async fn a_claim_without_a_volume_is_told_in_the_clusters_words() {
    let (fixture, target) = with_route().await;
    let claim = fixture.key_of("persistentvolumeclaims");
    fixture.server.world(|world| world.change(&claim, |claim| claim["status"] = json!({"phase": "Pending"})));
    old_pod(&fixture, |pod| pod["status"] = json!({"phase": "Pending"}));
    warn(&fixture, "PersistentVolumeClaim", "data", "ProvisioningFailed", "no class of that name");
    let told = reason(&fixture, &target, Phase::Provisioning).await;
    assert_eq!(told, ("volume-pending".to_owned(), "no class of that name".to_owned()));
}

#[tokio::test]
async fn a_product_that_never_got_ready_is_told_with_its_probe() {
    let (fixture, target) = with_route().await;
    let container = json!({"name": "product", "image": "i", "imageID": "", "restartCount": 0, "ready": false,
        "started": false, "state": {"running": {}}});
    old_pod(&fixture, |pod| {
        pod["spec"]["nodeName"] = json!("node1");
        pod["status"] = json!({"phase": "Running", "containerStatuses": [container],
            "conditions": [{"type": "Ready", "status": "False"}]});
    });
    let pod = fixture.key_of("pods");
    warn(&fixture, "Pod", &pod.2, "Unhealthy", "Startup probe failed: connection refused");
    let told = reason(&fixture, &target, Phase::Provisioning).await;
    assert_eq!(told, ("probe-failing".to_owned(), "Startup probe failed: connection refused".to_owned()));
}

#[tokio::test]
async fn a_crash_loop_is_told_with_its_last_words_and_without_its_secrets() {
    let fixture = Fixture::new().await;
    let mut target = target(1);
    // The scripted log says: its last words.
    Arc::make_mut(&mut target.spec).environment.insert("TOKEN".parse().unwrap(), "last words".to_owned());
    fixture.backend.create(&cx(), &target).await.unwrap();
    fixture.until(&target, Phase::Running).await;
    let container = json!({"name": "product", "image": "i", "imageID": "", "restartCount": 4, "ready": false,
        "started": false, "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off"}},
        "lastState": {"terminated": {"exitCode": 3, "reason": "Error"}}});
    old_pod(&fixture, |pod| {
        pod["status"] = json!({"phase": "Running", "containerStatuses": [container],
            "conditions": [{"type": "Ready", "status": "False"}]});
    });
    let (code, message) = reason(&fixture, &target, Phase::Failed).await;
    assert_eq!(code, "crash-loop");
    assert_eq!(message, "it ended with status 3 (Error), 4 times so far; its last words: its [REDACTED]");
}

#[tokio::test]
async fn what_keeps_a_namespace_from_ending_is_told_and_what_is_usual_is_not() {
    let (fixture, target) = with_route().await;
    let namespace = key("namespaces", "", &fixture.namespace());
    let conditions = json!([
        {"type": "NamespaceDeletionDiscoveryFailure", "status": "True",
         "message": "unable to retrieve metrics.k8s.io/v1beta1: the server is currently unable to handle the request"},
        {"type": "NamespaceDeletionContentFailure", "status": "True",
         "message": "Internal error occurred: failed calling webhook \"keep.example.com\""},
        {"type": "NamespaceContentRemaining", "status": "True", "message": "Some resources are remaining: pods. has 1"},
        {"type": "NamespaceDeletionGroupVersionParsingFailure", "status": "False", "message": "all is well"},
    ]);
    fixture.server.world(|world| {
        world.change(&namespace, |namespace| {
            namespace["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
            namespace["metadata"]["finalizers"] = json!(["kubernetes"]);
            namespace["status"] = json!({"phase": "Terminating", "conditions": conditions});
        });
    });
    let (code, message) = reason(&fixture, &target, Phase::Destroying).await;
    assert_eq!(code, "removal-blocked");
    assert!(message.contains("metrics.k8s.io/v1beta1") && message.contains("keep.example.com"), "{message}");
    assert!(!message.contains("remaining") && !message.contains("well"), "{message}");
}

#[tokio::test]
async fn a_volume_that_its_node_cannot_mount_is_told() {
    let (fixture, target) = with_route().await;
    let pod = fixture.key_of("pods");
    let about = json!({"kind": "Pod", "name": pod.2});
    fixture.server.world(|world| {
        let event = json!({"metadata": {"name": "e"}, "involvedObject": about, "type": "Warning",
            "reason": "FailedAttachVolume", "message": "the disk is\n elsewhere", "lastTimestamp": "2026-01-01T00:00:00Z"});
        world.create(&key("events", &pod.1, "e"), event).unwrap();
        world.change(&pod, |pod| {
            pod["metadata"]["creationTimestamp"] = json!("2026-01-01T00:00:00Z");
            pod["spec"]["nodeName"] = json!("node1");
            pod["status"] = json!({"phase": "Pending"});
        });
    });
    fixture.until(&target, Phase::Provisioning).await;
    let Observed::Present(present) = fixture.observe(&target).await else { panic!("it is there") };
    let reason = present.reason.expect("a reason");
    assert_eq!((&*reason.code, &*reason.message), ("volume-pending", "the disk is elsewhere"));
}

#[tokio::test]
async fn an_instance_whose_node_is_lost_says_so_until_its_pod_is_gone() {
    let (fixture, target) = with_route().await;
    let pod = fixture.key_of("pods");
    let container = json!({"name": "product", "image": "i", "imageID": "", "restartCount": 0, "ready": true,
        "started": true, "state": {"running": {}}});
    fixture.server.world(|world| {
        world.change(&pod, |pod| {
            pod["spec"]["nodeName"] = json!("node7");
            pod["status"] = json!({"phase": "Running", "containerStatuses": [container],
                "conditions": [{"type": "Ready", "status": "False"}]});
        });
    });
    let lost = async |fixture: &Fixture| {
        fixture.until(&target, Phase::Provisioning).await;
        let Observed::Present(present) = fixture.observe(&target).await else { panic!("it is there") };
        let reason = present.reason.expect("a reason");
        assert_eq!(reason.code, "node-lost");
        assert!(reason.message.contains("node7"), "{reason:?}");
    };
    lost(&fixture).await;
    // The cluster gives the node up, and removes the pod; nobody is there to say that it has ended.
    fixture.server.world(|world| {
        world.change(&pod, |pod| pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:05:00Z"));
    });
    lost(&fixture).await;
}
