//! The objects themselves, of which a layout takes those that it wants.

use std::collections::BTreeMap;

use k8s_openapi::{
    ByteString,
    api::{
        apps::v1::{StatefulSet, StatefulSetSpec, StatefulSetUpdateStrategy},
        core::v1::{
            Capabilities, Container, ContainerPort, EmptyDirVolumeSource, EnvFromSource, HTTPGetAction, LimitRange,
            LimitRangeItem, LimitRangeSpec, LocalObjectReference, PersistentVolumeClaim, PersistentVolumeClaimSpec,
            PersistentVolumeClaimVolumeSource, PodSecurityContext, PodSpec, PodTemplateSpec, Probe, ResourceQuota,
            ResourceQuotaSpec, ResourceRequirements, SeccompProfile, Secret, SecretEnvSource, SecurityContext, Service,
            ServiceAccount, ServicePort, ServiceSpec, Volume, VolumeMount, VolumeResourceRequirements,
        },
        networking::v1::{
            HTTPIngressPath, HTTPIngressRuleValue, IPBlock, Ingress, IngressBackend, IngressRule,
            IngressServiceBackend, IngressSpec, IngressTLS, NetworkPolicy, NetworkPolicyEgressRule,
            NetworkPolicyIngressRule, NetworkPolicyPeer, NetworkPolicyPort, NetworkPolicySpec, ServiceBackendPort,
        },
    },
    apimachinery::pkg::{
        api::resource::Quantity,
        apis::meta::v1::{LabelSelector, ObjectMeta},
        util::intstr::IntOrString,
    },
};
use provisioner_core::{
    secret::{ExposeSecret, SecretString},
    types::{Egress, VariableName},
};

use super::{Part, Subject};
use crate::{
    config::{IngressConfig, Peer},
    home::Home,
    names,
};

/// Where data is mounted when the spec does not say.
const DATA_PATH: &str = "/data";
/// The port that a product listens on when the spec does not say. `validate` demands one, so this is for what is forgotten.
const PORT: u16 = 8080;
/// What a pod calls its data.
const DATA_VOLUME: &str = "data";
/// The name of the one port of a service.
const PORT_NAME: &str = "http";

// Names and marks

impl Subject<'_> {
    /// The name of everything that belongs to the making: it is another one for every other making.
    #[must_use]
    pub fn name(&self) -> String {
        names::making(self.control_plane, &self.target.id, self.target.incarnation)
    }

    /// The namespace of everything that belongs to the making.
    #[must_use]
    pub fn namespace(&self) -> String {
        self.home().namespace().to_owned()
    }

    /// The name of the claim.
    #[must_use]
    pub fn claim(&self) -> String {
        self.home().claim().to_owned()
    }

    /// What every object has, so that all that a control plane owns is found by its labels.
    #[must_use]
    pub fn labels(&self) -> BTreeMap<String, String> {
        let target = self.target;
        [
            (names::MANAGED_BY, names::FIELD_MANAGER.to_owned()),
            (names::CONTROL_PLANE, self.control_plane.to_string()),
            (names::INSTANCE, target.id.to_string()),
            (names::INCARNATION, target.incarnation.to_string()),
            (names::DATA, target.data.id().to_string()),
            (names::TENANT, target.tenant.digest()),
        ]
        .map(|(key, value)| (key.to_owned(), value))
        .into()
    }

    pub(crate) fn home(&self) -> Home {
        Home::of(self.namespaces, self.control_plane, self.target.data.id())
    }
}

fn meta(subject: &Subject<'_>) -> ObjectMeta {
    ObjectMeta {
        name: Some(subject.name()),
        namespace: Some(subject.namespace()),
        labels: Some(subject.labels()),
        ..ObjectMeta::default()
    }
}

/// What tells the pods of one making from all others.
pub(super) fn selector(subject: &Subject<'_>) -> BTreeMap<String, String> {
    let incarnation = subject.target.incarnation.to_string();
    [(names::CONTROL_PLANE, subject.control_plane.to_string()), (names::INCARNATION, incarnation)]
        .map(|(key, value)| (key.to_owned(), value))
        .into()
}

fn port(subject: &Subject<'_>) -> u16 {
    subject.target.spec.workload.port.unwrap_or(PORT)
}

fn text_map<const N: usize>(pairs: [(&str, &str); N]) -> BTreeMap<String, String> {
    pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).into()
}

// Objects, in the order in which they are made

