//! What is rendered, held against files that a person has read. `GOLDEN=write` writes them anew.

use std::{collections::BTreeSet, fs, path::Path, sync::Arc};

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use provisioner_core::types::{
    ControlPlaneId, DataId, DataSource, Egress, Generation, Incarnation, InstanceId, InstanceSpec, LabelKey,
    LabelValue, Target, TenantId, VariableName, Workload,
};
use serde_json::Value;

use super::{Layout, NamespaceEach, Namespaces, Objects, Part, SharedNamespace, Subject};
use crate::{
    config::{Beside, IngressConfig, KubernetesConfig, Peer, Toleration},
    home::Home,
};

fn target() -> Target {
    let mut workload = Workload::new("1.4.2").with_command(["/bin/product", "--serve"]);
    workload.image = Some("registry.example/product:1.4.2".into());
    workload.port = Some(8080);
    workload.health_path = "/healthz".into();
    let mut spec = InstanceSpec::new(workload);
    spec.environment.insert(VariableName::new("GREETING").unwrap(), "hello".into());
    Target {
        id: InstanceId::new("acme").unwrap(),
        tenant: TenantId::new("Acme Ltd").unwrap(),
        incarnation: Incarnation::new(1, 7),
        generation: Generation(3),
        spec: Arc::new(spec),
        data: DataSource::Fresh(DataId::from_random(11)),
    }
}

fn rich() -> (Target, KubernetesConfig) {
    let mut target = target();
    let spec = Arc::make_mut(&mut target.spec);
    spec.host_names.insert("acme.example.com".parse().unwrap());
    spec.labels.insert(LabelKey::new("plan").unwrap(), LabelValue::new("pro").unwrap());
    spec.egress = Egress::Only(["203.0.113.0/24".parse().unwrap()].into());
    let pairs = |pairs: &[(&str, &str)]| pairs.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect();
    let config = KubernetesConfig {
        storage_class: Some("fast".into()),
        ingress: Some(IngressConfig {
            class: "nginx".into(),
            controller_namespace: pairs(&[("kubernetes.io/metadata.name", "ingress-nginx")]),
            tls: true,
            annotations: pairs(&[("cert-manager.io/cluster-issuer", "letsencrypt")]),
        }),
        admitted: vec![
            Peer::Namespace(pairs(&[("kubernetes.io/metadata.name", "activator")])),
            Peer::Network("10.240.0.0/16".parse().unwrap()),
        ],
        name_servers: vec![Peer::Namespace(pairs(&[("kubernetes.io/metadata.name", "kube-system")]))],
        beside: Beside { pods: 1, cpu_millis: 100, memory_mib: 64, node_ports: 0 },
        node_selector: pairs(&[("pool", "customers")]),
        tolerations: vec![Toleration { key: "customers".into(), value: None, effect: Some("NoSchedule".into()) }],
        priority_class: Some("customers".into()),
        image_pull_secrets: vec!["registry".into()],
        image_pull_policy: Some("IfNotPresent".into()),
        read_only_root: true,
        cpu_reserved_percent: Some(10),
        ..KubernetesConfig::default()
    };
    (target, config)
}

fn rendered(target: &Target, config: &KubernetesConfig) -> Objects {
    rendered_by(&NamespaceEach, target, config)
}

fn rendered_by(layout: &dyn Layout, target: &Target, config: &KubernetesConfig) -> Objects {
    let (control_plane, namespaces) = (ControlPlaneId::new("prod").unwrap(), layout.namespaces());
    layout.objects(&Subject { control_plane: &control_plane, target, config, namespaces: &namespaces })
}

/// All of them, in the order in which they are made.
fn all(layout: &dyn Layout, target: &Target, config: &KubernetesConfig) -> Vec<Value> {
    let objects = rendered_by(layout, target, config);
    let home = Home::of(&layout.namespaces(), &ControlPlaneId::new("prod").unwrap(), target.data.id());
    let mut all = vec![home.part(objects.home).body];
    all.extend(objects.before.iter().map(|part| part.body.clone()));
    all.push(Part::of(&objects.claim).body);
    all.push(Part::of(&objects.set).body);
    all.extend(objects.after.iter().chain(&objects.routes).map(|part| part.body.clone()));
    all
}

