//! Another layout goes through every verb without any of them knowing it: routes of the Gateway API in the place of an ingress,
//! and an object of a kind that nobody watches.

use std::sync::Arc;

use backend_k8s::{
    KubernetesConfig,
    render::{Layout, NamespaceEach, Namespaces, Objects, Part, Subject},
};
use kube::api::{ApiResource, GroupVersionKind};
use provisioner_core::{
    Provisioner,
    types::{ControlPlaneId, DataDisposition, DataSource, Incarnation, InstanceSpec, Phase, Target},
};
use serde_json::json;

use crate::{
    fixture::{Fixture, cx, target},
    server::Answer,
};

#[derive(Debug)]
struct GatewayRoutes;

fn route_kind() -> ApiResource {
    ApiResource::from_gvk(&GroupVersionKind::gvk("gateway.networking.k8s.io", "v1", "HTTPRoute"))
}

fn budget_kind() -> ApiResource {
    ApiResource::from_gvk(&GroupVersionKind::gvk("policy", "v1", "PodDisruptionBudget"))
}

fn secret_kind() -> ApiResource {
    ApiResource::from_gvk(&GroupVersionKind::gvk("", "v1", "Secret"))
}

/// Of the same name as a kind of Kubernetes, and another one.
fn policy_kind() -> ApiResource {
    ApiResource::from_gvk_with_plural(
        &GroupVersionKind::gvk("projectcalico.org", "v3", "NetworkPolicy"),
        "caliconetworkpolicies",
    )
}

fn part(resource: ApiResource, name: &str, spec: serde_json::Value) -> Part {
    let body = json!({"apiVersion": resource.api_version, "kind": resource.kind,
        "metadata": {"name": name}, "spec": spec});
    Part { resource, name: name.to_owned(), body }
}

impl Layout for GatewayRoutes {
    fn namespaces(&self) -> Namespaces {
        NamespaceEach.namespaces()
    }

    fn objects(&self, subject: &Subject<'_>) -> Objects {
        let mut objects = NamespaceEach.objects(subject);
        let name = objects.set.metadata.name.clone().expect("a name");
        let hosts: Vec<_> = subject.target.spec.host_names.iter().map(ToString::to_string).collect();
        let spec = json!({"hostnames": hosts, "rules": [{"backendRefs": [{"name": name, "port": 80}]}]});
        // The same in each making.
        objects.routes = vec![part(route_kind(), "web", spec)];
        objects.endpoint = hosts.first().map(|host| format!("https://{host}")).unwrap_or_default();
        // What this layout does without.
        objects.before.retain(|part| part.resource.kind != "LimitRange");
        let mut registry = part(secret_kind(), "registry", json!(null));
        registry.body["stringData"] = json!({"password": "hunter2"});
        objects.before.push(registry);
        objects.before.push(part(policy_kind(), &name, json!({"selector": "all()"})));
        objects.before.push(part(budget_kind(), &name, json!({"maxUnavailable": 0})));
        objects
    }

    fn routes(&self, _: &ControlPlaneId, _: &Target) -> Vec<(ApiResource, String)> {
        vec![(route_kind(), "web".to_owned())]
    }

    fn takes_host_names(&self, _: &KubernetesConfig) -> bool {
        true
    }
}

