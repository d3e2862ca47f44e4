//! The backend: what each verb does, and what is seen.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::{Arc, Mutex, PoisonError, atomic::AtomicBool},
    time::Duration,
};

use async_trait::async_trait;
use futures::{FutureExt, StreamExt, TryStreamExt, future::BoxFuture, stream, stream::BoxStream};
use provisioner_account::{During, Failure, Page, Turns, Writes, pages};
use provisioner_azure::{Arm, Https};
use provisioner_core::{
    Effect, Error, OpContext, Provisioner, Result,
    types::{
        Bound, Capabilities, DataDisposition, DataId, Generation, Incarnation, InstanceId, InstanceSpec, Isolation,
        Observed, Owned, OwnedKind, Phase, Present, SecretSupport, Target, Timestamp,
    },
};
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use crate::{
    check,
    config::AppServiceConfig,
    digest::{Intended, Share, Site},
    group::Group,
    health::Prober,
    names,
    plans::Plans,
    seen::{Health, Seen},
    verbs::{self, Wake, Work},
    writes::Write,
};

/// The longest that a call may take to have its effect, even after its answer was lost: a plan that is made, and a site in it.
const CALL_MAX: Duration = Duration::from_secs(180);
/// The most that a share holds: <https://learn.microsoft.com/azure/storage/files/storage-files-scale-targets>.
const SHARE_MAX_MIB: u32 = 100 << 20;
/// How long an absence has to last of which nothing tells.
const CONFIRMED_IN: Duration = Duration::from_secs(10);
/// How many sites of a listing are asked how they do at once: a page of them at most, so that it takes no longer than the slowest.
const ASKED_AT_ONCE: usize = 256;
/// How many shares of a listing are read at once.
const READ_AT_ONCE: usize = 8;
/// How many targets are looked at at once. They share requests.
const LOOKS_AT_ONCE: usize = 1000;
/// The shortest pause before looking again.
const MOMENT: Duration = Duration::from_millis(1);

/// Instances as Azure Web Apps of a resource group and region. A clone is the same backend.
///
/// Made by [`AppServiceConfig::build`]. Its calls need a tokio runtime with I/O and time.
#[derive(Debug, Clone)]
pub struct AppServiceBackend {
    shared: Arc<Shared>,
}

#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) config: AppServiceConfig,
    pub(crate) group: Group,
    pub(crate) plans: Plans,
    pub(crate) writes: Writes<Write>,
    pub(crate) prober: Prober,
    /// One verb at a time is at a making.
    turns: Turns<Incarnation>,
    /// And one at a time gives data to a making, or takes it away.
    pub(crate) data: Turns<DataId>,
    /// Since when makings are seen to be absent.
    absent: Mutex<BTreeMap<Incarnation, Instant>>,
}

impl fmt::Display for AppServiceBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AppService({})", self.shared.config.scope.resource_group)
    }
}

impl Shared {
    pub(crate) fn capabilities(&self) -> Capabilities {
        let mut capabilities = Capabilities::PLAIN;
        capabilities.call_max = CALL_MAX;
        // The service starts a container again that has ended.
        capabilities.restarts = true;
        capabilities.secrets = SecretSupport::Resolved;
        capabilities.size_max = self.config.size_max;
        capabilities.size_max.data_mib = self.config.size_max.data_mib.min(SHARE_MAX_MIB);
        // A container of its own, which shares its machine's memory and processors with the others of its plan.
        capabilities.isolation =
            Isolation { users: true, memory: Bound::None, cpu: Bound::None, processes: Bound::None };
        capabilities
    }

    pub(crate) fn check(&self, wanted: &InstanceSpec, applied: Option<&InstanceSpec>) -> Result<()> {
        check::spec(wanted, applied, &self.capabilities())
    }

