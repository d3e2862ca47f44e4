//! Host names of a site's own, and the certificates for them.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::{
    answer::{Answer, Refusal},
    asynchronous::MOMENT,
    plans::check_location,
    request::{self, Request},
    site::{Binding, Site},
    stand::{REGION, Stand, locked},
    words,
};

/// A certificate. It is of a plan, and outlives sites.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Certificate {
    pub(crate) name: String,
    pub(crate) tags: BTreeMap<String, String>,
    pub(crate) thumbprint: String,
    pub(crate) hosts: Vec<String>,
    /// The id of its plan, where it names one.
    pub(crate) plan: Option<String>,
}

impl Certificate {
    /// Whether it is of this plan.
    pub(crate) fn is_of(&self, plan: &str) -> bool {
        let name = self.plan.as_deref().and_then(|id| id.rsplit('/').next());
        name.is_some_and(|name| name.eq_ignore_ascii_case(plan))
    }
}

impl Stand {
    pub(crate) fn list_bindings(&self, request: &Request) -> Result<Answer, Refusal> {
        let name = request.name();
        let world = locked(&self.world);
        let site = world.sites.shown(name).ok_or_else(|| self.no_site(name))?;
        let own = self.show_binding(site, &self.first_binding(site));
        let rest = site.bindings.values().map(|binding| self.show_binding(site, binding));
        Ok(self.page(request, std::iter::once(own).chain(rest).collect()))
    }

    pub(crate) fn get_binding(&self, request: &Request) -> Result<Answer, Refusal> {
        let (name, host) = (request.name(), request.second_name());
        let world = locked(&self.world);
        let site = world.sites.shown(name).ok_or_else(|| self.no_site(name))?;
        let first = self.first_binding(site);
        let binding = if host == first.name { Some(&first) } else { site.bindings.get(&host.to_lowercase()) };
        let binding = binding.ok_or_else(|| {
            Refusal::no_resource(&format!("Microsoft.Web/sites/{name}/hostNameBindings/{host}"), &self.group)
        })?;
        Ok(Answer::ok(self.show_binding(site, binding)))
    }

    pub(crate) async fn write_binding(&self, request: &Request) -> Result<Answer, Refusal> {
        let (name, host) = (request.name(), request.second_name());
        let properties = &request.body["properties"];
        let binding = Binding {
            name: host.to_owned(),
            ssl: properties["sslState"].as_str().unwrap_or("Disabled").to_owned(),
            thumbprint: properties["thumbprint"].as_str().map(str::to_owned),
        };
        if !host.contains('.') || host.contains(':') {
            return Err(Refusal::bad(format!("The hostname '{host}' is not valid.")));
        }
        {
            let world = locked(&self.world);
            let key = host.to_lowercase();
            let is_anothers = |site: &&Site| !site.name.eq_ignore_ascii_case(name) && site.bindings.contains_key(&key);
            if let Some(other) = world.sites.all().find(is_anothers) {
                let message = format!("Hostname '{host}' already exists. It is assigned to the app '{}'.", other.name);
                return Err(Refusal::conflict("54001", message));
            }
            if let Some(thumbprint) = &binding.thumbprint
                && !world.certificates.all().any(|it| it.thumbprint.eq_ignore_ascii_case(thumbprint))
            {
                let message = format!("Cannot find Certificate with thumbprint {thumbprint}.");
                return Err(Refusal::new(404, "NotFound", message).capitalised("51004"));
            }
        }
        if binding.ssl != "Disabled" && binding.thumbprint.is_none() {
            return Err(Refusal::bad("A host name with TLS needs the thumbprint of a certificate."));
        }
        let shown = binding.clone();
        let site = self.write_part(request, |site| {
            site.bindings.insert(host.to_lowercase(), binding);
            Ok(())
        });
        Ok(Answer::ok(self.show_binding(&site.await?, &shown)))
    }

    pub(crate) async fn delete_binding(&self, request: &Request) -> Result<Answer, Refusal> {
        let (name, host) = (request.name(), request.second_name());
        {
            let world = locked(&self.world);
            let site = world.sites.get(name).ok_or_else(|| self.no_site(name))?;
            if host == self.host(site) {
                return Err(Refusal::bad(format!("The host name '{host}' can not be deleted.")));
            }
            if !site.bindings.contains_key(&host.to_lowercase()) {
                return Ok(Answer::empty(204));
            }
        }
        let site = self.write_part(request, |site| {
            site.bindings.remove(&host.to_lowercase());
            Ok(())
        });
        site.await?;
        Ok(Answer::empty(200))
    }

    /// The name that every site has.
    fn first_binding(&self, site: &Site) -> Binding {
        Binding { name: self.host(site), ssl: "Disabled".to_owned(), thumbprint: None }
    }

