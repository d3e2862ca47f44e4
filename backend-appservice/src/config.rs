//! What the backend is told, checked before anything is touched.

use std::{sync::Arc, time::Duration};

use provisioner_azure::{Arm, ArmOptions, Buckets, Https, Scope, TokenCredential, signed_in};
use provisioner_core::{Error, ErrorKind, Result, types::SizeMax};
use serde::{Deserialize, Serialize};

use crate::backend::AppServiceBackend;

/// What the backend is told about one resource group and region.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AppServiceConfig {
    /// The subscription and the resource group, which has to be there.
    pub scope: Scope,
    /// The region by its short name, such as `westeurope`.
    pub region: String,
    /// The storage account whose shares hold the data, in the same resource group. It has to be there.
    pub storage_account: String,
    /// Who sites are to registries, vaults and blobs. `None`: each has an identity of its own, which has no rights when it is made.
    #[serde(default)]
    pub identity: Option<SharedIdentity>,
    /// How sites are packed into plans.
    #[serde(default)]
    pub plans: PlanPolicy,
    /// Where Resource Manager is instead of the public cloud's.
    #[serde(default)]
    pub endpoint: Option<String>,
    /// How many calls the subscription may make.
    #[serde(default)]
    pub buckets: Buckets,
    /// How long the service's answers may lag behind what was done.
    #[serde(default = "settling")]
    pub settling: Duration,
    /// Whether readiness is asked of the site itself, at its health path. Without, a site that the service calls running is ready: for
    /// a control plane that has no way to them, and knows less.
    #[serde(default = "probes")]
    pub probes: bool,
    /// How long a site may take until its product is started, whose own time begins then: images are fetched in it.
    #[serde(default = "start_time")]
    pub start_time: Duration,
    /// How often what moves is looked at.
    #[serde(default = "look_every")]
    pub look_every: Duration,
    /// The largest size of one instance. Sites of a plan share its machines: nothing holds one to its size.
    #[serde(default)]
    pub size_max: SizeMax,
}

/// A user-assigned identity that all sites of a cell have. It can be given its rights before there is any site; but whatever it may
/// read, every customer's product may.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SharedIdentity {
    /// Its path: `/subscriptions/.../providers/Microsoft.ManagedIdentity/userAssignedIdentities/NAME`. The control plane needs the right
    /// `Microsoft.ManagedIdentity/userAssignedIdentities/assign/action` there.
    pub id: String,
    /// Its client id.
    pub client_id: String,
}

/// How sites are packed into plans.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PlanPolicy {
    /// What the machines of a plan are, such as `B1` or `P0v3`.
    pub sku: String,
    /// How many machines a plan has.
    pub machines: u32,
    /// How many sites share a plan; see
    /// <https://learn.microsoft.com/azure/app-service/overview-hosting-plans#should-i-put-an-app-in-a-new-plan-or-an-existing-plan>.
    pub sites_max: u32,
    /// How many plans are kept, even empty.
    pub plans_min: u32,
    /// How many plans there may be.
    pub plans_max: u32,
    /// Whether sites are kept running when nobody asks for them. Free and shared plans cannot.
    pub always_on: bool,
}

impl Default for PlanPolicy {
    fn default() -> Self {
        Self { sku: "B1".to_owned(), machines: 1, sites_max: 8, plans_min: 0, plans_max: 100, always_on: true }
    }
}

/// Longer than answers have been seen to lag.
fn settling() -> Duration {
    Duration::from_secs(20)
}

fn probes() -> bool {
    true
}

/// As long as the service itself waits for a container, unless it is told otherwise.
fn start_time() -> Duration {
    Duration::from_secs(230)
}

fn look_every() -> Duration {
    Duration::from_secs(2)
}

impl AppServiceConfig {
    /// One with the defaults for all but this.
    pub fn new(scope: Scope, region: impl Into<String>, storage_account: impl Into<String>) -> Self {
        Self {
            scope,
            region: region.into(),
            storage_account: storage_account.into(),
            identity: None,
            plans: PlanPolicy::default(),
            endpoint: None,
            buckets: Buckets::default(),
            settling: settling(),
            probes: probes(),
            start_time: start_time(),
            look_every: look_every(),
            size_max: SizeMax::NONE,
        }
    }

    /// Checks everything and makes the backend of it, signed in as whoever runs this ([`signed_in`]). Touches nothing.
    ///
    /// # Errors
    /// [`InvalidSpec`](ErrorKind::InvalidSpec) naming the first field that is wrong and what was expected;
    /// [`Unauthorized`](ErrorKind::Unauthorized) when nobody is signed in.
    pub fn build(self) -> Result<AppServiceBackend> {
        self.check()?;
        self.build_with(signed_in()?, Https::new()?)
    }