    /// What is there of a making. A site that is there tells enough.
    pub(crate) async fn seen(&self, cx: &OpContext, target: &Target) -> Result<Seen, Failure> {
        let name = names::site(&cx.control_plane, &target.id, target.incarnation);
        match self.group.site(cx, &name).await? {
            Some(site) => Ok(Seen { site: Some(site), ..Seen::default() }),
            None => {
                let share = self.share(cx, target).await?;
                Ok(Seen { site: None, share, share_was_read: true })
            }
        }
    }

    /// The same with its share in any case.
    pub(crate) async fn seen_wholly(&self, cx: &OpContext, target: &Target) -> Result<Seen, Failure> {
        let seen = self.seen(cx, target).await?;
        match seen.share_was_read {
            true => Ok(seen),
            false => Ok(Seen { share: self.share(cx, target).await?, share_was_read: true, ..seen }),
        }
    }

    async fn share(&self, cx: &OpContext, target: &Target) -> Result<Option<Share>, Failure> {
        self.group.share(cx, &names::share(&cx.control_plane, target.data.id())).await
    }

    pub(crate) async fn health(&self, seen: &Seen, now: Timestamp) -> Option<Health> {
        match seen.to_check() {
            Some(_) if !self.config.probes => Some(Health::Answers),
            Some(site) => Some(self.prober.health(site, now).await),
            None => None,
        }
    }

    async fn look(&self, cx: &OpContext, target: &Target) -> Result<Observed, Failure> {
        let (config, began) = (&self.config, Instant::now());
        let seen = self.seen(cx, target).await?;
        if !self.writes.are_told(target.incarnation, &seen, cx.since_last_call) {
            let settled_in = config.settling.saturating_sub(cx.since_last_call.unwrap_or_default());
            return Ok(Observed::Unknown { again: settled_in.clamp(MOMENT, config.look_every) });
        }
        let health = self.health(&seen, cx.now.after(began.elapsed())).await;
        Ok(self.confirmed(target.incarnation, seen.observed(target.incarnation, health, config.look_every)))
    }

    /// One answer in which nothing is shown may be one that lags: an absence is believed when this process has made it, or sees it
    /// again a while later.
    fn confirmed(&self, incarnation: Incarnation, observed: Observed) -> Observed {
        let confirmed_in = CONFIRMED_IN.min(self.config.settling);
        let now = Instant::now();
        let mut absent = self.absent.lock().unwrap_or_else(PoisonError::into_inner);
        absent.retain(|_, since| now.saturating_duration_since(*since) < 60 * CONFIRMED_IN);
        if observed != Observed::Absent {
            absent.remove(&incarnation);
            return observed;
        }
        if self.writes.have(incarnation, |write| *write == Write::SiteGone) {
            return observed;
        }
        let since = *absent.entry(incarnation).or_insert(now);
        let left = confirmed_in.saturating_sub(now.saturating_duration_since(since));
        if left.is_zero() { Observed::Absent } else { Observed::Unknown { again: left } }
    }
}

impl AppServiceBackend {
    pub(crate) fn new(config: AppServiceConfig, arm: Arm, https: Https) -> Self {
        let group = Group::new(&config, arm, &TaskTracker::new());
        let (writes, prober) = (Writes::new(config.settling), Prober::new(https, config.start_time));
        let (plans, turns, data, absent) = (Plans::default(), Turns::default(), Turns::default(), Mutex::default());
        Self { shared: Arc::new(Shared { config, group, plans, writes, prober, turns, data, absent }) }
    }

