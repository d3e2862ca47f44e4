//! What is known of sites and shares, read from the service's answers.

use std::collections::BTreeMap;

use provisioner_azure::{storage, web};
use provisioner_core::types::{ControlPlaneId, DataId, Generation, Incarnation, InstanceId};

use crate::names;

/// What a site was last meant to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Intended {
    Running,
    Zero,
    Suspended,
}

impl Intended {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Zero => "zero",
            Self::Suspended => "suspended",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        [Self::Running, Self::Zero, Self::Suspended].into_iter().find(|intended| intended.as_str() == text)
    }
}

/// Whose a thing is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Owner {
    pub(crate) control_plane: ControlPlaneId,
    pub(crate) instance: InstanceId,
    pub(crate) incarnation: Incarnation,
    pub(crate) data: DataId,
    pub(crate) tenant: Box<str>,
}

impl Owner {
    /// `None`: a thing of nobody's, whatever else is noted of it.
    fn of<'a>(noted: impl Fn(&str) -> Option<&'a str>) -> Option<Self> {
        Some(Self {
            control_plane: noted(names::CONTROL_PLANE)?.parse().ok()?,
            instance: noted(names::INSTANCE)?.parse().ok()?,
            incarnation: noted(names::INCARNATION)?.parse().ok()?,
            data: noted(names::DATA)?.parse().ok()?,
            tenant: noted(names::TENANT)?.into(),
        })
    }
}

/// How a product says that it is ready.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Product {
    pub(crate) start_timeout_seconds: u32,
    pub(crate) health_path: Box<str>,
}

impl Product {
    pub(crate) fn to_tag(&self) -> String {
        format!("{} {}", self.start_timeout_seconds, self.health_path)
    }

    fn parse(text: &str) -> Option<Self> {
        let (start_timeout, health_path) = text.split_once(' ')?;
        Some(Self { start_timeout_seconds: start_timeout.parse().ok()?, health_path: health_path.into() })
    }
}

/// A site of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Site {
    pub(crate) name: Box<str>,
    pub(crate) owner: Owner,
    pub(crate) generation: Generation,
    pub(crate) intended: Intended,
    pub(crate) product: Option<Product>,
    /// The word of its last write.
    pub(crate) written: Box<str>,
    /// A digest of the host names of its own that it is to have.
    pub(crate) host_names_wanted: Box<str>,
    /// Those that it has.
    pub(crate) host_names: Vec<Box<str>>,
    pub(crate) is_running: bool,
    /// Whether it is over a quota of its plan: the service has stopped it.
    pub(crate) is_over_quota: bool,
    /// Its plan, by the path that it has in its properties.
    pub(crate) plan: Box<str>,
    /// Where it answers.
    pub(crate) host: Option<Box<str>>,
    /// All of its tags, for who writes them anew.
    pub(crate) tags: BTreeMap<String, String>,
    pub(crate) location: Box<str>,
    pub(crate) kind: Option<Box<str>>,
}

impl Site {
    /// Whether it has the host names that it is to have, and no others.
    pub(crate) fn has_its_host_names(&self) -> bool {
        names::hosts(self.host_names.iter().map(|name| &**name)) == *self.host_names_wanted
    }

    /// `None`: it is nobody's.
    pub(crate) fn of(site: web::Site) -> Option<Self> {
        let tags = site.tags.unwrap_or_default();
        let tag = |key: &str| tags.get(key).map(String::as_str);
        let owner = Owner::of(tag)?;
        let host = site.properties.default_host_name.filter(|host| !host.is_empty());
        let number = |key: &str| tag(key).and_then(|text| text.parse().ok());
        // Those that the service gives it are under its own domain, and the first of them is where it answers.
        let is_own = |name: &String| !name.ends_with(".azurewebsites.net") && Some(name) != host.as_ref();
        let host_names = site.properties.host_names.iter().filter(|name| is_own(name)).map(|name| name.as_str().into());
        Some(Self {
            generation: Generation(number(names::GENERATION).unwrap_or(0)),
            intended: tag(names::INTENDED).and_then(Intended::parse).unwrap_or(Intended::Running),
            product: tag(names::PRODUCT).and_then(Product::parse),
            written: tag(names::WRITTEN).unwrap_or_default().into(),
            host_names_wanted: tag(names::HOST_NAMES).unwrap_or_default().into(),
            host_names: host_names.collect(),
            is_running: site.properties.state.as_deref() == Some("Running"),
            is_over_quota: site.properties.usage_state.as_deref() == Some("Exceeded"),
            plan: site.properties.server_farm_id.unwrap_or_default().into(),
            host: host.map(Into::into),
            location: site.location.into(),
            kind: site.kind.map(Into::into),
            name: site.name.into(),
            owner,
            tags,
        })
    }
}

