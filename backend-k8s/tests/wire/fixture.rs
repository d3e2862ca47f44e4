//! A backend on the scripted cluster, and what is asked of it.

use std::{io::Write, sync::Arc, time::Duration};

use backend_k8s::{Connection, IngressConfig, KubernetesBackend, KubernetesConfig};
use provisioner_core::{
    OpContext, Provisioner,
    types::{
        ControlPlaneId, DataId, DataSource, Generation, Incarnation, InstanceId, InstanceSpec, Observed, Phase, Target,
        TenantId, Workload,
    },
};
use tempfile::NamedTempFile;

use crate::server::Server;

/// The cluster, and a backend that has its own client for it.
pub(crate) struct Fixture {
    pub(crate) server: Server,
    pub(crate) backend: KubernetesBackend,
    kubeconfig: NamedTempFile,
}

impl Fixture {
    pub(crate) async fn new() -> Self {
        let server = Server::start().await;
        let mut kubeconfig = NamedTempFile::new().unwrap();
        let text = format!(
            "{{apiVersion: v1, kind: Config, current-context: wire,\n\
             contexts: [{{name: wire, context: {{cluster: wire, user: wire}}}}],\n\
             clusters: [{{name: wire, cluster: {{server: \"http://{}\"}}}}],\n\
             users: [{{name: wire, user: {{token: secret-token}}}}]}}\n",
            server.address
        );
        kubeconfig.write_all(text.as_bytes()).unwrap();
        let backend = backend(&kubeconfig);
        Self { server, backend, kubeconfig }
    }

    /// The way to the cluster.
    pub(crate) fn connection(&self) -> Connection {
        connection(&self.kubeconfig)
    }

    /// The same cluster with another backend.
    pub(crate) fn with_backend(self, backend: KubernetesBackend) -> Self {
        Self { backend, ..self }
    }

    /// A backend of another process on the same cluster.
    pub(crate) fn another_backend(&self) -> KubernetesBackend {
        backend(&self.kubeconfig)
    }

    /// One that has a running instance.
    pub(crate) async fn with_instance() -> (Self, Target) {
        let (fixture, target) = (Self::new().await, target(1));
        fixture.backend.create(&cx(), &target).await.unwrap();
        fixture.until(&target, Phase::Running).await;
        fixture.server.seen();
        (fixture, target)
    }

    /// What is seen of a target.
    pub(crate) async fn observe(&self, target: &Target) -> Observed {
        self.backend.observe(&cx(), target).await.unwrap()
    }

    /// Waits until an instance is seen in this phase. Absent meanwhile is a lie.
    pub(crate) async fn until(&self, target: &Target, phase: Phase) {
        for _ in 0..1500 {
            match self.observe(target).await {
                Observed::Present(present) if present.phase == phase => return,
                Observed::Absent => panic!("it is there, and was told to be absent"),
                _ => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
        panic!("not {phase:?} in time");
    }

    /// The namespace of the one instance.
    pub(crate) fn namespace(&self) -> String {
        let namespaces =
            self.server.world(|world| world.list("namespaces", None, "app.kubernetes.io/managed-by=provisioner"));
        namespaces[0]["metadata"]["name"].as_str().unwrap().to_owned()
    }

    /// The key of its only object of a kind.
    pub(crate) fn key_of(&self, plural: &str) -> crate::world::Key {
        let namespace = self.namespace();
        let object = self.server.world(|world| world.list(plural, Some(&namespace), "")[0].clone());
        crate::world::key(plural, &namespace, object["metadata"]["name"].as_str().unwrap())
    }
}

fn connection(kubeconfig: &NamedTempFile) -> Connection {
    Connection::Kubeconfig { path: Some(kubeconfig.path().to_owned()), context: None }
}

/// A cell that has an ingress controller.
pub(crate) fn config(connection: Connection) -> KubernetesConfig {
    let ingress = IngressConfig {
        class: "nginx".into(),
        controller_namespace: [("name".to_owned(), "ingress".to_owned())].into(),
        tls: false,
        annotations: [].into(),
    };
    KubernetesConfig { connection, ingress: Some(ingress), ..KubernetesConfig::default() }
}

fn backend(kubeconfig: &NamedTempFile) -> KubernetesBackend {
    config(connection(kubeconfig)).build().unwrap()
}

/// A call with a deadline.
pub(crate) fn cx() -> OpContext {
    OpContext::new(ControlPlaneId::new("wire").unwrap()).with_timeout(Duration::from_secs(10))
}

/// A call soon after another one that may have changed something.
pub(crate) fn cx_after_a_call() -> OpContext {
    let mut cx = cx();
    cx.since_last_call = Some(Duration::from_millis(100));
    cx
}

/// An instance at this generation of its spec.
pub(crate) fn target(generation: u64) -> Target {
    let mut workload = Workload::new(format!("1.{generation}"));
    workload.image = Some(format!("registry.example/product:1.{generation}"));
    workload.port = Some(8080);
    Target {
        id: InstanceId::new("acme").unwrap(),
        tenant: TenantId::new("Acme").unwrap(),
        incarnation: Incarnation::new(1, 7),
        generation: Generation(generation),
        spec: Arc::new(InstanceSpec::new(workload)),
        data: DataSource::Fresh(DataId::from_random(11)),
    }
}
