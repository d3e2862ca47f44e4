//! What every call to a backend carries.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::{
    error::{Error, ErrorKind, Result},
    secret::{LocalSecrets, SecretResolver, SecretString},
    types::{ControlPlaneId, Target, Timestamp, VariableName},
};

/// Who is waiting for a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Priority {
    /// A person: a sign-up, a wake. Served first.
    Interactive,
    /// Nobody in particular: retries, drift, expiry.
    Background,
}

/// What every call to a backend carries: on whose behalf, until when, how urgent, and how secrets are resolved.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct OpContext {
    /// The control plane that calls: the owner mark of all that is made.
    pub control_plane: ControlPlaneId,
    /// When the call must have returned. The caller stops waiting then.
    pub deadline: Option<Instant>,
    /// Tells the call to stop early. A mutating request that was already sent is seen through.
    pub cancel: CancellationToken,
    /// How urgent the call is.
    pub priority: Priority,
    /// How long ago the last mutating call on this incarnation was made; `None`: never, or longer than anybody needs.
    pub since_last_call: Option<Duration>,
    /// The wall-clock time of the call.
    pub now: Timestamp,
    /// Resolves references to secrets.
    pub secrets: Arc<dyn SecretResolver>,
    /// How many processes of this control plane call the provider, this one included: what an account allows is shared.
    pub replicas: u32,
}

impl OpContext {
    /// A context without deadline and without secrets, of interactive priority.
    #[must_use]
    pub fn new(control_plane: ControlPlaneId) -> Self {
        Self {
            control_plane,
            deadline: None,
            cancel: CancellationToken::new(),
            priority: Priority::Interactive,
            since_last_call: None,
            now: Timestamp::from_unix_ms(0),
            secrets: Arc::new(LocalSecrets::none()),
            replicas: 1,
        }
    }

    /// The same with a deadline this far from now.
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.deadline = Some(Instant::now() + timeout);
        self
    }

    /// Resolves all secrets of a target's spec, until the deadline or until the caller gives up. For backends whose
    /// [`Capabilities::secrets`](crate::types::Capabilities::secrets) are `Resolved`.
    ///
    /// # Errors
    /// What the resolver answers for the first that it cannot resolve, naming the field, the instance and this operation;
    /// `Cancelled` and `Timeout`. Nothing was touched.
    pub async fn resolve_secrets(
        &self,
        operation: &'static str,
        target: &Target,
    ) -> Result<Vec<(VariableName, SecretString)>> {
        let mut secrets = Vec::new();
        for (name, reference) in &target.spec.secrets {
            let resolved = tokio::select! {
                biased;
                () = self.cancel.cancelled() => Err(Error::new(ErrorKind::Cancelled, operation)),
                () = self.passed() => Err(Error::new(ErrorKind::Timeout, operation)),
                resolved = self.secrets.resolve(reference) => resolved,
            };
            let value = resolved.map_err(|error| {
                let retry = error.retry();
                Error::new(error.kind(), operation)
                    .with_instance(&target.id)
                    .with_field(format!("secrets.{name}"))
                    .with_retry(retry)
                    .with_source(error)
            })?;
            secrets.push((name.clone(), value));
        }
        Ok(secrets)
    }

    /// Returns when the deadline has passed; never without one.
    async fn passed(&self) {
        match self.deadline {
            Some(deadline) => tokio::time::sleep_until(deadline).await,
            None => std::future::pending().await,
        }
    }

    /// The same with this resolver of secrets.
    #[must_use]
    pub fn with_secrets(mut self, secrets: Arc<dyn SecretResolver>) -> Self {
        self.secrets = secrets;
        self
    }
}
