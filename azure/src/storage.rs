//! Microsoft.Storage: shares of files. Only what is used.

use std::{collections::BTreeMap, fmt};

use provisioner_core::secret::SecretString;
use serde::{Deserialize, Serialize};

/// The pinned api-version.
pub const VERSION: &str = "2023-05-01";
/// The provider.
pub const PROVIDER: &str = "Microsoft.Storage";

/// A share of files.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Share {
    /// Its name.
    #[serde(skip_serializing)]
    pub name: String,
    /// The rest.
    pub properties: ShareProperties,
}

/// See [`Share`].
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ShareProperties {
    /// How much it holds, in gibibytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub share_quota: Option<u32>,
    /// What is noted of it. Names are those of variables, of letters, digits and underscores.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metadata: Option<BTreeMap<String, String>>,
    /// Whether it was deleted, and is kept for a while.
    #[serde(skip_serializing)]
    pub deleted: Option<bool>,
}

/// The keys of a storage account.
#[derive(Deserialize)]
pub struct Keys {
    keys: Vec<Key>,
}

#[derive(Deserialize)]
struct Key {
    value: SecretValue,
}

/// Read as a secret, so that it is printed nowhere.
#[derive(Deserialize)]
#[serde(transparent)]
struct SecretValue(String);

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keys").field("count", &self.keys.len()).finish_non_exhaustive()
    }
}

impl Keys {
    /// The first of them.
    #[must_use]
    pub fn into_first(self) -> Option<SecretString> {
        self.keys.into_iter().next().map(|key| SecretString::from(key.value.0))
    }
}
