//! What there is in the subscription.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use crate::{bindings::Certificate, plan::Plan, shares::Share, site::Site, table::Table};

/// What there is in the subscription, and which names are not to be had.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) plans: Table<Plan>,
    pub(crate) sites: Table<Site>,
    pub(crate) certificates: Table<Certificate>,
    pub(crate) shares: Table<Share>,
    /// The file of credentials of each cluster.
    pub(crate) clusters: BTreeMap<String, String>,
    /// What may not be deleted, by its name.
    pub(crate) kept: BTreeSet<String>,
    /// The sites of strangers in other subscriptions.
    pub(crate) taken: BTreeSet<String>,
}

impl World {
    pub(crate) fn new(lag: Duration) -> Self {
        Self {
            plans: Table::new(lag),
            sites: Table::new(lag),
            certificates: Table::new(lag),
            shares: Table::new(lag),
            clusters: BTreeMap::new(),
            kept: BTreeSet::new(),
            taken: BTreeSet::new(),
        }
    }

    /// The sites of a plan, as they are.
    pub(crate) fn sites_of(&self, plan: &str) -> Vec<&Site> {
        self.sites.all().filter(|site| site.plan.eq_ignore_ascii_case(plan)).collect()
    }

    /// How many sites of a plan a read shows.
    pub(crate) fn shown_sites_of(&self, plan: &str) -> usize {
        self.sites.shown_all().into_iter().filter(|site| site.plan.eq_ignore_ascii_case(plan)).count()
    }
}
