//! What an outsider sees and does, behind the back of whoever uses the API.

use std::{
    collections::BTreeMap,
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
};

use crate::{
    plan::Plan,
    settings,
    site::Site,
    stand::{Azure, REGION, Stand, locked},
};

/// A site, as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// Its name.
    pub name: String,
    /// `Running` or `Stopped`.
    pub state: String,
    /// Its tags.
    pub tags: BTreeMap<String, String>,
    /// The name of its plan.
    pub plan: String,
    /// Where its front door is, with TLS.
    pub address: SocketAddr,
    /// Its image.
    pub image: String,
    /// Its command.
    pub command: String,
    /// The names of its settings.
    pub settings: Vec<String>,
    /// The shares that it sees, each with the path.
    pub mounts: BTreeMap<String, String>,
    /// The host names of its own.
    pub hosts: Vec<String>,
}

impl Azure {
    /// Lists the sites with a tag.
    pub async fn sites(&self, tag: (&str, &str)) -> Vec<Seen> {
        let stand = self.stand();
        let world = locked(&stand.world);
        world.sites.all().filter(|site| has(&site.tags, tag)).map(|site| stand.seen(site)).collect()
    }

    /// Lists all plans: the name, the tags, and the number of sites.
    pub async fn plans(&self) -> Vec<(String, BTreeMap<String, String>, usize)> {
        let world = locked(&self.stand().world);
        let plan = |plan: &Plan| (plan.name.clone(), plan.tags.clone(), world.sites_of(&plan.name).len());
        world.plans.all().map(plan).collect()
    }

    /// Lists the shares with something in their metadata: the name, and the metadata.
    pub async fn shares(&self, noted: (&str, &str)) -> Vec<(String, BTreeMap<String, String>)> {
        let world = locked(&self.stand().world);
        let with = world.shares.all().filter(|share| has(&share.metadata, noted));
        with.map(|share| (share.name.clone(), share.metadata.clone())).collect()
    }

    /// Lists what is left with a tag, in words: plans, sites, shares, certificates, and host names. A share has it in its
    /// metadata, where whatever no name can have is an underscore.
    pub async fn left(&self, tag: (&str, &str)) -> Vec<String> {
        let world = locked(&self.stand().world);
        let plans = world.plans.all().filter(|plan| has(&plan.tags, tag));
        let mut left: Vec<_> =
            plans.map(|plan| format!("plan {} ({} {})", plan.name, plan.capacity, plan.sku)).collect();
        for site in world.sites.all().filter(|site| has(&site.tags, tag)) {
            left.push(format!("site {} ({})", site.name, site.state()));
            left.extend(
                site.bindings.values().map(|binding| format!("host name {} of site {}", binding.name, site.name)),
            );
        }
        let key: String = tag.0.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
        let shares = world.shares.all().filter(|share| has(&share.metadata, (&key, tag.1)));
        left.extend(shares.map(|share| format!("share {} ({} GiB)", share.name, share.quota)));
        let certificates = world.certificates.all().filter(|it| has(&it.tags, tag));
        left.extend(certificates.map(|it| format!("certificate {}", it.name)));
        left
    }

    /// Lists where a text occurs in what the service shows, in words. The values of settings are encrypted, and not shown.
    pub async fn search(&self, text: &str) -> Vec<String> {
        let stand = self.stand();
        let shares = settings::shares(stand);
        let world = locked(&stand.world);
        let mut found = Vec::new();
        let mut look = |what: String, shown: &serde_json::Value| {
            if mentions(shown, text) {
                found.push(what);
            }
        };
        for plan in world.plans.all() {
            look(format!("plan {}", plan.name), &stand.show_plan(plan, world.sites_of(&plan.name).len()));
        }
        for site in world.sites.all() {
            let name = &site.name;
            look(format!("site {name}"), &stand.show_site(site));
            look(format!("the configuration of site {name}"), &stand.show_configuration(&shares, site));
            let names: Vec<_> = site.settings.keys().cloned().collect();
            look(format!("the names of the settings of site {name}"), &names.into());
            for binding in site.bindings.values() {
                look(format!("host name {} of site {name}", binding.name), &stand.show_binding(site, binding));
            }
        }
        for certificate in world.certificates.all() {
            look(format!("certificate {}", certificate.name), &stand.show_certificate(certificate));
        }
        for share in world.shares.all() {
            look(format!("share {}", share.name), &stand.show_share(share));
        }
        found
    }

    /// Reads the environment of the product of a running site.
    ///
    /// # Errors
    /// When no product runs there.
    pub fn environment(&self, site: &str) -> Result<BTreeMap<String, String>, String> {
        let services = locked(&self.stand().services);
        let product = services.get(&site.to_lowercase()).and_then(|service| service.product());
        let pid = product.ok_or_else(|| format!("{site}: no product runs"))?;
        let path = format!("/proc/{}/environ", pid.as_raw_nonzero());
        let bytes = fs::read(&path).map_err(|error| format!("{path}: {error}"))?;
        let environment = String::from_utf8_lossy(&bytes).into_owned();
        let pairs = environment.split('\0').filter_map(|pair| pair.split_once('='));
        Ok(pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect())
    }

    /// Tells what the product of a site said, and what became of it.
    #[must_use]
    pub fn console(&self, site: &str) -> String {
        let address = locked(&self.stand().world).sites.get(site).map(|site| site.address);
        let folder = self.stand().site_folder(site, address.unwrap_or(Ipv4Addr::UNSPECIFIED));
        String::from_utf8_lossy(&fs::read(folder.join("console")).unwrap_or_default()).into_owned()
    }

