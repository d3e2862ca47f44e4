//! The cluster: how it is reached, and the one client for it.

use std::{sync::Arc, time::Duration};

use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use provisioner_core::{OpContext, Result};
use tokio::{sync::OnceCell, time::Instant};

#[cfg(feature = "aks")]
use crate::aks::Azure;
use crate::{
    client::Calls,
    config::Connection,
    error::{During, Failure},
};

/// How long a connection may take to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// A cluster that is connected to when it is first needed. A clone is the same.
#[derive(Clone)]
pub(crate) struct Cluster {
    connection: Connection,
    /// Who knows the way, where it is a cluster of Azure without a client of the embedder's own.
    #[cfg(feature = "aks")]
    azure: Option<Azure>,
    client: Arc<OnceCell<Client>>,
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cluster").field("connection", &self.connection).finish_non_exhaustive()
    }
}

impl std::fmt::Display for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.connection {
            Connection::Inferred => f.write_str("inferred"),
            Connection::InCluster => f.write_str("in cluster"),
            Connection::Kubeconfig { context: Some(context), .. } => f.write_str(context),
            Connection::Kubeconfig { path: Some(path), .. } => write!(f, "{}", path.display()),
            Connection::Kubeconfig { .. } => f.write_str("kubeconfig"),
            Connection::Aks(cluster) => write!(f, "AKS {}", cluster.name),
        }
    }
}

impl Cluster {
    /// With the embedder's own client, or one that is made when it is needed. Touches nothing.
    pub(crate) fn new(connection: Connection, client: Option<Client>) -> Result<Self> {
        #[cfg(feature = "aks")]
        if let (Connection::Aks(cluster), None) = (&connection, &client) {
            let credential = provisioner_azure::signed_in()?;
            let azure = Azure::new(cluster.clone(), credential, &provisioner_azure::Https::new()?)?;
            return Ok(Self::of_azure(connection, azure));
        }
        Ok(Self {
            connection,
            #[cfg(feature = "aks")]
            azure: None,
            client: Arc::new(OnceCell::new_with(client)),
        })
    }

    /// One that this one knows the way to.
    #[cfg(feature = "aks")]
    pub(crate) fn of_azure(connection: Connection, azure: Azure) -> Self {
        Self { connection, azure: Some(azure), client: Arc::default() }
    }

    /// The client: the embedder's own, or one made now.
    pub(crate) async fn client(&self) -> Result<&Client, Failure> {
        let since = Instant::now();
        self.client.get_or_try_init(|| self.connect(since)).await
    }

    /// Requests of one call.
    pub(crate) fn during<'a>(&'a self, cx: &'a OpContext, during: During<'a>) -> Calls<'a> {
        Calls::new(self, cx, during)
    }

    #[cfg_attr(not(feature = "aks"), allow(unused_variables))]
    async fn connect(&self, since: Instant) -> Result<Client, Failure> {
        #[cfg(feature = "aks")]
        if let Some(azure) = &self.azure {
            return azure.connect(since).await;
        }
        let config = match &self.connection {
            Connection::Inferred => Config::infer().await.map_err(|error| no_way(&error))?,
            Connection::InCluster => Config::incluster().map_err(|error| no_way(&error))?,
            Connection::Kubeconfig { path, context } => {
                let options = KubeConfigOptions { context: context.clone(), ..KubeConfigOptions::default() };
                match path {
                    None => Config::from_kubeconfig(&options).await.map_err(|error| no_way(&error))?,
                    Some(path) => {
                        let kubeconfig = Kubeconfig::read_from(path).map_err(|error| no_way(&error))?;
                        let config = Config::from_custom_kubeconfig(kubeconfig, &options).await;
                        config.map_err(|error| no_way(&error))?
                    }
                }
            }
            // A configuration that says so is refused where nobody could ask.
            Connection::Aks(cluster) => return Err(no_way(cluster)),
        };
        Client::try_from(with_our_limits(config)).map_err(|error| no_way(&error))
    }
}

/// As every client is made here.
pub(crate) fn with_our_limits(mut config: Config) -> Config {
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    // The engine owns that.
    config.default_retry = false;
    config
}

fn no_way(error: &dyn std::fmt::Display) -> Failure {
    Failure::Unanswered { was_sent: false, message: format!("no way to the cluster: {error}") }
}
