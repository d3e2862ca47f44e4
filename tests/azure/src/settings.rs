//! The parts of a site that have addresses of their own: settings, configuration, mounts.

use serde_json::{Map, Value, json};

use crate::{
    answer::{Answer, Refusal},
    request::{self, Request},
    site::{Mount, Site, read_mounts, without_nulls},
    stand::{Stand, locked},
};

impl Stand {
    /// With a part of a site, as reads show it.
    fn read_part(&self, request: &Request, read: impl FnOnce(&Site) -> Value) -> Result<Answer, Refusal> {
        let name = request.name();
        let world = locked(&self.world);
        let site = world.sites.shown(name).ok_or_else(|| self.no_site(name))?;
        Ok(Answer::ok(read(site)))
    }

    pub(crate) fn list_settings(&self, request: &Request) -> Result<Answer, Refusal> {
        self.read_part(request, |site| self.config_resource(site, "appsettings", json!(site.settings)))
    }

    pub(crate) async fn write_settings(&self, request: &Request) -> Result<Answer, Refusal> {
        let settings = request::strings(&request.body["properties"])
            .map_err(|()| Refusal::bad("Application settings are names with values."))?;
        let site = self.write_part(request, |site| {
            site.settings = settings.unwrap_or_default();
            Ok(())
        });
        let site = site.await?;
        Ok(Answer::ok(self.config_resource(&site, "appsettings", json!(site.settings))))
    }

    pub(crate) fn get_configuration(&self, request: &Request) -> Result<Answer, Refusal> {
        let shares = shares(self);
        self.read_part(request, |site| self.show_configuration(&shares, site))
    }

    pub(crate) async fn write_configuration(&self, request: &Request) -> Result<Answer, Refusal> {
        let replaces = request.operation.id == "WebApps_CreateOrUpdateConfiguration";
        let site = self.write_part(request, |site| {
            if replaces {
                site.config = Site::new("", "", site.address).config;
            }
            site.merge_config(&request.body["properties"])
        });
        let site = site.await?;
        Ok(Answer::ok(self.show_configuration(&shares(self), &site)))
    }

    /// Who may list them sees the keys, too.
    pub(crate) fn list_mounts(&self, request: &Request) -> Result<Answer, Refusal> {
        let shares = shares(self);
        self.read_part(request, |site| {
            let mut mounts = self.show_mounts(&shares, site);
            for (name, mount) in &site.mounts {
                mounts[name]["accessKey"] = mount.key.as_str().into();
            }
            self.config_resource(site, "azurestorageaccounts", mounts)
        })
    }

    pub(crate) async fn write_mounts(&self, request: &Request) -> Result<Answer, Refusal> {
        let site = self.write_part(request, |site| {
            site.mounts = match &request.body["properties"] {
                Value::Null => read_mounts(&json!({}), &site.mounts)?,
                mounts => read_mounts(mounts, &site.mounts)?,
            };
            Ok(())
        });
        let site = site.await?;
        let mounts = self.show_mounts(&shares(self), &site);
        Ok(Answer::ok(self.config_resource(&site, "azurestorageaccounts", mounts)))
    }

    pub(crate) fn show_configuration(&self, shares: &Shares, site: &Site) -> Value {
        let mut properties = without_nulls(&site.config);
        properties.insert("azureStorageAccounts".to_owned(), self.show_mounts(shares, site));
        self.config_resource(site, "web", properties.into())
    }

    /// Mounts without their keys.
    fn show_mounts(&self, shares: &Shares, site: &Site) -> Value {
        let show = |mount: &Mount| {
            json!({
                "type": mount.kind, "accountName": mount.account, "shareName": mount.share, "mountPath": mount.path,
                "state": self.mount_state(shares.contains(&mount.share), mount),
            })
        };
        let mounts = site.mounts.iter().map(|(name, mount)| (name.clone(), show(mount)));
        mounts.collect::<Map<_, _>>().into()
    }

    /// Whether a mount leads anywhere.
    pub(crate) fn mount_state(&self, is_share: bool, mount: &Mount) -> &'static str {
        if !mount.account.eq_ignore_ascii_case(&self.account) || !self.keys.contains(&mount.key) {
            return "InvalidCredentials";
        }
        if is_share { "Ok" } else { "InvalidShare" }
    }

    fn config_resource(&self, site: &Site, name: &str, properties: Value) -> Value {
        json!({
            "id": format!("{}/config/{name}", self.id("Microsoft.Web/sites", &site.name)),
            "name": name,
            "type": "Microsoft.Web/sites/config",
            "properties": properties,
        })
    }
}

/// The names of the shares that there are.
pub(crate) type Shares = std::collections::BTreeSet<String>;

/// Taken before a site is looked at: the lock is the same.
pub(crate) fn shares(stand: &Stand) -> Shares {
    locked(&stand.world).shares.all().map(|share| share.name.clone()).collect()
}
