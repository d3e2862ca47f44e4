//! Requests about the resource group: sites, shares and plans. Reads that many ask for at once are shared.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures::{StreamExt, stream};
use provisioner_account::{Batches, Failure, GivenUp, Many, Page, until};
use provisioner_azure::{
    Arm, Calls, Scope,
    storage::{self, Keys},
    web::{self, HostNameBinding, HostNameBindingProperties, Plan, Tags},
};
use provisioner_core::{ErrorKind, OpContext, Retry, secret::SecretString};
use serde_json::json;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use crate::{
    config::AppServiceConfig,
    digest::{Share, Site},
};

/// The longest that a shared read may take.
const READ_MAX: Duration = Duration::from_secs(20);
/// From so many sites on the group is listed, instead of asking for each; and in a large group, from one of so many that there are.
const LISTED_FROM: usize = 4;
const LISTED_FROM_SHARE: usize = 50;
/// How many sites a read looks for at most.
const SITES_MAX: usize = 1000;
/// How many sites are asked for at once.
const ASKED_AT_ONCE: usize = 8;
/// How long the key of the storage account is kept. Whoever rotates keys rotates one, waits, and rotates the other.
const KEY_KEPT: Duration = Duration::from_secs(300);

/// The resource group.
#[derive(Debug)]
pub(crate) struct Group {
    arm: Arm,
    scope: Scope,
    storage_account: String,
    sites: Batches<Box<str>, Option<Arc<Site>>, Failure>,
    /// Held while it is asked for: many who come at once ask once.
    key: tokio::sync::Mutex<Option<(Instant, SecretString)>>,
    /// How many sites there were when they were listed last.
    count: Arc<AtomicUsize>,
}

