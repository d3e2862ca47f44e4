//! Customers who share a namespace: what is one's is no other's, and goes with what stands for their data.

use backend_k8s::{KubernetesConfig, render::SharedNamespace};
use futures::StreamExt;
use provisioner_core::{
    ErrorKind, Provisioner, Retry,
    types::{DataDisposition, DataId, DataSource, Incarnation, InstanceId, Observed, OwnedKind, Phase, Target},
};
use serde_json::{Value, json};

use crate::{
    fixture::{Fixture, config, cx, cx_after_a_call, target},
    removal::{until_absent, until_changed},
    repairs::{create, until_done},
    server::{Answer, until},
    world::{Key, key},
};

const SHARED: &str = "customers";
/// The kinds of which something of an instance is there, beside its pod and the slice of its service.
const KINDS: [&str; 8] = [
    "configmaps",
    "networkpolicies",
    "serviceaccounts",
    "secrets",
    "persistentvolumeclaims",
    "statefulsets",
    "services",
    "ingresses",
];

async fn shared() -> Fixture {
    let fixture = Fixture::new().await;
    let namespace = json!({"metadata": {"name": SHARED}});
    fixture.server.world(|world| world.create(&key("namespaces", "", SHARED), namespace).unwrap());
    let config = config(fixture.connection());
    fixture.with_backend(config.build_with(None, SharedNamespace::new(SHARED)).unwrap())
}

fn acme() -> Target {
    let mut target = target(1);
    std::sync::Arc::make_mut(&mut target.spec).host_names.insert("acme.example.com".parse().unwrap());
    target
}

fn other() -> Target {
    let mut target = Target {
        id: InstanceId::new("other").unwrap(),
        incarnation: Incarnation::new(1, 99),
        data: DataSource::Fresh(DataId::from_random(99)),
        ..target(1)
    };
    std::sync::Arc::make_mut(&mut target.spec).host_names.insert("other.example.com".parse().unwrap());
    target
}

async fn running(fixture: &Fixture, target: &Target) {
    fixture.backend.create(&cx(), target).await.unwrap();
    fixture.until(target, Phase::Running).await;
}

/// What there is of a data set, by kind.
fn objects(fixture: &Fixture, target: &Target) -> Vec<(Key, Value)> {
    let of_data = format!("provisioner.internal/data={}", target.data.id());
    let of_kind = |plural: &'static str| {
        let all = fixture.server.world(|world| world.list(plural, Some(SHARED), &of_data));
        all.into_iter().map(move |it| (key(plural, SHARED, it["metadata"]["name"].as_str().unwrap()), it))
    };
    KINDS.into_iter().flat_map(of_kind).collect()
}

fn only(fixture: &Fixture, target: &Target, plural: &str) -> Key {
    let mut found: Vec<_> =
        objects(fixture, target).into_iter().map(|(key, _)| key).filter(|key| key.0 == plural).collect();
    assert_eq!(found.len(), 1, "{plural}: {found:?}");
    found.remove(0)
}

async fn listed(fixture: &Fixture) -> Vec<(String, OwnedKind)> {
    let owned: Vec<_> = fixture.backend.list(&cx()).collect().await;
    let mut owned: Vec<_> = owned.into_iter().map(|it| it.unwrap()).map(|it| (it.id.to_string(), it.kind)).collect();
    owned.sort_by(|a, b| a.0.cmp(&b.0));
    owned
}

#[tokio::test]
async fn everything_belongs_to_what_stands_for_the_data_and_nothing_is_asked_elsewhere() {
    let fixture = shared().await;
    let target = acme();
    running(&fixture, &target).await;
    let all = objects(&fixture, &target);
    let kinds: Vec<_> = all.iter().map(|(key, _)| key.0.as_str()).collect();
    assert_eq!(kinds, KINDS);
    let home = &all[0].1["metadata"];
    for (key, object) in &all[1..] {
        let owner = &object["metadata"]["ownerReferences"][0];
        assert_eq!((&owner["uid"], &owner["name"], &owner["kind"]), (&home["uid"], &home["name"], &json!("ConfigMap")));
        assert_eq!(owner["blockOwnerDeletion"], true, "{key:?}");
    }
    fixture.backend.scale_to_zero(&cx(), &target).await.unwrap();
    fixture.until(&target, Phase::Zero).await;
    fixture.backend.suspend(&cx(), &target).await.unwrap();
    fixture.until(&target, Phase::Suspended).await;
    fixture.backend.resume(&cx(), &target).await.unwrap();
    fixture.until(&target, Phase::Running).await;
    assert_eq!(listed(&fixture).await, [("acme".to_owned(), OwnedKind::Instance)]);
    fixture.backend.destroy(&cx(), &target, DataDisposition::Delete).await.unwrap();
    until_absent(&fixture, &target).await;
    assert_eq!(objects(&fixture, &target), []);
    let elsewhere = fixture.server.seen().into_iter().find(|seen| seen.namespace.as_deref() != Some(SHARED));
    assert_eq!(elsewhere, None);
}