/// As the cluster itself would write it: what is applied is compared with what it says later.
fn mebibytes(mib: u32) -> Quantity {
    let (mut number, mut units) = (mib, ["Mi", "Gi", "Ti"].into_iter());
    let mut unit = units.next();
    while number != 0
        && number % 1024 == 0
        && let Some(larger) = units.next()
    {
        (number, unit) = (number / 1024, Some(larger));
    }
    Quantity(format!("{number}{}", unit.unwrap_or_default()))
}

fn millis(millis: u64) -> Quantity {
    Quantity(if millis.is_multiple_of(1000) { (millis / 1000).to_string() } else { format!("{millis}m") })
}

/// How many mebibytes, rounded down. `None`: it is written in a way that nobody uses for room.
pub(crate) fn mib_of(quantity: &Quantity) -> Option<u64> {
    let digits = quantity.0.find(|c: char| !c.is_ascii_digit()).unwrap_or(quantity.0.len());
    let (number, unit) = quantity.0.split_at(digits);
    let unit: u128 = match unit {
        "" => 1,
        "Ki" => 1 << 10,
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        "Ti" => 1 << 40,
        "Pi" => 1 << 50,
        "k" => 1000,
        "M" => 1000_u128.pow(2),
        "G" => 1000_u128.pow(3),
        "T" => 1000_u128.pow(4),
        "P" => 1000_u128.pow(5),
        _ => return None,
    };
    u64::try_from((u128::from(number.parse::<u64>().ok()?) * unit) >> 20).ok()
}

fn compute(subject: &Subject<'_>) -> BTreeMap<String, Quantity> {
    let size = subject.target.spec.size;
    [("cpu".to_owned(), millis(size.cpu_millis.into())), ("memory".to_owned(), mebibytes(size.memory_mib))].into()
}

/// What its node keeps for it.
fn reserved(subject: &Subject<'_>) -> BTreeMap<String, Quantity> {
    let (size, percent) = (subject.target.spec.size, subject.config.cpu_reserved_percent.unwrap_or(100));
    let cpu = (u64::from(size.cpu_millis) * u64::from(percent)).div_ceil(100);
    [("cpu".to_owned(), millis(cpu)), ("memory".to_owned(), mebibytes(size.memory_mib))].into()
}

/// One pod of this size at a time: a second writer cannot run, whoever makes it. And room for what the cell lets run beside
/// it.
///
/// Claims are not counted: a request that is cut off while it is admitted stays charged for until the cluster counts again,
/// five minutes later by default, and nobody but us makes any; see `--resource-quota-sync-period` of
/// <https://kubernetes.io/docs/reference/command-line-tools-reference/kube-controller-manager/>.
pub(super) fn quota(subject: &Subject<'_>) -> ResourceQuota {
    let (size, beside) = (subject.target.spec.size, subject.config.beside);
    let number = |number: u32| Quantity(number.to_string());
    let hard = [
        ("pods", number(beside.pods.saturating_add(1))),
        ("limits.cpu", millis(u64::from(size.cpu_millis) + u64::from(beside.cpu_millis))),
        ("limits.memory", mebibytes(size.memory_mib.saturating_add(beside.memory_mib))),
        ("services.nodeports", number(beside.node_ports)),
        ("services.loadbalancers", number(0)),
    ];
    let hard = hard.map(|(key, value)| (key.to_owned(), value)).into();
    let spec = ResourceQuotaSpec { hard: Some(hard), ..ResourceQuotaSpec::default() };
    ResourceQuota { metadata: meta(subject), spec: Some(spec), status: None }
}

/// What a container gets that says nothing, such as one that a webhook adds.
pub(super) fn limits(subject: &Subject<'_>) -> LimitRange {
    let beside = subject.config.beside;
    let (limits, requests) = if beside.cpu_millis == 0 || beside.memory_mib == 0 {
        (compute(subject), reserved(subject))
    } else {
        let room = [("cpu", millis(beside.cpu_millis.into())), ("memory", mebibytes(beside.memory_mib))];
        let room: BTreeMap<_, _> = room.map(|(key, value)| (key.to_owned(), value)).into();
        (room.clone(), room)
    };
    let each = LimitRangeItem {
        type_: "Container".into(),
        default: Some(limits),
        default_request: Some(requests),
        ..LimitRangeItem::default()
    };
    LimitRange { metadata: meta(subject), spec: Some(LimitRangeSpec { limits: vec![each] }) }
}

