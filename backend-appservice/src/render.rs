//! Which site an instance is: a pure function of the target and the cell's configuration.

use std::collections::BTreeMap;

use provisioner_azure::web::{self, Identity, Mount, Nothing, Setting, SiteConfig, SiteProperties, Tags};
use provisioner_core::{
    secret::{ExposeSecret, SecretString},
    types::{ControlPlaneId, InstanceSpec, Target, VariableName},
};

use crate::{
    config::AppServiceConfig,
    digest::{Intended, Product, Site},
    names,
};

/// The scheme of secrets that the site fetches itself.
pub(crate) const KEY_VAULT: &str = "keyvault";
/// Where data is seen, unless the workload says it.
const DATA_PATH: &str = "/data";
const CONTAINER: &str = "app,linux,container";
const CODE: &str = "app,linux";
/// An identity of the site's own.
const OWN: &str = "SystemAssigned";
/// How long the service waits for a container, in seconds, where nothing else is said; see
/// <https://learn.microsoft.com/azure/app-service/reference-app-settings#custom-containers>.
const START_LIMIT: u32 = 230;
/// Settings that the service or we need, which nothing of a spec may take the place of.
pub(crate) const OWN_SETTINGS: [&str; 8] = [
    "WEBSITES_PORT",
    "WEBSITES_ENABLE_APP_SERVICE_STORAGE",
    "WEBSITES_CONTAINER_STOP_TIME_LIMIT",
    "WEBSITES_CONTAINER_START_TIME_LIMIT",
    "WEBSITE_DISABLE_OVERLAPPED_RECYCLING",
    "WEBSITE_RUN_FROM_PACKAGE",
    "WEBSITE_RUN_FROM_PACKAGE_BLOB_MI_RESOURCE_ID",
    "PROVISIONER_GENERATION",
];
/// Settings that a site gets unless its spec has them.
pub(crate) const DEFAULT_SETTINGS: [&str; 2] = ["PORT", "DATA_PATH"];
/// Which secrets a site has.
pub(crate) type Secrets = [(VariableName, SecretString)];

/// The gibibytes of a share: it comes in whole ones.
pub(crate) fn share_gib(spec: &InstanceSpec) -> u32 {
    spec.data.size_mib.div_ceil(1024).max(1)
}

/// What the service looks up itself, as the site's own identity; see
/// <https://learn.microsoft.com/azure/app-service/app-service-key-vault-references>. `None`: it is no `VAULT/SECRET[/VERSION]`.
pub(crate) fn key_vault_reference(path: &str) -> Option<String> {
    let is_word = |text: &&str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    let parts: Vec<_> = path.split('/').collect();
    match parts[..] {
        _ if !parts.iter().all(is_word) => None,
        [vault, secret] => Some(format!("@Microsoft.KeyVault(VaultName={vault};SecretName={secret})")),
        [vault, secret, version] => {
            Some(format!("@Microsoft.KeyVault(VaultName={vault};SecretName={secret};SecretVersion={version})"))
        }
        _ => None,
    }
}

/// The tags of a site. `written`: the word of this write.
pub(crate) fn tags(control_plane: &ControlPlaneId, target: &Target, written: &str) -> Tags {
    let workload = &target.spec.workload;
    let product = Product {
        start_timeout_seconds: workload.start_timeout_seconds,
        health_path: workload.health_path.as_str().into(),
    };
    let own = [
        (names::CONTROL_PLANE, control_plane.to_string()),
        (names::INSTANCE, target.id.to_string()),
        (names::INCARNATION, target.incarnation.to_string()),
        (names::DATA, target.data.id().to_string()),
        (names::TENANT, target.tenant.digest()),
        (names::GENERATION, target.generation.0.to_string()),
        (names::INTENDED, Intended::Running.as_str().to_owned()),
        (names::PRODUCT, product.to_tag()),
        (names::HOST_NAMES, names::hosts(target.spec.host_names.iter().map(|name| name.as_str()))),
        (names::WRITTEN, written.to_owned()),
    ];
    let mut tags: Tags = own.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
    for (key, value) in &target.spec.labels {
        tags.insert(format!("{}{key}", names::LABEL), value.to_string());
    }
    tags
}

