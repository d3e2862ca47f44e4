//! The backend: what each verb does, and what is seen.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::{Arc, Mutex, PoisonError, Weak, atomic::AtomicBool},
    time::Duration,
};

use async_trait::async_trait;
use futures::{FutureExt, StreamExt, TryStreamExt, future::BoxFuture, stream, stream::BoxStream};
use provisioner_core::{
    Error, ErrorKind, OpContext, Provisioner, Result,
    types::{
        Bound, Capabilities, DataDisposition, DataId, Generation, Incarnation, InstanceId, InstanceSpec, Isolation,
        Observed, Owned, OwnedKind, Phase, Present, SecretSupport, Target,
    },
};
use tokio::sync::OwnedMutexGuard;
use tokio_util::task::TaskTracker;

use crate::{
    calls::{Account, Clients, Page, by_tag},
    check,
    config::VmConfig,
    digest::{Intended, Machine, Volume},
    error::{During, Failure},
    fleet::Fleet,
    health::{self, Prober},
    images::Images,
    names,
    pace::until,
    places::Places,
    seen::{Health, Seen},
    verbs::{self, Wake, Work},
    writes::Writes,
};

/// The longest that a call may take to have its effect, even after its answer was lost.
const CALL_MAX: Duration = Duration::from_secs(60);
/// The longest pause before looking again while the service may not show what was done.
const LOOK_AGAIN: Duration = Duration::from_millis(500);
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
    pub(crate) writes: Writes,
    /// The makings whose volumes are followed to their end.
    pub(crate) followed: Mutex<BTreeSet<Incarnation>>,
    prober: Option<Prober>,
    turns: Mutex<BTreeMap<Incarnation, Weak<tokio::sync::Mutex<()>>>>,
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

    /// What is there of a making. A machine that lives tells of its volume.
    pub(crate) async fn seen(&self, cx: &OpContext, incarnation: Incarnation) -> Result<Seen, Failure> {
        let mut seen = Seen { machines: self.fleet.machines(cx, incarnation).await?, volumes: Vec::new() };
        if seen.living().is_none() {
            seen.volumes = self.fleet.volumes(cx, incarnation).await?;
        }
        Ok(seen)
    }

    pub(crate) async fn health(&self, cx: &OpContext, seen: &Seen) -> Result<Option<Health>, Failure> {
        match seen.to_check() {
            Some(machine) => health::of(cx, &self.fleet, self.prober(), machine).await.map(Some),
            None => Ok(None),
        }
    }

    async fn look(&self, cx: &OpContext, incarnation: Incarnation) -> Result<Observed, Failure> {
        let settling = self.config.settling;
        let seen = self.seen(cx, incarnation).await?;
        if !self.writes.are_told(incarnation, &seen, cx.since_last_call) {
            let settled_in = settling.saturating_sub(cx.since_last_call.unwrap_or_default());
            return Ok(Observed::Unknown { again: settled_in.min(LOOK_AGAIN).max(Duration::from_millis(1)) });
        }
        let health = self.health(cx, &seen).await?;
        Ok(seen.observed(incarnation, health))
    }

    /// One verb at a time is at a making.
    async fn turn(&self, cx: &OpContext, incarnation: Incarnation) -> Result<OwnedMutexGuard<()>, ErrorKind> {
        let turn = {
            let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
            turns.retain(|_, turn| turn.strong_count() > 0);
            let found = turns.get(&incarnation).and_then(Weak::upgrade);
            let turn = found.unwrap_or_default();
            turns.insert(incarnation, Arc::downgrade(&turn));
            turn
        };
        tokio::select! {
            biased;
            () = cx.cancel.cancelled() => Err(ErrorKind::Cancelled),
            () = until(cx.deadline) => Err(ErrorKind::Timeout),
            turn = turn.lock_owned() => Ok(turn),
        }
    }
}

impl VmBackend {
    pub(crate) fn new(config: VmConfig, clients: Option<Clients>) -> Self {
        let account = Arc::new(Account::new(&config, clients));
        let tasks = TaskTracker::new();
        let (fleet, images) = (Fleet::new(&account, &tasks), Images::new(&account, &tasks));
        let writes = Writes::new(config.settling);
        let prober = config.probes.then(|| Prober::new(config.settling));
        let (places, turns) = (Places::default(), Mutex::default());
        Self {
            shared: Arc::new(Shared {
                config,
                fleet,
                images,
                places,
                writes,
                followed: Mutex::default(),
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
        let during = During { operation, instance: Some(&target.id) };
        let turn = self.shared.turn(cx, target.incarnation).await;
        let _turn = turn.map_err(|kind| during.error(kind).with_message("another verb is at it"))?;
        let writing = self.shared.writes.begin(target.incarnation);
        let work = Work { shared: &self.shared, cx, operation, target, writing, acted: AtomicBool::new(false) };
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

    fn watch(&self, _: &OpContext) -> BoxStream<'static, InstanceId> {
        stream::empty().boxed()
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

/// Asks for pages until there are no more.
fn pages<T: Send + 'static>(
    ask: impl FnMut(Option<String>) -> BoxFuture<'static, Result<Page<T>, Failure>> + Send + 'static,
) -> BoxStream<'static, Result<T, Failure>> {
    let asked = stream::try_unfold((ask, Some(None)), |(mut ask, next): (_, Option<Option<String>>)| async move {
        let Some(next) = next else { return Ok(None) };
        let (things, then) = ask(next).await?;
        Ok(Some((stream::iter(things.into_iter().map(Ok)), (ask, then.map(Some)))))
    });
    asked.try_flatten().boxed()
}

async fn machines_page(
    shared: Arc<Shared>,
    cx: OpContext,
    living: Living,
    next: Option<String>,
) -> Result<Page<Owned>, Failure> {
    let filter = by_tag(names::CONTROL_PLANE, [cx.control_plane.to_string()]);
    let (found, next) = shared.fleet.during(&cx).machines(&filter, next).await?;
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
    let seen = Seen { machines: vec![machine], volumes: Vec::new() };
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
        let (owner, is_ending) = (volume.owner.clone(), volume.is_ending());
        let kind = if is_ending { OwnedKind::Instance } else { OwnedKind::Data };
        let observed = match is_ending {
            true => Seen { machines: Vec::new(), volumes: vec![volume] }.observed(owner.incarnation, None),
            false => Present::new(Phase::Zero, Generation(0), owner.incarnation).into(),
        };
        Owned { id: owner.instance, incarnation: owner.incarnation, kind, data: Some(owner.data), observed }
    });
    Ok((owned.collect(), next))
}