/// Who may reach these pods, of the product's alone or at any port, and whom they may.
pub(super) fn policy(subject: &Subject<'_>, pods: LabelSelector, is_alone: bool) -> NetworkPolicy {
    let to_port = |port: u16, protocol: &str| NetworkPolicyPort {
        port: Some(IntOrString::Int(port.into())),
        protocol: Some(protocol.into()),
        end_port: None,
    };
    let config = subject.config;
    let controller = config.ingress.iter().map(|ingress| Peer::Namespace(ingress.controller_namespace.clone()));
    let from: Vec<_> = controller.chain(config.admitted.iter().cloned()).map(peer).collect();
    // What may run beside the product, such as a solver of cert-manager, listens where it wants.
    let to_product = is_alone.then(|| vec![to_port(port(subject), "TCP")]);
    // A rule without peers would let everybody in.
    let ingress = (!from.is_empty()).then_some(NetworkPolicyIngressRule { from: Some(from), ports: to_product });
    let peers =
        |peers: &mut dyn Iterator<Item = Peer>| Some(peers.map(peer).collect::<Vec<_>>()).filter(|all| !all.is_empty());
    let egress = match &subject.target.spec.egress {
        Egress::Anywhere => vec![NetworkPolicyEgressRule::default()],
        Egress::Only(networks) => {
            let names = NetworkPolicyEgressRule {
                ports: Some(vec![to_port(53, "UDP"), to_port(53, "TCP")]),
                to: peers(&mut config.name_servers.iter().cloned()),
            };
            let networks = peers(&mut networks.iter().cloned().map(Peer::Network));
            let networks = networks.map(|to| NetworkPolicyEgressRule { ports: None, to: Some(to) });
            [names].into_iter().chain(networks).collect()
        }
    };
    let spec = NetworkPolicySpec {
        pod_selector: Some(pods),
        policy_types: Some(vec!["Ingress".into(), "Egress".into()]),
        ingress: Some(ingress.into_iter().collect()),
        egress: Some(egress),
    };
    NetworkPolicy { metadata: meta(subject), spec: Some(spec) }
}

fn peer(peer: Peer) -> NetworkPolicyPeer {
    match peer {
        Peer::Namespace(labels) => NetworkPolicyPeer {
            namespace_selector: Some(LabelSelector { match_labels: Some(labels), match_expressions: None }),
            ..NetworkPolicyPeer::default()
        },
        Peer::Network(cidr) => NetworkPolicyPeer {
            ip_block: Some(IPBlock { cidr: cidr.to_string(), except: None }),
            ..NetworkPolicyPeer::default()
        },
    }
}

pub(super) fn account(subject: &Subject<'_>) -> ServiceAccount {
    ServiceAccount {
        metadata: meta(subject),
        automount_service_account_token: Some(false),
        ..ServiceAccount::default()
    }
}

/// The environment of one generation. A generation has a secret of its own, so that what runs never sees a mixture, and a
/// call of an older one that comes late changes nothing.
pub(crate) fn environment(subject: &Subject<'_>, secrets: &[(VariableName, SecretString)]) -> Secret {
    let spec = &subject.target.spec;
    let bytes = |value: &str| ByteString(value.as_bytes().to_vec());
    let mut data: BTreeMap<String, ByteString> =
        [("PORT", port(subject).to_string()), ("DATA_PATH", data_path(subject).to_owned())]
            .map(|(key, value)| (key.to_owned(), bytes(&value)))
            .into();
    data.extend(spec.environment.iter().map(|(key, value)| (key.to_string(), bytes(value))));
    data.extend(secrets.iter().map(|(key, value)| (key.to_string(), bytes(value.expose_secret()))));
    let mut metadata = ObjectMeta { name: Some(environment_name(subject)), ..meta(subject) };
    let generation = subject.target.generation.0.to_string();
    metadata.labels.get_or_insert_default().insert(names::GENERATION.to_owned(), generation);
    Secret { metadata, type_: Some("Opaque".into()), data: Some(data), ..Secret::default() }
}

fn environment_name(subject: &Subject<'_>) -> String {
    format!("{}-g{}", subject.name(), subject.target.generation.0)
}

fn data_path<'a>(subject: &Subject<'a>) -> &'a str {
    subject.target.spec.workload.data_path.as_deref().unwrap_or(DATA_PATH)
}

pub(super) fn claim(subject: &Subject<'_>) -> PersistentVolumeClaim {
    let storage = [("storage".to_owned(), mebibytes(subject.target.spec.data.size_mib))].into();
    let spec = PersistentVolumeClaimSpec {
        access_modes: Some(vec!["ReadWriteOnce".into()]),
        resources: Some(VolumeResourceRequirements { requests: Some(storage), limits: None }),
        storage_class_name: subject.config.storage_class.clone(),
        ..PersistentVolumeClaimSpec::default()
    };
    let metadata = ObjectMeta { name: Some(subject.claim()), ..meta(subject) };
    PersistentVolumeClaim { metadata, spec: Some(spec), status: None }
}