impl Group {
    pub(crate) fn new(config: &AppServiceConfig, arm: Arm, tasks: &TaskTracker) -> Self {
        let (scope, storage_account) = (config.scope.clone(), config.storage_account.clone());
        let (of_all, its) = (arm.clone(), scope.clone());
        let count = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&count);
        let sites = Batches::new(SITES_MAX, tasks, move |names: BTreeSet<Box<str>>, many: Many| {
            let (arm, scope, count) = (of_all.clone(), its.clone(), Arc::clone(&counted));
            async move {
                let cx = many.context(READ_MAX);
                sites(&arm.during(&cx), &scope, names, &count).await
            }
        });
        Self { arm, scope, storage_account, sites, key: tokio::sync::Mutex::default(), count }
    }

    fn calls<'a>(&'a self, cx: &'a OpContext) -> Calls<'a> {
        self.arm.during(cx)
    }

    fn web(&self, resource: &str) -> String {
        self.scope.path(web::PROVIDER, resource)
    }

    // Reads

    /// A site of a making by its name.
    pub(crate) async fn site(&self, cx: &OpContext, name: &str) -> Result<Option<Site>, Failure> {
        let found = self.sites.get(name.into(), cx).await?;
        Ok(found.map(|site| Site::clone(&site)))
    }

    /// The same, asked for by itself: how it is right now.
    pub(crate) async fn site_now(&self, cx: &OpContext, name: &str) -> Result<Option<web::Site>, Failure> {
        self.calls(cx).get(&self.web(&format!("sites/{name}")), web::VERSION).await
    }

    pub(crate) async fn sites_page(&self, cx: &OpContext, from: Option<&str>) -> Result<Page<web::Site>, Failure> {
        self.calls(cx).page(&self.web("sites"), web::VERSION, from).await
    }

    pub(crate) async fn all_sites(&self, cx: &OpContext) -> Result<Vec<web::Site>, Failure> {
        let all = self.calls(cx).list(&self.web("sites"), web::VERSION).await?;
        self.count.store(all.len(), Ordering::Relaxed);
        Ok(all)
    }

    /// A share of a data set by its name.
    pub(crate) async fn share(&self, cx: &OpContext, name: &str) -> Result<Option<Share>, Failure> {
        match self.calls(cx).get(&self.share_path(name), storage::VERSION).await? {
            Some(found) => Share::of(found).map(Some).ok_or_else(|| unreadable("share", name)),
            None => Ok(None),
        }
    }

    /// A share that was listed. `None`: it is nobody's of this control plane, or is gone by now.
    pub(crate) async fn listed_share(&self, cx: &OpContext, name: &str) -> Result<Option<Share>, Failure> {
        let found = self.calls(cx).get(&self.share_path(name), storage::VERSION).await?;
        Ok(found.and_then(Share::of).filter(|share| share.owner.control_plane == cx.control_plane))
    }

    pub(crate) async fn shares_page(
        &self,
        cx: &OpContext,
        from: Option<&str>,
    ) -> Result<Page<storage::Share>, Failure> {
        self.calls(cx).page(&self.storage("fileServices/default/shares"), storage::VERSION, from).await
    }

    pub(crate) async fn all_plans(&self, cx: &OpContext) -> Result<Vec<Plan>, Failure> {
        self.calls(cx).list(&self.web("serverfarms"), web::VERSION).await
    }

    pub(crate) async fn plan(&self, cx: &OpContext, name: &str) -> Result<Option<Plan>, Failure> {
        self.calls(cx).get(&self.plan_path(name), web::VERSION).await
    }

    /// That group and account are there: the subscription, and their names.
    pub(crate) async fn identity(&self, cx: &OpContext) -> Result<String, Failure> {
        // A page of a list is refused where there is no group, or no account.
        self.sites_page(cx, None).await?;
        self.shares_page(cx, None).await?;
        let Scope { subscription, resource_group } = &self.scope;
        let (subscription, group) = (subscription.to_lowercase(), resource_group.to_lowercase());
        Ok(format!("azure:{subscription}:{group}:{}", self.storage_account))
    }

    // Writes

    pub(crate) async fn put_site(&self, cx: &OpContext, name: &str, site: &web::Site) -> Result<web::Site, Failure> {
        self.calls(cx).put(&self.web(&format!("sites/{name}")), web::VERSION, site).await
    }

    /// Has a site do something: `start`, `stop` or `restart`.
    pub(crate) async fn tell_site(&self, cx: &OpContext, name: &str, what: &str) -> Result<(), Failure> {
        let path = self.web(&format!("sites/{name}/{what}"));
        self.calls(cx).post(&path, web::VERSION, None).await.map(drop)
    }

    /// A plan is not removed with its last site: that is decided with more care.
    pub(crate) async fn delete_site(&self, cx: &OpContext, name: &str) -> Result<(), Failure> {
        let query = "&deleteMetrics=true&deleteEmptyServerFarm=false";
        self.calls(cx).delete(&self.web(&format!("sites/{name}")), web::VERSION, query).await
    }

    pub(crate) async fn bind_host(&self, cx: &OpContext, site: &str, host: &str) -> Result<(), Failure> {
        let properties =
            HostNameBindingProperties { site_name: Some(site.to_owned()), host_name_type: Some("Verified".to_owned()) };
        let binding = HostNameBinding { properties, ..HostNameBinding::default() };
        let path = self.web(&format!("sites/{site}/hostNameBindings/{host}"));
        self.calls(cx).put::<HostNameBinding>(&path, web::VERSION, &binding).await.map(drop)
    }

    pub(crate) async fn unbind_host(&self, cx: &OpContext, site: &str, host: &str) -> Result<(), Failure> {
        self.calls(cx).delete(&self.web(&format!("sites/{site}/hostNameBindings/{host}")), web::VERSION, "").await
    }

    pub(crate) async fn put_plan(&self, cx: &OpContext, name: &str, plan: &Plan) -> Result<Plan, Failure> {
        self.calls(cx).put(&self.plan_path(name), web::VERSION, plan).await
    }

    pub(crate) async fn delete_plan(&self, cx: &OpContext, name: &str) -> Result<(), Failure> {
        self.calls(cx).delete(&self.plan_path(name), web::VERSION, "").await
    }

    /// Makes a share, and tells which one is there then: one that was there before stays as it was.
    pub(crate) async fn make_share(&self, cx: &OpContext, share: &Share) -> Result<Share, Failure> {
        let (path, body) = (self.share_path(&share.name), body_of(share, true));
        let made = self.calls(cx).put::<storage::Share>(&path, storage::VERSION, &body).await?;
        Share::of(made).ok_or_else(|| unreadable("share", &share.name).in_doubt())
    }

    /// Notes something else about a share, or has it hold more.
    pub(crate) async fn note_share(&self, cx: &OpContext, share: &Share, grows: bool) -> Result<(), Failure> {
        let (path, body) = (self.share_path(&share.name), body_of(share, grows));
        self.calls(cx).patch::<storage::Share>(&path, storage::VERSION, &body).await.map(drop)
    }

    pub(crate) async fn delete_share(&self, cx: &OpContext, name: &str) -> Result<(), Failure> {
        self.calls(cx).delete(&self.share_path(name), storage::VERSION, "").await
    }

    /// The key by which sites mount shares.
    pub(crate) async fn storage_key(&self, cx: &OpContext) -> Result<SecretString, Failure> {
        let mut kept = tokio::select! {
            kept = self.key.lock() => kept,
            () = until(cx.deadline) => return Err(GivenUp::TooLate.into()),
            () = cx.cancel.cancelled() => return Err(GivenUp::Cancelled.into()),
        };
        if let Some((_, key)) = kept.as_ref().filter(|(since, _)| since.elapsed() < KEY_KEPT) {
            return Ok(key.clone());
        }
        let answer = self.calls(cx).post(&self.storage("listKeys"), storage::VERSION, Some(&json!({}))).await?;
        let key = serde_json::from_value::<Keys>(answer).ok().and_then(Keys::into_first);
        let none = || Failure::new(ErrorKind::Internal, "the storage account has no key in the answer");
        let key = key.ok_or_else(none)?;
        *kept = Some((Instant::now(), key.clone()));
        Ok(key)
    }

    // Paths

    pub(crate) fn plan_path(&self, name: &str) -> String {
        self.web(&format!("serverfarms/{name}"))
    }

    fn storage(&self, resource: &str) -> String {
        self.scope.path(storage::PROVIDER, &format!("storageAccounts/{}/{resource}", self.storage_account))
    }

    fn share_path(&self, name: &str) -> String {
        self.storage(&format!("fileServices/default/shares/{name}"))
    }
}

