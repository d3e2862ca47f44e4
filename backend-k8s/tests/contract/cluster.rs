//! The real cluster: the way to it, an account with the rights of the manifest alone, and the product's image.

use std::time::{Duration, Instant};

use k8s_openapi::{
    api::{
        authentication::v1::{TokenRequest, TokenRequestSpec},
        authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec},
        core::v1::{Namespace, Service, ServiceAccount},
        rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding, RoleRef, Subject},
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{
    Api, Client, Config, Resource, ResourceExt,
    api::{DeleteParams, Patch, PatchParams, PostParams},
    config::AuthInfo,
};
use provisioner_core::types::{InstanceSpec, Workload};
use serde::{Serialize, de::DeserializeOwned};
use test_peers::kubernetes::{
    self as peer, Image,
    volumes::{CLASS, Volumes},
};
use tokio::net::TcpStream;

/// The namespace of the accounts that tests use.
pub(crate) const ACCOUNTS: &str = "provisioner-tests";
/// The image of the product, and of what starts it.
pub(crate) const IMAGE: &str = "localhost/k8s-contract-product:1";
/// A connection inside of one machine takes no time.
const REACHED_WITHIN: Duration = Duration::from_secs(5);
const ROLE: &str = include_str!("../../manifests/cluster-role.yaml");
const SHARED_ROLE: &str = include_str!("../../manifests/shared-namespace.yaml");
/// The namespace that customers share.
pub(crate) const SHARED: &str = "provisioner-tests-shared";

/// What an account may do: what one of the manifests says, and nothing else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rights {
    /// `cluster-role.yaml`.
    Cluster,
    /// `shared-namespace.yaml`, in [`SHARED`].
    Shared,
}

/// A cluster that answers.
#[derive(Clone)]
pub(crate) struct Cluster {
    pub(crate) peer: peer::Cluster,
    config: Config,
    /// Somebody with all rights.
    pub(crate) admin: Client,
    /// What makes volumes. `None`: the cluster does.
    pub(crate) volumes: Option<Volumes>,
    /// The class of claims. `None`: the cluster's default.
    pub(crate) class: Option<String>,
}

impl Cluster {
    /// The one that tests use, with all on it that they need; or why there is none.
    pub(crate) async fn ready() -> Result<Self, String> {
        let cluster = Self::found().await?;
        cluster.expect_addresses().await?;
        cluster.peer.load(&image())?;
        Ok(cluster)
    }

    /// The same without the product's image.
    pub(crate) async fn found() -> Result<Self, String> {
        let peer = peer::Cluster::find()?;
        let config = peer.config().await?;
        let admin = Client::try_from(config.clone()).map_err(|error| error.to_string())?;
        let volumes = Volumes::prepare(&peer).await?;
        let class = volumes.is_some().then(|| CLASS.to_owned());
        apply(&admin, &Namespace { metadata: named(ACCOUNTS), ..Namespace::default() }).await?;
        let role: ClusterRole = serde_saphyr::from_str(ROLE).expect("the manifest is a cluster role");
        apply(&admin, &role).await?;
        apply(&admin, &Namespace { metadata: named(SHARED), ..Namespace::default() }).await?;
        let (role, identity) = SHARED_ROLE.split_once("\n---\n").expect("the manifest is a role and a cluster role");
        let role: Role = serde_saphyr::from_str(role).expect("the first of them is a role");
        apply_by(&Api::namespaced(admin.clone(), SHARED), &role).await?;
        let identity: ClusterRole = serde_saphyr::from_str(identity).expect("the second of them is a cluster role");
        apply(&admin, &identity).await?;
        Ok(Self { peer, config, admin, volumes, class })
    }

    /// Pods and services have to be reached from here by their addresses: those of a cluster in containers cannot.
    async fn expect_addresses(&self) -> Result<(), String> {
        let services = Api::<Service>::namespaced(self.admin.clone(), "default");
        let service = services.get("kubernetes").await.map_err(|error| error.to_string())?;
        let address =
            service.spec.and_then(|spec| spec.cluster_ip).ok_or("the cluster's own service has no address")?;
        let connected = TcpStream::connect((address.as_str(), 443));
        match tokio::time::timeout(REACHED_WITHIN, connected).await {
            Ok(Ok(_)) => Ok(()),
            _ => Err(format!(
                "services of this cluster, such as {address}, are not reached from here by their addresses"
            )),
        }
    }

    /// A client of an account of this name.
    pub(crate) async fn account(&self, name: &str, rights: Rights) -> kube::Result<Client> {
        let accounts = Api::<ServiceAccount>::namespaced(self.admin.clone(), ACCOUNTS);
        let account = ServiceAccount { metadata: named(name), ..ServiceAccount::default() };
        accounts.create(&PostParams::default(), &account).await?;
        self.allow(name, rights, true).await?;
        let request = TokenRequest {
            spec: TokenRequestSpec { audiences: Vec::new(), expiration_seconds: Some(7200), bound_object_ref: None },
            ..TokenRequest::default()
        };
        let token = accounts.create_token_request(name, &PostParams::default(), &request).await?;
        let token = token.status.expect("a token was asked for").token;
        self.until_rights_are(name, rights, true).await.map_err(|error| kube::Error::Service(error.into()))?;
        let mut config = self.config.clone();
        config.auth_info = AuthInfo { token: Some(token.into()), ..AuthInfo::default() };
        Client::try_from(config)
    }