    /// Runs a verb on a target, when it is its turn.
    async fn verb<'a>(
        &'a self,
        cx: &'a OpContext,
        operation: &'static str,
        target: &'a Target,
        verb: impl for<'w> FnOnce(&'w Work<'a>) -> BoxFuture<'w, Result<Observed>> + Send,
    ) -> Result<Observed> {
        let (during, began) = (During { operation, instance: Some(&target.id) }, Instant::now());
        let turn = self.shared.turns.take(target.incarnation, cx).await;
        let _turn = turn.map_err(|why| Failure::no_turn(why, "another verb is at it").during(during, false))?;
        let writing = self.shared.writes.begin(target.incarnation);
        self.shared.absent.lock().unwrap_or_else(PoisonError::into_inner).remove(&target.incarnation);
        let acted = AtomicBool::new(false);
        let work = Work { shared: &self.shared, cx, operation, target, writing, began, acted };
        let answer = verb(&work).await;
        // A refusal is known as well as what was done.
        if answer.as_ref().map_or_else(|error| error.effect() == Effect::None, |_| true) {
            work.writing.done();
        }
        answer
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl Provisioner for AppServiceBackend {
    fn capabilities(&self) -> Capabilities {
        self.shared.capabilities()
    }

    fn validate(&self, wanted: &InstanceSpec, applied: Option<&InstanceSpec>) -> Result<()> {
        self.shared.check(wanted, applied)
    }

    async fn identity(&self, cx: &OpContext) -> Result<String> {
        let during = During { operation: "identity", instance: None };
        self.shared.group.identity(cx).await.map_err(|failure| failure.during(during, false))
    }

    async fn create(&self, cx: &OpContext, target: &Target) -> Result<Observed> {
        self.verb(cx, "create", target, |work| work.run(Wake::Create).boxed()).await
    }

    async fn suspend(&self, cx: &OpContext, target: &Target) -> Result<Observed> {
        self.verb(cx, "suspend", target, |work| work.rest(Intended::Suspended).boxed()).await
    }

    async fn scale_to_zero(&self, cx: &OpContext, target: &Target) -> Result<Observed> {
        self.verb(cx, "scale to zero", target, |work| work.rest(Intended::Zero).boxed()).await
    }

    async fn resume(&self, cx: &OpContext, target: &Target) -> Result<Observed> {
        self.verb(cx, "resume", target, |work| work.run(Wake::Resume).boxed()).await
    }

    async fn destroy(&self, cx: &OpContext, target: &Target, data: DataDisposition) -> Result<Observed> {
        self.verb(cx, "destroy", target, move |work| work.destroy(data).boxed()).await
    }

    async fn observe(&self, cx: &OpContext, target: &Target) -> Result<Observed> {
        let during = During { operation: "observe", instance: Some(&target.id) };
        self.shared.look(cx, target).await.map_err(|failure| failure.during(during, false))
    }

    async fn observe_many(&self, cx: &OpContext, targets: &[Target]) -> Vec<Result<Observed>> {
        let looks: Vec<_> = targets.iter().map(|target| self.observe(cx, target)).collect();
        stream::iter(looks).buffered(LOOKS_AT_ONCE).collect().await
    }

    fn list(&self, cx: &OpContext) -> BoxStream<'static, Result<Owned>> {
        let (shared, cx) = (Arc::clone(&self.shared), cx.clone());
        // Sites first: their shares are in use.
        let living = Living::default();
        let sites = {
            let (shared, cx, living) = (Arc::clone(&shared), cx.clone(), Arc::clone(&living));
            pages(move |next| sites_page(Arc::clone(&shared), cx.clone(), Arc::clone(&living), next).boxed())
        };
        let shares = pages(move |next| shares_page(Arc::clone(&shared), cx.clone(), Arc::clone(&living), next).boxed());
        sites.chain(shares).map_err(listing).boxed()
    }

    fn watch(&self, _: &OpContext) -> BoxStream<'static, InstanceId> {
        stream::empty().boxed()
    }

    async fn delete_data(&self, cx: &OpContext, data: &DataId) -> Result<()> {
        verbs::delete_data(&self.shared, cx, data).await
    }

    async fn maintain(&self, cx: &OpContext, plan_only: bool) -> Result<Vec<String>> {
        let Shared { plans, group, config, .. } = &*self.shared;
        let during = During { operation: "maintain", instance: None };
        let failed = |failure: Failure| failure.during(during, true);
        let upkeep = plans.upkeep(cx, group, config).await.map_err(failed)?;
        let (mut lines, mut first_failure) = (Vec::new(), None);
        // One that cannot be seen to is no reason to leave the others.
        for plan in &upkeep.empty {
            let removed = if plan_only { Ok(true) } else { plans.remove_if_empty(cx, group, config, plan).await };
            match removed {
                Ok(true) => lines.push(format!("remove the empty plan {plan}")),
                Ok(false) => {}
                Err(failure) => first_failure = first_failure.or(Some(failure)),
            }
        }
        for plan in &upkeep.missing {
            let made = if plan_only { Ok(()) } else { plans.make(cx, group, config, plan).await };
            match made {
                Ok(()) => lines.push(format!("make the plan {plan}, as {} are kept", config.plans.plans_min)),
                Err(failure) => first_failure = first_failure.or(Some(failure)),
            }
        }
        if let Some(failure) = first_failure {
            return Err(failed(failure));
        }
        if plan_only {
            lines.extend(upkeep.advice);
        }
        Ok(lines)
    }
}

