//! A backend under a rule: targets, contexts, and the loop that an engine runs around verbs.

use std::{
    collections::BTreeMap,
    future::Future,
    hash::{BuildHasher, RandomState},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures::StreamExt;
use provisioner_core::{
    Effect, Error, OpContext, Provisioner, Retry,
    secret::SecretResolver,
    types::{
        ControlPlaneId, DataId, DataSource, Generation, Incarnation, InstanceId, InstanceSpec, Observed, Owned,
        OwnedKind, Target, TenantId, Timestamp,
    },
};
use tokio::time::Instant;

use crate::{
    failure::{During, Failure, Outcome, ensure},
    outsider::{Outsider, Sight},
    profile::Profile,
    verb::Verb,
};

/// Between two looks.
const LOOK_AGAIN_MIN: Duration = Duration::from_millis(2);
const LOOK_AGAIN_MAX: Duration = Duration::from_millis(50);
/// So long nothing may move before a verb is called again.
const PATIENCE: Duration = Duration::from_millis(300);

/// A backend under a rule, on behalf of a control plane of its own. A clone is the same.
#[derive(Clone, Debug)]
pub struct Subject {
    pub(crate) backend: Arc<dyn Provisioner>,
    pub(crate) profile: Arc<Profile>,
    pub(crate) owner: ControlPlaneId,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    made: AtomicU64,
    /// When the last mutating call on each incarnation was made.
    calls: Mutex<BTreeMap<Incarnation, Instant>>,
    owners: Mutex<Vec<ControlPlaneId>>,
    secrets: Mutex<Option<Arc<dyn SecretResolver>>>,
}

/// Random bits.
#[must_use]
pub fn random() -> u128 {
    // Every state is seeded by the operating system.
    let bits = || u128::from(RandomState::new().hash_one(0));
    bits() << 64 | bits()
}

impl Subject {
    /// A subject with a control plane id that nobody used before.
    #[must_use]
    pub fn new(profile: Arc<Profile>) -> Self {
        let shared = Arc::new(Shared::default());
        let backend = Arc::clone(&profile.backend);
        Self::owned_by_somebody_new(backend, profile, shared)
    }

    fn owned_by_somebody_new(backend: Arc<dyn Provisioner>, profile: Arc<Profile>, shared: Arc<Shared>) -> Self {
        let owner = ControlPlaneId::new(format!("contract-{:016x}", random() >> 64)).expect("a DNS label");
        lock(&shared.owners).push(owner.clone());
        Self { backend, profile, owner, shared }
    }

    /// Another control plane in the same account.
    pub(crate) fn neighbour(&self) -> Self {
        Self::owned_by_somebody_new(Arc::clone(&self.backend), Arc::clone(&self.profile), Arc::clone(&self.shared))
    }

    /// Another control plane, with this name.
    pub(crate) fn named(&self, owner: ControlPlaneId) -> Self {
        lock(&self.shared.owners).push(owner.clone());
        Self { owner, ..self.clone() }
    }

    /// The same control plane with another backend: a wrapper, or one on the same provider.
    pub(crate) fn through(&self, backend: Arc<dyn Provisioner>) -> Self {
        Self { backend, ..self.clone() }
    }

    /// All control planes of this rule.
    pub(crate) fn owners(&self) -> Vec<Self> {
        let owners = lock(&self.shared.owners).clone();
        owners.into_iter().map(|owner| Self { owner, ..self.clone() }).collect()
    }

    pub(crate) fn set_secrets(&self, secrets: Arc<dyn SecretResolver>) {
        *lock(&self.shared.secrets) = Some(secrets);
    }

    pub(crate) fn outsider(&self) -> &dyn Outsider {
        self.profile.outsider.as_deref().expect("the rule says that it needs one")
    }

    // Targets

    /// An instance that nobody used before, at its first generation, on fresh data.
    pub(crate) fn target(&self) -> Target {
        let made = self.shared.made.fetch_add(1, Ordering::Relaxed) + 1;
        Target {
            id: InstanceId::new(format!("c{:08x}-{made}", random() as u32)).expect("a DNS label"),
            tenant: TenantId::new(format!("tenant {made} of {}", self.owner)).expect("a name"),
            incarnation: Incarnation::new(1, random()),
            generation: Generation::FIRST,
            spec: Arc::new((self.profile.spec)("1.0")),
            data: DataSource::Fresh(DataId::from_random(random())),
        }
    }

    /// A new instance with this spec.
    pub(crate) fn target_of(&self, spec: InstanceSpec) -> Target {
        Target { spec: Arc::new(spec), ..self.target() }
    }

    /// The same incarnation at another generation, whose version is its number.
    pub(crate) fn at(&self, target: &Target, generation: u64) -> Target {
        let spec = Arc::new((self.profile.spec)(&format!("{generation}.0")));
        Target { generation: Generation(generation), spec, ..target.clone() }
    }

    /// A new instance, running.
    pub(crate) async fn running(&self) -> Outcome<Target> {
        let target = self.target();
        self.reach(Verb::Create, &target).await.during("making an instance")?;
        Ok(target)
    }

    /// A new instance that has gone through these verbs; the first one makes it.
    pub(crate) async fn after(&self, verbs: &[Verb]) -> Outcome<Target> {
        let target = self.target();
        for verb in verbs {
            self.reach(*verb, &target).await.during(format_args!("preparing with {verb}"))?;
        }
        Ok(target)
    }

    /// A new instance in the state from which this verb has something to do.
    pub(crate) async fn ready_for(&self, verb: Verb) -> Outcome<Target> {
        match verb {
            Verb::Create => Ok(self.target()),
            Verb::Resume => self.after(&[Verb::Create, Verb::Zero]).await,
            _ => self.running().await,
        }
    }

    // Calls

    /// How long one call may take.
    pub(crate) fn call_max(&self) -> Duration {
        self.profile.capabilities().call_max.min(self.profile.deadline)
    }

    pub(crate) fn cx(&self) -> OpContext {
        let mut cx = OpContext::new(self.owner.clone()).with_timeout(self.call_max());
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        cx.now = Timestamp::from_unix_ms(i64::try_from(now.as_millis()).unwrap_or_default());
        if let Some(secrets) = &*lock(&self.shared.secrets) {
            cx.secrets = Arc::clone(secrets);
        }
        cx
    }

    /// A context that knows when the last mutating call on the target was made.
    pub(crate) fn cx_of(&self, target: &Target) -> OpContext {
        let mut cx = self.cx();
        cx.since_last_call = lock(&self.shared.calls).get(&target.incarnation).map(Instant::elapsed);
        cx
    }

    /// Notes that a mutating call on the target is made now.
    pub(crate) fn touch(&self, target: &Target) {
        lock(&self.shared.calls).insert(target.incarnation, Instant::now());
    }

    /// Calls a verb once.
    pub(crate) async fn call(&self, verb: Verb, target: &Target) -> Result<Observed, Error> {
        let cx = self.cx_of(target);
        self.call_with(verb, &cx, target).await
    }

    /// Calls a verb once, with this context.
    pub(crate) async fn call_with(&self, verb: Verb, cx: &OpContext, target: &Target) -> Result<Observed, Error> {
        self.touch(target);
        let answer = verb.call(&*self.backend, cx, target).await;
        // It may have acted as late as now.
        self.touch(target);
        answer
    }

    /// Looks until it is known what is there. What it uses is left out: that differs from look to look.
    pub(crate) async fn look(&self, target: &Target) -> Outcome<Observed> {
        let deadline = self.deadline();
        loop {
            let seen = match self.backend.observe(&self.cx_of(target), target).await {
                Err(error) if error.retry() != Retry::Never => {
                    ensure!(Instant::now() < deadline, "observe fails for ever: {error}");
                    tokio::time::sleep(LOOK_AGAIN_MIN * 5).await;
                    continue;
                }
                seen => seen?,
            };
            match seen {
                Observed::Unknown { again } if Instant::now() < deadline => {
                    tokio::time::sleep(again.max(LOOK_AGAIN_MIN)).await;
                }
                Observed::Unknown { .. } => return Err(Failure::new("observe answers Unknown for ever")),
                Observed::Absent => return Ok(Observed::Absent),
                Observed::Present(present) => return Ok(present.with_usage(None).into()),
            }
        }
    }

    /// Looks until nothing moves any more: what is there then.
    pub(crate) async fn at_rest(&self, target: &Target) -> Outcome<Observed> {
        let deadline = self.deadline();
        loop {
            let seen = self.look(target).await?;
            let moves = seen.present().is_some_and(|present| {
                use provisioner_core::types::Phase::{Destroying, Provisioning, Running};
                // Without an endpoint, what runs is on its way to sleep.
                let goes = present.phase == Running && present.endpoint.is_none();
                present.again.is_some() || goes || matches!(present.phase, Provisioning | Destroying)
            });
            if !moves {
                return Ok(seen);
            }
            ensure!(Instant::now() < deadline, "it does not come to rest: {}", shown(&seen));
            tokio::time::sleep(pause(&seen)).await;
        }
    }

    /// Has a verb reach its end, as the engine does: calls it, looks, and calls it again when nothing moves. What can be
    /// retried is retried.
    pub(crate) async fn reach(&self, verb: Verb, target: &Target) -> Outcome<Observed> {
        let deadline = self.deadline();
        let mut last;
        loop {
            match self.call(verb, target).await {
                Ok(_) => {}
                Err(error) if error.retry() == Retry::Never || Instant::now() > deadline => return Err(error.into()),
                Err(error) => {
                    let wait = if let Retry::After(wait) = error.retry() { wait } else { LOOK_AGAIN_MIN * 5 };
                    tokio::time::sleep(wait.min(Duration::from_secs(1))).await;
                    continue;
                }
            }
            let called = Instant::now();
            loop {
                last = self.look(target).await.during(format_args!("looking after {verb}"))?;
                if verb.is_reached(target, &last) {
                    return Ok(last);
                }
                if last == Observed::Absent && !matches!(verb, Verb::Create) {
                    return Err(Failure::new(format!("after {verb} the instance is absent")));
                }
                let moves = last.present().is_some_and(|present| present.again.is_some());
                if !moves || called.elapsed() > PATIENCE || Instant::now() > deadline {
                    break;
                }
                tokio::time::sleep(pause(&last)).await;
            }
            ensure!(
                Instant::now() < deadline,
                "{verb} did not reach its end within {:?}; last seen: {}",
                self.profile.deadline,
                shown(&last)
            );
            tokio::time::sleep(pause(&last)).await;
        }
    }

    fn deadline(&self) -> Instant {
        Instant::now() + self.profile.deadline
    }

    // What is there

    /// All that the backend lists, once its reads have caught up.
    pub(crate) async fn list(&self) -> Outcome<Vec<Owned>> {
        self.settle().await;
        let deadline = self.deadline();
        loop {
            let listed: Vec<_> = self.backend.list(&self.cx()).collect().await;
            let listed: Result<Vec<_>, Error> = listed.into_iter().collect();
            match listed {
                // Busy, as when many calls wait behind a wrapper on a slow machine.
                Err(error) if error.retry() != Retry::Never && Instant::now() < deadline => {
                    tokio::time::sleep(LOOK_AGAIN_MIN * 5).await;
                }
                listed => return listed.during("list"),
            }
        }
    }

    /// Waits until reads have caught up with the last call.
    pub(crate) async fn settle(&self) {
        let last = lock(&self.shared.calls).values().max().copied();
        if let Some(last) = last {
            tokio::time::sleep_until(last + self.profile.capabilities().settling).await;
        }
    }

    /// Fails unless so many things of the target are there, by the backend's own list and by the outsider's eyes.
    pub(crate) async fn expect_things(&self, target: &Target, expected: usize) -> Outcome {
        let listed = self.list().await?;
        let known = lock(&self.shared.calls).clone();
        // Also those that nobody asked for.
        let of = |owned: &&Owned| {
            let own = owned.incarnation == target.incarnation || !known.contains_key(&owned.incarnation);
            owned.kind == OwnedKind::Instance && owned.id == target.id && own
        };
        let listed = listed.iter().filter(of).count();
        ensure!(listed == expected, "list yields {listed} things of the instance, expected {expected}");
        if let Some(sight) = self.sight(target).await? {
            ensure!(sight.made == expected, "{} things of the instance are there, expected {expected}", sight.made);
            ensure!(sight.awake <= expected, "{} things of the instance run, expected {expected}", sight.awake);
        }
        Ok(())
    }

    /// Fails unless there is of the target what a verb leaves: one thing, or none, and the data if that is retained.
    pub(crate) async fn expect_end(&self, verb: Verb, target: &Target) -> Outcome {
        self.expect_things(target, usize::from(verb.end().is_some())).await?;
        if verb == Verb::RETAIN {
            let is_it = |owned: &Owned| owned.kind == OwnedKind::Data && owned.data.as_ref() == Some(target.data.id());
            ensure!(self.list().await?.iter().any(is_it), "the retained data is not listed");
        }
        Ok(())
    }

    /// Fails when an error says that the call did not act, and it did.
    pub(crate) async fn expect_no_effect(&self, error: &Error, target: &Target, was: &Observed) -> Outcome {
        if error.effect() == Effect::None {
            self.settle().await;
            let now = self.at_rest(target).await?;
            ensure!(now == *was, "{error} says that it did not act: it was {}, now {}", shown(was), shown(&now));
        }
        Ok(())
    }

    /// What the outsider sees of the target, where it can.
    pub(crate) async fn sight(&self, target: &Target) -> Outcome<Option<Sight>> {
        if !self.profile.can(crate::Ability::Sight) {
            return Ok(None);
        }
        Ok(Some(self.outsider().sight(&self.owner, target).await.during("the outsider")?))
    }

    /// Waits for a condition.
    pub(crate) async fn until<F: Future<Output = Outcome<bool>> + Send>(
        &self,
        what: &str,
        mut condition: impl FnMut() -> F + Send,
    ) -> Outcome {
        let deadline = self.deadline();
        while !condition().await? {
            ensure!(Instant::now() < deadline, "{what}: not within {:?}", self.profile.deadline);
            tokio::time::sleep(LOOK_AGAIN_MIN * 2).await;
        }
        Ok(())
    }

    /// Removes all that the rule's control planes have, and says what cannot be removed.
    pub(crate) async fn clean_up(&self) -> Outcome {
        for owner in self.owners() {
            owner.clean_up_own().await.during("cleaning up")?;
        }
        Ok(())
    }

    async fn clean_up_own(&self) -> Outcome {
        let deadline = self.deadline();
        loop {
            let listed = self.list().await?;
            if listed.is_empty() {
                break;
            }
            ensure!(Instant::now() < deadline, "{} things cannot be removed, such as {:?}", listed.len(), listed[0]);
            let removals = listed.iter().map(|owned| self.remove(owned));
            let removed: Vec<_> = futures::stream::iter(removals.collect::<Vec<_>>()).buffered(16).collect().await;
            removed.into_iter().collect::<Outcome>()?;
        }
        while self.profile.can(crate::Ability::Inventory) {
            let left = self.outsider().inventory(&self.owner).await.during("the outsider")?;
            if left.is_empty() {
                break;
            }
            let told = left.join("; ");
            ensure!(Instant::now() < deadline, "left behind, though list yields nothing, and not for upkeep: {told}");
            self.keep_up().await?;
            tokio::time::sleep(LOOK_AGAIN_MAX).await;
        }
        Ok(())
    }

    /// Upkeep, by a process that has just begun where there can be one: what several share may be left by those of whom each thought
    /// that another one needs it.
    async fn keep_up(&self) -> Outcome {
        let backend = self.profile.reopen.as_ref().map_or_else(|| Arc::clone(&self.backend), |reopen| reopen());
        backend.maintain(&self.cx(), false).await.during("upkeep").map(drop)
    }

    async fn remove(&self, owned: &Owned) -> Outcome {
        let data = owned.data.clone();
        match (owned.kind, data) {
            (OwnedKind::Data, Some(data)) => Ok(self.backend.delete_data(&self.cx(), &data).await?),
            (_, data) => {
                let target = self.forgotten(owned.id.clone(), owned.incarnation, data);
                self.reach(Verb::DESTROY, &target).await.map(drop)
            }
        }
    }

    /// The target of something whose spec and tenant are forgotten.
    pub(crate) fn forgotten(&self, id: InstanceId, incarnation: Incarnation, data: Option<DataId>) -> Target {
        Target {
            id,
            tenant: TenantId::new("forgotten").expect("a name"),
            incarnation,
            generation: Generation(0),
            spec: Arc::new(InstanceSpec::forgotten()),
            data: DataSource::Existing(data.unwrap_or_else(|| DataId::from_random(random()))),
        }
    }
}

/// What is seen, in a line.
pub(crate) fn shown(seen: &Observed) -> String {
    match seen {
        Observed::Present(present) => {
            let reason = present.reason.as_ref().map(|reason| format!(" ({reason})")).unwrap_or_default();
            format!("{} at generation {}{reason}", present.phase, present.generation)
        }
        Observed::Absent => "absent".to_owned(),
        Observed::Unknown { .. } => "unknown".to_owned(),
    }
}

fn pause(seen: &Observed) -> Duration {
    let again = seen.present().and_then(|present| present.again).unwrap_or(LOOK_AGAIN_MIN * 5);
    again.clamp(LOOK_AGAIN_MIN, LOOK_AGAIN_MAX)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