    /// Gives an account its rights, or takes them away.
    pub(crate) async fn allow(&self, name: &str, rights: Rights, allowed: bool) -> kube::Result<()> {
        let everywhere = Api::<ClusterRoleBinding>::all(self.admin.clone());
        let inside = Api::<RoleBinding>::namespaced(self.admin.clone(), SHARED);
        if !allowed {
            everywhere.delete(name, &DeleteParams::default()).await?;
            if rights == Rights::Shared {
                inside.delete(name, &DeleteParams::default()).await?;
            }
            return Ok(());
        }
        let role = |kind: &str, name: &str| RoleRef {
            api_group: "rbac.authorization.k8s.io".into(),
            kind: kind.into(),
            name: name.into(),
        };
        let subjects = Some(vec![Subject {
            kind: "ServiceAccount".into(),
            name: name.into(),
            namespace: Some(ACCOUNTS.into()),
            api_group: None,
        }]);
        if rights == Rights::Shared {
            let role_ref = role("Role", "provisioner");
            let binding = RoleBinding { metadata: named(name), role_ref, subjects: subjects.clone() };
            inside.create(&PostParams::default(), &binding).await?;
        }
        let role_ref = match rights {
            Rights::Cluster => role("ClusterRole", "provisioner"),
            Rights::Shared => role("ClusterRole", "provisioner-identity"),
        };
        let binding = ClusterRoleBinding { metadata: named(name), role_ref, subjects };
        everywhere.create(&PostParams::default(), &binding).await.map(drop)
    }

    /// Waits until the cluster heeds a change of an account's rights.
    pub(crate) async fn until_rights_are(&self, name: &str, rights: Rights, allowed: bool) -> Result<(), String> {
        let reviews = Api::<SubjectAccessReview>::all(self.admin.clone());
        let deadline = Instant::now() + RIGHTS_WITHIN;
        loop {
            let (resource, namespace) = match rights {
                Rights::Cluster => ("namespaces", None),
                Rights::Shared => ("configmaps", Some(SHARED.to_owned())),
            };
            let attributes = ResourceAttributes {
                namespace,
                resource: Some(resource.into()),
                verb: Some("create".into()),
                ..ResourceAttributes::default()
            };
            let spec = SubjectAccessReviewSpec {
                user: Some(format!("system:serviceaccount:{ACCOUNTS}:{name}")),
                resource_attributes: Some(attributes),
                ..SubjectAccessReviewSpec::default()
            };
            let review = SubjectAccessReview { spec, ..SubjectAccessReview::default() };
            let answer = reviews.create(&PostParams::default(), &review).await.map_err(|error| error.to_string())?;
            if answer.status.is_some_and(|status| status.allowed) == allowed {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err("the cluster does not heed a change of rights".into());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Removes an account and its rights.
    pub(crate) async fn forget(&self, name: &str) {
        // All of it may be gone already.
        for rights in [Rights::Shared, Rights::Cluster] {
            let _ = self.allow(name, rights, false).await;
        }
        let accounts = Api::<ServiceAccount>::namespaced(self.admin.clone(), ACCOUNTS);
        let _ = accounts.delete(name, &DeleteParams::default()).await;
    }

    /// Makes volumes for claims, where the cluster makes none by itself, for as long as this runs. Several may.
    pub(crate) async fn make_volumes(self) {
        if let Some(volumes) = self.volumes {
            volumes.make().await;
        }
    }
}

/// The product of `examples/`, and process 1 of its container.
fn image() -> Image {
    let image = Image::new(IMAGE, env!("CARGO_BIN_EXE_k8s-test-launcher")).with_file(benches::product(), "/product");
    // What starts the product does not ask for TERM, and what a product has written is there whichever way it ends.
    image.stopped_by("SIGKILL")
}

/// An instance of the product that takes little of the node.
pub(crate) fn spec(version: &str) -> InstanceSpec {
    let mut workload = Workload::new(version);
    workload.image = Some(IMAGE.into());
    workload.port = Some(8080);
    workload.health_path = "/healthz".into();
    workload.start_timeout_seconds = 60;
    workload.stop_grace_seconds = 0;
    let mut spec = InstanceSpec::new(workload);
    spec.size.cpu_millis = 500;
    spec.size.memory_mib = 32;
    spec.data.size_mib = 16;
    spec
}

pub(crate) fn named(name: &str) -> ObjectMeta {
    ObjectMeta { name: Some(name.into()), ..ObjectMeta::default() }
}

async fn apply<K>(client: &Client, object: &K) -> Result<(), String>
where
    K: Resource<DynamicType = ()> + Serialize + DeserializeOwned + Clone + Sync + std::fmt::Debug,
{
    apply_by(&Api::all(client.clone()), object).await
}

async fn apply_by<K>(api: &Api<K>, object: &K) -> Result<(), String>
where
    K: Resource<DynamicType = ()> + Serialize + DeserializeOwned + Clone + Sync + std::fmt::Debug,
{
    let parameters = PatchParams::apply("provisioner-tests").force();
    let applied = api.patch(&object.name_any(), &parameters, &Patch::Apply(object)).await;
    applied.map(drop).map_err(|error| error.to_string())
}

/// Longer than an authorizer takes to hear of a right on a busy machine.
const RIGHTS_WITHIN: Duration = Duration::from_secs(60);