/// All that is told of a plan: whose it is, and what it is.
pub(crate) fn plan_of(config: &AppServiceConfig, control_plane: &str) -> Plan {
    Plan {
        kind: Some("linux".to_owned()),
        location: config.region.clone(),
        tags: Some(Tags::from([(crate::names::CONTROL_PLANE.to_owned(), control_plane.to_owned())])),
        sku: Some(web::Sku { name: config.plans.sku.clone(), capacity: Some(config.plans.machines) }),
        properties: web::PlanProperties { reserved: Some(true), ..web::PlanProperties::default() },
        ..Plan::default()
    }
}

fn body_of(share: &Share, with_size: bool) -> storage::Share {
    let properties = storage::ShareProperties {
        share_quota: with_size.then_some(share.size_gib),
        metadata: Some(share.to_metadata()),
        deleted: None,
    };
    storage::Share { properties, ..storage::Share::default() }
}

type Found = BTreeMap<Box<str>, Result<Option<Arc<Site>>, Failure>>;

/// Under this name is something of ours, and nobody knows whose: it is not absent, and not to be touched.
fn unreadable(what: &str, name: &str) -> Failure {
    let message = format!("the {what} {name} has lost the marks that say whose it is: they have to be put back");
    Failure { retry: Some(Retry::Backoff), ..Failure::new(ErrorKind::Conflict, message) }
}

/// Reads sites by their names: few of them each by itself, many in pages of the group. What a listing does not show is asked for by
/// itself, as listings lag behind more than other reads. `count`: how many sites there are, about.
async fn sites(calls: &Calls<'_>, scope: &Scope, names: BTreeSet<Box<str>>, count: &AtomicUsize) -> Found {
    let mut found = Found::new();
    let mut left = names;
    if left.len() >= LISTED_FROM.max(count.load(Ordering::Relaxed) / LISTED_FROM_SHARE) {
        match calls.list::<web::Site>(&scope.path(web::PROVIDER, "sites"), web::VERSION).await {
            Err(failure) => return left.into_iter().map(|name| (name, Err(failure.clone()))).collect(),
            Ok(all) => {
                count.store(all.len(), Ordering::Relaxed);
                for site in all.into_iter().filter_map(Site::of) {
                    if left.remove(&site.name) {
                        found.insert(site.name.clone(), Ok(Some(Arc::new(site))));
                    }
                }
            }
        }
    }
    let asked = left.into_iter().map(|name| async move {
        let path = scope.path(web::PROVIDER, &format!("sites/{name}"));
        let site = calls.get::<web::Site>(&path, web::VERSION).await;
        let site = site.and_then(|site| match site {
            Some(site) => Site::of(site).map(|site| Some(Arc::new(site))).ok_or_else(|| unreadable("site", &name)),
            None => Ok(None),
        });
        (name, site)
    });
    found.extend(stream::iter(asked).buffer_unordered(ASKED_AT_ONCE).collect::<Vec<_>>().await);
    found
}
