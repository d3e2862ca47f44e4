//! A site: what is said of it, and how that is shown.

use std::{collections::BTreeMap, net::Ipv4Addr};

use serde_json::{Map, Value, json};

use crate::{answer::Refusal, plan::merge_known, request, stand::Stand, words};

/// A site: a product on a plan, with a name that is unique in the world.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Site {
    pub(crate) name: String,
    pub(crate) kind: String,
    pub(crate) location: String,
    pub(crate) tags: BTreeMap<String, String>,
    pub(crate) identity: Value,
    /// The name of its plan.
    pub(crate) plan: String,
    /// Whether it is to run.
    pub(crate) enabled: bool,
    /// What callers say of it and nothing here depends on.
    pub(crate) properties: Map<String, Value>,
    /// Its configuration, without settings and mounts.
    pub(crate) config: Map<String, Value>,
    pub(crate) settings: BTreeMap<String, String>,
    pub(crate) mounts: BTreeMap<String, Mount>,
    /// The host names of its own.
    pub(crate) bindings: BTreeMap<String, Binding>,
    /// Rises with every restart that is asked for.
    pub(crate) restarts: u64,
    /// Where its front door is.
    pub(crate) address: Ipv4Addr,
    pub(crate) changed: String,
}

/// A share that a site sees as a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mount {
    pub(crate) kind: String,
    pub(crate) account: String,
    pub(crate) share: String,
    pub(crate) key: String,
    pub(crate) path: String,
}

/// A host name of a site's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Binding {
    pub(crate) name: String,
    pub(crate) ssl: String,
    pub(crate) thumbprint: Option<String>,
}

impl Site {
    pub(crate) fn new(name: &str, location: &str, address: Ipv4Addr) -> Self {
        let properties = json!({
            "reserved": false, "isXenon": false, "hyperV": false, "vnetRouteAllEnabled": false,
            "vnetImagePullEnabled": false, "vnetContentShareEnabled": false, "scmSiteAlsoStopped": false,
            "clientAffinityEnabled": true, "clientCertEnabled": false, "clientCertMode": "Required",
            "hostNamesDisabled": false, "containerSize": 0, "dailyMemoryTimeQuota": 0, "httpsOnly": false,
            "redundancyMode": "None", "publicNetworkAccess": null, "storageAccountRequired": false,
            "keyVaultReferenceIdentity": "SystemAssigned", "endToEndEncryptionEnabled": false, "ipMode": "IPv4",
            "virtualNetworkSubnetId": null,
        });
        Self {
            name: name.to_owned(),
            kind: "app".to_owned(),
            location: location.to_owned(),
            tags: BTreeMap::new(),
            identity: Value::Null,
            plan: String::new(),
            enabled: true,
            properties: properties.as_object().cloned().unwrap_or_default(),
            config: default_config(),
            settings: BTreeMap::new(),
            mounts: BTreeMap::new(),
            bindings: BTreeMap::new(),
            restarts: 0,
            address,
            changed: words::now(),
        }
    }

    /// Takes over what a body says, but for the plan. What it does not name stays as it is.
    ///
    /// # Errors
    /// When it makes no site.
    pub(crate) fn merge(&mut self, body: &Value) -> Result<(), Refusal> {
        if let Some(tags) = request::tags(body)? {
            self.tags = tags;
        }
        if let Some(kind) = body["kind"].as_str() {
            kind.clone_into(&mut self.kind);
        }
        if let Some(kind) = body["identity"]["type"].as_str() {
            self.identity = identity(kind, &body["identity"]["userAssignedIdentities"], &self.name);
        }
        let properties = &body["properties"];
        if let Some(enabled) = properties["enabled"].as_bool() {
            self.enabled = enabled;
        }
        merge_known(&mut self.properties, properties)?;
        self.merge_config(&properties["siteConfig"])?;
        self.changed = words::now();
        Ok(())
    }

