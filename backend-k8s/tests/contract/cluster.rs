//! The real cluster: the way to it, an account with the rights of the manifest alone, and volumes on the node's disk.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    time::{Duration, Instant},
};

use futures::StreamExt;
use k8s_openapi::{
    api::{
        authentication::v1::{TokenRequest, TokenRequestSpec},
        authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec},
        core::v1::{
            HostPathVolumeSource, Namespace, ObjectReference, PersistentVolume, PersistentVolumeClaim,
            PersistentVolumeSpec, ServiceAccount,
        },
        rbac::v1::{ClusterRole, ClusterRoleBinding, RoleRef, Subject},
        storage::v1::StorageClass,
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{
    Api, Client, Config, Resource, ResourceExt,
    api::{DeleteParams, Patch, PatchParams, PostParams},
    config::{AuthInfo, KubeConfigOptions, Kubeconfig},
    runtime::{WatchStreamExt, watcher},
};
use serde::{Serialize, de::DeserializeOwned};
use test_peers::kubernetes::{self as peer, Image, Origin};

/// The class of the volumes that are made here.
const CLASS: &str = "provisioner-tests";
/// The namespace of the accounts that tests use.
const ACCOUNTS: &str = "provisioner-tests";
/// The image of the product, and of what starts it.
pub(crate) const IMAGE: &str = "localhost/k8s-contract-product:1";
const ROLE: &str = include_str!("../../manifests/cluster-role.yaml");

/// A cluster that answers.
#[derive(Clone)]
pub(crate) struct Cluster {
    config: Config,
    /// Somebody with all rights.
    pub(crate) admin: Client,
    /// The class of claims. `None`: the cluster's default.
    pub(crate) class: Option<String>,
}

impl Cluster {
    /// The one that tests use, with all on it that they need; or why there is none.
    pub(crate) async fn ready() -> Result<Self, String> {
        let found = peer::Cluster::find()?;
        let text = |error: &dyn std::fmt::Display| error.to_string();
        let path = PathBuf::from(found.kubeconfig());
        let kubeconfig = Kubeconfig::read_from(path).map_err(|error| text(&error))?;
        let options = KubeConfigOptions::default();
        let config = Config::from_custom_kubeconfig(kubeconfig, &options).await.map_err(|error| text(&error))?;
        let admin = Client::try_from(config.clone()).map_err(|error| text(&error))?;
        let class = match found.origin() {
            // It makes no volumes by itself.
            Origin::Scripts => Some(CLASS.to_owned()),
            Origin::Kind | Origin::Named => None,
        };
        found.load(&image())?;
        let cluster = Self { config, admin, class };
        cluster.prepare().await.map_err(|error| text(&error))?;
        Ok(cluster)
    }

    async fn prepare(&self) -> kube::Result<()> {
        apply(&self.admin, &Namespace { metadata: named(ACCOUNTS), ..Namespace::default() }).await?;
        let role: ClusterRole = serde_saphyr::from_str(ROLE).expect("the manifest is a cluster role");
        apply(&self.admin, &role).await?;
        if self.class.is_some() {
            let class = StorageClass {
                metadata: named(CLASS),
                provisioner: "provisioner.internal/tests".into(),
                volume_binding_mode: Some("Immediate".into()),
                ..StorageClass::default()
            };
            apply(&self.admin, &class).await?;
        }
        Ok(())
    }

    /// A client of an account of this name, which may do what the manifest says and nothing else.
    pub(crate) async fn account(&self, name: &str) -> kube::Result<Client> {
        let accounts = Api::<ServiceAccount>::namespaced(self.admin.clone(), ACCOUNTS);
        let account = ServiceAccount { metadata: named(name), ..ServiceAccount::default() };
        accounts.create(&PostParams::default(), &account).await?;
        self.allow(name, true).await?;
        let request = TokenRequest {
            spec: TokenRequestSpec { audiences: Vec::new(), expiration_seconds: Some(7200), bound_object_ref: None },
            ..TokenRequest::default()
        };
        let token = accounts.create_token_request(name, &PostParams::default(), &request).await?;
        let token = token.status.expect("a token was asked for").token;
        self.until_rights_are(name, true).await.map_err(|error| kube::Error::Service(error.into()))?;
        let mut config = self.config.clone();
        config.auth_info = AuthInfo { token: Some(token.into()), ..AuthInfo::default() };
        Client::try_from(config)
    }

    /// Gives an account its rights, or takes them away.
    pub(crate) async fn allow(&self, name: &str, allowed: bool) -> kube::Result<()> {
        let bindings = Api::<ClusterRoleBinding>::all(self.admin.clone());
        if !allowed {
            bindings.delete(name, &DeleteParams::default()).await?;
            return Ok(());
        }
        let role = "rbac.authorization.k8s.io";
        let binding = ClusterRoleBinding {
            metadata: named(name),
            role_ref: RoleRef { api_group: role.into(), kind: "ClusterRole".into(), name: "provisioner".into() },
            subjects: Some(vec![Subject {
                kind: "ServiceAccount".into(),
                name: name.into(),
                namespace: Some(ACCOUNTS.into()),
                api_group: None,
            }]),
        };
        bindings.create(&PostParams::default(), &binding).await.map(drop)
    }

    /// Waits until the cluster heeds a change of an account's rights.
    pub(crate) async fn until_rights_are(&self, name: &str, allowed: bool) -> Result<(), String> {
        let reviews = Api::<SubjectAccessReview>::all(self.admin.clone());
        let deadline = Instant::now() + RIGHTS_WITHIN;
        loop {
            let attributes = ResourceAttributes {
                resource: Some("namespaces".into()),
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
        // Both may be gone already.
        let _ = self.allow(name, false).await;
        let accounts = Api::<ServiceAccount>::namespaced(self.admin.clone(), ACCOUNTS);
        let _ = accounts.delete(name, &DeleteParams::default()).await;
    }

    /// Makes a volume on the node's disk for every claim of our class, for as long as this runs. Several may.
    pub(crate) async fn make_volumes(self) {
        let claims = Api::<PersistentVolumeClaim>::all(self.admin.clone());
        let mut events = watcher(claims, watcher::Config::default()).default_backoff().boxed();
        while let Some(event) = events.next().await {
            match event {
                Ok(watcher::Event::Apply(claim) | watcher::Event::InitApply(claim)) => {
                    if let Err(error) = self.make_volume(&claim).await {
                        eprintln!("no volume for {}: {error}", claim.name_any());
                    }
                }
                Ok(watcher::Event::Delete(claim)) => self.remove_volume(&claim).await,
                _ => {}
            }
        }
    }

    async fn make_volume(&self, claim: &PersistentVolumeClaim) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let spec = claim.spec.as_ref().ok_or("a claim without a spec")?;
        let is_ours = spec.storage_class_name == self.class && self.class.is_some();
        let is_bound = claim.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Bound");
        if !is_ours || is_bound || spec.volume_name.is_some() || claim.metadata.deletion_timestamp.is_some() {
            return Ok(());
        }
        let folder = folder_of(claim)?;
        fs::create_dir_all(&folder)?;
        // Nobody gives folders of the node's disk to the group of a pod.
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o777))?;
        let requests = spec.resources.as_ref().and_then(|resources| resources.requests.clone());
        let volume = PersistentVolume {
            metadata: named(&volume_name(claim)),
            spec: Some(PersistentVolumeSpec {
                access_modes: spec.access_modes.clone(),
                capacity: requests,
                storage_class_name: self.class.clone(),
                persistent_volume_reclaim_policy: Some("Retain".into()),
                host_path: Some(HostPathVolumeSource {
                    path: folder.to_string_lossy().into_owned(),
                    type_: Some("Directory".into()),
                }),
                claim_ref: Some(ObjectReference {
                    namespace: claim.namespace(),
                    name: claim.metadata.name.clone(),
                    uid: claim.uid(),
                    ..ObjectReference::default()
                }),
                ..PersistentVolumeSpec::default()
            }),
            status: None,
        };
        match Api::<PersistentVolume>::all(self.admin.clone()).create(&PostParams::default(), &volume).await {
            Err(kube::Error::Api(status)) if status.is_already_exists() => Ok(()),
            done => Ok(done.map(drop)?),
        }
    }

    /// Another one of us may have done it.
    async fn remove_volume(&self, claim: &PersistentVolumeClaim) {
        let is_ours = claim.spec.as_ref().is_some_and(|spec| spec.storage_class_name == self.class);
        if !is_ours || self.class.is_none() {
            return;
        }
        let volumes = Api::<PersistentVolume>::all(self.admin.clone());
        let _ = volumes.delete(&volume_name(claim), &DeleteParams::default()).await;
        if let Ok(folder) = folder_of(claim) {
            let _ = fs::remove_dir_all(folder);
        }
    }
}

