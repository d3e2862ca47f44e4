//! Removals that are cut, that meet what lost its labels, or that another process has come before.

use backend_k8s::{IngressConfig, KubernetesConfig};
use futures::StreamExt;
use provisioner_core::{
    ErrorKind, Provisioner, Retry,
    types::{DataDisposition, DataSource, Incarnation, Observed, Phase, Target},
};
use serde_json::json;

use crate::{
    fixture::{Fixture, cx, target},
    repairs::create,
    server::Answer,
    world::key,
};

async fn retained() -> (Fixture, Target) {
    let (fixture, target) = Fixture::with_instance().await;
    fixture.backend.destroy(&cx(), &target, DataDisposition::Retain).await.unwrap();
    until_absent(&fixture, &target).await;
    (fixture, target)
}

pub(crate) async fn until_absent(fixture: &Fixture, target: &Target) {
    for _ in 0..500 {
        if fixture.observe(target).await == Observed::Absent {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    panic!("not absent in time: {:?}", fixture.observe(target).await);
}

/// Waits until what somebody changed is seen.
pub(crate) async fn until_changed(fixture: &Fixture, target: &Target) {
    for _ in 0..500 {
        if fixture.observe(target).await.present().is_some_and(|it| it.generation != target.generation) {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    panic!("it is not seen");
}

fn heir(target: &Target) -> Target {
    let (incarnation, data) = (Incarnation::new(2, 8), DataSource::Existing(target.data.id().clone()));
    Target { incarnation, data, ..target.clone() }
}

#[tokio::test]
async fn data_whose_namespace_lost_a_label_is_not_called_deleted() {
    for label in ["tenant", "control-plane"] {
        let (fixture, target) = retained().await;
        let namespace = key("namespaces", "", &fixture.namespace());
        let label = format!("provisioner.internal/{label}");
        fixture.server.world(|world| {
            world.change(&namespace, |it| drop(it["metadata"]["labels"].as_object_mut().unwrap().remove(&label)));
        });
        // Until then it is what it was.
        until_listed(&fixture, 0).await;
        let error = fixture.backend.delete_data(&cx(), target.data.id()).await.unwrap_err();
        assert_eq!((error.kind(), error.field(), error.retry()), (ErrorKind::Conflict, Some("data"), Retry::Backoff));
        assert!(error.to_string().contains(&namespace.2), "{error}");
    }
}

async fn until_listed(fixture: &Fixture, expected: usize) {
    for _ in 0..500 {
        if fixture.backend.list(&cx()).collect::<Vec<_>>().await.len() == expected {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    panic!("not {expected} listed in time");
}

/// A certificate as somebody put it into the one namespace.
fn certificate(fixture: &Fixture) -> crate::world::Key {
    let secret = key("secrets", &fixture.namespace(), "tls");
    fixture.server.world(|world| world.create(&secret, json!({"metadata": {"name": "tls"}}))).unwrap();
    secret
}

#[tokio::test]
async fn a_certificate_goes_with_who_uses_the_data_and_with_nobody_else() {
    let fixture = Fixture::new().await;
    let ingress = IngressConfig {
        class: "nginx".into(),
        controller_namespace: [("name".to_owned(), "ingress".to_owned())].into(),
        tls: true,
        annotations: [].into(),
    };
    let connection = fixture.connection();
    let config = KubernetesConfig { connection, ingress: Some(ingress), ..KubernetesConfig::default() };
    let fixture = fixture.with_backend(config.build().unwrap());
    let target = target(1);
    fixture.backend.create(&cx(), &target).await.unwrap();
    fixture.until(&target, Phase::Running).await;
    let set = fixture.key_of("statefulsets");
    fixture.server.world(|world| world.delete(&set, None)).unwrap();
    until_absent(&fixture, &target).await;
    let heir = heir(&target);
    fixture.backend.create(&cx(), &heir).await.unwrap();
    fixture.until(&heir, Phase::Running).await;
    let certificate = certificate(&fixture);
    let is_there = || fixture.server.world(|world| world.objects.contains_key(&certificate));
    fixture.backend.destroy(&cx(), &target, DataDisposition::Retain).await.unwrap();
    assert!(is_there(), "it is the heir's");
    fixture.backend.destroy(&cx(), &heir, DataDisposition::Retain).await.unwrap();
    until_absent(&fixture, &heir).await;
    assert!(!is_there());
}

#[tokio::test]
async fn nothing_of_the_one_before_is_left_by_a_taking_over_that_was_cut() {
    let (fixture, target) = Fixture::with_instance().await;
    let set = fixture.key_of("statefulsets");
    fixture.server.world(|world| world.delete(&set, None)).unwrap();
    until_absent(&fixture, &target).await;
    fixture.server.answer("delete", "resourcequotas", 1, Answer::Cut);
    fixture.backend.create(&cx(), &heir(&target)).await.unwrap_err();
    create(&fixture, &heir(&target)).await;
    fixture.until(&heir(&target), Phase::Running).await;
    for plural in ["resourcequotas", "limitranges", "networkpolicies", "services", "secrets"] {
        assert_eq!(fixture.server.world(|world| world.list(plural, None, "").len()), 1, "{plural}");
    }
}

#[tokio::test]
async fn parts_that_lost_their_labels_go_also_where_the_data_is_retained() {
    let (fixture, target) = Fixture::with_instance().await;
    let service = fixture.key_of("services");
    fixture.server.world(|world| world.change(&service, |it| it["metadata"]["labels"] = json!({})));
    until_changed(&fixture, &target).await;
    fixture.backend.destroy(&cx(), &target, DataDisposition::Retain).await.unwrap();
    until_absent(&fixture, &target).await;
    assert!(!fixture.server.world(|world| world.objects.contains_key(&service)));
}

#[tokio::test]
async fn data_that_the_watches_do_not_tell_of_is_not_called_deleted() {
    let fixture = Fixture::new().await;
    fixture.backend.create(&cx(), &target(1)).await.unwrap();
    fixture.until(&target(1), Phase::Running).await;
    fixture.server.world(|world| world.told_until = Some(world.version));
    let mut other = target(1);
    (other.incarnation, other.data) =
        (Incarnation::new(1, 2), DataSource::Fresh(provisioner_core::types::DataId::from_random(2)));
    fixture.another_backend().create(&cx(), &other).await.unwrap();
    let soon = cx().with_timeout(std::time::Duration::from_secs(1));
    let error = fixture.backend.delete_data(&soon, other.data.id()).await.unwrap_err();
    assert_eq!((error.kind(), error.retry()), (ErrorKind::Timeout, Retry::Backoff), "{error}");
    assert!(error.to_string().contains("the watches do not tell"), "{error}");
}

#[tokio::test]
async fn a_set_without_labels_goes_also_where_its_data_is_retained() {
    for sleeps in [false, true] {
        let (fixture, target) = Fixture::with_instance().await;
        if sleeps {
            fixture.backend.scale_to_zero(&cx(), &target).await.unwrap();
            fixture.until(&target, Phase::Zero).await;
        }
        let (set, claim) = (fixture.key_of("statefulsets"), fixture.key_of("persistentvolumeclaims"));
        fixture.server.world(|world| world.change(&set, |set| set["metadata"]["labels"] = json!({})));
        until_changed(&fixture, &target).await;
        fixture.backend.destroy(&cx(), &target, DataDisposition::Retain).await.unwrap();
        until_absent(&fixture, &target).await;
        let there = fixture.server.world(|world| [&set, &claim].map(|key| world.objects.contains_key(key)));
        assert_eq!(there, [false, true]);
    }
}

#[tokio::test]
async fn no_secret_is_left_by_a_removal_that_was_cut() {
    let (fixture, target) = Fixture::with_instance().await;
    fixture.server.answer("delete", "secrets", 1, Answer::Cut);
    fixture.backend.destroy(&cx(), &target, DataDisposition::Retain).await.unwrap_err();
    // The engine looks, and goes on unless it is absent.
    let seen = fixture.observe(&target).await;
    assert_ne!(seen, Observed::Absent);
    fixture.backend.destroy(&cx(), &target, DataDisposition::Retain).await.unwrap();
    until_absent(&fixture, &target).await;
    assert!(fixture.server.world(|world| world.list("secrets", None, "")).is_empty());
}

#[tokio::test]
async fn no_secret_of_the_one_before_is_left_by_a_taking_over_that_was_cut() {
    let (fixture, target) = Fixture::with_instance().await;
    let set = fixture.key_of("statefulsets");
    fixture.server.world(|world| world.delete(&set, None)).unwrap();
    until_absent(&fixture, &target).await;
    fixture.server.answer("delete", "secrets", 1, Answer::Cut);
    fixture.backend.create(&cx(), &heir(&target)).await.unwrap_err();
    create(&fixture, &heir(&target)).await;
    fixture.until(&heir(&target), Phase::Running).await;
    let secrets = fixture.server.world(|world| world.list("secrets", None, ""));
    let of: Vec<_> = secrets.iter().map(|it| &it["metadata"]["labels"]["provisioner.internal/incarnation"]).collect();
    assert_eq!(of, [heir(&target).incarnation.to_string().as_str()]);
}

#[tokio::test]
async fn a_set_that_still_ends_is_waited_for_and_one_that_stays_is_a_conflict() {
    let (fixture, target) = Fixture::with_instance().await;
    let error = fixture.backend.create(&cx(), &heir(&target)).await.unwrap_err();
    assert_eq!((error.kind(), error.field(), error.retry()), (ErrorKind::Conflict, Some("data"), Retry::Never));
    let set = fixture.key_of("statefulsets");
    fixture.server.world(|world| {
        world.told_until = Some(world.version);
        world.delete(&set, None).unwrap();
    });
    let error = fixture.backend.create(&cx(), &heir(&target)).await.unwrap_err();
    assert_eq!((error.kind(), error.retry()), (ErrorKind::Conflict, Retry::Backoff), "{error}");
}

#[tokio::test]
async fn a_namespace_that_another_making_has_taken_over_is_not_removed() {
    let (fixture, target) = retained().await;
    let namespace = key("namespaces", "", &fixture.namespace());
    let heir = heir(&target).incarnation.to_string();
    let taken = namespace.clone();
    // Between the look and the removal.
    fixture.server.before(
        "delete",
        "namespaces",
        move |world| {
            world.change(&taken, |it| it["metadata"]["labels"]["provisioner.internal/incarnation"] = json!(heir));
        },
        None,
    );
    let error = fixture.backend.delete_data(&cx(), target.data.id()).await.unwrap_err();
    assert_eq!((error.kind(), error.retry()), (ErrorKind::Conflict, Retry::Backoff), "{error}");
    assert!(fixture.server.world(|world| world.objects.contains_key(&namespace)));
}

#[tokio::test]
async fn nothing_is_made_while_a_pod_of_the_one_before_still_ends() {
    let (fixture, target) = Fixture::with_instance().await;
    let (set, pod) = (fixture.key_of("statefulsets"), fixture.key_of("pods"));
    fixture.server.world(|world| {
        world.orphan(&set);
        world.change(&pod, |pod| pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z"));
    });
    until_changed(&fixture, &target).await;
    for _ in 0..50 {
        let done = fixture.backend.create(&cx(), &heir(&target)).await;
        let error = done.expect_err("two would write at once");
        assert_eq!(error.retry(), Retry::Backoff, "{error}");
    }
    fixture.server.world(|world| world.delete(&pod, None)).unwrap();
    for _ in 0..500 {
        if fixture.backend.create(&cx(), &heir(&target)).await.is_ok() {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    panic!("it is not made");
}

/// A create of the same moment takes the namespace back between the two halves of a removal that retains data. Whoever is last wins,
/// and nothing is left between.
#[tokio::test]
async fn a_namespace_that_is_taken_back_during_its_removal_is_released_again() {
    let (fixture, target) = Fixture::with_instance().await;
    let taken = key("namespaces", "", &fixture.namespace());
    fixture.server.before(
        "delete",
        "statefulsets",
        move |world| {
            world.change(&taken, |it| {
                let annotations = it["metadata"]["annotations"].as_object_mut().unwrap();
                assert!(annotations.remove("provisioner.internal/released").is_some(), "it was released before");
            });
        },
        None,
    );
    fixture.backend.destroy(&cx(), &target, DataDisposition::Retain).await.unwrap();
    until_absent(&fixture, &target).await;
    let namespaces = fixture.server.world(|world| world.list("namespaces", None, ""));
    let released = &namespaces[0]["metadata"]["annotations"]["provisioner.internal/released"];
    assert_eq!(released, &json!(target.incarnation.to_string()));
}

#[tokio::test]
async fn data_that_another_making_is_still_on_are_not_called_deleted() {
    let (fixture, target) = Fixture::with_instance().await;
    let (set, namespace) = (fixture.key_of("statefulsets"), fixture.namespace());
    // A restored backup, or a late call, made a set of a making that nobody has any more.
    let other = Incarnation::new(7, 7).to_string();
    let stray = key("statefulsets", &namespace, "stray");
    fixture.server.world(|world| {
        let mut object = world.objects[&set].clone();
        object["metadata"]["name"] = json!("stray");
        object["metadata"]["labels"]["provisioner.internal/incarnation"] = json!(other);
        let noted = object["metadata"]["annotations"]["provisioner.internal/applied"].as_str().unwrap().to_owned();
        let noted = noted.replace(&target.incarnation.to_string(), &other);
        object["metadata"]["annotations"]["provisioner.internal/applied"] = json!(noted);
        object["spec"]["replicas"] = json!(0);
        world.create(&stray, object).unwrap();
    });
    let destroy = async || fixture.backend.destroy(&cx(), &target, DataDisposition::Delete).await;
    // Until it is seen, its home would go with it, and all would be well.
    for tries in 0.. {
        let listed: Vec<_> = fixture.backend.list(&cx()).collect().await;
        if listed.len() == 2 {
            break;
        }
        assert!(tries < 250, "it is not seen: {listed:?}");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    let error = destroy().await.unwrap_err();
    assert_eq!((error.kind(), error.retry()), (ErrorKind::Conflict, Retry::Backoff));
    assert!(error.to_string().contains(&other), "{error}");
    let is_there = || fixture.server.world(|world| world.objects.contains_key(&key("namespaces", "", &namespace)));
    assert!(is_there());
    let stray_target = Target { incarnation: Incarnation::new(7, 7), ..target.clone() };
    fixture.backend.destroy(&cx(), &stray_target, DataDisposition::Retain).await.unwrap();
    until_absent(&fixture, &stray_target).await;
    destroy().await.unwrap();
    until_absent(&fixture, &target).await;
    assert!(!is_there());
}
