//! A backend that is wrong in one way.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::{
    FutureExt, StreamExt,
    stream::{self, BoxStream},
};
use provisioner_contract::{Verb, async_trait, random};
use provisioner_core::{
    Effect, Error, ErrorKind, OpContext, Provisioner, Result, Retry,
    memory::{MemoryProvisioner, Thing},
    secret::{SecretReference, SecretResolver, SecretString},
    types::{
        Bound, Capabilities, ControlPlaneId, DataDisposition, DataId, DataSource, Generation, Incarnation, InstanceId,
        InstanceSpec, Observed, Owned, OwnedKind, Phase, SecretSupport, Target, TenantId, Usage,
    },
};

use super::cases::On;

/// The variable of a spec that never gets to run.
pub(crate) const NEVER_RUNS: &str = "NEVER_RUNS";

/// What is said to be used.
const USAGE: Usage = Usage { cpu: Duration::from_secs(60), memory_bytes: 1 << 20 };

/// One way of being wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flaw {
    /// None.
    Sound,
    CapabilitiesChange,
    TellsOfBoundsThatAreNone,
    ValidateNamesNoField,
    ValidateAsksTheProvider,
    UpkeepActsWhenAskedForItsPlan,
    WaitsForReadiness,
    AnswersAboutAnotherIncarnation,
    ResumeMakes,
    SuspendMakes,
    RepeatedCreateMakesASecond,
    RepeatedRetainDeletes,
    CreatesAtOnceMakeASecond,
    CrossedVerbsGetStuck,
    IgnoresUpdates,
    ResumesOldSpec,
    TakesOlderGenerations,
    OlderGenerationsOverwrite,
    KeepsWhatOutsidersChanged,
    SleepWithNewerSpecWakes,
    NoZeroAfterSuspend,
    WakesWhatWasStopped(Verb),
    TakesOtherData,
    SleepsNeighboursToo,
    TrimsValues,
    RefusesLongNames,
    CutCreateLeavesASecond,
    ForgetsWithItsProcess,
    CancelledCallsHang,
    DeniesItsEffects,
    SleepsInNameOnly,
    WakesBlank,
    UpdatesBlank,
    WrongEndpoint,
    WrongEndpointAfterSuspension,
    EndpointAsleep,
    DestroyOfAbsentFails,
    DestroyLies,
    TellsNoReasons,
    DestroyNeedsASpec,
    KeepsDeletedData,
    ListsNoData,
    DeletesRetainedData,
    GivesDataToAnyTenant,
    SharesDataInUse,
    DeleteDataLies,
    StartsBlankOnLostData,
    AbsentIsAnError,
    AbsentOnError,
    NeverUnknown,
    KnownRightAfter(Verb),
    ObserveNeedsASpec,
    AnswersInReverse,
    BelievesItsCache,
    ListWakes,
    TellsUsageAsleep,
    UsageFalls,
    ListsOnlyWhatIsAwake,
    ListsEverybody,
    DestroysEverybodys,
    ListsTheFirstPage,
    WatchIsSilent,
    WatchTellsEverybodys,
    WatchesOnce,
    ErrorsWithoutInstance,
    TellsCustomersEverything,
    ThrottledWithoutATime,
    RefusedWithUnknownEffect,
    NoRoomToResumeIsForGood,
    UpdatesWithoutRoom,
    SleepsOnWithoutRoom(Verb),
    RightsAreUnavailable,
    LosesCodes,
    UnreachableForGood,
    IgnoresDeadlines,
    CachesSecrets,
    StartsWithoutSecrets,
    WakesWithoutSecrets,
    PrintsSecrets,
    LogsSecrets,
    ResolvesNativeSecrets,
    TakesSecretsItCannot,
    NamesByVersion,
    OneIncarnationIsAnother,
    IdentityChanges,
    HealsByItself,
    StaysDown,
    RetriesByItself,
}

