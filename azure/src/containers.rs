//! Microsoft.ContainerService: how a cluster is reached. Only what is used.

use std::fmt;

use serde::Deserialize;

/// The pinned api-version.
pub const VERSION: &str = "2024-09-01";
/// The provider.
pub const PROVIDER: &str = "Microsoft.ContainerService";
/// Whom the tokens of clusters are for that sign people in with Entra ID; see
/// <https://learn.microsoft.com/azure/aks/kubelogin-authentication>.
pub const AUDIENCE: &str = "6dae42f8-4368-4678-94ff-3960e28e3630/.default";

/// What a user of a cluster needs.
#[derive(Deserialize)]
pub struct Credentials {
    #[serde(default)]
    kubeconfigs: Vec<Credential>,
}

#[derive(Deserialize)]
struct Credential {
    /// In base 64.
    value: String,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("count", &self.kubeconfigs.len()).finish_non_exhaustive()
    }
}

impl Credentials {
    /// The first kubeconfig, which may hold secrets. `None`: there is none that can be read.
    #[must_use]
    pub fn kubeconfig(&self) -> Option<String> {
        use base64::Engine;
        let bytes = base64::engine::general_purpose::STANDARD.decode(&self.kubeconfigs.first()?.value).ok()?;
        String::from_utf8(bytes).ok()
    }
}
