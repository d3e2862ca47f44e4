//! The way to a cluster, asked at Azure Resource Manager.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use kube::Client;
use provisioner_account::{Failure as AccountFailure, Many};
use provisioner_azure::{
    Arm, ArmOptions, Https, Scope, TokenCredential,
    containers::{Credentials, PROVIDER, VERSION},
};
use provisioner_core::{ErrorKind, Priority, Result, Retry};
use tokio::time::Instant;

use super::{
    cluster::AksCluster,
    kubeconfig::{self, Way},
    tokens::{Tokens, signing},
};
use crate::{cluster::with_our_limits, error::Failure};

/// How long Resource Manager may take.
const ANSWERED_WITHIN: Duration = Duration::from_secs(30);

/// Who knows the way to a cluster. A clone is the same.
#[derive(Clone)]
pub(crate) struct Azure {
    cluster: AksCluster,
    arm: Arm,
    credential: Arc<dyn TokenCredential>,
    /// When the last try failed, and of what. Each kind of object has a watch that needs the way: what one was told, all were.
    failed: Arc<Mutex<Option<(Instant, AccountFailure)>>>,
}

/// A credential may print what it holds.
impl fmt::Debug for Azure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Azure").field("cluster", &self.cluster).finish_non_exhaustive()
    }
}

impl Azure {
    /// Touches nothing.
    pub(crate) fn new(cluster: AksCluster, credential: Arc<dyn TokenCredential>, https: &Https) -> Result<Self> {
        let mut options = ArmOptions { transport: Some(https.transport()), ..ArmOptions::default() };
        if let Some(endpoint) = &cluster.endpoint {
            options.endpoint.clone_from(endpoint);
        }
        let arm = Arm::new(Arc::clone(&credential), options)?;
        Ok(Self { cluster, arm, credential, failed: Arc::default() })
    }

    /// Makes a client for the cluster. `since`: from when on its caller waits for one. Callers come one at a time.
    pub(crate) async fn connect(&self, since: Instant) -> Result<Client, Failure> {
        if let Some(failure) = self.failed_for(since) {
            return Err(Failure::Azure(Box::new(failure)));
        }
        let connected = self.connect_now().await;
        let failed = connected.as_ref().err().map(|failure| (Instant::now(), failure.clone()));
        *self.failed.lock().unwrap_or_else(PoisonError::into_inner) = failed;
        connected.map_err(|failure| Failure::Azure(Box::new(failure)))
    }

    /// Of what the last try failed, if that ended while its caller waited, or if nobody is to try again yet.
    fn failed_for(&self, since: Instant) -> Option<AccountFailure> {
        let (at, failure) = self.failed.lock().unwrap_or_else(PoisonError::into_inner).clone()?;
        match failure.retry {
            Some(Retry::After(pause)) => {
                let left = pause.checked_sub(at.elapsed()).filter(|left| !left.is_zero());
                left.map(|left| AccountFailure { retry: Some(Retry::After(left)), ..failure })
            }
            _ => (at >= since).then_some(failure),
        }
    }

    async fn connect_now(&self) -> Result<Client, AccountFailure> {
        let text = self.kubeconfig().await?;
        let unusable = |problem: &str| {
            let message = format!("no way to {}: its kubeconfig cannot be used: {problem}", self.cluster);
            AccountFailure::new(ErrorKind::Unavailable, message)
        };
        let Way { config, scope } = kubeconfig::read(&text).await.map_err(unusable)?;
        let client = Client::try_from(with_our_limits(config))
            // The library's own words may quote what they are about.
            .map_err(|_| unusable("its certificates, key or token cannot be read"))?;
        Ok(match scope {
            None => client,
            Some(scope) => signing(client, Tokens::new(Arc::clone(&self.credential), scope)),
        })
    }

    async fn kubeconfig(&self) -> Result<String, AccountFailure> {
        let AksCluster { subscription, resource_group, name, .. } = &self.cluster;
        let scope = Scope { subscription: subscription.clone(), resource_group: resource_group.clone() };
        let path = scope.path(PROVIDER, &format!("managedClusters/{name}/listClusterUserCredential"));
        // Whoever came first asks for all who wait.
        let cx = Many { priority: Priority::Interactive, replicas: 1 }.context(ANSWERED_WITHIN);
        let answer = self.arm.during(&cx).post(&path, VERSION, None).await.map_err(|failure| self.told(failure))?;
        let credentials = serde_json::from_value::<Credentials>(answer).ok();
        credentials.and_then(|credentials| credentials.kubeconfig()).ok_or_else(|| {
            let message = format!("no way to {}: Azure's answer has no kubeconfig that can be read", self.cluster);
            AccountFailure::new(ErrorKind::Unavailable, message)
        })
    }

    fn told(&self, failure: AccountFailure) -> AccountFailure {
        match failure.kind {
            // Not what somebody asks for, but what it would be in: nothing can be said about that.
            ErrorKind::NotFound => AccountFailure {
                kind: ErrorKind::Unauthorized,
                retry: None,
                message: format!("there is no {}: {}", self.cluster, failure.message),
                ..failure
            },
            _ => AccountFailure { message: format!("no way to {}: {}", self.cluster, failure.message), ..failure },
        }
    }
}