/// The provider in memory behind a backend that is wrong in one way. A clone is the same.
#[derive(Clone)]
pub(crate) struct Broken {
    pub(crate) provider: MemoryProvisioner,
    pub(crate) flaw: Flaw,
    pub(crate) on: On,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
pub(super) struct State {
    pub(super) calls: u64,
    pub(super) looks: u32,
    /// How many verbs are on their way, by incarnation.
    pub(super) in_flight: BTreeMap<Incarnation, usize>,
    pub(super) watches: usize,
    pub(super) owners: BTreeSet<ControlPlaneId>,
    /// What this backend, and not another on the same provider, was called with.
    pub(super) known: BTreeSet<Incarnation>,
    pub(super) first: BTreeMap<InstanceId, Incarnation>,
    pub(super) last: BTreeMap<Incarnation, Verb>,
    pub(super) tenants: BTreeMap<DataId, TenantId>,
    pub(super) gone_in_name: BTreeSet<Incarnation>,
    pub(super) asleep_in_name: BTreeMap<Incarnation, Phase>,
    /// Was suspended at least once.
    pub(super) suspended: BTreeSet<Incarnation>,
    pub(super) stuck: BTreeSet<Incarnation>,
    pub(super) generations: BTreeMap<Incarnation, Generation>,
    pub(super) cache: BTreeMap<Incarnation, Observed>,
    pub(super) resolver: Option<Arc<dyn SecretResolver>>,
    pub(super) leaked: String,
}

impl fmt::Debug for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Broken({:?} {})", self.flaw, self.state().leaked)
    }
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Broken({:?})", self.flaw)
    }
}

/// Hands out what was resolved once.
#[derive(Debug)]
pub(super) struct Cached;

#[async_trait]
impl SecretResolver for Cached {
    async fn resolve(&self, _reference: &SecretReference) -> Result<SecretString> {
        Ok(SecretString::from("cached"))
    }
}

impl Broken {
    pub(crate) fn new(provider: MemoryProvisioner, flaw: Flaw, on: On) -> Self {
        Self { provider, flaw, on, state: Arc::default() }
    }

    /// Another one on the same provider.
    pub(crate) fn reopened(&self) -> Self {
        Self::new(self.provider.clone(), self.flaw, self.on)
    }

