//! Why an instance does not run or does not go, in the cluster's words.

use std::sync::Arc;

use k8s_openapi::jiff::Timestamp;
use provisioner_core::{
    Provisioner,
    types::{Observed, Phase, Target},
};
use serde_json::{Value, json};

use crate::{
    fixture::{Fixture, cx, target},
    repairs::with_route,
    server::Answer,
    world::key,
};

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

#[tokio::test]
async fn nothing_is_asked_about_a_set_that_its_controller_may_just_be_about_to_see() {
    let fixture = without_a_pod(false).await;
    let set = fixture.key_of("statefulsets");
    for (at, asks) in [(Timestamp::now(), false), (Timestamp::UNIX_EPOCH, true)] {
        let wrote = json!([{"manager": "provisioner", "operation": "Update", "time": at.to_string()}]);
        fixture.server.world(|world| world.change(&set, |set| set["metadata"]["managedFields"] = wrote));
        let observed = async || {
            fixture.server.seen();
            fixture.observe(&target(1)).await;
            fixture.server.count("list", "events") > 0
        };
        // As soon as the watch has told of it.
        for tries in 0.. {
            if observed().await == asks {
                break;
            }
            assert!(tries < 250, "the cluster is asked: {}, expected {asks}", !asks);
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    }
}

/// A warning about something, which the cluster keeps as an event.
pub(crate) fn warn(fixture: &Fixture, kind: &str, name: &str, why: &str, message: &str) {
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

/// An instance whose controller makes no pod. Whether it says then that it has seen the set, depends on the release.
pub(crate) async fn without_a_pod(is_seen: bool) -> Fixture {
    let fixture = Fixture::new().await;
    fixture.server.world(|world| world.is_uncontrolled = true);
    fixture.backend.create(&cx(), &target(1)).await.unwrap();
    let set = fixture.key_of("statefulsets");
    if is_seen {
        fixture.server.world(|world| {
            world.change(&set, |set| set["status"] = json!({"observedGeneration": 1, "replicas": 0}));
        });
    }
    fixture.server.seen();
    fixture
}

pub(crate) const BEYOND_QUOTA: &str = "pods \"a-0\" is forbidden: exceeded quota: product";

#[tokio::test]
async fn a_quota_that_keeps_its_pod_from_being_made_is_told() {
    for (message, code, is_seen) in [(BEYOND_QUOTA, "quota", true), ("no", "not-made", true), ("no", "not-made", false)]
    {
        let fixture = without_a_pod(is_seen).await;
        let set = fixture.key_of("statefulsets");
        warn(&fixture, "StatefulSet", &set.2, "FailedCreate", message);
        let event = key("events", &set.1, "e");
        // Just now, and it will be tried again soon; or not for a long time.
        for (at, phase) in [(Timestamp::now(), Phase::Provisioning), (Timestamp::UNIX_EPOCH, Phase::Failed)] {
            fixture.server.world(|world| world.change(&event, |event| event["lastTimestamp"] = json!(at.to_string())));
            let told = reason(&fixture, &target(1), phase).await;
            assert_eq!((told.0.as_str(), told.1.as_str()), (code, message));
        }
    }
}

#[tokio::test]
async fn what_was_refused_before_somebody_acted_on_it_is_no_failure() {
    let fixture = without_a_pod(true).await;
    let set = fixture.key_of("statefulsets");
    warn(&fixture, "StatefulSet", &set.2, "FailedCreate", BEYOND_QUOTA);
    reason(&fixture, &target(1), Phase::Failed).await;
    // We did, and its controller is about to. Or it has, and the refusal is history.
    for (manager, told) in [("provisioner", Some("quota")), ("kube-controller-manager", None)] {
        let wrote = json!([{"manager": manager, "operation": "Update", "time": Timestamp::now().to_string()}]);
        fixture.server.world(|world| world.change(&set, |set| set["metadata"]["managedFields"] = wrote));
        let Observed::Present(present) = fixture.observe(&target(1)).await else { panic!("it is there") };
        assert_eq!(present.phase, Phase::Provisioning);
        assert_eq!(present.reason.as_ref().map(|reason| &*reason.code), told);
        // No watch will tell that it lasts.
        assert!(present.again.is_some());
    }
}

#[tokio::test]
async fn other_warnings_about_a_set_say_nothing_of_its_next_pod() {
    let fixture = without_a_pod(true).await;
    let set = fixture.key_of("statefulsets");
    warn(&fixture, "StatefulSet", &set.2, "RecreatingFailedPod", "it recreates the pod that failed");
    for _ in 0..10 {
        if let Observed::Present(present) = fixture.observe(&target(1)).await {
            assert_eq!((present.phase, present.reason), (Phase::Provisioning, None));
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_pod_that_was_refused_is_tried_at_once_and_what_its_quota_charges_is_counted_anew() {
    for (message, counts) in [(BEYOND_QUOTA, 2), ("no", 0)] {
        let fixture = without_a_pod(true).await;
        let (set, quota) = (fixture.key_of("statefulsets"), fixture.key_of("resourcequotas"));
        let allows = fixture.server.world(|world| world.objects[&quota]["spec"].clone());
        let create = async || fixture.backend.create(&cx(), &target(1)).await.unwrap();
        let writes = || {
            let count = |verb, plural| fixture.server.count(verb, plural);
            (
                count("apply", "resourcequotas"),
                count("patch", "statefulsets"),
                count("apply", "*") + count("patch", "*"),
            )
        };
        // As long as nothing was refused, nothing is written.
        create().await;
        assert_eq!(writes(), (0, 0, 0));
        warn(&fixture, "StatefulSet", &set.2, "FailedCreate", message);
        create().await;
        // What it allows is changed, and then as it was.
        assert_eq!(writes(), (counts, 1, counts + 1), "{message}");
        fixture.server.world(|world| {
            assert_eq!(world.objects[&quota]["spec"], allows);
            assert!(world.objects[&set]["metadata"]["annotations"]["provisioner.internal/tried"].is_string());
        });
        // What was noted so is nobody else's change, and not repeated before that could have helped.
        let told = reason(&fixture, &target(1), Phase::Provisioning).await;
        assert_eq!(told.1, message);
        let Observed::Present(present) = fixture.observe(&target(1)).await else { panic!("it is there") };
        assert_eq!(present.generation.0, 1);
        create().await;
        assert_eq!(writes(), (counts, 1, counts + 1), "{message}");
    }
}

#[tokio::test]
async fn a_quota_that_cannot_be_counted_anew_keeps_no_pod_from_being_tried() {
    let fixture = without_a_pod(true).await;
    let set = fixture.key_of("statefulsets");
    warn(&fixture, "StatefulSet", &set.2, "FailedCreate", BEYOND_QUOTA);
    let denied = Answer::refusal(403, "Forbidden", "admission webhook \"quotas\" denied the request");
    fixture.server.answer("apply", "resourcequotas", 9, denied);
    fixture.backend.create(&cx(), &target(1)).await.unwrap();
    assert_eq!(fixture.server.count("patch", "statefulsets"), 1);
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
