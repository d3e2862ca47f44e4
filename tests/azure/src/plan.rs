//! A plan, and how it is shown.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::{answer::Refusal, request, stand::Stand};

/// A plan: machines that sites run on.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Plan {
    pub(crate) name: String,
    pub(crate) kind: String,
    pub(crate) location: String,
    pub(crate) tags: BTreeMap<String, String>,
    pub(crate) sku: String,
    pub(crate) capacity: u64,
    /// What callers say of it and nothing here depends on.
    pub(crate) properties: Map<String, Value>,
    pub(crate) state: State,
}

/// How far the last write has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    InProgress,
    Succeeded,
    Failed,
}

/// The sizes: what they begin with, their tier, and how many machines there may be of one.
const TIERS: [(&str, &str, u64); 8] = [
    ("F1", "Free", 1),
    ("D1", "Shared", 1),
    ("B", "Basic", 3),
    ("S", "Standard", 10),
    ("P0v3", "Premium0V3", 30),
    ("Pm", "PremiumMV3", 30),
    ("Pv3", "PremiumV3", 30),
    ("Pv2", "PremiumV2", 30),
];

const SIZES: [&str; 23] = [
    "F1", "D1", "B1", "B2", "B3", "S1", "S2", "S3", "P1v2", "P2v2", "P3v2", "P0v3", "P1v3", "P2v3", "P3v3", "P1mv3",
    "P2mv3", "P3mv3", "P4mv3", "P5mv3", "EP1", "EP2", "EP3",
];

impl Plan {
    pub(crate) fn new(name: &str, location: &str) -> Self {
        let properties = json!({
            "perSiteScaling": false, "elasticScaleEnabled": false, "maximumElasticWorkerCount": 1, "isSpot": false,
            "reserved": false, "isXenon": false, "hyperV": false, "targetWorkerCount": 0, "targetWorkerSizeId": 0,
            "zoneRedundant": false,
        });
        Self {
            name: name.to_owned(),
            kind: "app".to_owned(),
            location: location.to_owned(),
            tags: BTreeMap::new(),
            sku: "B1".to_owned(),
            capacity: 1,
            properties: properties.as_object().cloned().unwrap_or_default(),
            state: State::Succeeded,
        }
    }

    /// Takes over what a body says. What it does not name stays as it is.
    ///
    /// # Errors
    /// When it makes no plan.
    pub(crate) fn merge(&mut self, body: &Value) -> Result<(), Refusal> {
        if let Some(tags) = request::tags(body)? {
            self.tags = tags;
        }
        if let Some(kind) = body["kind"].as_str() {
            kind.clone_into(&mut self.kind);
        }
        if let Some(name) = body["sku"]["name"].as_str() {
            let known = SIZES.iter().find(|size| size.eq_ignore_ascii_case(name));
            let known =
                known.ok_or_else(|| Refusal::bad(format!("The parameter SKU.Name has an invalid value: {name}.")))?;
            (*known).clone_into(&mut self.sku);
        }
        if let Some(capacity) = body["sku"]["capacity"].as_u64() {
            self.capacity = capacity.max(1);
        }
        let (_, max) = self.tier();
        if self.capacity > max {
            let message =
                format!("The number of workers {} exceeds the maximum of {max} for {}.", self.capacity, self.sku);
            return Err(Refusal::bad(message));
        }
        merge_known(&mut self.properties, &body["properties"])
    }

    /// Its tier, and how many machines there may be.
    pub(crate) fn tier(&self) -> (&'static str, u64) {
        let size = &self.sku;
        // `P1mv3` is of `Pm`, `P1v3` of `Pv3`.
        let letters: String = match size.split_at_checked(2) {
            Some((head, version)) if head.starts_with('P') => format!("P{version}"),
            _ => size.clone(),
        };
        let find = |(start, _, _): &&(&str, &str, u64)| size.starts_with(start) || letters.starts_with(start);
        TIERS.iter().find(find).map_or(("ElasticPremium", 20), |(_, tier, max)| (tier, *max))
    }

    /// Its size without the number: `B` of `B1`, `Pv3` of `P1v3`.
    fn family(&self) -> String {
        match self.sku.split_once(|c: char| c.is_ascii_digit()) {
            Some((start, version)) => format!("{start}{version}"),
            None => self.sku.clone(),
        }
    }

    pub(crate) fn is_ready(&self) -> bool {
        self.state != State::InProgress
    }
}

/// Takes over the names that there are already. A value is of the kind that it was, where that was any.
pub(crate) fn merge_known(known: &mut Map<String, Value>, said: &Value) -> Result<(), Refusal> {
    for (name, now) in known {
        let new = match said.get(name) {
            None | Some(Value::Null) => continue,
            Some(new) => new,
        };
        if !now.is_null() && std::mem::discriminant(now) != std::mem::discriminant(new) {
            let message = format!("The request content was invalid: '{name}' can not be {new}.");
            return Err(Refusal::new(400, "InvalidRequestContent", message));
        }
        *now = new.clone();
    }
    Ok(())
}

impl Stand {
    /// A plan as it is shown, with so many sites.
    pub(crate) fn show_plan(&self, plan: &Plan, sites: usize) -> Value {
        let (tier, max) = plan.tier();
        let mut properties = plan.properties.clone();
        let state = match plan.state {
            State::InProgress => "InProgress",
            State::Succeeded => "Succeeded",
            State::Failed => "Failed",
        };
        let status = if plan.state == State::InProgress { "Creating" } else { "Ready" };
        for (name, value) in [
            ("status", json!(status)),
            ("subscription", json!(self.subscription)),
            ("maximumNumberOfWorkers", json!(max)),
            ("numberOfWorkers", json!(plan.capacity)),
            ("geoRegion", json!("West Europe")),
            ("numberOfSites", json!(sites)),
            ("resourceGroup", json!(self.group)),
            ("provisioningState", json!(state)),
        ] {
            properties.insert(name.to_owned(), value);
        }
        json!({
            "id": self.id("Microsoft.Web/serverfarms", &plan.name),
            "name": plan.name,
            "type": "Microsoft.Web/serverfarms",
            "kind": plan.kind,
            "location": plan.location,
            "tags": plan.tags,
            "properties": properties,
            "sku": { "name": plan.sku, "tier": tier, "size": plan.sku, "family": plan.family(), "capacity": plan.capacity },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_size_has_a_tier() {
        let tier = |size: &str| Plan { sku: size.to_owned(), ..Plan::new("a", "b") }.tier();
        let tiers = ["F1", "B2", "S3", "P0v3", "P1v3", "P1mv3", "P3v2", "EP1"].map(|size| tier(size).0);
        let expected =
            ["Free", "Basic", "Standard", "Premium0V3", "PremiumV3", "PremiumMV3", "PremiumV2", "ElasticPremium"];
        assert_eq!(tiers, expected);
        assert_eq!(tier("B1").1, 3);
        let family = |size: &str| Plan { sku: size.to_owned(), ..Plan::new("a", "b") }.family();
        assert_eq!(["B1", "P0v3", "P1mv3", "EP2"].map(family), ["B", "Pv3", "Pmv3", "EP"]);
    }
}