/// A share with data of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Share {
    pub(crate) name: Box<str>,
    /// Who used it last.
    pub(crate) owner: Owner,
    pub(crate) size_gib: u32,
    pub(crate) making: Option<Incarnation>,
    pub(crate) released: Option<Incarnation>,
    pub(crate) ending: Option<Incarnation>,
    pub(crate) written: Box<str>,
}

impl Share {
    /// `None`: it is nobody's, or it was deleted and is kept by the service for a while.
    pub(crate) fn of(share: storage::Share) -> Option<Self> {
        if share.properties.deleted == Some(true) {
            return None;
        }
        let metadata = share.properties.metadata.unwrap_or_default();
        let noted = |key: &str| metadata.get(&names::in_metadata(key)).map(String::as_str);
        let making = |key: &str| noted(key).and_then(|text| text.parse().ok());
        Some(Self {
            owner: Owner::of(noted)?,
            size_gib: share.properties.share_quota.unwrap_or(0),
            making: making(names::MAKING),
            released: making(names::RELEASED),
            ending: making(names::ENDING),
            written: noted(names::WRITTEN).unwrap_or_default().into(),
            name: share.name.into(),
        })
    }

    /// The same as metadata.
    pub(crate) fn to_metadata(&self) -> BTreeMap<String, String> {
        let owner = &self.owner;
        let marks = [(names::MAKING, self.making), (names::RELEASED, self.released), (names::ENDING, self.ending)];
        let marks = marks.into_iter().filter_map(|(key, making)| Some((key, making?.to_string())));
        let noted = [
            (names::CONTROL_PLANE, owner.control_plane.to_string()),
            (names::INSTANCE, owner.instance.to_string()),
            (names::INCARNATION, owner.incarnation.to_string()),
            (names::DATA, owner.data.to_string()),
            (names::TENANT, owner.tenant.to_string()),
            (names::WRITTEN, self.written.to_string()),
        ];
        noted.into_iter().chain(marks).map(|(key, value)| (names::in_metadata(key), value)).collect()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{from_value, json};

    use super::*;

    #[test]
    fn a_site_is_read_as_the_service_shows_it() {
        let incarnation = Incarnation::new(3, 5);
        let site: web::Site = from_value(json!({
            "id": "/x", "name": "a-1", "location": "West Europe", "kind": "app,linux,container",
            "tags": {
                "provisioner-control-plane": "p", "provisioner-instance": "a",
                "provisioner-incarnation": incarnation.to_string(), "provisioner-data": DataId::from_random(1).to_string(),
                "provisioner-tenant": "t", "provisioner-generation": "7", "provisioner-intended": "zero",
                "provisioner-product": "60 /healthz", "provisioner-written": "w", "provisioner-host-names": "digest"
            },
            "properties": {
                "state": "Stopped", "serverFarmId": "/plan", "defaultHostName": "a-1.azurewebsites.net",
                "hostNames": ["www.example.com", "a-1.azurewebsites.net"], "usageState": "Normal", "siteConfig": {"x": 1}
            }
        }))
        .unwrap();
        let site = Site::of(site).unwrap();
        assert_eq!((site.generation, site.intended, site.is_running), (Generation(7), Intended::Zero, false));
        assert_eq!((site.owner.incarnation, &*site.plan, &*site.host_names_wanted), (incarnation, "/plan", "digest"));
        assert_eq!(site.host_names, ["www.example.com".into()]);
        assert_eq!(site.product.unwrap(), Product { start_timeout_seconds: 60, health_path: "/healthz".into() });
    }

    #[test]
    fn what_is_noted_of_a_share_is_read_again() {
        let owner = Owner {
            control_plane: "p".parse().unwrap(),
            instance: "a".parse().unwrap(),
            incarnation: Incarnation::new(1, 2),
            data: DataId::from_random(3),
            tenant: "t".into(),
        };
        let share = Share {
            name: "s".into(),
            owner,
            size_gib: 5,
            making: None,
            released: Some(Incarnation::new(1, 2)),
            ending: None,
            written: "w".into(),
        };
        let shown = storage::Share {
            name: "s".into(),
            properties: storage::ShareProperties {
                share_quota: Some(5),
                metadata: Some(share.to_metadata()),
                deleted: None,
            },
        };
        assert_eq!(Share::of(shown.clone()), Some(share));
        let deleted = storage::ShareProperties { deleted: Some(true), ..shown.properties };
        assert_eq!(Share::of(storage::Share { properties: deleted, ..shown }), None);
    }
}
