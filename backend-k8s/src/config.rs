//! What the backend is told, checked before anything is touched.

use std::{collections::BTreeMap, path::PathBuf};

use provisioner_core::{
    Error, ErrorKind, Result,
    types::{Network, SizeMax},
};
use serde::{Deserialize, Serialize};

use crate::{
    aks::AksCluster,
    backend::KubernetesBackend,
    cluster::Cluster,
    render::{Layout, NamespaceEach, Namespaces},
};

/// What the backend is told about one cluster.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct KubernetesConfig {
    /// How the cluster is reached.
    pub connection: Connection,
    /// The storage class of claims. `None`: the cluster's default class.
    pub storage_class: Option<String>,
    /// Whether that class lets a claim grow. Without it a change of `data.size_mib` is refused.
    pub volume_expansion: bool,
    /// How instances are reached from outside. `None`: by the names of their services inside the cluster alone; specs with
    /// host names are refused.
    pub ingress: Option<IngressConfig>,
    /// Who may reach instances beside the ingress controller: an activator, a mesh, an ingress controller on the nodes'
    /// own network. With nobody here and no ingress, only what the node itself does comes through, such as
    /// `kubectl port-forward`, where the cluster enforces network policies.
    pub admitted: Vec<Peer>,
    /// Where the cluster's name servers are, for instances that may not reach everything. Empty: port 53 of any address.
    pub name_servers: Vec<Peer>,
    /// What may run in an instance's namespace beside the product, where it has one of its own.
    pub beside: Beside,
    /// The labels that a node must have.
    pub node_selector: BTreeMap<String, String>,
    /// The taints of nodes that instances put up with.
    pub tolerations: Vec<Toleration>,
    /// The priority class of pods.
    pub priority_class: Option<String>,
    /// The secrets of image registries, by their names in the namespace of each instance.
    pub image_pull_secrets: Vec<String>,
    /// When images are pulled: `Always`, `IfNotPresent` or `Never`. `None`: as Kubernetes decides by the tag.
    pub image_pull_policy: Option<String>,
    /// The user and group that products run as, other than 0; also the group that owns their data.
    pub run_as: RunAs,
    /// Whether a product's own file system is read-only; its data and `/tmp` are not.
    pub read_only_root: bool,
    /// How much of its CPU time an instance is promised, in percent. The rest of its size it has while its node has it to
    /// spare, so that more instances fit on a node than could be busy at once. `None`: all of it. Memory is always promised.
    pub cpu_reserved_percent: Option<u8>,
    /// The largest size of one instance.
    pub size_max: SizeMax,
}

/// How the cluster is reached.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
#[non_exhaustive]
pub enum Connection {
    /// As `kubectl` does: by `KUBECONFIG` or `~/.kube/config`, else from inside the cluster.
    #[default]
    Inferred,
    /// By a kubeconfig file.
    Kubeconfig {
        /// The file. `None`: `KUBECONFIG` or `~/.kube/config`.
        #[serde(default)]
        path: Option<PathBuf>,
        /// The context by name. `None`: the current one.
        #[serde(default)]
        context: Option<String>,
    },
    /// By the service account of the pod that this runs in.
    InCluster,
    /// By its name at Azure. Refused without the feature `aks`.
    Aks(AksCluster),
}

/// How instances are reached from outside the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IngressConfig {
    /// The class of the ingress controller.
    pub class: String,
    /// The labels of the namespace that the controller runs in: traffic from there reaches instances. Clusters since 1.21
    /// label each namespace with its name, as `kubernetes.io/metadata.name`.
    pub controller_namespace: BTreeMap<String, String>,
    /// Whether there is TLS, with a certificate in the secret `tls` of each namespace, or in one for each data set where they share
    /// a namespace, as cert-manager makes it when the annotations name an issuer.
    #[serde(default)]
    pub tls: bool,
    /// Annotations of every ingress.
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
}

/// The other end of a connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Peer {
    /// The pods of namespaces with these labels.
    Namespace(BTreeMap<String, String>),
    /// A network, such as `10.240.0.0/16`. Of pods, most clusters heed the other kind of peer alone.
    Network(Network),
}

/// Room for what runs in an instance's namespace beside the product: solvers of cert-manager, sidecars that a webhook adds.
/// None by default: then the namespace's quota is the instance's size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Beside {
    /// Pods of their own.
    pub pods: u32,
    /// Thousandths of a CPU, of all containers together; also what a container gets that says nothing.
    pub cpu_millis: u32,
    /// Mebibytes of memory, of all containers together; also what a container gets that says nothing.
    pub memory_mib: u32,
    /// Ports of nodes, as solvers of cert-manager have them unless their issuer says `serviceType: ClusterIP`.
    pub node_ports: u32,
}

/// The user and group that products run as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunAs {
    /// The user.
    pub user: u32,
    /// The group.
    pub group: u32,
}

