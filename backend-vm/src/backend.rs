//! The backend: what each verb does, and what is seen.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::{Arc, Mutex, PoisonError, atomic::AtomicBool},
    time::Duration,
};

use async_trait::async_trait;
use futures::{FutureExt, StreamExt, TryStreamExt, future::BoxFuture, stream, stream::BoxStream};
use provisioner_account::{Page, Turns, Writes, pages};
use provisioner_core::{
    Error, OpContext, Provisioner, Result,
    types::{
        Bound, Capabilities, DataDisposition, DataId, Generation, Incarnation, InstanceId, InstanceSpec, Isolation,
        Observed, Owned, OwnedKind, Phase, Present, SecretSupport, Target,
    },
};
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use crate::{
    calls::{Account, Clients, by_tag},
    check,
    config::VmConfig,
    digest::{Intended, Machine, Volume},
    error::{During, Failure},
    fleet::Fleet,
    health::{self, Prober},
    images::Images,
    names,
    places::Places,
    seen::{self, Health, LOOK_AGAIN, Seen},
    verbs::{self, Wake, Work},
    watch,
    writes::Write,
};

/// The longest that a call may take to have its effect, even after its answer was lost.
const CALL_MAX: Duration = Duration::from_secs(60);
/// The shortest pause before looking again.
const MOMENT: Duration = Duration::from_millis(1);
/// How long an absence has to last.
const CONFIRMED_IN: Duration = Duration::from_secs(10);
/// Longer than the service shows machines that have ended:
/// <https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/terminating-instances.html>.
const ENDED_SHOWN: Duration = Duration::from_secs(3 * 3600);
/// How many machines of a listing are asked how they do at once.
const CHECKS_AT_ONCE: usize = 64;
/// How many targets are looked at at once. They share requests.
const LOOKS_AT_ONCE: usize = 1000;

/// Instances as virtual machines of an EC2 account and region. A clone is the same backend.
///
/// Made by [`VmConfig::build`]. Its calls need a tokio runtime with I/O and time.
#[derive(Debug, Clone)]
pub struct VmBackend {
    shared: Arc<Shared>,
}

#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) config: VmConfig,
    pub(crate) fleet: Fleet,
    pub(crate) images: Images,
    pub(crate) places: Places,
    pub(crate) writes: Writes<Write>,
    /// The makings whose volumes are followed to their end.
    pub(crate) followed: Mutex<BTreeSet<Incarnation>>,
    prober: Option<Prober>,
    /// Since when makings are seen to be absent, of which nothing else tells that.
    absent: Mutex<BTreeMap<Incarnation, Instant>>,
    /// Since when makings are to be removed. Of one that never came up nothing else tells that.
    removed: Mutex<BTreeMap<Incarnation, Instant>>,
    /// One verb at a time is at a making.
    turns: Turns<Incarnation>,
}

impl fmt::Display for VmBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EC2({})", self.shared.config.region)
    }
}

impl Shared {
    pub(crate) fn prober(&self) -> Option<&Prober> {
        self.prober.as_ref()
    }

    /// The machines of a making.
    pub(crate) async fn seen_machines(&self, cx: &OpContext, incarnation: Incarnation) -> Result<Seen, Failure> {
        let machines = self.fleet.machines(cx, incarnation).await?;
        Ok(Seen { machines, is_removed: self.is_removed(incarnation), ..Seen::default() })
    }

    /// What is there of a making. A machine that lives tells of its volume.
    pub(crate) async fn seen(&self, cx: &OpContext, incarnation: Incarnation) -> Result<Seen, Failure> {
        let mut seen = self.seen_machines(cx, incarnation).await?;
        if seen.living().is_none() {
            seen.volumes = self.fleet.volumes(cx, incarnation).await?;
        }
        Ok(seen)
    }

    fn is_removed(&self, incarnation: Incarnation) -> bool {
        self.removed.lock().unwrap_or_else(PoisonError::into_inner).contains_key(&incarnation)
    }

    /// From now on a making is to go.
    pub(crate) fn removes(&self, incarnation: Incarnation) {
        let mut removed = self.removed.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        removed.retain(|_, since| now.saturating_duration_since(*since) < ENDED_SHOWN);
        removed.insert(incarnation, now);
    }

    /// It is there again.
    pub(crate) fn removes_no_more(&self, incarnation: Incarnation) {
        self.removed.lock().unwrap_or_else(PoisonError::into_inner).remove(&incarnation);
    }