    /// Whether it has neither watch nor secrets.
    pub(super) fn is_plain(&self) -> bool {
        self.on == On::Plain
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn thing(&self, owner: &ControlPlaneId, incarnation: Incarnation) -> Option<Thing> {
        self.provider.things(owner).into_iter().find(|thing| thing.incarnation == incarnation)
    }

    /// Whether what died is started again when somebody looks.
    fn heals(&self, flaw: Flaw) -> bool {
        flaw == Flaw::HealsByItself || (self.on == On::Restarting && flaw != Flaw::StaysDown)
    }

    /// Makes something that nobody asked for.
    pub(super) async fn make_a_second(&self, cx: &OpContext, target: &Target) -> Target {
        let data = DataSource::Fresh(DataId::from_random(random()));
        let second = Target { incarnation: Incarnation::new(9, random()), data, ..target.clone() };
        let _ = self.provider.create(cx, &second).await;
        second
    }

    /// What the flaw makes of what was seen.
    pub(super) fn flawed_sight(&self, target: &Target, seen: Observed) -> Observed {
        let incarnation = target.incarnation;
        let mut state = self.state();
        if state.gone_in_name.contains(&incarnation) {
            return Observed::Absent;
        }
        if self.flaw == Flaw::ForgetsWithItsProcess && !state.known.contains(&incarnation) {
            return Observed::Absent;
        }
        if self.flaw == Flaw::BelievesItsCache {
            if seen.phase() == Some(Phase::Running) {
                state.cache.insert(incarnation, seen.clone());
            }
            return state.cache.get(&incarnation).cloned().unwrap_or(seen);
        }
        let Observed::Present(mut present) = seen else { return seen };
        match self.flaw {
            Flaw::OneIncarnationIsAnother => present.incarnation = incarnation,
            Flaw::WrongEndpoint => present.endpoint = present.endpoint.map(|_| "http://wrong".into()),
            Flaw::WrongEndpointAfterSuspension if state.suspended.contains(&incarnation) => {
                present.endpoint = present.endpoint.map(|_| "http://wrong".into());
            }
            Flaw::EndpointAsleep => present.endpoint = Some("memory://a/b".into()),
            Flaw::TellsNoReasons => present.reason = None,
            Flaw::TellsUsageAsleep => present.usage = Some(USAGE),
            Flaw::UsageFalls if present.phase == Phase::Running => {
                // As of a part of it that has ended since.
                state.looks += 1;
                present.usage = Some(Usage { cpu: USAGE.cpu / state.looks, ..USAGE });
            }
            _ => {}
        }
        present.generation = state.generations.get(&incarnation).copied().unwrap_or(present.generation);
        present.phase = state.asleep_in_name.get(&incarnation).copied().unwrap_or(present.phase);
        present.into()
    }

    /// What the flaw makes of an error.
    pub(super) fn flawed_error(&self, error: Error) -> Error {
        let again = |kind| {
            let new = Error::new(kind, error.operation()).with_effect(error.effect()).with_retry(error.retry());
            let new = new.with_field(error.field().unwrap_or_default());
            match error.instance() {
                Some(instance) if self.flaw != Flaw::ErrorsWithoutInstance => new.with_instance(instance),
                _ => new,
            }
        };
        match (self.flaw, error.kind()) {
            (Flaw::ErrorsWithoutInstance | Flaw::LosesCodes, kind) => again(kind),
            (Flaw::TellsCustomersEverything, _) => {
                let everything = error.to_string();
                let data = error.instance().map(ToString::to_string).unwrap_or_default();
                error.with_customer_message(format!("/srv/{data}: {everything}"))
            }
            (Flaw::ThrottledWithoutATime, ErrorKind::Throttled) => error.with_retry(Retry::Backoff),
            (Flaw::UnreachableForGood, ErrorKind::Unavailable) => error.with_retry(Retry::Never),
            (Flaw::NoRoomToResumeIsForGood, ErrorKind::CapacityExhausted) if error.operation() == "resume" => {
                error.with_retry(Retry::Never)
            }
            (Flaw::RefusedWithUnknownEffect, _) => error.with_effect(Effect::Unknown),
            (Flaw::RightsAreUnavailable, ErrorKind::Unauthorized) => again(ErrorKind::Unavailable),
            _ => error,
        }
    }

    async fn flawed_look(&self, cx: &OpContext, target: &Target) -> Result<Observed> {
        let (mut cx, mut looked) = (cx.clone(), target.clone());
        match self.flaw {
            Flaw::NeverUnknown => cx.since_last_call = None,
            Flaw::KnownRightAfter(verb) if self.state().last.get(&target.incarnation) == Some(&verb) => {
                cx.since_last_call = None;
            }
            Flaw::ObserveNeedsASpec if target.spec.workload.version == "forgotten" => return Ok(Observed::Absent),
            Flaw::OneIncarnationIsAnother => {
                let first = self.state().first.get(&target.id).copied();
                looked.incarnation = first.unwrap_or(target.incarnation);
            }
            _ => {}
        }
        let seen = match (self.flaw, self.provider.observe(&cx, &looked).await) {
            (Flaw::AbsentOnError, Err(_)) => Observed::Absent,
            (Flaw::AbsentIsAnError, Ok(Observed::Absent)) => return Err(Error::new(ErrorKind::NotFound, "observe")),
            (flaw, Ok(seen)) if self.heals(flaw) && seen.phase() == Some(Phase::Failed) => {
                self.provider.create(&cx, target).await?;
                seen
            }
            (_, seen) => seen.map_err(|error| self.flawed_error(error))?,
        };
        Ok(self.flawed_sight(target, seen))
    }

    async fn flawed_list(self, cx: OpContext) -> Vec<Result<Owned>> {
        let owners = match self.flaw {
            Flaw::ListsEverybody => self.state().owners.iter().cloned().collect(),
            _ => vec![cx.control_plane.clone()],
        };
        let mut listed = Vec::new();
        for owner in owners {
            let mut cx = cx.clone();
            cx.control_plane = owner;
            listed.extend(self.provider.list(&cx).collect::<Vec<_>>().await);
        }
        if self.flaw == Flaw::ListWakes {
            for thing in self.provider.things(&cx.control_plane) {
                let (id, incarnation, spec) = (thing.id, thing.incarnation, thing.spec);
                let tenant = self.state().tenants.get(&thing.data).cloned();
                let Some(tenant) = tenant else { continue };
                let (generation, data) = (thing.generation, DataSource::Existing(thing.data));
                let _ = self.provider.resume(&cx, &Target { id, tenant, incarnation, generation, spec, data }).await;
            }
        }
        let is_awake = |owned: &Owned| owned.observed.phase().is_some_and(|phase| !phase.is_asleep());
        listed.retain(|owned| match (self.flaw, owned) {
            (Flaw::ListsNoData, Ok(owned)) => owned.kind == OwnedKind::Instance,
            (Flaw::ListsOnlyWhatIsAwake, Ok(owned)) => is_awake(owned),
            _ => true,
        });
        if self.flaw == Flaw::ListsTheFirstPage {
            listed.truncate(100);
        }
        listed
    }
}

#[async_trait]
impl Provisioner for Broken {
    fn capabilities(&self) -> Capabilities {
        let mut capabilities = self.provider.capabilities();
        if self.flaw == Flaw::CapabilitiesChange && !self.state().known.is_empty() {
            capabilities.call_max *= 2;
        }
        if self.flaw == Flaw::TellsOfBoundsThatAreNone {
            capabilities.isolation.memory = Bound::Process;
        }
        if self.is_plain() {
            capabilities.watch = false;
            capabilities.secrets = SecretSupport::None;
        }
        capabilities.restarts = self.on == On::Restarting;
        if self.on == On::Native {
            capabilities.secrets = SecretSupport::Native;
        }
        capabilities
    }

