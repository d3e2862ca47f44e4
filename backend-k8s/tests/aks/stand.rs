//! A backend of a cluster by name, and all that it leads to.

use std::{fs, os::unix::fs::PermissionsExt, path::PathBuf, sync::Arc};

use backend_k8s::{AksCluster, Connection, Https, KubernetesBackend, KubernetesConfig, render::NamespaceEach};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use provisioner_core::{Provisioner, Result};
use tempfile::TempDir;
use test_azure::{Azure, Options};

use crate::{credential::Credential, door::Door, fixture::cx, server::Server};

/// The name of the cluster.
pub(crate) const NAME: &str = "cell-1";
/// Whose tokens the cluster wants.
pub(crate) const SERVER_ID: &str = "11111111-2222-4333-8444-555555555555";
/// As the contract names the call.
pub(crate) const CALL: &str = "ManagedClusters_ListClusterUserCredentials";

/// Azure with a cluster, and a backend that knows its name.
pub(crate) struct Stand {
    pub(crate) azure: Azure,
    _server: Server,
    pub(crate) door: Door,
    pub(crate) credential: Arc<Credential>,
    pub(crate) backend: KubernetesBackend,
    folder: TempDir,
}

impl Stand {
    /// One whose cluster is not there yet.
    pub(crate) async fn without_cluster() -> Self {
        let azure = Azure::start(Options { boots: false, ..Options::default() }).await.unwrap();
        let server = Server::start().await;
        let door = Door::open(server.address).await;
        let credential = Arc::new(Credential::new(&azure));
        let https = Https::with_roots(azure.ca_pem()).unwrap();
        let signed_in = Arc::clone(&credential);
        let backend = config(&azure).build_with_credential(signed_in, &https, NamespaceEach).unwrap();
        Self { azure, _server: server, door, credential, backend, folder: TempDir::new().unwrap() }
    }

    /// One whose kubeconfig has this user, in YAML.
    pub(crate) async fn with_user(user: &str) -> Self {
        let stand = Self::without_cluster().await;
        stand.azure.add_cluster(NAME, stand.kubeconfig(user));
        stand
    }

    /// One whose cluster wants tokens of Entra ID, as its kubeconfig says to `kubelogin`.
    pub(crate) async fn with_entra_id() -> Self {
        let stand = Self::without_cluster().await;
        let arguments = format!("get-token, --login, devicecode, --server-id, {SERVER_ID}, --tenant-id, t");
        stand.azure.add_cluster(NAME, stand.kubeconfig(&stand.plugin(&arguments)));
        stand
    }

    pub(crate) fn kubeconfig(&self, user: &str) -> String {
        let (url, ca) = (&self.door.url, BASE64_STANDARD.encode(&self.door.ca_pem));
        format!(
            "{{apiVersion: v1, kind: Config, current-context: {NAME},\n\
             contexts: [{{name: {NAME}, context: {{cluster: {NAME}, user: clusterUser}}}}],\n\
             clusters: [{{name: {NAME}, cluster: {{server: \"{url}\", certificate-authority-data: {ca}}}}}],\n\
             users: [{{name: clusterUser, user: {user}}}]}}\n"
        )
    }

    /// A user who is signed in by a program, which leaves a mark when it runs.
    pub(crate) fn plugin(&self, arguments: &str) -> String {
        let program = self.folder.path().join("kubelogin");
        let script = format!("#!/bin/sh\ntouch {}\necho '{{}}'\n", self.mark().display());
        fs::write(&program, script).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        format!(
            "{{exec: {{apiVersion: client.authentication.k8s.io/v1beta1, command: {}, args: [{arguments}]}}}}",
            program.display()
        )
    }

    fn mark(&self) -> PathBuf {
        self.folder.path().join("ran")
    }

    /// The plugin was never run.
    #[track_caller]
    pub(crate) fn assert_nothing_ran(&self) {
        assert!(self.folder.path().join("kubelogin").exists(), "there is none");
        assert!(!self.mark().exists(), "the plugin was run");
    }

    /// How often the way was asked for.
    pub(crate) fn asked_azure(&self) -> u64 {
        self.azure.calls_of().get(CALL).copied().unwrap_or_default()
    }

    pub(crate) async fn identity(&self) -> Result<String> {
        self.backend.identity(&cx()).await
    }
}

pub(crate) fn config(azure: &Azure) -> KubernetesConfig {
    let cluster = AksCluster {
        subscription: azure.subscription().to_owned(),
        resource_group: azure.resource_group().to_owned(),
        name: NAME.to_owned(),
        endpoint: Some(azure.endpoint().to_owned()),
    };
    KubernetesConfig { connection: Connection::Aks(cluster), ..KubernetesConfig::default() }
}