fn listing(failure: Failure) -> Error {
    failure.during(During { operation: "list", instance: None }, false)
}

/// The shares that sites have.
type Living = Arc<Mutex<BTreeSet<String>>>;

async fn sites_page(
    shared: Arc<Shared>,
    cx: OpContext,
    living: Living,
    next: Option<String>,
) -> Result<Page<Owned>, Failure> {
    let (found, next) = shared.group.sites_page(&cx, next.as_deref()).await?;
    // One of another cell, in another region of the group, is that cell's to tell of.
    let is_own = |site: &Site| {
        site.owner.control_plane == cx.control_plane && names::is_in(&site.location, &shared.config.region)
    };
    let own: Vec<_> = found.into_iter().filter_map(Site::of).filter(is_own).collect();
    living
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .extend(own.iter().map(|site| names::share(&cx.control_plane, &site.owner.data)));
    let owned: Vec<_> = own.into_iter().map(|site| owned(&shared, cx.now, site)).collect();
    Ok((stream::iter(owned).buffered(ASKED_AT_ONCE).collect().await, next))
}

async fn owned(shared: &Shared, now: Timestamp, site: Site) -> Owned {
    let owner = site.owner.clone();
    let seen = Seen { site: Some(site), ..Seen::default() };
    let health = shared.health(&seen, now).await;
    Owned {
        id: owner.instance,
        incarnation: owner.incarnation,
        kind: OwnedKind::Instance,
        data: Some(owner.data),
        observed: seen.observed(owner.incarnation, health, shared.config.look_every),
    }
}

async fn shares_page(
    shared: Arc<Shared>,
    cx: OpContext,
    living: Living,
    next: Option<String>,
) -> Result<Page<Owned>, Failure> {
    let (found, next) = shared.group.shares_page(&cx, next.as_deref()).await?;
    let left: Vec<_> = {
        let living = living.lock().unwrap_or_else(PoisonError::into_inner);
        let names = found.into_iter().map(|share| share.name);
        names.filter(|name| name.starts_with(names::SHARES) && !living.contains(name)).collect()
    };
    // What is noted of a share, its list does not tell.
    let read = left.into_iter().map(|name| {
        let (shared, cx) = (Arc::clone(&shared), cx.clone());
        async move { shared.group.listed_share(&cx, &name).await }
    });
    let read: Vec<_> = stream::iter(read).buffered(READ_AT_ONCE).try_collect().await?;
    Ok((read.into_iter().flatten().map(|share| left_over(&shared, share)).collect(), next))
}

/// A share without a site: retained data, or what is left of an instance that is half made or half gone.
fn left_over(shared: &Shared, share: Share) -> Owned {
    let owner = share.owner.clone();
    let seen = Seen { share: Some(share), share_was_read: true, ..Seen::default() };
    let (kind, observed) = match seen.observed(owner.incarnation, None, shared.config.look_every) {
        Observed::Absent => {
            let asleep = Present::new(Phase::Zero, Generation(0), owner.incarnation);
            (OwnedKind::Data, asleep.into())
        }
        seen => (OwnedKind::Instance, seen),
    };
    Owned { id: owner.instance, incarnation: owner.incarnation, kind, data: Some(owner.data), observed }
}
