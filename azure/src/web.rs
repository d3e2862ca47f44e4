//! Microsoft.Web: plans, sites and what belongs to them. Only what is used; what is not named is left as it is.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};

/// The pinned api-version.
pub const VERSION: &str = "2024-04-01";
/// The provider.
pub const PROVIDER: &str = "Microsoft.Web";

/// Tags.
pub type Tags = BTreeMap<String, String>;

/// A plan: machines that sites share.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Plan {
    /// Its path.
    #[serde(skip_serializing)]
    pub id: String,
    /// Its name.
    #[serde(skip_serializing)]
    pub name: String,
    /// What it is for: `linux`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// The region.
    pub location: String,
    /// Tags.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tags: Option<Tags>,
    /// What its machines are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sku: Option<Sku>,
    /// The rest.
    pub properties: PlanProperties,
}

/// What the machines of a plan are.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Sku {
    /// Such as `B1`.
    pub name: String,
    /// How many machines.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub capacity: Option<u32>,
}

/// See [`Plan`].
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PlanProperties {
    /// Whether its machines run Linux.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reserved: Option<bool>,
    /// How many sites it has.
    #[serde(skip_serializing)]
    pub number_of_sites: Option<u32>,
}

/// A site.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Site {
    /// Its path.
    #[serde(skip_serializing)]
    pub id: String,
    /// Its name, which is global.
    #[serde(skip_serializing)]
    pub name: String,
    /// What it is: `app,linux,container`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// The region.
    pub location: String,
    /// Tags. `None`, written: as they were.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tags: Option<Tags>,
    /// Who it is to others.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub identity: Option<Identity>,
    /// The rest.
    pub properties: SiteProperties,
}

/// Who a resource is to others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Identity {
    /// `SystemAssigned`: an identity of its own. `UserAssigned`: those below.
    #[serde(rename = "type")]
    pub kind: String,
    /// Identities by their paths, each with nothing more to say.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", skip_deserializing)]
    pub user_assigned_identities: BTreeMap<String, Nothing>,
}

/// An object without fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Nothing {}

/// See [`Site`].
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SiteProperties {
    /// The path of its plan.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server_farm_id: Option<String>,
    /// Whether requests without TLS are sent to it with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub https_only: Option<bool>,
    /// Whether the requests of one client go to one machine.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_affinity_enabled: Option<bool>,
    /// Whether its machines run Linux.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reserved: Option<bool>,
    /// The identity that looks references to vaults up: `SystemAssigned`, or a path.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_vault_reference_identity: Option<String>,
    /// How it runs. `None`, written: as it did. Read, it is told in part.
    #[serde(skip_serializing_if = "Option::is_none", skip_deserializing)]
    pub site_config: Option<SiteConfig>,
    /// `Running` or `Stopped`.
    #[serde(skip_serializing)]
    pub state: Option<String>,
    /// Where it answers.
    #[serde(skip_serializing)]
    pub default_host_name: Option<String>,
    /// All its host names.
    #[serde(skip_serializing)]
    pub host_names: Vec<String>,
    /// `Normal`, or `Exceeded`: it is over a quota of its plan.
    #[serde(skip_serializing)]
    pub usage_state: Option<String>,
}

/// How a site runs.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SiteConfig {
    /// `DOCKER|` and a container image.
    pub linux_fx_version: String,
    /// The command, or nothing for the image's own.
    pub app_command_line: String,
    /// Its environment: all of it.
    pub app_settings: Vec<Setting>,
    /// Whether it is kept running when nobody asks for it.
    pub always_on: bool,
    /// The path that says how it is.
    pub health_check_path: String,
    /// The least version of TLS.
    pub min_tls_version: String,
    /// `Disabled`: no FTP.
    pub ftps_state: String,
    /// Whether HTTP/2 is spoken.
    pub http20_enabled: bool,
    /// Its mounts by name: all of them.
    pub azure_storage_accounts: BTreeMap<String, Mount>,
    /// Whether its image is fetched as an identity of the site.
    #[serde(rename = "acrUseManagedIdentityCreds")]
    pub acr_use_managed_identity: bool,
    /// Which one, by its client id. `None`: its own.
    #[serde(rename = "acrUserManagedIdentityID", skip_serializing_if = "Option::is_none")]
    pub acr_user_managed_identity: Option<String>,
}

/// A variable of the environment. `Debug` does not show the value.
#[derive(Clone, PartialEq, Eq, Serialize)]
pub struct Setting {
    /// Its name.
    pub name: String,
    /// Its value, which may be a secret.
    pub value: String,
}

impl fmt::Debug for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Setting").field("name", &self.name).finish_non_exhaustive()
    }
}

/// A share that a site sees as a folder. `Debug` does not show the key.
#[derive(Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Mount {
    /// `AzureFiles`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The storage account.
    pub account_name: String,
    /// The share.
    pub share_name: String,
    /// The key of the account.
    pub access_key: String,
    /// The folder.
    pub mount_path: String,
}

impl fmt::Debug for Mount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mount").field("share", &self.share_name).field("path", &self.mount_path).finish_non_exhaustive()
    }
}

/// That a site answers to a host name.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HostNameBinding {
    /// The site and the host name, with a slash.
    #[serde(skip_serializing)]
    pub name: String,
    /// The rest.
    pub properties: HostNameBindingProperties,
}

/// See [`HostNameBinding`].
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HostNameBindingProperties {
    /// The site.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub site_name: Option<String>,
    /// `Verified`: by a record of the name's zone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host_name_type: Option<String>,
}