impl Default for RunAs {
    /// Nobody, as distroless images call it.
    fn default() -> Self {
        Self { user: 65_532, group: 65_532 }
    }
}

/// A taint of nodes that instances put up with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Toleration {
    /// The key of the taint.
    pub key: String,
    /// Its value. `None`: any.
    #[serde(default)]
    pub value: Option<String>,
    /// Its effect. `None`: any.
    #[serde(default)]
    pub effect: Option<String>,
}

impl KubernetesConfig {
    /// Checks everything and makes the backend of it, with the usual layout: a namespace for each data set. Touches nothing. A
    /// cluster of Azure is reached as whoever runs this.
    ///
    /// # Errors
    /// [`InvalidSpec`](ErrorKind::InvalidSpec) naming the first field that is wrong and what was expected;
    /// [`Unauthorized`](ErrorKind::Unauthorized) when the cluster is one of Azure and nobody is signed in there.
    pub fn build(self) -> Result<KubernetesBackend> {
        self.build_with(None, NamespaceEach)
    }

    /// The same with the caller's own client, another layout, or both.
    ///
    /// # Errors
    /// As [`build`](Self::build).
    pub fn build_with(self, client: Option<kube::Client>, layout: impl Layout) -> Result<KubernetesBackend> {
        self.check()?;
        check_namespaces(&layout.namespaces())?;
        let cluster = Cluster::new(self.connection.clone(), client)?;
        Ok(KubernetesBackend::new(self, cluster, Box::new(layout)))
    }

    /// The same for a [cluster of Azure](Connection::Aks), with the caller's own credential and HTTP client for Azure. The credential
    /// signs in at Resource Manager, and at the cluster if that wants tokens of Entra ID.
    ///
    /// # Errors
    /// [`InvalidSpec`](ErrorKind::InvalidSpec) naming the first field that is wrong and what was expected.
    #[cfg(feature = "aks")]
    pub fn build_with_credential(
        self,
        credential: std::sync::Arc<dyn provisioner_azure::TokenCredential>,
        https: &provisioner_azure::Https,
        layout: impl Layout,
    ) -> Result<KubernetesBackend> {
        self.check()?;
        check_namespaces(&layout.namespaces())?;
        let Connection::Aks(cluster) = &self.connection else {
            return Err(wrong("connection", "expected aks, as no other one takes a credential of Azure"));
        };
        let azure = crate::aks::Azure::new(cluster.clone(), credential, https)?;
        let cluster = Cluster::of_azure(self.connection.clone(), azure);
        Ok(KubernetesBackend::new(self, cluster, Box::new(layout)))
    }

    fn check(&self) -> Result<()> {
        self.check_connection()?;
        if let Some(policy) = &self.image_pull_policy
            && !["Always", "IfNotPresent", "Never"].contains(&policy.as_str())
        {
            return Err(wrong("image_pull_policy", "expected Always, IfNotPresent or Never"));
        }
        for (field, id) in [("run_as.user", self.run_as.user), ("run_as.group", self.run_as.group)] {
            // Kubernetes takes signed numbers.
            if id == 0 || id > i32::MAX as u32 {
                return Err(wrong(field, "expected 1 to 2147483647"));
            }
        }
        if let Some(ingress) = &self.ingress {
            if ingress.class.is_empty() {
                return Err(wrong("ingress.class", "empty: expected the name of an ingress class"));
            }
            if ingress.controller_namespace.is_empty() {
                return Err(wrong("ingress.controller_namespace", "empty: expected the labels of one namespace"));
            }
        }
        for (field, peers) in [("admitted", &self.admitted), ("name_servers", &self.name_servers)] {
            if let Some(i) = peers.iter().position(|peer| *peer == Peer::Namespace(BTreeMap::new())) {
                return Err(wrong(&format!("{field}[{i}].namespace"), "empty: expected labels of namespaces"));
            }
        }
        let beside = self.beside;
        if (beside.cpu_millis == 0) != (beside.memory_mib == 0) || (beside.pods > 0 && beside.cpu_millis == 0) {
            return Err(wrong("beside", "expected both cpu_millis and memory_mib, or nothing at all"));
        }
        for (i, toleration) in self.tolerations.iter().enumerate() {
            let effects = ["NoSchedule", "PreferNoSchedule", "NoExecute"];
            if toleration.effect.as_deref().is_some_and(|effect| !effects.contains(&effect)) {
                let field = format!("tolerations[{i}].effect");
                return Err(wrong(&field, "expected NoSchedule, PreferNoSchedule or NoExecute"));
            }
        }
        if self.cpu_reserved_percent.is_some_and(|percent| !(1..=100).contains(&percent)) {
            return Err(wrong("cpu_reserved_percent", "expected 1 to 100"));
        }
        for (field, value) in [
            ("size_max.cpu_millis", self.size_max.cpu_millis),
            ("size_max.memory_mib", self.size_max.memory_mib),
            ("size_max.data_mib", self.size_max.data_mib),
        ] {
            if value == 0 {
                return Err(wrong(field, "0: expected 1 or more"));
            }
        }
        Ok(())
    }

