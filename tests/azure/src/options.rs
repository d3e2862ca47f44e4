//! How a stand behaves.

use std::{collections::BTreeSet, path::PathBuf, time::Duration};

use crate::buckets::Buckets;

/// Says how a stand behaves.
#[derive(Debug, Clone)]
pub struct Options {
    /// How writes of plans and sites are answered.
    pub style: Style,
    /// Whether a write of a site is accepted with nothing that tells what becomes of it, where resources tell: a new one is there
    /// when it is done. That is against the rules, and no official client gets through it.
    pub mute_sites: bool,
    /// How long an asynchronous operation takes.
    pub work: Duration,
    /// How many seconds an answer asks to wait before the first poll and between polls; without, it does not say.
    pub retry_after: Option<u32>,
    /// How long a container takes to start, beside its product's own start.
    pub start: Duration,
    /// How long a product may take to end, beside two seconds.
    pub stop: Duration,
    /// How long reads lag behind writes.
    pub lag: Duration,
    /// How much is asked for before requests are throttled.
    pub buckets: Option<Buckets>,
    /// Whether a write is refused while another one on the same plan is under way.
    pub plan_locks: bool,
    /// How many sites a plan takes.
    pub sites_max: usize,
    /// How many plans the resource group takes.
    pub plans_max: usize,
    /// Whether sites run anything. Where they do not, they have no front door either.
    pub boots: bool,
    /// What a site without a command runs.
    pub product: Option<PathBuf>,
    /// How many things a page of a list shows.
    pub page: usize,
    /// The actions that callers have the right to, as custom roles name them; all, where none are named.
    pub actions: Option<BTreeSet<String>>,
    /// Where each request is written down with its answer, one JSON object on a line. `None`: in a file of its own in the folder
    /// that `AZURE_RECORDINGS` names, if it does.
    pub record: Option<PathBuf>,
    /// How long a token is good for.
    pub token_lifetime: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            style: Style::AsyncOperation,
            mute_sites: false,
            work: Duration::from_millis(100),
            retry_after: None,
            start: Duration::from_millis(50),
            stop: Duration::from_millis(50),
            lag: Duration::ZERO,
            buckets: None,
            plan_locks: true,
            sites_max: 64,
            plans_max: 100,
            boots: true,
            product: None,
            page: 100,
            actions: None,
            record: None,
            token_lifetime: Duration::from_secs(3600),
        }
    }
}

/// How writes of plans and sites are answered. The real service does each of these at times.
/// <https://learn.microsoft.com/azure/azure-resource-manager/management/async-operations>
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// It is done when it is answered.
    Immediate,
    /// A header leads to the state of the operation.
    AsyncOperation,
    /// A header leads to an address that answers with the resource at last.
    Location,
    /// The resource itself tells. A site has no property for that, so a write of one is answered when it is done.
    ProvisioningState,
}