    /// Kills the product of a site. It is started again after a moment.
    ///
    /// # Errors
    /// When none runs.
    pub fn kill_product(&self, site: &str) -> Result<(), String> {
        let services = locked(&self.stand().services);
        services.get(&site.to_lowercase()).ok_or_else(|| format!("{site}: nothing runs"))?.kill()
    }

    /// Stops a site.
    ///
    /// # Errors
    /// When there is no such site.
    pub fn stop_behind(&self, site: &str) -> Result<(), String> {
        self.change_behind(site, |site| site.enabled = false)
    }

    /// Starts a site.
    ///
    /// # Errors
    /// When there is no such site.
    pub fn start_behind(&self, site: &str) -> Result<(), String> {
        self.change_behind(site, |site| site.enabled = true)
    }

    /// Deletes a site, and leaves its plan.
    ///
    /// # Errors
    /// When there is no such site.
    pub fn delete_site_behind(&self, site: &str) -> Result<(), String> {
        if locked(&self.stand().world).sites.get(site).is_none() {
            return Err(format!("{site}: no such site"));
        }
        // What ran of it ends by itself.
        drop(self.stand().remove_site(site));
        Ok(())
    }

    /// Deletes a share, with what is on it.
    ///
    /// # Errors
    /// When there is no such share.
    pub fn delete_share_behind(&self, share: &str) -> Result<(), String> {
        match self.stand().remove_share(share) {
            Ok(true) => Ok(()),
            Ok(false) => Err(format!("{share}: no such share")),
            Err(refusal) => Err(refusal.message),
        }
    }

    /// Sets one setting of a site, as somebody does at the portal.
    ///
    /// # Errors
    /// When there is no such site.
    pub fn set_setting_behind(&self, site: &str, name: &str, value: &str) -> Result<(), String> {
        self.change_behind(site, |site| {
            site.settings.insert(name.to_owned(), value.to_owned());
        })
    }

    /// Keeps what has this name from being deleted, or lets it go.
    pub fn lock(&self, name: &str, is_locked: bool) {
        let mut world = locked(&self.stand().world);
        match is_locked {
            true => world.kept.insert(name.to_lowercase()),
            false => world.kept.remove(&name.to_lowercase()),
        };
    }

    /// Has a stranger have a site of this name, somewhere in the world.
    pub fn take_name(&self, site: &str) {
        locked(&self.stand().world).taken.insert(site.to_lowercase());
    }

    /// Adds a plan that nobody's tags say anything of.
    pub fn add_stranger_plan(&self, name: &str) {
        let mut plan = Plan::new(name, REGION);
        plan.kind = "linux".to_owned();
        plan.properties.insert("reserved".to_owned(), true.into());
        locked(&self.stand().world).plans.put(name, plan);
    }

    /// Adds a site that nobody's tags say anything of. It runs nothing.
    ///
    /// # Panics
    /// When there is no address left for it.
    pub fn add_stranger_site(&self, plan: &str, name: &str) {
        let address = self.stand().new_address().expect("an address for a stranger's site");
        let mut site = Site::new(name, REGION, address);
        plan.clone_into(&mut site.plan);
        site.config.insert("linuxFxVersion".to_owned(), "DOCKER|stranger/missing".into());
        locked(&self.stand().world).sites.put(name, site);
        self.stand().follow(name);
    }

    /// Adds a Kubernetes cluster with the file that leads to it.
    pub fn add_cluster(&self, name: &str, kubeconfig: String) {
        locked(&self.stand().world).clusters.insert(name.to_lowercase(), kubeconfig);
    }

    /// Where the content of a share is.
    #[must_use]
    pub fn share_folder(&self, share: &str) -> PathBuf {
        self.stand().share_folder(share)
    }

    fn change_behind(&self, site: &str, change: impl FnOnce(&mut Site)) -> Result<(), String> {
        match self.stand().change_site(site, change) {
            true => Ok(()),
            false => Err(format!("{site}: no such site")),
        }
    }
}

impl Stand {
    fn seen(&self, site: &Site) -> Seen {
        Seen {
            name: site.name.clone(),
            state: site.state().to_owned(),
            tags: site.tags.clone(),
            plan: site.plan.clone(),
            address: SocketAddr::from((site.address, self.front)),
            image: site.config_text("linuxFxVersion").to_owned(),
            command: site.config_text("appCommandLine").to_owned(),
            settings: site.settings.keys().cloned().collect(),
            mounts: site.mounts.values().map(|mount| (mount.share.clone(), mount.path.clone())).collect(),
            hosts: site.bindings.values().map(|binding| binding.name.clone()).collect(),
        }
    }
}

/// Names of tags differ by more than their case.
fn has(tags: &BTreeMap<String, String>, (name, value): (&str, &str)) -> bool {
    tags.iter().any(|(key, it)| key.eq_ignore_ascii_case(name) && it == value)
}

/// Whether a text is in a name or a value.
fn mentions(shown: &serde_json::Value, text: &str) -> bool {
    match shown {
        serde_json::Value::Object(map) => map.iter().any(|(name, value)| name.contains(text) || mentions(value, text)),
        serde_json::Value::Array(list) => list.iter().any(|value| mentions(value, text)),
        serde_json::Value::String(it) => it.contains(text),
        other => other.to_string().contains(text),
    }
}
