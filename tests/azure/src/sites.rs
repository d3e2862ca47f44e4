//! Sites: written, read, deleted, started and stopped.

use std::net::Ipv4Addr;

use serde_json::{Value, json};

use crate::{
    answer::{Answer, Refusal},
    asynchronous::{MOMENT, Work},
    plans::check_location,
    request::{Request, location},
    service::Service,
    site::Site,
    stand::{REGION, Stand, locked},
    words,
    world::World,
};

impl Stand {
    pub(crate) async fn write_site(&self, request: &Request) -> Result<Answer, Refusal> {
        let (name, body, is_patch) = (request.name().to_owned(), request.body.clone(), request.is_patch());
        if !body["properties"]["serverFarmId"].is_null() {
            self.check_right("Microsoft.Web/serverfarms/join/action", "LinkedAuthorizationFailed", &request.path)?;
        }
        let current = locked(&self.world).sites.get(&name).map(|site| (site.address, site.plan.clone()));
        let is_new = current.is_none();
        let (address, plan) = match current {
            Some((address, plan)) => (address, Some(plan)),
            None => (self.new_address()?, None),
        };
        let started = self.start_to_write(&name, &body, is_patch, address, plan.as_deref());
        let (guard, preview) = match started {
            Ok(started) => started,
            Err(refusal) => {
                if is_new {
                    self.free_address(address);
                }
                return Err(refusal);
            }
        };
        let apply = Box::new(move |stand: &Self| {
            let shown = {
                let mut world = locked(&stand.world);
                let site = stand.changed_site(&world, &name, &body, is_patch, address)?;
                world.sites.put(&name, site.clone());
                stand.show_site(&site)
            };
            stand.follow(&name);
            Ok(shown)
        });
        self.carry_out(request, Work { guard, preview, plan: None, apply }).await
    }

    /// Checks a write and locks the plans that it concerns. Gives the site as it will be.
    fn start_to_write(
        &self,
        name: &str,
        body: &Value,
        is_patch: bool,
        address: Ipv4Addr,
        before: Option<&str>,
    ) -> Result<(crate::locks::Guard, Value), Refusal> {
        let site = self.changed_site(&locked(&self.world), name, body, is_patch, address)?;
        let plans: Vec<_> = before.into_iter().chain([&*site.plan]).collect();
        let guard = self.locks.take(&plans)?;
        Ok((guard, self.show_site(&site)))
    }

    /// The site as it is after a write.
    fn changed_site(
        &self,
        world: &World,
        name: &str,
        body: &Value,
        is_patch: bool,
        address: Ipv4Addr,
    ) -> Result<Site, Refusal> {
        let current = world.sites.get(name);
        if is_patch && current.is_none() {
            return Err(self.no_site(name));
        }
        if !is_patch {
            check_location(body, "Microsoft.Web/sites")?;
        }
        if current.is_none() {
            check_name(name)?;
            if world.taken.contains(&name.to_lowercase()) {
                return Err(Refusal::conflict("54001", format!("Website with given name {name} already exists.")));
            }
        }
        let mut site = current.cloned().unwrap_or_else(|| Site::new(name, location(body).unwrap_or(REGION), address));
        let said = &body["properties"]["serverFarmId"];
        if let Some(id) = said.as_str() {
            self.place(world, &mut site, id)?;
        }
        if site.plan.is_empty() {
            return Err(Refusal::bad("The site needs an App Service plan: properties.serverFarmId is missing."));
        }
        site.merge(body)?;
        Ok(site)
    }

    /// Puts a site on a plan.
    fn place(&self, world: &World, site: &mut Site, id: &str) -> Result<(), Refusal> {
        // A bare name is taken, too.
        let name = id.rsplit('/').next().unwrap_or_default();
        let is_here = !id.contains('/') || id.eq_ignore_ascii_case(&self.id("Microsoft.Web/serverfarms", name));
        let plan = world.plans.get(name).filter(|_| is_here).ok_or_else(|| {
            Refusal::new(404, "NotFound", format!("Cannot find ServerFarm with name {name}.")).capitalised("51004")
        })?;
        if words::region(&plan.location) != words::region(&site.location) {
            return Err(Refusal::bad("The App Service plan is in another region than the site."));
        }
        let others = world.sites_of(name).iter().filter(|other| !other.name.eq_ignore_ascii_case(&site.name)).count();
        if others >= self.options.sites_max {
            let max = self.options.sites_max;
            let message = format!("The App Service plan {name} has reached the maximum number of {max} sites.");
            return Err(Refusal::conflict("59301", message));
        }
        site.plan.clone_from(&plan.name);
        Ok(())
    }

    pub(crate) fn get_site(&self, request: &Request) -> Result<Answer, Refusal> {
        let name = request.name();
        let world = locked(&self.world);
        let site = world.sites.shown(name).ok_or_else(|| self.no_site(name))?;
        Ok(Answer::ok(self.show_site(site)))
    }

    pub(crate) fn list_sites(&self, request: &Request) -> Answer {
        let world = locked(&self.world);
        let sites = world.sites.shown_all().into_iter().map(|site| self.show_site(site)).collect();
        self.page(request, sites)
    }