    /// The same with the caller's own credential and HTTP client, by which sites are asked for their health, too.
    ///
    /// # Errors
    /// [`InvalidSpec`](ErrorKind::InvalidSpec) naming the first field that is wrong and what was expected.
    pub fn build_with(self, credential: Arc<dyn TokenCredential>, https: Https) -> Result<AppServiceBackend> {
        self.check()?;
        let mut options =
            ArmOptions { transport: Some(https.transport()), buckets: self.buckets, ..Default::default() };
        options.poll_every = self.look_every;
        if let Some(endpoint) = &self.endpoint {
            options.endpoint.clone_from(endpoint);
        }
        let arm = Arm::new(credential, options)?;
        Ok(AppServiceBackend::new(self, arm, https))
    }

    fn check(&self) -> Result<()> {
        let wrong = |field: &str, problem: &str| {
            Err(Error::new(ErrorKind::InvalidSpec, "configure").with_field(field).with_message(problem))
        };
        let is_word = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        if !is_word(&self.scope.subscription) {
            return wrong("scope.subscription", "expected the id of a subscription");
        }
        let group = &self.scope.resource_group;
        if group.is_empty()
            || group.len() > 90
            || group.ends_with('.')
            || !group.chars().all(|c| c.is_alphanumeric() || "-_.()".contains(c))
        {
            return wrong("scope.resource_group", "expected the name of a resource group");
        }
        if !(is_word(&self.region) && self.region == self.region.to_ascii_lowercase()) {
            return wrong("region", "expected the short name of a region, such as westeurope");
        }
        let account = &self.storage_account;
        if !((3..=24).contains(&account.len()) && account.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit()))
        {
            return wrong("storage_account", "expected its name: 3 to 24 of a-z and 0-9");
        }
        if let Some(identity) = &self.identity {
            let is_path = identity.id.starts_with('/') && identity.id.contains("/userAssignedIdentities/");
            if !is_path || identity.id.contains(['?', '#', ' ']) {
                return wrong("identity.id", "expected the path of a user-assigned identity, /subscriptions/...");
            }
            if !is_word(&identity.client_id) {
                return wrong("identity.client_id", "expected the client id of the identity");
            }
        }
        if !is_word(&self.plans.sku) {
            return wrong("plans.sku", "expected the name of a SKU, such as B1");
        }
        for (field, value) in [
            ("plans.machines", self.plans.machines),
            ("plans.sites_max", self.plans.sites_max),
            ("plans.plans_max", self.plans.plans_max),
        ] {
            if value == 0 {
                return wrong(field, "0: expected 1 or more");
            }
        }
        if self.plans.plans_min > self.plans.plans_max {
            return wrong("plans.plans_min", "expected no more than plans.plans_max");
        }
        if self.look_every < Duration::from_millis(1) {
            return wrong("look_every", "expected a millisecond or more, such as 2 s");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> AppServiceConfig {
        let scope = Scope { subscription: "0-1".into(), resource_group: "instances".into() };
        AppServiceConfig::new(scope, "westeurope", "instancesdata")
    }

    #[track_caller]
    fn assert_refused(change: impl FnOnce(&mut AppServiceConfig), field: &str) {
        let mut config = config();
        change(&mut config);
        let error = config.check().unwrap_err();
        assert_eq!((error.kind(), error.field()), (ErrorKind::InvalidSpec, Some(field)));
    }

    #[test]
    fn each_wrong_field_is_named() {
        assert!(config().check().is_ok());
        assert_refused(|c| c.scope.subscription = "a/b".into(), "scope.subscription");
        assert_refused(|c| c.scope.resource_group = String::new(), "scope.resource_group");
        assert_refused(|c| c.region = "West Europe".into(), "region");
        assert_refused(|c| c.storage_account = "No".into(), "storage_account");
        let identity = |id: &str, client: &str| Some(SharedIdentity { id: id.into(), client_id: client.into() });
        let path = "/subscriptions/s/resourceGroups/g/providers/Microsoft.ManagedIdentity/userAssignedIdentities/i";
        assert_refused(|c| c.identity = identity("i", "c"), "identity.id");
        assert_refused(|c| c.identity = identity(path, ""), "identity.client_id");
        assert_refused(|c| c.plans.sku = String::new(), "plans.sku");
        assert_refused(|c| c.plans.sites_max = 0, "plans.sites_max");
        assert_refused(|c| c.plans.plans_min = 200, "plans.plans_min");
        assert_refused(|c| c.look_every = Duration::ZERO, "look_every");
    }
}