    fn check_connection(&self) -> Result<()> {
        let Connection::Aks(cluster) = &self.connection else { return Ok(()) };
        if !cfg!(feature = "aks") {
            return Err(wrong("connection.aks", "this program was built without the feature `aks` of backend-k8s"));
        }
        match cluster.problem() {
            Some((field, problem)) => Err(wrong(&format!("connection.aks.{field}"), problem)),
            None => Ok(()),
        }
    }
}

fn wrong(field: &str, problem: &str) -> Error {
    Error::new(ErrorKind::InvalidSpec, "configure").with_field(field).with_message(problem)
}

/// As the cluster wants its namespaces called; see
/// <https://kubernetes.io/docs/concepts/overview/working-with-objects/names/#dns-label-names>.
fn check_namespaces(namespaces: &Namespaces) -> Result<()> {
    let Some(name) = namespaces.shared() else { return Ok(()) };
    let is_plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let is_label = (1..=63).contains(&name.len())
        && name.chars().all(|c| is_plain(c) || c == '-')
        && name.starts_with(is_plain)
        && name.ends_with(is_plain);
    if is_label {
        return Ok(());
    }
    Err(wrong("layout.namespaces", "expected 1 to 63 lower-case letters, digits and inner dashes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn assert_refused(change: impl FnOnce(&mut KubernetesConfig), field: &str) {
        let mut config = KubernetesConfig::default();
        change(&mut config);
        let error = config.build().unwrap_err();
        assert_eq!((error.kind(), error.field()), (ErrorKind::InvalidSpec, Some(field)));
    }

    #[test]
    fn each_wrong_field_is_named() {
        assert_refused(|c| c.image_pull_policy = Some("Sometimes".into()), "image_pull_policy");
        assert_refused(|c| c.run_as.user = 0, "run_as.user");
        assert_refused(|c| c.run_as.group = u32::MAX, "run_as.group");
        assert_refused(|c| c.cpu_reserved_percent = Some(0), "cpu_reserved_percent");
        assert_refused(|c| c.cpu_reserved_percent = Some(101), "cpu_reserved_percent");
        assert_refused(|c| c.size_max.data_mib = 0, "size_max.data_mib");
        let ingress = IngressConfig {
            class: String::new(),
            controller_namespace: BTreeMap::new(),
            tls: false,
            annotations: BTreeMap::new(),
        };
        assert_refused(|c| c.ingress = Some(ingress.clone()), "ingress.class");
        assert_refused(
            |c| c.ingress = Some(IngressConfig { class: "nginx".into(), ..ingress.clone() }),
            "ingress.controller_namespace",
        );
        let toleration = Toleration { key: "k".into(), value: None, effect: Some("Never".into()) };
        assert_refused(|c| c.admitted = vec![Peer::Namespace(BTreeMap::new())], "admitted[0].namespace");
        assert_refused(|c| c.beside.pods = 1, "beside");
        assert_refused(|c| c.tolerations = vec![toleration], "tolerations[0].effect");
        assert_eq!(KubernetesConfig::default().build().unwrap().to_string(), "Kubernetes(inferred)");
    }

    #[test]
    fn a_cluster_of_azure_is_read_and_checked() {
        let text = r#"{"connection": {"aks": {"subscription": "0-1", "resource_group": "cells", "name": "cell/1"}}}"#;
        let config: KubernetesConfig = serde_json::from_str(text).unwrap();
        let error = config.build().unwrap_err();
        let field = if cfg!(feature = "aks") { "connection.aks.name" } else { "connection.aks" };
        assert_eq!((error.kind(), error.field()), (ErrorKind::InvalidSpec, Some(field)), "{error}");
        assert!(serde_json::from_str::<KubernetesConfig>(&text.replace("name", "cluster")).is_err());
    }

    #[test]
    fn reads_from_a_file_and_refuses_unknown_fields() {
        let text = r#"{"connection": {"kubeconfig": {"context": "prod"}}, "storage_class": "fast",
            "admitted": [{"network": "10.240.0.0/16"}, {"namespace": {"name": "activator"}}]}"#;
        let config: KubernetesConfig = serde_json::from_str(text).unwrap();
        assert_eq!(config.storage_class.as_deref(), Some("fast"));
        assert_eq!(config.admitted[0], Peer::Network("10.240.0.0/16".parse().unwrap()));
        assert!(
            matches!(config.connection, Connection::Kubeconfig { context: Some(context), .. } if context == "prod")
        );
        assert!(serde_json::from_str::<KubernetesConfig>(r#"{"storage": "fast"}"#).is_err());
    }
}