    pub(crate) async fn health(&self, cx: &OpContext, seen: &Seen) -> Result<Option<Health>, Failure> {
        match seen.to_check() {
            Some(machine) => {
                health::of(cx, &self.fleet, self.prober(), self.config.impaired_for, machine).await.map(Some)
            }
            None => Ok(None),
        }
    }

    async fn look(&self, cx: &OpContext, incarnation: Incarnation) -> Result<Observed, Failure> {
        let (settling, began) = (self.config.settling, Instant::now());
        let seen = self.seen(cx, incarnation).await?;
        if !self.writes.are_told(incarnation, &seen, cx.since_last_call) {
            let settled_in = settling.saturating_sub(cx.since_last_call.unwrap_or_default());
            return Ok(seen::together(
                Observed::Unknown { again: settled_in.clamp(MOMENT, LOOK_AGAIN) },
                cx.now.after(began.elapsed()),
                self.config.look_every,
            ));
        }
        let health = self.health(cx, &seen).await?;
        Ok(seen::together(
            self.confirmed(incarnation, &seen, seen.observed(incarnation, health)),
            cx.now.after(began.elapsed()),
            self.config.look_every,
        ))
    }

    /// One answer in which nothing is shown may be one that lags: an absence of which nothing tells, not even what has ended, is
    /// believed when it is seen again a while later.
    fn confirmed(&self, incarnation: Incarnation, seen: &Seen, observed: Observed) -> Observed {
        let confirmed_in = CONFIRMED_IN.min(self.config.settling);
        let now = Instant::now();
        let mut absent = self.absent.lock().unwrap_or_else(PoisonError::into_inner);
        absent.retain(|_, since| now.saturating_duration_since(*since) < 60 * CONFIRMED_IN);
        if observed != Observed::Absent || seen.ended().is_some() {
            absent.remove(&incarnation);
            if let (Observed::Absent, Some(ended)) = (&observed, seen.ended()) {
                let why = ended.why.as_ref().map_or("it is not told why", |(_, message)| message);
                tracing::info!(instance = %ended.owner.instance, machine = &*ended.id, why, "the machine has ended");
            }
            return observed;
        }
        let since = *absent.entry(incarnation).or_insert(now);
        let left = confirmed_in.saturating_sub(now.saturating_duration_since(since));
        if left.is_zero() { Observed::Absent } else { Observed::Unknown { again: left } }
    }
}

impl VmBackend {
    pub(crate) fn new(config: VmConfig, clients: Option<Clients>) -> Self {
        let account = Arc::new(Account::new(&config, clients));
        let tasks = TaskTracker::new();
        let (fleet, images) = (Fleet::new(&account, &tasks), Images::new(&account, &tasks));
        let writes = Writes::new(config.settling);
        let prober = config.probes.then(|| Prober::new(config.settling, config.boot_time));
        let (places, turns) = (Places::default(), Turns::default());
        Self {
            shared: Arc::new(Shared {
                config,
                fleet,
                images,
                places,
                writes,
                followed: Mutex::default(),
                absent: Mutex::default(),
                removed: Mutex::default(),
                prober,
                turns,
            }),
        }
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
        if answer.as_ref().map_or_else(|error| error.effect() == provisioner_core::Effect::None, |_| true) {
            work.writing.done();
        }
        answer
    }
}

#[async_trait]
impl Provisioner for VmBackend {
    fn capabilities(&self) -> Capabilities {
        let mut capabilities = Capabilities::PLAIN;
        capabilities.call_max = CALL_MAX;
        capabilities.watch = true;
        // Its unit starts a product that ended, and the machine starts the unit.
        capabilities.restarts = true;
        capabilities.secrets = SecretSupport::Native;
        capabilities.size_max = self.shared.config.size_max();
        capabilities.isolation = Isolation { processes: Bound::None, ..Isolation::FULL };
        capabilities
    }

    fn validate(&self, wanted: &InstanceSpec, applied: Option<&InstanceSpec>) -> Result<()> {
        check::spec(wanted, applied, &self.capabilities(), &self.shared.config)
    }

    async fn identity(&self, cx: &OpContext) -> Result<String> {
        let during = During { operation: "identity", instance: None };
        let account = self.shared.fleet.during(cx).account().await;
        let account = account.map_err(|failure| failure.during(during, false))?;
        Ok(format!("aws:{account}:{}", self.shared.config.region))
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
        self.shared.look(cx, target.incarnation).await.map_err(|failure| failure.during(during, false))
    }