    /// The same for its configuration. Settings and mounts that are named replace all that there were.
    pub(crate) fn merge_config(&mut self, config: &Value) -> Result<(), Refusal> {
        merge_known(&mut self.config, config)?;
        if !config["appSettings"].is_null() {
            self.settings = read_settings(&config["appSettings"])?;
        }
        if !config["azureStorageAccounts"].is_null() {
            self.mounts = read_mounts(&config["azureStorageAccounts"], &self.mounts)?;
        }
        Ok(())
    }

    pub(crate) const fn state(&self) -> &'static str {
        if self.enabled { "Running" } else { "Stopped" }
    }

    /// A text of its configuration; empty, where there is none.
    pub(crate) fn config_text(&self, name: &str) -> &str {
        self.config.get(name).and_then(Value::as_str).unwrap_or_default()
    }
}

fn identity(kind: &str, assigned: &Value, site: &str) -> Value {
    let id_of = |name: &str| format!("00000000-0000-4000-8000-{}", words::fingerprint(name, 12).to_lowercase());
    let mut identity = json!({ "type": kind });
    if kind == "None" {
        return Value::Null;
    }
    if kind.contains("SystemAssigned") {
        identity["principalId"] = id_of(site).into();
        identity["tenantId"] = words::TENANT.into();
    }
    if let Some(assigned) = assigned.as_object() {
        let ids = |path: &String| json!({ "principalId": id_of(path), "clientId": id_of(&format!("{path} client")) });
        let assigned: Map<_, _> = assigned.keys().map(|path| (path.clone(), ids(path))).collect();
        identity["userAssignedIdentities"] = assigned.into();
    }
    identity
}

fn default_config() -> Map<String, Value> {
    let config = json!({
        "numberOfWorkers": 1, "defaultDocuments": ["index.htm", "index.html", "hostingstart.html"],
        "netFrameworkVersion": "v4.0", "phpVersion": "", "pythonVersion": "", "nodeVersion": "",
        "powerShellVersion": "", "linuxFxVersion": "", "requestTracingEnabled": false, "remoteDebuggingEnabled": false,
        "httpLoggingEnabled": false, "acrUseManagedIdentityCreds": false, "acrUserManagedIdentityID": null,
        "logsDirectorySizeLimit": 35, "detailedErrorLoggingEnabled": false, "scmType": "None",
        "use32BitWorkerProcess": true, "webSocketsEnabled": false, "alwaysOn": false, "appCommandLine": "",
        "managedPipelineMode": "Integrated", "loadBalancing": "LeastRequests", "autoHealEnabled": false,
        "vnetName": "", "vnetRouteAllEnabled": false, "vnetPrivatePortsCount": 0, "localMySqlEnabled": false,
        "http20Enabled": false, "minTlsVersion": "1.2", "scmMinTlsVersion": "1.2", "ftpsState": "FtpsOnly",
        "preWarmedInstanceCount": 0, "functionAppScaleLimit": 0, "elasticWebAppScaleLimit": 0,
        "healthCheckPath": null, "functionsRuntimeScaleMonitoringEnabled": false, "websiteTimeZone": null,
        "minimumElasticInstanceCount": 0, "publicNetworkAccess": null, "autoSwapSlotName": null,
    });
    config.as_object().cloned().unwrap_or_default()
}

/// Settings as a list of names and values.
fn read_settings(list: &Value) -> Result<BTreeMap<String, String>, Refusal> {
    let pair = |item: &Value| {
        let name = item["name"].as_str().filter(|name| !name.is_empty())?;
        Some((name.to_owned(), item["value"].as_str().unwrap_or_default().to_owned()))
    };
    let read = list.as_array().and_then(|list| list.iter().map(pair).collect());
    read.ok_or_else(|| Refusal::bad("Application settings are names with values."))
}