    fn validate(&self, wanted: &InstanceSpec, applied: Option<&InstanceSpec>) -> Result<()> {
        if self.flaw == Flaw::ValidateAsksTheProvider {
            let cx = OpContext::new(ControlPlaneId::new("anybody").expect("a DNS label"));
            let _ = self.provider.identity(&cx).now_or_never();
        }
        let answer = if self.is_plain() && self.flaw != Flaw::TakesSecretsItCannot {
            Ok(wanted.check_against(&self.capabilities())?)
        } else {
            self.provider.validate(wanted, applied)
        };
        answer.map_err(|error| match self.flaw {
            Flaw::ValidateNamesNoField => Error::new(error.kind(), "validate"),
            _ => error,
        })
    }

    async fn identity(&self, cx: &OpContext) -> Result<String> {
        let mut identity = self.provider.identity(cx).await?;
        if self.flaw == Flaw::IdentityChanges {
            let mut state = self.state();
            state.calls += 1;
            identity.push_str(&state.calls.to_string());
        }
        Ok(identity)
    }

    async fn create(&self, cx: &OpContext, target: &Target) -> Result<Observed> {
        self.verb(Verb::Create, cx, target).await
    }

    async fn suspend(&self, cx: &OpContext, target: &Target) -> Result<Observed> {
        self.verb(Verb::Suspend, cx, target).await
    }

    async fn scale_to_zero(&self, cx: &OpContext, target: &Target) -> Result<Observed> {
        self.verb(Verb::Zero, cx, target).await
    }

    async fn resume(&self, cx: &OpContext, target: &Target) -> Result<Observed> {
        self.verb(Verb::Resume, cx, target).await
    }

    async fn destroy(&self, cx: &OpContext, target: &Target, data: DataDisposition) -> Result<Observed> {
        self.verb(Verb::Destroy(data), cx, target).await
    }

    async fn observe(&self, cx: &OpContext, target: &Target) -> Result<Observed> {
        self.flawed_look(cx, target).await
    }

    async fn observe_many(&self, cx: &OpContext, targets: &[Target]) -> Vec<Result<Observed>> {
        let mut answers: Vec<_> = stream::iter(targets).then(|target| self.flawed_look(cx, target)).collect().await;
        if self.flaw == Flaw::AnswersInReverse {
            answers.reverse();
        }
        answers
    }

    fn list(&self, cx: &OpContext) -> BoxStream<'static, Result<Owned>> {
        let listed = self.clone().flawed_list(cx.clone());
        listed.map(stream::iter).into_stream().flatten().boxed()
    }

    fn watch(&self, cx: &OpContext) -> BoxStream<'static, InstanceId> {
        self.state().watches += 1;
        let watches = self.state().watches;
        match self.flaw {
            Flaw::WatchIsSilent => stream::pending().boxed(),
            Flaw::WatchesOnce if watches > 1 => stream::pending().boxed(),
            Flaw::WatchTellsEverybodys if self.is_plain() => {
                stream::repeat(InstanceId::new("somebody").expect("a DNS label")).boxed()
            }
            Flaw::WatchTellsEverybodys => {
                let owners = self.state().owners.clone();
                let all = owners.into_iter().map(|owner| self.provider.watch(&OpContext::new(owner)));
                stream::select_all(all.collect::<Vec<_>>()).boxed()
            }
            _ if self.is_plain() => stream::empty().boxed(),
            _ => self.provider.watch(cx),
        }
    }

    async fn delete_data(&self, cx: &OpContext, data: &DataId) -> Result<()> {
        match self.flaw {
            Flaw::DeleteDataLies => Ok(()),
            _ => self.provider.delete_data(cx, data).await,
        }
    }

    async fn maintain(&self, cx: &OpContext, plan_only: bool) -> Result<Vec<String>> {
        if self.flaw == Flaw::UpkeepActsWhenAskedForItsPlan {
            for thing in self.provider.things(&cx.control_plane) {
                self.provider.vanish(&cx.control_plane, &thing.id);
            }
        }
        self.provider.maintain(cx, plan_only).await
    }
}