#[tokio::test]
async fn what_is_done_to_one_touches_no_other() {
    let fixture = shared().await;
    let (acme, other) = (acme(), other());
    running(&fixture, &acme).await;
    running(&fixture, &other).await;
    let before = objects(&fixture, &other);
    assert_eq!(before.len(), KINDS.len());
    // Another making on the same data, which removes what the first left.
    fixture.backend.destroy(&cx(), &acme, DataDisposition::Retain).await.unwrap();
    until_absent(&fixture, &acme).await;
    let kept: Vec<_> = objects(&fixture, &acme).into_iter().map(|(key, _)| key.0).collect();
    assert_eq!(kept, ["configmaps", "persistentvolumeclaims"]);
    let expected = [("acme".to_owned(), OwnedKind::Data), ("other".to_owned(), OwnedKind::Instance)];
    assert_eq!(listed(&fixture).await, expected);
    let data = DataSource::Existing(acme.data.id().clone());
    let heir = Target { incarnation: Incarnation::new(2, 8), data, ..acme.clone() };
    running(&fixture, &heir).await;
    fixture.backend.destroy(&cx(), &heir, DataDisposition::Retain).await.unwrap();
    until_absent(&fixture, &heir).await;
    fixture.backend.delete_data(&cx(), acme.data.id()).await.unwrap();
    assert_eq!(objects(&fixture, &acme), []);
    assert_eq!(objects(&fixture, &other), before);
    assert_eq!(fixture.observe(&other).await.phase(), Some(Phase::Running));
}