/// Mounts by their names. One that comes without its key keeps the one that it had.
pub(crate) fn read_mounts(map: &Value, before: &BTreeMap<String, Mount>) -> Result<BTreeMap<String, Mount>, Refusal> {
    let read = |(name, value): (&String, &Value)| {
        let text = |field: &str| value[field].as_str().unwrap_or_default().to_owned();
        let mount = Mount {
            kind: text("type"),
            account: text("accountName"),
            share: text("shareName"),
            key: value["accessKey"]
                .as_str()
                .map_or_else(|| before.get(name).map(|mount| mount.key.clone()).unwrap_or_default(), str::to_owned),
            path: text("mountPath"),
        };
        let is_whole = matches!(&*mount.kind, "AzureFiles" | "AzureBlob")
            && !mount.account.is_empty()
            && !mount.share.is_empty()
            && mount.path.starts_with('/')
            && mount.path.len() > 1;
        is_whole.then(|| (name.clone(), mount)).ok_or_else(|| {
            Refusal::bad(format!(
                "The storage account '{name}' needs a type, an account, a share, and a path to mount it at."
            ))
        })
    };
    let map = map.as_object().ok_or_else(|| Refusal::bad("Storage accounts are mounts by their names."))?;
    map.iter().map(read).collect()
}

impl Stand {
    /// The name by which the world reaches a site. The real one is below azurewebsites.net, at the port of HTTPS; here a site
    /// has an address of its own, and a port that needs no rights to listen at.
    pub(crate) fn host(&self, site: &Site) -> String {
        format!("{}:{}", site.address, self.front)
    }

    /// A site as it is shown: without settings, and with a short form of its configuration.
    pub(crate) fn show_site(&self, site: &Site) -> Value {
        let host = self.host(site);
        let names = site.bindings.values().map(|binding| &binding.name);
        let names: Vec<_> = std::iter::once(&host).chain(names).collect();
        let states = site.bindings.values().map(|binding| {
            let mut state = json!({ "name": binding.name, "sslState": binding.ssl, "hostType": "Standard" });
            if let Some(thumbprint) = &binding.thumbprint {
                state["thumbprint"] = thumbprint.as_str().into();
            }
            state
        });
        let first = json!({ "name": host, "sslState": "Disabled", "hostType": "Standard" });
        let states: Vec<_> = std::iter::once(first).chain(states).collect();
        let short = ["numberOfWorkers", "linuxFxVersion", "acrUseManagedIdentityCreds", "alwaysOn", "http20Enabled"];
        let short = short.iter().chain(&["functionAppScaleLimit", "minimumElasticInstanceCount"]);
        let short: Map<_, _> = short.map(|name| ((*name).to_owned(), site.config[*name].clone())).collect();
        let mut properties = without_nulls(&site.properties);
        for (name, value) in [
            ("state", json!(site.state())),
            ("hostNames", json!(names)),
            ("repositorySiteName", json!(site.name)),
            ("usageState", json!("Normal")),
            ("enabled", json!(site.enabled)),
            ("enabledHostNames", json!(names)),
            ("availabilityState", json!("Normal")),
            ("hostNameSslStates", json!(states)),
            ("serverFarmId", json!(self.id("Microsoft.Web/serverfarms", &site.plan))),
            ("lastModifiedTimeUtc", json!(site.changed)),
            ("siteConfig", json!(short)),
            ("customDomainVerificationId", json!(words::fingerprint(&self.subscription, 64))),
            ("outboundIpAddresses", json!("127.0.0.1")),
            ("possibleOutboundIpAddresses", json!("127.0.0.1")),
            ("resourceGroup", json!(self.group)),
            ("defaultHostName", json!(host)),
        ] {
            properties.insert(name.to_owned(), value);
        }
        let mut shown = json!({
            "id": self.id("Microsoft.Web/sites", &site.name),
            "name": site.name,
            "type": "Microsoft.Web/sites",
            "kind": site.kind,
            "location": site.location,
            "tags": site.tags,
            "properties": properties,
        });
        if !site.identity.is_null() {
            shown["identity"] = site.identity.clone();
        }
        shown
    }
}

/// What is not set is not shown.
pub(crate) fn without_nulls(map: &Map<String, Value>) -> Map<String, Value> {
    map.iter().filter(|(_, value)| !value.is_null()).map(|(name, value)| (name.clone(), value.clone())).collect()
}