    pub(crate) async fn delete_site(&self, request: &Request) -> Result<Answer, Refusal> {
        let name = request.name();
        let Some(plan) = locked(&self.world).sites.get(name).map(|site| site.plan.clone()) else {
            return Ok(Answer::empty(204));
        };
        self.check_kept("Microsoft.Web/sites", name)?;
        let _guard = self.locks.take(&[&plan])?;
        tokio::time::sleep(MOMENT).await;
        if let Some(service) = self.remove_site(name) {
            service.end().await;
        }
        if request.flag("deleteEmptyServerFarm", true) {
            let mut world = locked(&self.world);
            let is_kept = world.kept.contains(&plan.to_lowercase())
                || !world.sites_of(&plan).is_empty()
                || world.certificates.all().any(|certificate| certificate.is_of(&plan));
            if !is_kept {
                world.plans.remove(&plan);
            }
        }
        Ok(Answer::empty(200))
    }

    /// Removes a site. Gives what runs of it, to be ended.
    pub(crate) fn remove_site(&self, name: &str) -> Option<Service> {
        let site = locked(&self.world).sites.remove(name)?;
        self.free_address(site.address);
        locked(&self.services).remove(&name.to_lowercase())
    }

    /// Starts, stops or restarts a site.
    pub(crate) async fn order(&self, request: &Request, order: fn(&mut Site)) -> Result<Answer, Refusal> {
        self.write_part(request, |site| {
            order(site);
            Ok(())
        })
        .await?;
        Ok(Answer::empty(200))
    }

    /// Changes a part of a site at once. Gives the site as it is then.
    pub(crate) async fn write_part(
        &self,
        request: &Request,
        change: impl FnOnce(&mut Site) -> Result<(), Refusal>,
    ) -> Result<Site, Refusal> {
        let name = request.name();
        let plan = locked(&self.world).sites.get(name).map(|site| site.plan.clone());
        let _guard = self.locks.take(&[&*plan.ok_or_else(|| self.no_site(name))?])?;
        tokio::time::sleep(MOMENT).await;
        let site = {
            let mut world = locked(&self.world);
            let mut site = world.sites.get(name).cloned().ok_or_else(|| self.no_site(name))?;
            change(&mut site)?;
            site.changed = words::now();
            world.sites.put(name, site.clone());
            site
        };
        self.follow(name);
        Ok(site)
    }

    /// The same behind everybody's back. Whether there is such a site.
    pub(crate) fn change_site(&self, name: &str, change: impl FnOnce(&mut Site)) -> bool {
        let is_there = locked(&self.world).sites.change(name, change).is_some();
        if is_there {
            self.follow(name);
        }
        is_there
    }

    pub(crate) fn list_instances(&self, request: &Request) -> Result<Answer, Refusal> {
        let instances = self.instances(request.name())?;
        Ok(self.page(request, instances))
    }

    pub(crate) fn get_instance(&self, request: &Request) -> Result<Answer, Refusal> {
        let (name, id) = (request.name(), request.second_name());
        let found = self.instances(name)?.into_iter().find(|instance| instance["name"] == id);
        let what = format!("Microsoft.Web/sites/{name}/instances/{id}");
        found.map(Answer::ok).ok_or_else(|| Refusal::no_resource(&what, &self.group))
    }

    /// What runs of a site: nothing when it is stopped.
    fn instances(&self, name: &str) -> Result<Vec<Value>, Refusal> {
        let world = locked(&self.world);
        let site = world.sites.shown(name).ok_or_else(|| self.no_site(name))?;
        if !site.enabled {
            return Ok(Vec::new());
        }
        let services = locked(&self.services);
        let runs = !self.options.boots
            || services.get(&name.to_lowercase()).is_some_and(|service| service.product().is_some());
        let id = words::fingerprint(&site.name, 64).to_lowercase();
        Ok(vec![json!({
            "id": format!("{}/instances/{id}", self.id("Microsoft.Web/sites", &site.name)),
            "name": id,
            "type": "Microsoft.Web/sites/instances",
            "properties": { "state": if runs { "READY" } else { "UNKNOWN" } },
        })])
    }

    /// Whether a name can be had.
    pub(crate) fn check_availability(&self, request: &Request) -> Result<Answer, Refusal> {
        let (name, kind) = (&request.body["name"], &request.body["type"]);
        let (Some(name), Some(_)) = (name.as_str(), kind.as_str()) else {
            return Err(Refusal::bad("A name and a type are needed."));
        };
        if let Err(refusal) = check_name(name) {
            let message = refusal.message;
            return Ok(Answer::ok(json!({ "nameAvailable": false, "reason": "Invalid", "message": message })));
        }
        let world = locked(&self.world);
        if world.sites.get(name).is_none() && !world.taken.contains(&name.to_lowercase()) {
            return Ok(Answer::ok(json!({ "nameAvailable": true })));
        }
        let message = format!("Hostname '{name}' already exists. Please select a different name.");
        Ok(Answer::ok(json!({ "nameAvailable": false, "reason": "AlreadyExists", "message": message })))
    }

    pub(crate) fn no_site(&self, name: &str) -> Refusal {
        Refusal::no_resource(&format!("Microsoft.Web/sites/{name}"), &self.group)
    }
}

fn check_name(name: &str) -> Result<(), Refusal> {
    let is_name = (2..=60).contains(&name.len())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
        && !name.starts_with('-')
        && !name.ends_with('-');
    match is_name {
        true => Ok(()),
        false => Err(Refusal::bad(format!(
            "The name '{name}' is not valid: names of sites are 2 to 60 letters, digits and hyphens, with no hyphen at an end."
        ))),
    }
}