    async fn observe_many(&self, cx: &OpContext, targets: &[Target]) -> Vec<Result<Observed>> {
        let looks: Vec<_> = targets.iter().map(|target| self.observe(cx, target)).collect();
        stream::iter(looks).buffered(LOOKS_AT_ONCE).collect().await
    }

    fn list(&self, cx: &OpContext) -> BoxStream<'static, Result<Owned>> {
        let (shared, cx) = (Arc::clone(&self.shared), cx.clone());
        let living = Arc::new(Mutex::new(BTreeSet::new()));
        let machines = {
            let (shared, cx, living) = (Arc::clone(&shared), cx.clone(), Arc::clone(&living));
            pages(move |next| machines_page(Arc::clone(&shared), cx.clone(), Arc::clone(&living), next).boxed())
        };
        let volumes =
            pages(move |next| volumes_page(Arc::clone(&shared), cx.clone(), Arc::clone(&living), next).boxed());
        machines.chain(volumes).map_err(listing).boxed()
    }

    fn watch(&self, cx: &OpContext) -> BoxStream<'static, InstanceId> {
        watch::watch(Arc::clone(&self.shared), cx.clone())
    }

    async fn delete_data(&self, cx: &OpContext, data: &DataId) -> Result<()> {
        verbs::delete_data(&self.shared, cx, data).await
    }

    async fn maintain(&self, _: &OpContext, _: bool) -> Result<Vec<String>> {
        Ok(Vec::new())
    }
}

fn listing(failure: Failure) -> Error {
    failure.during(During { operation: "list", instance: None }, false)
}

type Living = Arc<Mutex<BTreeSet<Incarnation>>>;

async fn machines_page(
    shared: Arc<Shared>,
    cx: OpContext,
    living: Living,
    next: Option<String>,
) -> Result<Page<Owned>, Failure> {
    let filter = by_tag(names::CONTROL_PLANE, [cx.control_plane.to_string()]);
    let (found, next) = shared.fleet.during(&cx).machines(&[filter], next).await?;
    let there =
        found.iter().filter_map(Machine::of).filter(|machine| machine.state != crate::digest::State::Terminated);
    let there: Vec<_> = there.collect();
    living.lock().unwrap_or_else(PoisonError::into_inner).extend(there.iter().map(|machine| machine.owner.incarnation));
    let owned: Vec<_> = there.into_iter().map(|machine| owned(&shared, &cx, machine)).collect();
    let owned: Vec<_> = stream::iter(owned).buffered(CHECKS_AT_ONCE).try_collect().await?;
    Ok((owned, next))
}

async fn owned(shared: &Shared, cx: &OpContext, machine: Machine) -> Result<Owned, Failure> {
    let owner = machine.owner.clone();
    let seen = Seen { machines: vec![machine], ..Seen::default() };
    let health = shared.health(cx, &seen).await?;
    Ok(Owned {
        id: owner.instance,
        incarnation: owner.incarnation,
        kind: OwnedKind::Instance,
        data: Some(owner.data),
        observed: seen.observed(owner.incarnation, health),
    })
}

/// Volumes that no machine has: data that nobody uses, or what a removal has left.
async fn volumes_page(
    shared: Arc<Shared>,
    cx: OpContext,
    living: Living,
    next: Option<String>,
) -> Result<Page<Owned>, Failure> {
    let filter = by_tag(names::CONTROL_PLANE, [cx.control_plane.to_string()]);
    let (found, next) = shared.fleet.during(&cx).volumes(&filter, next).await?;
    let living = living.lock().unwrap_or_else(PoisonError::into_inner);
    let loose = found.iter().filter_map(Volume::of).filter(|volume| volume.machine.is_none());
    let owned = loose.filter(|volume| !living.contains(&volume.owner.incarnation)).map(|volume| {
        let (owner, is_left) = (volume.owner.clone(), volume.is_ending());
        let (kind, phase) =
            if is_left { (OwnedKind::Instance, Phase::Destroying) } else { (OwnedKind::Data, Phase::Zero) };
        let observed = Present::new(phase, Generation(0), owner.incarnation).into();
        Owned { id: owner.instance, incarnation: owner.incarnation, kind, data: Some(owner.data), observed }
    });
    Ok((owned.collect(), next))
}