pub(super) fn set(subject: &Subject<'_>) -> StatefulSet {
    let target = subject.target;
    let mut metadata = meta(subject);
    let generation = target.generation.0.to_string();
    let mut annotations = text_map([
        (names::GENERATION, &generation),
        (names::INTENDED, "running"),
        (names::VERSION, &target.spec.workload.version),
    ]);
    for (key, value) in &target.spec.labels {
        annotations.insert(format!("{}{key}", names::LABEL_PREFIX), value.to_string());
    }
    metadata.annotations = Some(annotations);
    let spec = StatefulSetSpec {
        replicas: Some(1),
        service_name: Some(subject.name()),
        selector: LabelSelector { match_labels: Some(selector(subject)), match_expressions: None },
        // In order, a pod that does not get ready would keep its successor from ever being tried; see
        // <https://kubernetes.io/docs/concepts/workloads/controllers/statefulset/#forced-rollback>.
        pod_management_policy: Some("Parallel".into()),
        update_strategy: Some(StatefulSetUpdateStrategy {
            type_: Some("RollingUpdate".into()),
            ..StatefulSetUpdateStrategy::default()
        }),
        revision_history_limit: Some(1),
        template: PodTemplateSpec { metadata: Some(pod_meta(subject)), spec: Some(pod(subject)) },
        ..StatefulSetSpec::default()
    };
    StatefulSet { metadata, spec: Some(spec), status: None }
}

/// By its first host name where it has a route, else by the name of its service inside the cluster.
pub(super) fn endpoint(subject: &Subject<'_>) -> String {
    match (&subject.config.ingress, subject.target.spec.host_names.first()) {
        (Some(ingress), Some(host)) => format!("{}://{host}", if ingress.tls { "https" } else { "http" }),
        _ => format!("http://{}.{}.svc", subject.name(), subject.namespace()),
    }
}

fn pod_meta(subject: &Subject<'_>) -> ObjectMeta {
    let version = &subject.target.spec.workload.version;
    ObjectMeta {
        labels: Some(subject.labels()),
        annotations: Some(text_map([(names::VERSION, version)])),
        ..ObjectMeta::default()
    }
}

fn pod(subject: &Subject<'_>) -> PodSpec {
    let config = subject.config;
    let tolerations = config.tolerations.iter().map(|toleration| k8s_openapi::api::core::v1::Toleration {
        key: Some(toleration.key.clone()),
        operator: Some(if toleration.value.is_some() { "Equal".into() } else { "Exists".into() }),
        value: toleration.value.clone(),
        effect: toleration.effect.clone(),
        toleration_seconds: None,
    });
    let pull_secrets = config.image_pull_secrets.iter().map(|name| LocalObjectReference { name: name.clone() });
    let data = Volume {
        name: DATA_VOLUME.into(),
        persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
            claim_name: subject.claim(),
            read_only: None,
        }),
        ..Volume::default()
    };
    // A root that may not be written needs another place for what is thrown away.
    let temporary =
        Volume { name: "tmp".into(), empty_dir: Some(EmptyDirVolumeSource::default()), ..Volume::default() };
    let volumes = if config.read_only_root { vec![data, temporary] } else { vec![data] };
    PodSpec {
        containers: vec![container(subject)],
        service_account_name: Some(subject.name()),
        automount_service_account_token: Some(false),
        enable_service_links: Some(false),
        security_context: Some(PodSecurityContext {
            run_as_non_root: Some(true),
            run_as_user: Some(config.run_as.user.into()),
            run_as_group: Some(config.run_as.group.into()),
            fs_group: Some(config.run_as.group.into()),
            // Not each file anew at every wake.
            fs_group_change_policy: Some("OnRootMismatch".into()),
            seccomp_profile: Some(SeccompProfile { type_: "RuntimeDefault".into(), localhost_profile: None }),
            ..PodSecurityContext::default()
        }),
        // With none the cluster would forget the pod before its node has ended it, and start another on the same data; see
        // <https://kubernetes.io/docs/tasks/run-application/force-delete-stateful-set-pod/>.
        termination_grace_period_seconds: Some(subject.target.spec.workload.stop_grace_seconds.max(1).into()),
        node_selector: non_empty(config.node_selector.clone()),
        tolerations: Some(tolerations.collect::<Vec<_>>()).filter(|all| !all.is_empty()),
        priority_class_name: config.priority_class.clone(),
        image_pull_secrets: Some(pull_secrets.collect::<Vec<_>>()).filter(|all| !all.is_empty()),
        volumes: Some(volumes),
        ..PodSpec::default()
    }
}