/// All that a site is. `key`: of the storage account.
pub(crate) fn site(
    config: &AppServiceConfig,
    control_plane: &ControlPlaneId,
    target: &Target,
    plan: &str,
    key: &SecretString,
    secrets: &Secrets,
    written: &str,
) -> web::Site {
    let workload = &target.spec.workload;
    let mount = Mount {
        kind: "AzureFiles".to_owned(),
        account_name: config.storage_account.clone(),
        share_name: names::share(control_plane, target.data.id()),
        access_key: key.expose_secret().to_owned(),
        mount_path: data_path(&target.spec).to_owned(),
    };
    let site_config = SiteConfig {
        linux_fx_version: match &workload.package {
            Some(package) => package.runtime.clone(),
            None => format!("DOCKER|{}", workload.image.as_deref().unwrap_or_default()),
        },
        app_command_line: command_line(&workload.command),
        app_settings: settings(config, target, secrets),
        always_on: config.plans.always_on,
        health_check_path: workload.health_path.clone(),
        min_tls_version: "1.2".to_owned(),
        ftps_state: "Disabled".to_owned(),
        http20_enabled: true,
        azure_storage_accounts: BTreeMap::from([(names::MOUNT.to_owned(), mount)]),
        acr_user_managed_identity: config.identity.as_ref().map(|identity| identity.client_id.clone()),
        acr_use_managed_identity: workload.image.as_deref().is_some_and(|image| image.contains(".azurecr.io/")),
    };
    web::Site {
        kind: Some(if workload.package.is_some() { CODE } else { CONTAINER }.to_owned()),
        location: config.region.clone(),
        tags: Some(tags(control_plane, target, written)),
        identity: Some(identity(config)),
        properties: SiteProperties { site_config: Some(site_config), ..properties(config, plan) },
        ..web::Site::default()
    }
}

/// A site as it is, but for some tags.
pub(crate) fn retagged(config: &AppServiceConfig, site: &Site, tags: Tags) -> web::Site {
    web::Site {
        kind: site.kind.as_deref().map(str::to_owned),
        location: site.location.to_string(),
        tags: Some(tags),
        identity: Some(identity(config)),
        properties: properties(config, &site.plan),
        ..web::Site::default()
    }
}

fn identity(config: &AppServiceConfig) -> Identity {
    let (kind, shared) = match &config.identity {
        Some(shared) => ("UserAssigned", BTreeMap::from([(shared.id.clone(), Nothing {})])),
        None => (OWN, BTreeMap::new()),
    };
    Identity { kind: kind.to_owned(), user_assigned_identities: shared }
}

/// Who a site is to vaults and blobs.
fn identity_to_others(config: &AppServiceConfig) -> String {
    config.identity.as_ref().map_or_else(|| OWN.to_owned(), |shared| shared.id.clone())
}

/// Those that are said each time, whatever else is written: nobody promises that they stay as they were.
fn properties(config: &AppServiceConfig, plan: &str) -> SiteProperties {
    SiteProperties {
        key_vault_reference_identity: Some(identity_to_others(config)),
        server_farm_id: Some(plan.to_owned()),
        https_only: Some(true),
        client_affinity_enabled: Some(false),
        reserved: Some(true),
        ..SiteProperties::default()
    }
}

fn data_path(spec: &InstanceSpec) -> &str {
    spec.workload.data_path.as_deref().unwrap_or(DATA_PATH)
}

/// The environment. What the service needs, specs may not have.
fn settings(config: &AppServiceConfig, target: &Target, secrets: &Secrets) -> Vec<Setting> {
    let spec = &target.spec;
    let mut all: BTreeMap<String, String> =
        spec.environment.iter().map(|(name, value)| (name.to_string(), value.clone())).collect();
    all.extend(secrets.iter().map(|(name, value)| (name.to_string(), value.expose_secret().to_owned())));
    let native = spec.secrets.iter().filter(|(_, reference)| reference.scheme() == KEY_VAULT);
    all.extend(native.filter_map(|(name, reference)| Some((name.to_string(), key_vault_reference(reference.path())?))));
    let port = spec.workload.port.unwrap_or_default().to_string();
    all.entry("PORT".to_owned()).or_insert_with(|| port.clone());
    all.entry("DATA_PATH".to_owned()).or_insert_with(|| data_path(spec).to_owned());
    all.insert("WEBSITES_PORT".to_owned(), port);
    all.insert("WEBSITES_ENABLE_APP_SERVICE_STORAGE".to_owned(), "false".to_owned());
    let stop_grace = spec.workload.stop_grace_seconds.to_string();
    all.insert("WEBSITES_CONTAINER_STOP_TIME_LIMIT".to_owned(), stop_grace);
    // The image is fetched in that time, too.
    let start = spec.workload.start_timeout_seconds.max(START_LIMIT).to_string();
    all.insert("WEBSITES_CONTAINER_START_TIME_LIMIT".to_owned(), start);
    // One that ends and one that begins would write to the same data.
    all.insert("WEBSITE_DISABLE_OVERLAPPED_RECYCLING".to_owned(), "1".to_owned());
    if let Some(package) = &spec.workload.package {
        // <https://learn.microsoft.com/azure/app-service/deploy-run-package>
        all.insert("WEBSITE_RUN_FROM_PACKAGE".to_owned(), package.url.clone());
        all.insert("WEBSITE_RUN_FROM_PACKAGE_BLOB_MI_RESOURCE_ID".to_owned(), identity_to_others(config));
    }
    // A setting that changes has the site start anew: with it secrets that were rotated are read.
    all.insert("PROVISIONER_GENERATION".to_owned(), target.generation.0.to_string());
    all.into_iter().map(|(name, value)| Setting { name, value }).collect()
}