#[tokio::test]
async fn what_somebody_labels_as_another_customers_is_not() {
    let fixture = shared().await;
    let (acme, other) = (acme(), other());
    running(&fixture, &acme).await;
    running(&fixture, &other).await;
    let pod = {
        let pods = fixture.server.world(|world| world.list("pods", Some(SHARED), ""));
        let name =
            pods.iter().map(|pod| pod["metadata"]["name"].as_str().unwrap()).find(|name| name.starts_with("acme"));
        key("pods", SHARED, name.unwrap())
    };
    for stolen in [pod, only(&fixture, &acme, "statefulsets"), only(&fixture, &acme, "services")] {
        fixture.server.world(|world| {
            world.change(&stolen, |it| {
                it["metadata"]["labels"]["provisioner.internal/data"] = json!(other.data.id().as_str());
            });
        });
    }
    // Without them it does not run, and the other has no more than before.
    for _ in 0..500 {
        if fixture.observe(&acme).await.phase() != Some(Phase::Running) {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    assert_ne!(fixture.observe(&acme).await.phase(), Some(Phase::Running));
    let expected = [("acme".to_owned(), OwnedKind::Instance), ("other".to_owned(), OwnedKind::Instance)];
    assert_eq!(listed(&fixture).await, expected);
    create(&fixture, &acme).await;
    fixture.until(&acme, Phase::Running).await;
    assert_eq!(fixture.observe(&other).await.phase(), Some(Phase::Running));
    fixture.backend.destroy(&cx(), &acme, DataDisposition::Delete).await.unwrap();
    until_absent(&fixture, &acme).await;
    assert_eq!(objects(&fixture, &acme), []);
    assert_eq!(objects(&fixture, &other).len(), KINDS.len());
}

#[tokio::test]
async fn a_home_that_somebody_took_away_alone_is_made_again_for_who_has_the_data() {
    let fixture = shared().await;
    let target = acme();
    running(&fixture, &target).await;
    let (home, claim) = (only(&fixture, &target, "configmaps"), only(&fixture, &target, "persistentvolumeclaims"));
    let claimed =
        fixture.server.world(|world| world.get(&claim.0, &claim.1, &claim.2).unwrap()["metadata"]["uid"].clone());
    take_home(&fixture, &target).await;
    let data = DataSource::Existing(target.data.id().clone());
    let target = Target { data, ..target };
    create(&fixture, &target).await;
    fixture.until(&target, Phase::Running).await;
    let found = fixture.server.world(|world| world.get(&claim.0, &claim.1, &claim.2).unwrap().clone());
    assert_eq!(found["metadata"]["uid"], claimed);
    let home = fixture.server.world(|world| world.get(&home.0, &home.1, &home.2).unwrap()["metadata"]["uid"].clone());
    for (key, object) in objects(&fixture, &target).iter().filter(|(key, _)| key.0 != "configmaps") {
        assert_eq!(object["metadata"]["ownerReferences"][0]["uid"], home, "{key:?}");
    }
    fixture.backend.destroy(&cx(), &target, DataDisposition::Delete).await.unwrap();
    until_absent(&fixture, &target).await;
    assert_eq!(objects(&fixture, &target), []);
}

#[tokio::test]
async fn what_was_made_independent_belongs_to_the_home_again() {
    let fixture = shared().await;
    let target = acme();
    running(&fixture, &target).await;
    for plural in ["services", "statefulsets", "persistentvolumeclaims"] {
        let lost = only(&fixture, &target, plural);
        disown(&fixture, &lost);
        until_changed(&fixture, &target).await;
        create(&fixture, &target).await;
        let object = || fixture.server.world(|world| world.get(&lost.0, &lost.1, &lost.2).unwrap().clone());
        until("it belongs to its home again", || object()["metadata"]["ownerReferences"].is_array()).await;
        fixture.until(&target, Phase::Running).await;
        assert_eq!(
            fixture.observe(&target).await.present().map(|it| it.generation),
            Some(target.generation),
            "{plural}"
        );
    }
}

#[tokio::test]
async fn who_else_something_belongs_to_is_no_change() {
    let fixture = shared().await;
    let (acme, other) = (acme(), other());
    running(&fixture, &acme).await;
    for plural in ["networkpolicies", "statefulsets", "persistentvolumeclaims"] {
        running(&fixture, &other).await;
        let also = only(&fixture, &acme, plural);
        let tool = json!({"apiVersion": "v1", "kind": "ConfigMap", "name": "tool", "uid": "tool"});
        fixture.server.world(|world| {
            world.change(&also, |it| it["metadata"]["ownerReferences"].as_array_mut().unwrap().push(tool));
        });
        // The same watch tells of this one afterwards.
        disown(&fixture, &only(&fixture, &other, plural));
        until_changed(&fixture, &other).await;
        assert_eq!(fixture.observe(&acme).await.present().map(|it| it.generation), Some(acme.generation), "{plural}");
        create(&fixture, &other).await;
    }
}

#[tokio::test]
async fn a_removal_that_is_cut_goes_on_and_leaves_nothing() {
    let fixture = shared().await;
    let target = acme();
    running(&fixture, &target).await;
    for plural in ["persistentvolumeclaims", "secrets"] {
        disown(&fixture, &only(&fixture, &target, plural));
    }
    until_changed(&fixture, &target).await;
    fixture.server.answer("delete", "configmaps", 1, Answer::refusal(500, "InternalError", "a webhook"));
    fixture.backend.destroy(&cx(), &target, DataDisposition::Delete).await.unwrap_err();
    assert_ne!(fixture.observe(&target).await, Observed::Absent);
    // The next one is cut as soon as the home is gone: nobody has to come back for what nobody sees, or for the data.
    fixture.server.answer("delete", "statefulsets", 1, Answer::Cut);
    fixture.backend.destroy(&cx(), &target, DataDisposition::Delete).await.unwrap_err();
    until_absent(&fixture, &target).await;
    let left: Vec<_> = objects(&fixture, &target).into_iter().map(|(key, _)| key.0).collect();
    assert_eq!(left, Vec::<String>::new());
}

#[tokio::test]
async fn what_was_made_independent_is_removed_when_its_home_is_gone() {
    let fixture = shared().await;
    let target = acme();
    running(&fixture, &target).await;
    take_home(&fixture, &target).await;
    // Of a making that never had the data, and never made anything.
    let (incarnation, data) = (Incarnation::new(2, 8), DataSource::Existing(target.data.id().clone()));
    let heir = Target { incarnation, data, ..target.clone() };
    fixture.backend.destroy(&cx(), &heir, DataDisposition::Delete).await.unwrap();
    assert_eq!(objects(&fixture, &target).len(), KINDS.len() - 1);
    fixture.backend.resume(&cx(), &heir).await.unwrap();
    assert_eq!(objects(&fixture, &target).len(), KINDS.len() - 1, "what is absent is made by nobody but create");
    fixture.backend.destroy(&cx(), &target, DataDisposition::Delete).await.unwrap();
    until_absent(&fixture, &target).await;
    assert_eq!(objects(&fixture, &target), []);
}

#[tokio::test]
async fn data_goes_with_a_home_that_somebody_deleted() {
    let fixture = shared().await;
    let target = acme();
    running(&fixture, &target).await;
    let home = only(&fixture, &target, "configmaps");
    fixture.server.world(|world| world.delete(&home, None).unwrap());
    until_absent(&fixture, &target).await;
    let data = DataSource::Existing(target.data.id().clone());
    let error = fixture.backend.create(&cx(), &Target { data, ..target.clone() }).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DataMissing);
    assert_eq!(objects(&fixture, &target), []);
}

#[tokio::test]
async fn a_home_is_not_made_again_for_another_tenant() {
    let fixture = shared().await;
    let target = acme();
    running(&fixture, &target).await;
    fixture.backend.destroy(&cx(), &target, DataDisposition::Retain).await.unwrap();
    until_absent(&fixture, &target).await;
    let (home, claim) = (only(&fixture, &target, "configmaps"), only(&fixture, &target, "persistentvolumeclaims"));
    disown(&fixture, &claim);
    fixture.server.world(|world| world.orphan(&home));
    let thief = Target {
        tenant: "somebody-else".parse().unwrap(),
        incarnation: Incarnation::new(2, 8),
        data: DataSource::Existing(target.data.id().clone()),
        ..target.clone()
    };
    let mut refused = None;
    for _ in 0..100 {
        let error = fixture.backend.create(&cx_after_a_call(), &thief).await.unwrap_err();
        if error.retry() == Retry::Never {
            refused = Some(error);
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    let refused = refused.expect("it is refused for good");
    assert!(refused.to_string().contains("another tenant"), "{refused}");
    assert_eq!(objects(&fixture, &target).len(), 1);
}

#[tokio::test]
async fn data_that_runs_is_not_deleted_whatever_its_labels_say() {
    let fixture = shared().await;
    let target = acme();
    running(&fixture, &target).await;
    let set = only(&fixture, &target, "statefulsets");
    fixture.server.world(|world| {
        world.change(&set, |it| {
            drop(it["metadata"]["labels"].as_object_mut().unwrap().remove("provisioner.internal/data"))
        });
    });
    until_changed(&fixture, &target).await;
    let error = fixture.backend.delete_data(&cx(), target.data.id()).await.unwrap_err();
    assert_eq!((error.kind(), error.field()), (ErrorKind::Conflict, Some("data")));
    assert_eq!(objects(&fixture, &target).len(), KINDS.len() - 1);
}

#[tokio::test]
async fn one_whose_home_was_taken_away_alone_can_be_suspended() {
    let fixture = shared().await;
    let target = acme();
    running(&fixture, &target).await;
    take_home(&fixture, &target).await;
    until_done(async || fixture.backend.suspend(&cx_after_a_call(), &target).await).await;
    fixture.until(&target, Phase::Suspended).await;
}

#[tokio::test]
async fn the_namespace_is_part_of_the_identity() {
    let fixture = shared().await;
    let shared = fixture.backend.identity(&cx()).await.unwrap();
    let each = fixture.another_backend().identity(&cx()).await.unwrap();
    assert_eq!(shared, format!("{each} namespace {SHARED}"));
}

fn disown(fixture: &Fixture, key: &Key) {
    fixture.server.world(|world| {
        world.change(key, |it| drop(it["metadata"].as_object_mut().unwrap().remove("ownerReferences")));
    });
}

/// As `kubectl delete --cascade=orphan` does, until it is seen.
async fn take_home(fixture: &Fixture, target: &Target) {
    let home = only(fixture, target, "configmaps");
    fixture.server.world(|world| {
        let all: Vec<Key> = world.objects.keys().filter(|key| key.1 == SHARED && **key != home).cloned().collect();
        for key in all {
            world.change(&key, |it| drop(it["metadata"].as_object_mut().unwrap().remove("ownerReferences")));
        }
        world.orphan(&home);
    });
    let is_told = |seen: &Observed| {
        seen.present().is_some_and(|it| it.reason.as_ref().is_some_and(|reason| reason.code == "home-missing"))
    };
    for _ in 0..500 {
        if is_told(&fixture.observe(target).await) {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    panic!("it is not told");
}

#[tokio::test]
async fn a_namespace_that_is_not_there_is_named() {
    let fixture = Fixture::new().await;
    let config = KubernetesConfig { connection: fixture.connection(), ..KubernetesConfig::default() };
    let fixture = fixture.with_backend(config.build_with(None, SharedNamespace::new("nowhere")).unwrap());
    let error = fixture.backend.create(&cx(), &target(1)).await.unwrap_err();
    assert!(error.to_string().contains("nowhere"), "{error}");
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert_eq!(fixture.observe(&target(1)).await, Observed::Absent);
    let config = KubernetesConfig { connection: fixture.connection(), ..KubernetesConfig::default() };
    for wrong in ["", "Customers", "-a", "a-", "a_b", &"a".repeat(64)] {
        let error = config.clone().build_with(None, SharedNamespace::new(wrong)).unwrap_err();
        assert_eq!(error.field(), Some("layout.namespaces"), "{wrong:?}");
    }
}
