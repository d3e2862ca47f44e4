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
    secret::{ExposeSecret, SecretReference, SecretResolver, SecretString},
    types::{
        Capabilities, ControlPlaneId, DataDisposition, DataId, DataSource, Generation, Incarnation, InstanceId,
        InstanceSpec, Observed, Owned, OwnedKind, Phase, Reason, SecretSupport, Target, TenantId,
    },
};

use super::cases::On;

/// The variable of a spec that never gets to run.
pub(crate) const NEVER_RUNS: &str = "NEVER_RUNS";

/// One way of being wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flaw {
    /// None.
    Sound,
    CapabilitiesChange,
    ValidateNamesNoField,
    ValidateAsksTheProvider,
    UpkeepActsWhenAskedForItsPlan,
    WaitsForReadiness,
    AnswersAboutAnotherIncarnation,
    ResumeMakes,
    RepeatedCreateMakesASecond,
    CreatesAtOnceMakeASecond,
    CrossedVerbsGetStuck,
    IgnoresUpdates,
    ResumesOldSpec,
    TakesOlderGenerations,
    OlderGenerationsOverwrite,
    SleepWithNewerSpecWakes,
    NoZeroAfterSuspend,
    TakesOtherData,
    SleepsNeighboursToo,
    TrimsValues,
    RefusesLongNames,
    CutCreateLeavesASecond,
    ForgetsWithItsProcess,
    CancelledCallsHang,
    SleepsInNameOnly,
    WakesBlank,
    UpdatesBlank,
    WrongEndpoint,
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
    ObserveNeedsASpec,
    AnswersInReverse,
    BelievesItsCache,
    ListWakes,
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
    RightsAreUnavailable,
    LosesCodes,
    UnreachableForGood,
    IgnoresDeadlines,
    CachesSecrets,
    StartsWithoutSecrets,
    PrintsSecrets,
    LogsSecrets,
    ResolvesNativeSecrets,
    TakesSecretsItCannot,
    NamesByVersion,
    OneIncarnationIsAnother,
    IdentityChanges,
    HealsByItself,
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
struct State {
    calls: u64,
    in_flight: usize,
    watches: usize,
    owners: BTreeSet<ControlPlaneId>,
    /// What this backend, and not another on the same provider, was called with.
    known: BTreeSet<Incarnation>,
    first: BTreeMap<InstanceId, Incarnation>,
    tenants: BTreeMap<DataId, TenantId>,
    gone_in_name: BTreeSet<Incarnation>,
    asleep_in_name: BTreeMap<Incarnation, Phase>,
    stuck: BTreeSet<Incarnation>,
    generations: BTreeMap<Incarnation, Generation>,
    cache: BTreeMap<Incarnation, Observed>,
    resolver: Option<Arc<dyn SecretResolver>>,
    leaked: String,
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
struct Cached;

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
    fn is_plain(&self) -> bool {
        self.on == On::Plain
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn thing(&self, owner: &ControlPlaneId, incarnation: Incarnation) -> Option<Thing> {
        self.provider.things(owner).into_iter().find(|thing| thing.incarnation == incarnation)
    }

    /// Makes something that nobody asked for.
    async fn make_a_second(&self, cx: &OpContext, target: &Target) -> Target {
        let data = DataSource::Fresh(DataId::from_random(random()));
        let second = Target { incarnation: Incarnation::new(9, random()), data, ..target.clone() };
        let _ = self.provider.create(cx, &second).await;
        second
    }

    async fn verb(&self, verb: Verb, cx: &OpContext, target: &Target) -> Result<Observed> {
        let crossing = {
            let mut state = self.state();
            state.owners.insert(cx.control_plane.clone());
            state.known.insert(target.incarnation);
            state.cache.remove(&target.incarnation);
            if verb == Verb::Create {
                state.first.entry(target.id.clone()).or_insert(target.incarnation);
                state.tenants.entry(target.data.id().clone()).or_insert_with(|| target.tenant.clone());
            }
            state.in_flight += 1;
            state.in_flight > 1
        };
        let answer = self.flawed_verb(verb, cx, target, crossing).await;
        self.state().in_flight -= 1;
        answer.map(|seen| self.flawed_sight(target, seen)).map_err(|error| self.flawed_error(error))
    }

    async fn flawed_verb(&self, verb: Verb, cx: &OpContext, target: &Target, crossing: bool) -> Result<Observed> {
        let (mut verb, mut cx, mut target) = (verb, cx.clone(), target.clone());
        if let Some(answer) = self.before(&mut verb, &mut cx, &mut target, crossing).await {
            return answer;
        }
        let was_there = self.thing(&cx.control_plane, target.incarnation);
        let answer = verb.call(&self.provider, &cx, &target).await;
        self.after(verb, &cx, &target, was_there, answer).await
    }

    /// What the flaw makes of a call before it is sent; its answer, if it is not.
    async fn before(
        &self,
        verb: &mut Verb,
        cx: &mut OpContext,
        target: &mut Target,
        crossing: bool,
    ) -> Option<Result<Observed>> {
        let thing = self.thing(&cx.control_plane, target.incarnation);
        let (owner, incarnation) = (cx.control_plane.clone(), target.incarnation);
        let sleeps = matches!(verb, Verb::Suspend | Verb::Zero);
        let runs = matches!(verb, Verb::Create | Verb::Resume);
        let refuse = |kind| Some(Err(Error::new(kind, verb.operation()).with_instance(&target.id)));
        match (self.flaw, thing) {
            (Flaw::ResumeMakes, None) if *verb == Verb::Resume => *verb = Verb::Create,
            (Flaw::RepeatedCreateMakesASecond, Some(_)) if *verb == Verb::Create => {
                self.make_a_second(cx, target).await;
            }
            (Flaw::CreatesAtOnceMakeASecond, _) if *verb == Verb::Create => {
                tokio::time::sleep(Duration::from_millis(5)).await;
                if crossing {
                    self.make_a_second(cx, target).await;
                }
            }
            (Flaw::CrossedVerbsGetStuck, Some(_)) => {
                let stuck = {
                    let mut state = self.state();
                    if crossing {
                        state.stuck.insert(incarnation);
                    }
                    state.stuck.contains(&incarnation)
                };
                tokio::time::sleep(Duration::from_millis(2)).await;
                if stuck && !matches!(verb, Verb::Destroy(_)) {
                    return Some(self.provider.observe(cx, target).await);
                }
            }
            (Flaw::IgnoresUpdates, Some(thing)) if *verb == Verb::Create => target.generation = thing.generation,
            (Flaw::ResumesOldSpec, Some(thing)) if *verb == Verb::Resume => target.spec = thing.spec,
            (Flaw::TakesOlderGenerations, Some(thing)) if runs => {
                target.generation = target.generation.max(thing.generation);
            }
            (Flaw::OlderGenerationsOverwrite, Some(_)) if runs && target.generation.0 < 16 => {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            (Flaw::SleepWithNewerSpecWakes, Some(thing)) if sleeps && target.generation > thing.generation => {
                *verb = Verb::Create;
            }
            (Flaw::NoZeroAfterSuspend, Some(thing)) if *verb == Verb::Zero && thing.phase == Phase::Suspended => {
                return Some(self.provider.observe(cx, target).await);
            }
            (Flaw::TakesOtherData, Some(thing)) if thing.data != *target.data.id() => {
                target.data = DataSource::Existing(thing.data);
            }
            (Flaw::SleepsNeighboursToo, _) if sleeps => {
                for other in self.provider.things(&owner) {
                    let other = Target { id: other.id, incarnation: other.incarnation, ..target.clone() };
                    let _ = self.provider.scale_to_zero(cx, &other).await;
                }
            }
            (Flaw::TrimsValues, _) if runs => {
                let mut spec = (*target.spec).clone();
                spec.environment.values_mut().for_each(|value| *value = value.trim().to_owned());
                target.spec = Arc::new(spec);
            }
            (Flaw::RefusesLongNames, _) if target.id.as_str().len() > 30 => return refuse(ErrorKind::InvalidSpec),
            (Flaw::CutCreateLeavesASecond, None) if *verb == Verb::Create => {
                let second = self.make_a_second(cx, target).await;
                tokio::task::yield_now().await;
                let _ = self.provider.destroy(cx, &second, DataDisposition::Delete).await;
            }
            (Flaw::CancelledCallsHang, _) => {
                tokio::task::yield_now().await;
                if cx.cancel.is_cancelled() {
                    std::future::pending::<()>().await;
                }
            }
            (Flaw::SleepsInNameOnly, Some(_)) => {
                let phase = match verb {
                    Verb::Suspend => Some(Phase::Suspended),
                    Verb::Zero => Some(Phase::Zero),
                    _ => None,
                };
                let mut state = self.state();
                state.asleep_in_name.remove(&incarnation);
                state.asleep_in_name.extend(phase.map(|phase| (incarnation, phase)));
                if phase.is_some() {
                    return Some(Ok(Observed::Unknown { again: Duration::from_millis(1) }));
                }
            }
            (Flaw::DestroyOfAbsentFails, None) if *verb == Verb::DESTROY => return refuse(ErrorKind::NotFound),
            (Flaw::DestroyLies, Some(_)) if *verb == Verb::DESTROY => {
                self.state().gone_in_name.insert(incarnation);
                return Some(Ok(Observed::Absent));
            }
            (Flaw::DestroyNeedsASpec, _)
                if matches!(verb, Verb::Destroy(_)) && target.spec.workload.version == "forgotten" =>
            {
                return refuse(ErrorKind::InvalidSpec);
            }
            (Flaw::KeepsDeletedData, _) if matches!(verb, Verb::Destroy(_)) => {
                *verb = Verb::Destroy(DataDisposition::Retain);
            }
            (Flaw::DeletesRetainedData, _) if matches!(verb, Verb::Destroy(_)) => *verb = Verb::DESTROY,
            (Flaw::GivesDataToAnyTenant, _) => {
                let tenant = self.state().tenants.get(target.data.id()).cloned();
                target.tenant = tenant.unwrap_or_else(|| target.tenant.clone());
            }
            (Flaw::DestroysEverybodys, _) if matches!(verb, Verb::Destroy(_)) => {
                let owners = self.state().owners.clone();
                for owner in owners {
                    let cx = OpContext::new(owner);
                    let _ = verb.call(&self.provider, &cx, target).await;
                }
            }
            (Flaw::IgnoresDeadlines, _) => cx.deadline = None,
            (Flaw::CachesSecrets, _) => {
                let cached = self.state().resolver.is_some();
                if cached {
                    cx.secrets = Arc::new(Cached);
                } else if runs && !target.spec.secrets.is_empty() {
                    self.state().resolver = Some(Arc::clone(&cx.secrets));
                }
            }
            (Flaw::StartsWithoutSecrets, _) if runs => {
                let mut spec = (*target.spec).clone();
                spec.secrets.clear();
                target.spec = Arc::new(spec);
            }
            (Flaw::PrintsSecrets | Flaw::LogsSecrets | Flaw::ResolvesNativeSecrets, _) if runs => {
                for reference in target.spec.secrets.values() {
                    let value = cx.secrets.resolve(reference).await;
                    let value = value.map(|value| value.expose_secret().to_owned()).unwrap_or_default();
                    match self.flaw {
                        Flaw::PrintsSecrets => self.state().leaked = value,
                        Flaw::LogsSecrets => tracing::info!(%value, "a secret"),
                        _ => {}
                    }
                }
            }
            (Flaw::OneIncarnationIsAnother, _) => {
                let first = self.state().first.get(&target.id).copied();
                target.incarnation = first.unwrap_or(incarnation);
            }
            _ => {}
        }
        if self.on == On::Native {
            // The provider has them.
            let mut spec = (*target.spec).clone();
            spec.secrets.clear();
            target.spec = Arc::new(spec);
        }
        if self.is_plain() && self.flaw != Flaw::TakesSecretsItCannot && runs {
            return target.spec.check_against(&self.capabilities()).err().map(|invalid| Err(invalid.into()));
        }
        None
    }

    /// What the flaw makes of an answer.
    async fn after(
        &self,
        verb: Verb,
        cx: &OpContext,
        target: &Target,
        was_there: Option<Thing>,
        answer: Result<Observed>,
    ) -> Result<Observed> {
        let runs = matches!(verb, Verb::Create | Verb::Resume);
        let (owner, data) = (&cx.control_plane, target.data.id());
        if runs && target.spec.environment.keys().any(|name| name.as_str() == NEVER_RUNS) {
            self.provider.fail(owner, &target.id, &Reason::new("exited", "it never runs"));
        }
        let asleep = was_there.as_ref().is_some_and(|thing| thing.phase.is_asleep());
        match (self.flaw, answer) {
            (Flaw::WaitsForReadiness, Ok(_)) if runs => loop {
                let seen = self.provider.observe(&OpContext::new(owner.clone()), target).await?;
                if seen.phase() != Some(Phase::Provisioning) && seen != Observed::Absent {
                    break Ok(seen);
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            },
            (Flaw::AnswersAboutAnotherIncarnation, Ok(Observed::Present(mut present))) => {
                present.incarnation = Incarnation::new(7, 7);
                Ok(present.into())
            }
            (Flaw::OlderGenerationsOverwrite, Err(error)) if error.kind() == ErrorKind::Conflict => {
                self.state().generations.insert(target.incarnation, target.generation);
                self.provider.observe(&OpContext::new(owner.clone()), target).await
            }
            (Flaw::WakesBlank, answer) if runs && asleep => {
                self.provider.write_note(owner, data, "");
                answer
            }
            (Flaw::UpdatesBlank, answer) if runs && was_there.is_some() => {
                self.provider.write_note(owner, data, "");
                answer
            }
            (Flaw::SharesDataInUse, Err(error)) if error.kind() == ErrorKind::Conflict => {
                Ok(Observed::Unknown { again: Duration::ZERO })
            }
            (Flaw::StartsBlankOnLostData, Err(error)) if error.kind() == ErrorKind::DataMissing => {
                let fresh = Target { data: DataSource::Fresh(data.clone()), ..target.clone() };
                self.provider.destroy(cx, &fresh, DataDisposition::Retain).await?;
                self.provider.create(cx, &fresh).await
            }
            (Flaw::RetriesByItself, Err(error)) => {
                let mut answer = Err(error);
                for _ in 0..3 {
                    if answer.is_err() {
                        answer = verb.call(&self.provider, cx, target).await;
                    }
                }
                answer
            }
            (_, answer) => answer,
        }
    }

    /// What the flaw makes of what was seen.
    fn flawed_sight(&self, target: &Target, seen: Observed) -> Observed {
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
            Flaw::EndpointAsleep => present.endpoint = Some("memory://a/b".into()),
            Flaw::TellsNoReasons => present.reason = None,
            _ => {}
        }
        present.generation = state.generations.get(&incarnation).copied().unwrap_or(present.generation);
        present.phase = state.asleep_in_name.get(&incarnation).copied().unwrap_or(present.phase);
        present.into()
    }

    /// What the flaw makes of an error.
    fn flawed_error(&self, error: Error) -> Error {
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
            (Flaw::RefusedWithUnknownEffect, _) => error.with_effect(Effect::Unknown),
            (Flaw::RightsAreUnavailable, ErrorKind::Unauthorized) => again(ErrorKind::Unavailable),
            _ => error,
        }
    }

    async fn flawed_look(&self, cx: &OpContext, target: &Target) -> Result<Observed> {
        let (mut cx, mut looked) = (cx.clone(), target.clone());
        match self.flaw {
            Flaw::NeverUnknown => cx.since_last_call = None,
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
            (Flaw::HealsByItself, Ok(seen)) if seen.phase() == Some(Phase::Failed) => {
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
        if self.is_plain() {
            capabilities.watch = false;
            capabilities.secrets = SecretSupport::None;
        }
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