/// The product of `examples/`, and process 1 of its container.
fn image() -> Image {
    let image = Image::new(IMAGE, env!("CARGO_BIN_EXE_k8s-test-launcher")).with_file(benches::product(), "/product");
    // What starts the product does not ask for TERM, and what a product has written is there whichever way it ends.
    image.stopped_by("SIGKILL")
}

fn volume_name(claim: &PersistentVolumeClaim) -> String {
    format!("test-{}", claim.uid().unwrap_or_default())
}

fn folder_of(claim: &PersistentVolumeClaim) -> Result<PathBuf, String> {
    Ok(peer::folder()?.join("volumes").join(volume_name(claim)))
}

pub(crate) fn named(name: &str) -> ObjectMeta {
    ObjectMeta { name: Some(name.into()), ..ObjectMeta::default() }
}

async fn apply<K>(client: &Client, object: &K) -> kube::Result<()>
where
    K: Resource<DynamicType = ()> + Serialize + DeserializeOwned + Clone + Sync + std::fmt::Debug,
{
    let api = Api::<K>::all(client.clone());
    let parameters = PatchParams::apply("provisioner-tests").force();
    api.patch(&object.name_any(), &parameters, &Patch::Apply(object)).await.map(drop)
}

/// Longer than an authorizer takes to hear of a right.
const RIGHTS_WITHIN: Duration = Duration::from_secs(10);
