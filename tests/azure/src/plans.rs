//! Plans: written, read, deleted.

use serde_json::Value;

use crate::{
    answer::{Answer, Refusal},
    asynchronous::{MOMENT, Work},
    plan::{Plan, State},
    request::{Request, location},
    stand::{REGION, REGIONS, Stand, locked},
    words,
    world::World,
};

const NAME_MAX: usize = 60;

impl Stand {
    pub(crate) async fn write_plan(&self, request: &Request) -> Result<Answer, Refusal> {
        let (name, body, is_patch) = (request.name().to_owned(), request.body.clone(), request.is_patch());
        let preview = {
            let world = locked(&self.world);
            let plan = self.changed_plan(&world, &name, &body, is_patch)?;
            self.show_plan(&plan, world.shown_sites_of(&name))
        };
        let guard = self.locks.take(&[&name])?;
        let plan = Some(name.clone());
        let apply = Box::new(move |stand: &Self| {
            let mut world = locked(&stand.world);
            let plan = stand.changed_plan(&world, &name, &body, is_patch)?;
            world.plans.put(&name, plan.clone());
            Ok(stand.show_plan(&plan, world.sites_of(&name).len()))
        });
        self.carry_out(request, Work { guard, preview, plan, apply }).await
    }

    /// Shows a plan before its time: one that is new is there at once, and says that it is not done.
    pub(crate) fn begin_plan(&self, name: &str, body: &Value, mut preview: Value) -> Result<Value, Refusal> {
        let mut world = locked(&self.world);
        let plan = match world.plans.get(name) {
            Some(plan) => plan.clone(),
            None => self.changed_plan(&world, name, body, false)?,
        };
        world.plans.put(name, Plan { state: State::InProgress, ..plan });
        preview["properties"]["provisioningState"] = "InProgress".into();
        Ok(preview)
    }

    /// The plan as it is after a write.
    fn changed_plan(&self, world: &World, name: &str, body: &Value, is_patch: bool) -> Result<Plan, Refusal> {
        let current = world.plans.get(name);
        if is_patch && current.is_none() {
            return Err(self.no_plan(name));
        }
        let is_name = (1..=NAME_MAX).contains(&name.chars().count())
            && name.chars().all(|c| c.is_alphanumeric() || matches!(c, '-' | '_'));
        if !is_name {
            return Err(Refusal::bad(format!("The name '{name}' is not valid for an App Service plan.")));
        }
        if !is_patch {
            check_location(body, "Microsoft.Web/serverFarms")?;
        }
        // One that is shown before its time is still new.
        let is_new = current.is_none_or(|plan| !plan.is_ready() && world.sites_of(name).is_empty());
        if current.is_none() && world.plans.len() >= self.options.plans_max {
            let max = self.options.plans_max;
            let message = format!("The maximum number of App Service plans allowed in a resource group is {max}.");
            return Err(Refusal::new(403, "Forbidden", message).capitalised("52020"));
        }
        let named = location(body).unwrap_or(REGION);
        let mut plan = current.cloned().unwrap_or_else(|| Plan::new(name, named));
        let before = (plan.capacity, plan.sku.clone());
        plan.merge(body)?;
        if self.faults.is_short() && (is_new || plan.capacity > before.0 || plan.sku != before.1) {
            return Err(Refusal::no_capacity());
        }
        plan.state = State::Succeeded;
        Ok(plan)
    }

    pub(crate) fn get_plan(&self, request: &Request) -> Result<Answer, Refusal> {
        let name = request.name();
        let world = locked(&self.world);
        let plan = world.plans.shown(name).ok_or_else(|| self.no_plan(name))?;
        Ok(Answer::ok(self.show_plan(plan, world.shown_sites_of(name))))
    }

    pub(crate) fn list_plans(&self, request: &Request) -> Answer {
        let world = locked(&self.world);
        let mut counts = std::collections::BTreeMap::<_, usize>::new();
        for site in world.sites.shown_all() {
            *counts.entry(site.plan.to_lowercase()).or_default() += 1;
        }
        let show =
            |plan: &Plan| self.show_plan(plan, counts.get(&plan.name.to_lowercase()).copied().unwrap_or_default());
        let plans = world.plans.shown_all().into_iter().map(show).collect();
        self.page(request, plans)
    }

    pub(crate) fn list_sites_of_plan(&self, request: &Request) -> Result<Answer, Refusal> {
        let name = request.name();
        let world = locked(&self.world);
        world.plans.shown(name).ok_or_else(|| self.no_plan(name))?;
        let sites = world.sites.shown_all().into_iter().filter(|site| site.plan.eq_ignore_ascii_case(name));
        Ok(self.page(request, sites.map(|site| self.show_site(site)).collect()))
    }

    pub(crate) async fn delete_plan(&self, request: &Request) -> Result<Answer, Refusal> {
        let name = request.name();
        if locked(&self.world).plans.get(name).is_none() {
            return Ok(Answer::empty(204));
        }
        self.check_kept("Microsoft.Web/serverfarms", name)?;
        let _guard = self.locks.take(&[name])?;
        tokio::time::sleep(MOMENT).await;
        let mut world = locked(&self.world);
        let sites: Vec<_> = world.sites_of(name).into_iter().map(|site| site.name.clone()).collect();
        if !sites.is_empty() {
            let sites = sites.join(", ");
            let message =
                format!("Server farm '{name}' cannot be deleted because it has web app(s) {sites} assigned to it.");
            return Err(Refusal::conflict("11003", message));
        }
        if let Some(certificate) = world.certificates.all().find(|it| it.is_of(name)) {
            let certificate = &certificate.name;
            let message = format!(
                "Server farm '{name}' cannot be deleted because it has certificate(s) {certificate} assigned to it."
            );
            return Err(Refusal::conflict("11004", message));
        }
        world.plans.remove(name);
        Ok(Answer::empty(200))
    }

    pub(crate) async fn restart_sites_of_plan(&self, request: &Request) -> Result<Answer, Refusal> {
        let name = request.name();
        let sites: Vec<_> = {
            let world = locked(&self.world);
            world.plans.get(name).ok_or_else(|| self.no_plan(name))?;
            world.sites_of(name).into_iter().map(|site| site.name.clone()).collect()
        };
        let _guard = self.locks.take(&[name])?;
        tokio::time::sleep(MOMENT).await;
        for site in sites {
            self.change_site(&site, |site| site.restarts += 1);
        }
        Ok(Answer::empty(204))
    }

    pub(crate) fn no_plan(&self, name: &str) -> Refusal {
        Refusal::no_resource(&format!("Microsoft.Web/serverFarms/{name}"), &self.group)
    }
}

/// Whether a body names a region that there is.
pub(crate) fn check_location(body: &Value, kind: &str) -> Result<(), Refusal> {
    let Some(location) = location(body) else {
        let message = "The location property is required for this definition.";
        return Err(Refusal::new(400, "LocationRequired", message));
    };
    if REGIONS.contains(&&*words::region(location)) {
        return Ok(());
    }
    let message = format!(
        "The provided location '{location}' is not available for resource type '{kind}'. List of available regions for the resource type is '{}'.",
        REGIONS.join(",")
    );
    Err(Refusal::new(400, "LocationNotAvailableForResourceType", message))
}
