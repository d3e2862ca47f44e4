//! What somebody else changed of what we said is seen, and put back; whose a thing is stays known.

use std::sync::Arc;

use futures::StreamExt;
use provisioner_core::{
    ErrorKind, Provisioner, Retry,
    types::{DataDisposition, DataSource, Observed, Phase, TenantId},
};
use serde_json::{Value, json};

use crate::{
    fixture::{Fixture, cx, cx_after_a_call},
    repairs::{create, routed, routes, until_done, until_generation, with_route},
    world::key,
};

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
        until_done(async || fixture.backend.suspend(&cx_after_a_call(), &target).await).await;
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
    until_done(async || fixture.backend.suspend(&cx_after_a_call(), &older).await).await;
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
    until_done(async || fixture.backend.scale_to_zero(&cx_after_a_call(), &routed(2)).await).await;
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