    pub(crate) fn show_binding(&self, site: &Site, binding: &Binding) -> Value {
        let mut properties = json!({ "siteName": site.name, "hostNameType": "Verified", "sslState": binding.ssl });
        if let Some(thumbprint) = &binding.thumbprint {
            properties["thumbprint"] = thumbprint.as_str().into();
        }
        let id = format!("{}/hostNameBindings/{}", self.id("Microsoft.Web/sites", &site.name), binding.name);
        json!({
            "id": id,
            "name": format!("{}/{}", site.name, binding.name),
            "type": "Microsoft.Web/sites/hostNameBindings",
            "properties": properties,
        })
    }

    pub(crate) async fn write_certificate(&self, request: &Request) -> Result<Answer, Refusal> {
        let (name, body) = (request.name(), &request.body);
        check_location(body, "Microsoft.Web/certificates")?;
        let properties = &body["properties"];
        let plan = properties["serverFarmId"].as_str().filter(|id| !id.is_empty()).map(str::to_owned);
        if let Some(id) = &plan {
            let wanted = id.rsplit('/').next().unwrap_or_default();
            if locked(&self.world).plans.get(wanted).is_none() {
                let message = format!("Cannot find ServerFarm with name {wanted}.");
                return Err(Refusal::new(404, "NotFound", message).capitalised("51004"));
            }
        }
        tokio::time::sleep(MOMENT).await;
        let mut world = locked(&self.world);
        let current = world.certificates.get(name).cloned();
        let blob = properties["pfxBlob"].as_str();
        let thumbprint = match (blob, &current) {
            (Some(blob), _) => words::fingerprint(blob, 40),
            (None, Some(current)) => current.thumbprint.clone(),
            (None, None) => {
                return Err(Refusal::bad("A certificate needs its content: properties.pfxBlob is missing."));
            }
        };
        let hosts = properties["hostNames"]
            .as_array()
            .map(|hosts| hosts.iter().filter_map(|host| host.as_str().map(str::to_owned)).collect::<Vec<_>>());
        let tags = request::tags(body)?;
        let before = current.as_ref();
        let certificate = Certificate {
            name: before.map_or(name, |it| &it.name).to_owned(),
            tags: tags.or_else(|| before.map(|it| it.tags.clone())).unwrap_or_default(),
            thumbprint,
            hosts: hosts.or_else(|| before.map(|it| it.hosts.clone())).unwrap_or_default(),
            plan: plan.or_else(|| before.and_then(|it| it.plan.clone())),
        };
        world.certificates.put(name, certificate.clone());
        Ok(Answer::ok(self.show_certificate(&certificate)))
    }

    pub(crate) fn get_certificate(&self, request: &Request) -> Result<Answer, Refusal> {
        let name = request.name();
        let world = locked(&self.world);
        let certificate = world.certificates.shown(name);
        let missing = || Refusal::no_resource(&format!("Microsoft.Web/certificates/{name}"), &self.group);
        certificate.map(|it| Answer::ok(self.show_certificate(it))).ok_or_else(missing)
    }

    pub(crate) fn list_certificates(&self, request: &Request) -> Answer {
        let world = locked(&self.world);
        let certificates = world.certificates.shown_all().into_iter().map(|it| self.show_certificate(it)).collect();
        self.page(request, certificates)
    }

    pub(crate) async fn delete_certificate(&self, request: &Request) -> Result<Answer, Refusal> {
        let name = request.name();
        self.check_kept("Microsoft.Web/certificates", name)?;
        tokio::time::sleep(MOMENT).await;
        let mut world = locked(&self.world);
        let Some(certificate) = world.certificates.get(name) else { return Ok(Answer::empty(204)) };
        let is_used = |binding: &Binding| {
            binding.thumbprint.as_deref().is_some_and(|it| it.eq_ignore_ascii_case(&certificate.thumbprint))
        };
        if let Some(site) = world.sites.all().find(|site| site.bindings.values().any(is_used)) {
            let message = format!("The certificate '{name}' is in use by a binding of the site '{}'.", site.name);
            return Err(Refusal::conflict("04038", message));
        }
        world.certificates.remove(name);
        Ok(Answer::empty(200))
    }

    pub(crate) fn show_certificate(&self, certificate: &Certificate) -> Value {
        let subject = certificate.hosts.first().map_or("", String::as_str);
        let mut properties = json!({
            "friendlyName": "",
            "subjectName": subject,
            "hostNames": certificate.hosts,
            "issuer": "test",
            "issueDate": "2024-01-01T00:00:00+00:00",
            "expirationDate": "2044-01-01T00:00:00+00:00",
            "thumbprint": certificate.thumbprint,
            "valid": true,
        });
        if let Some(plan) = &certificate.plan {
            properties["serverFarmId"] = plan.as_str().into();
        }
        json!({
            "id": self.id("Microsoft.Web/certificates", &certificate.name),
            "name": certificate.name,
            "type": "Microsoft.Web/certificates",
            "location": REGION,
            "tags": certificate.tags,
            "properties": properties,
        })
    }
}