/// The words as a shell reads them.
fn command_line(words: &[String]) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/._-=:,@%+".contains(c);
    let quoted = words.iter().map(|word| match !word.is_empty() && word.chars().all(is_plain) {
        true => word.clone(),
        false => format!("'{}'", word.replace('\'', r"'\''")),
    });
    quoted.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use provisioner_azure::Scope;
    use provisioner_core::types::{DataId, DataSource, Generation, Incarnation, TenantId, Workload};
    use serde_json::json;

    use super::*;
    use crate::config::SharedIdentity;

    #[test]
    fn words_of_a_command_stay_words() {
        let words = ["/bin/product", "--name=a b", "it's", ""].map(str::to_owned);
        assert_eq!(command_line(&words), r"/bin/product '--name=a b' 'it'\''s' ''");
    }

    #[test]
    fn secrets_of_a_vault_are_left_to_the_service() {
        let of = |path: &str| key_vault_reference(path);
        assert_eq!(of("v/s").as_deref(), Some("@Microsoft.KeyVault(VaultName=v;SecretName=s)"));
        assert_eq!(of("v/s/1").as_deref(), Some("@Microsoft.KeyVault(VaultName=v;SecretName=s;SecretVersion=1)"));
        assert_eq!([of("v"), of("v/s;x"), of("v//1"), of("a/b/c/d")], [None, None, None, None]);
    }

    fn rendered(change: impl FnOnce(&mut AppServiceConfig)) -> serde_json::Value {
        let scope = Scope { subscription: "s".into(), resource_group: "g".into() };
        let mut config = AppServiceConfig::new(scope, "westeurope", "account");
        change(&mut config);
        let mut spec = InstanceSpec::new(Workload::new("1.0").with_command(["/product"]));
        (spec.workload.image, spec.workload.port) = (Some("a.azurecr.io/product:1".into()), Some(8080));
        let target = Target {
            id: "acme".parse().unwrap(),
            tenant: TenantId::new("t").unwrap(),
            incarnation: Incarnation::new(1, 1),
            generation: Generation(3),
            spec: spec.into(),
            data: DataSource::Fresh(DataId::from_random(1)),
        };
        let key = SecretString::from("key".to_owned());
        serde_json::to_value(site(&config, &"p".parse().unwrap(), &target, "/plan", &key, &[], "word")).unwrap()
    }

    #[test]
    fn a_site_is_closed_but_for_its_front_door_and_has_one_volume() {
        let site = rendered(|_| {});
        assert_eq!(site["identity"], json!({"type": "SystemAssigned"}));
        assert_eq!(site["properties"]["httpsOnly"], true);
        let config = &site["properties"]["siteConfig"];
        assert_eq!(
            (&config["ftpsState"], &config["minTlsVersion"], &config["linuxFxVersion"], &config["appCommandLine"]),
            (&json!("Disabled"), &json!("1.2"), &json!("DOCKER|a.azurecr.io/product:1"), &json!("/product"))
        );
        assert_eq!(
            (&config["acrUseManagedIdentityCreds"], config.get("acrUserManagedIdentityID")),
            (&json!(true), None)
        );
        let mounts = config["azureStorageAccounts"].as_object().unwrap();
        assert_eq!((mounts.len(), &mounts["data"]["mountPath"]), (1, &json!("/data")));
        let settings: BTreeMap<_, _> = config["appSettings"]
            .as_array()
            .unwrap()
            .iter()
            .map(|setting| (setting["name"].as_str().unwrap(), setting["value"].as_str().unwrap()))
            .collect();
        assert_eq!(
            (settings["WEBSITES_PORT"], settings["DATA_PATH"], settings["PROVISIONER_GENERATION"]),
            ("8080", "/data", "3")
        );
        assert_eq!(settings["WEBSITES_CONTAINER_START_TIME_LIMIT"], "230");
        assert_eq!(site["tags"]["provisioner-generation"], "3");
    }

    #[test]
    fn sites_may_share_an_identity() {
        let id = "/subscriptions/s/resourceGroups/g/providers/Microsoft.ManagedIdentity/userAssignedIdentities/i";
        let site = rendered(|config| {
            config.identity = Some(SharedIdentity { id: id.into(), client_id: "client".into() });
        });
        assert_eq!(site["identity"], json!({"type": "UserAssigned", "userAssignedIdentities": {id: {}}}));
        assert_eq!(site["properties"]["keyVaultReferenceIdentity"], id);
        assert_eq!(site["properties"]["siteConfig"]["acrUserManagedIdentityID"], "client");
    }
}