#[tokio::test]
async fn routes_of_another_kind_come_and_go_as_an_ingress_would() {
    let fixture = Fixture::new().await;
    let config = KubernetesConfig { connection: fixture.connection(), ..KubernetesConfig::default() };
    let fixture = fixture.with_backend(config.build_with(None, GatewayRoutes).unwrap());
    let mut target = target(1);
    Arc::make_mut(&mut target.spec).host_names.insert("acme.example.com".parse().unwrap());
    fixture.backend.validate(&target.spec, None).unwrap();
    let count = |plural: &str| fixture.server.world(|world| world.list(plural, None, "").len());

    fixture.backend.create(&cx(), &target).await.unwrap();
    fixture.until(&target, Phase::Running).await;
    let seen = fixture.observe(&target).await;
    let endpoint = seen.present().and_then(|present| present.endpoint.as_ref()).map(ToString::to_string);
    assert_eq!(endpoint.as_deref(), Some("https://acme.example.com"));
    assert_eq!(seen.present().map(|present| present.generation), Some(target.generation), "it is whole as it is");
    let secrets = fixture.server.world(|world| world.list("secrets", None, ""));
    let registry = secrets.iter().find(|secret| secret["metadata"]["name"] == "registry").unwrap();
    assert!(!registry["metadata"].to_string().contains("hunter2"), "{registry}");
    assert_eq!([count("httproutes"), count("ingresses"), count("poddisruptionbudgets")], [1, 0, 1]);
    // Nobody watches such a route: it is not called suspended while there is one.
    fixture.server.answer("delete", "httproutes", 1, Answer::refusal(500, "InternalError", "no"));
    fixture.backend.suspend(&cx(), &target).await.unwrap_err();
    crate::server::until("its pod is gone", || count("pods") == 0).await;
    assert_ne!(fixture.observe(&target).await.phase(), Some(Phase::Suspended));
    fixture.backend.suspend(&cx(), &target).await.unwrap();
    fixture.until(&target, Phase::Suspended).await;
    assert_eq!([count("httproutes"), count("poddisruptionbudgets")], [0, 1]);
    fixture.backend.resume(&cx(), &target).await.unwrap();
    fixture.until(&target, Phase::Running).await;
    assert_eq!(count("httproutes"), 1);
    // What is asked of it once goes on where it was.
    fixture.server.answer("apply", "httproutes", 1, Answer::refusal(500, "InternalError", "no"));
    target.generation.0 = 2;
    fixture.backend.create(&cx(), &target).await.unwrap_err();
    fixture.backend.create(&cx(), &target).await.unwrap();
    fixture.backend.destroy(&cx(), &target, DataDisposition::Retain).await.unwrap();
    let left = ["httproutes", "poddisruptionbudgets", "caliconetworkpolicies", "secrets"].map(count);
    assert_eq!((left, count("persistentvolumeclaims")), ([0; 4], 1));
}

#[tokio::test]
async fn a_late_removal_takes_nothing_from_another_making_whose_objects_have_the_same_names() {
    let fixture = Fixture::new().await;
    let config = KubernetesConfig { connection: fixture.connection(), ..KubernetesConfig::default() };
    let fixture = fixture.with_backend(config.build_with(None, GatewayRoutes).unwrap());
    let first = target(1);
    fixture.backend.create(&cx(), &first).await.unwrap();
    fixture.until(&first, Phase::Running).await;
    fixture.backend.destroy(&cx(), &first, DataDisposition::Retain).await.unwrap();
    crate::server::until("its pod is gone", || fixture.server.world(|world| world.list("pods", None, "").is_empty()))
        .await;
    let data = DataSource::Existing(first.data.id().clone());
    let second = Target { incarnation: Incarnation::new(2, 22), data, ..first.clone() };
    fixture.backend.create(&cx(), &second).await.unwrap();
    fixture.until(&second, Phase::Running).await;
    // As the engine calls it when nobody knows the spec any more.
    let late = Target { spec: Arc::new(InstanceSpec::forgotten()), ..first.clone() };
    fixture.backend.destroy(&cx(), &late, DataDisposition::Retain).await.unwrap();
    let secrets = fixture.server.world(|world| world.list("secrets", None, ""));
    let named = |name: &str| secrets.iter().filter(|secret| secret["metadata"]["name"] == name).count();
    assert_eq!((named("registry"), secrets.len()), (1, 2), "{secrets:?}");
    assert_eq!(fixture.server.world(|world| world.list("httproutes", None, "").len()), 1);
    assert_eq!(fixture.observe(&second).await.phase(), Some(Phase::Running));
    // An update leaves what has no generation.
    let newer = Target { generation: second.generation.next(), ..second };
    fixture.backend.create(&cx(), &newer).await.unwrap();
    fixture.until(&newer, Phase::Running).await;
    fixture.backend.destroy(&cx(), &newer, DataDisposition::Retain).await.unwrap();
    let count = |plural: &str| fixture.server.world(|world| world.list(plural, None, "").len());
    assert_eq!(["poddisruptionbudgets", "caliconetworkpolicies", "secrets"].map(count), [0; 3]);
}