#[track_caller]
fn assert_golden(name: &str, layout: &dyn Layout, target: &Target, config: &KubernetesConfig) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    let text = serde_json::to_string_pretty(&all(layout, target, config)).unwrap() + "\n";
    if std::env::var_os("GOLDEN").is_some_and(|set| set == "write") {
        fs::write(&path, &text).unwrap();
    }
    let expected = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    assert!(
        text == expected,
        "{} differs from what is rendered now: GOLDEN=write, and read the change",
        path.display()
    );
}

#[test]
fn a_plain_spec_renders_as_its_golden_file() {
    assert_golden("plain.json", &NamespaceEach, &target(), &KubernetesConfig::default());
}

#[test]
fn a_spec_and_a_cell_with_everything_render_as_their_golden_file() {
    let (target, config) = rich();
    assert_golden("rich.json", &NamespaceEach, &target, &config);
}

#[test]
fn what_shares_a_namespace_renders_as_its_golden_file() {
    let (target, config) = rich();
    assert_golden("shared.json", &SharedNamespace::new("customers"), &target, &config);
}

#[test]
fn nothing_that_shares_a_namespace_is_called_as_that_of_another_customer() {
    let (first, config) = rich();
    let second = Target {
        id: InstanceId::new("other").unwrap(),
        incarnation: Incarnation::new(1, 99),
        data: DataSource::Fresh(DataId::from_random(99)),
        ..first.clone()
    };
    let layout = SharedNamespace::new("customers");
    let names = |target: &Target| {
        let all = all(&layout, target, &config);
        all.iter().map(|object| format!("{} {}", object["kind"], object["metadata"]["name"])).collect::<BTreeSet<_>>()
    };
    assert!(names(&first).is_disjoint(&names(&second)), "{:?}", names(&first));
    assert!(all(&layout, &first, &config).iter().all(|object| object["metadata"]["namespace"] == "customers"));
}

#[test]
fn the_same_subject_renders_the_same() {
    let (target, config) = rich();
    assert_eq!(rendered(&target, &config), rendered(&target, &config));
}

#[test]
fn room_is_read_as_it_is_written() {
    let read = |text: &str| super::mib_of(&Quantity(text.into()));
    assert_eq!(["16Mi", "1Gi", "2Ti", "1048576", "1500M", "64Ki"].map(read), [16, 1024, 2 << 20, 1, 1430, 0].map(Some));
    assert_eq!(["1e3", "", "5m", "-1Gi"].map(read), [None; 4]);
    let data = |size| {
        let (mut target, config) = rich();
        Arc::make_mut(&mut target.spec).data.size_mib = size;
        let claim = rendered(&target, &config).claim;
        claim.spec.unwrap().resources.unwrap().requests.unwrap()["storage"].0.clone()
    };
    // As the cluster writes it.
    assert_eq!([1000, 1024, 1536, 3 << 20].map(data), ["1000Mi", "1Gi", "1536Mi", "3Ti"]);
}

#[test]
fn an_environment_value_is_in_the_secret_alone() {
    let (target, config) = rich();
    let text = serde_json::to_string(&all(&NamespaceEach, &target, &config)).unwrap();
    assert!(!text.contains("hello") && !text.contains("GREETING"), "{text}");
}

#[test]
fn another_layout_adds_what_it_wants() {
    #[derive(Debug)]
    struct WithNote;
    impl Layout for WithNote {
        fn namespaces(&self) -> Namespaces {
            NamespaceEach.namespaces()
        }

        fn objects(&self, subject: &Subject<'_>) -> Objects {
            let mut objects = NamespaceEach.objects(subject);
            let mut note = objects.before[0].clone();
            note.name = "note".into();
            objects.before.push(note);
            objects
        }

        fn routes(&self, plane: &ControlPlaneId, target: &Target) -> Vec<(kube::api::ApiResource, String)> {
            NamespaceEach.routes(plane, target)
        }
    }
    let (target, config) = rich();
    let objects = rendered_by(&WithNote, &target, &config);
    assert_eq!(objects.before.last().unwrap().name, "note");
}