fn non_empty(map: BTreeMap<String, String>) -> Option<BTreeMap<String, String>> {
    Some(map).filter(|map| !map.is_empty())
}

fn container(subject: &Subject<'_>) -> Container {
    let (config, workload) = (subject.config, &subject.target.spec.workload);
    let mount =
        |name: &str, path: &str| VolumeMount { name: name.into(), mount_path: path.into(), ..VolumeMount::default() };
    let mut mounts = vec![mount(DATA_VOLUME, data_path(subject))];
    if config.read_only_root {
        mounts.push(mount("tmp", "/tmp"));
    }
    let probe = |period_seconds: i32, failures: i32| Probe {
        http_get: Some(HTTPGetAction {
            path: Some(workload.health_path.clone()),
            port: IntOrString::String(PORT_NAME.into()),
            ..HTTPGetAction::default()
        }),
        period_seconds: Some(period_seconds),
        failure_threshold: Some(failures),
        timeout_seconds: Some(5),
        ..Probe::default()
    };
    let start_seconds = i32::try_from(workload.start_timeout_seconds).unwrap_or(i32::MAX);
    Container {
        name: "product".into(),
        image: workload.image.clone(),
        image_pull_policy: config.image_pull_policy.clone(),
        command: Some(workload.command.clone()).filter(|command| !command.is_empty()),
        ports: Some(vec![ContainerPort {
            name: Some(PORT_NAME.into()),
            container_port: port(subject).into(),
            protocol: Some("TCP".into()),
            ..ContainerPort::default()
        }]),
        env_from: Some(vec![EnvFromSource {
            secret_ref: Some(SecretEnvSource { name: environment_name(subject), optional: None }),
            ..EnvFromSource::default()
        }]),
        resources: Some(ResourceRequirements {
            requests: Some(reserved(subject)),
            limits: Some(compute(subject)),
            ..ResourceRequirements::default()
        }),
        startup_probe: Some(probe(1, start_seconds)),
        readiness_probe: Some(probe(5, 3)),
        liveness_probe: Some(probe(10, 6)),
        security_context: Some(SecurityContext {
            allow_privilege_escalation: Some(false),
            read_only_root_filesystem: Some(config.read_only_root),
            run_as_non_root: Some(true),
            capabilities: Some(Capabilities { drop: Some(vec!["ALL".into()]), add: None }),
            ..SecurityContext::default()
        }),
        volume_mounts: Some(mounts),
        ..Container::default()
    }
}

pub(super) fn service(subject: &Subject<'_>) -> Service {
    let port = ServicePort {
        name: Some(PORT_NAME.into()),
        port: 80,
        target_port: Some(IntOrString::String(PORT_NAME.into())),
        protocol: Some("TCP".into()),
        ..ServicePort::default()
    };
    let spec = ServiceSpec {
        type_: Some("ClusterIP".into()),
        selector: Some(selector(subject)),
        ports: Some(vec![port]),
        ..ServiceSpec::default()
    };
    Service { metadata: meta(subject), spec: Some(spec), status: None }
}

/// The ways in from outside, where the cell has one.
pub(super) fn routes(subject: &Subject<'_>) -> Vec<Part> {
    let ingress = subject.config.ingress.as_ref().filter(|_| !subject.target.spec.host_names.is_empty());
    ingress.map(|config| Part::of(&ingress_of(subject, config))).into_iter().collect()
}

fn ingress_of(subject: &Subject<'_>, ingress: &IngressConfig) -> Ingress {
    let backend = IngressBackend {
        service: Some(IngressServiceBackend {
            name: subject.name(),
            port: Some(ServiceBackendPort { name: Some(PORT_NAME.into()), number: None }),
        }),
        resource: None,
    };
    let hosts: Vec<String> = subject.target.spec.host_names.iter().map(ToString::to_string).collect();
    let rules = hosts.iter().map(|host| IngressRule {
        host: Some(host.clone()),
        http: Some(HTTPIngressRuleValue {
            paths: vec![HTTPIngressPath {
                path: Some("/".into()),
                path_type: "Prefix".into(),
                backend: backend.clone(),
            }],
        }),
    });
    let tls = IngressTLS { hosts: Some(hosts.clone()), secret_name: Some(subject.home().certificate()) };
    let spec = IngressSpec {
        ingress_class_name: Some(ingress.class.clone()),
        rules: Some(rules.collect()),
        tls: ingress.tls.then(|| vec![tls]),
        ..IngressSpec::default()
    };
    let mut metadata = meta(subject);
    metadata.annotations = non_empty(ingress.annotations.clone());
    Ingress { metadata, spec: Some(spec), status: None }
}
