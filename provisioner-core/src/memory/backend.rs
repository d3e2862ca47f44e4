//! The provider behind the trait.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use futures::{
    StreamExt,
    stream::{self, BoxStream},
};
use tokio::{sync::broadcast, time::Instant};

use super::world::{Pace, Thing, World};
use crate::{
    context::OpContext,
    error::{Error, ErrorKind, Result},
    layers::{Call, Fault, Faults, RandomFaults, answer_later, given_up},
    provisioner::Provisioner,
    seams::Random,
    types::{
        Capabilities, ControlPlaneId, DataDisposition, DataId, Generation, InstanceId, InstanceSpec, Observed, Owned,
        OwnedKind, Phase, Present, Reason, SecretSupport, SizeMax, Target,
    },
};

/// How the provider behaves. The default is instant, consistent, boundless and faultless.
#[derive(Debug, Clone)]
pub struct MemoryConfig {
    /// What it calls itself.
    pub identity: String,
    /// How long from a start to running.
    pub start: Duration,
    /// How long from a stop or a removal to its end.
    pub stop: Duration,
    /// How far reads lag behind writes.
    pub lag: Duration,
    /// How many things can be awake at once.
    pub capacity: usize,
    /// How many things a control plane may have.
    pub quota: usize,
    /// How many calls a second it takes; a burst of as many.
    pub calls_per_second: Option<u32>,
    /// How many of a hundred calls go wrong.
    pub fault_percent: u64,
    /// Where the faults' randomness comes from.
    pub random: Random,
    /// The largest size it takes.
    pub size_max: SizeMax,
    /// Whether it tells of changes; otherwise the engine polls.
    pub watch: bool,
}

impl Default for MemoryConfig {
    fn default() -> Self {
        Self {
            identity: "memory".into(),
            start: Duration::ZERO,
            stop: Duration::ZERO,
            lag: Duration::ZERO,
            capacity: usize::MAX,
            quota: usize::MAX,
            calls_per_second: None,
            fault_percent: 0,
            random: Random::from_seed(0),
            size_max: Capabilities::PLAIN.size_max,
            watch: true,
        }
    }
}

/// A provider in memory. A clone is the same provider.
#[derive(Debug, Clone)]
pub struct MemoryProvisioner(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    config: MemoryConfig,
    state: Mutex<State>,
    events: broadcast::Sender<(ControlPlaneId, InstanceId)>,
}

#[derive(Debug)]
struct State {
    world: World,
    faults: Faults,
    calls: BTreeMap<&'static str, u64>,
    identity: String,
    /// The token bucket: what is left of it, and since when.
    tokens: (f64, Instant),
    /// What every call is refused with, if it is.
    denied: Option<ErrorKind>,
    befalling: Option<Fault>,
    capacity: usize,
    quota: usize,
}

impl fmt::Display for MemoryProvisioner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Memory({})", self.0.config.identity)
    }
}

impl MemoryProvisioner {
    /// A provider that behaves like this. Call it inside a runtime.
    #[must_use]
    pub fn new(config: MemoryConfig) -> Self {
        let state = State {
            world: World::default(),
            faults: Faults::new(config.random.clone(), RandomFaults::new(0, config.fault_percent)),
            calls: BTreeMap::new(),
            identity: config.identity.clone(),
            tokens: (config.calls_per_second.unwrap_or_default().into(), Instant::now()),
            denied: None,
            befalling: None,
            capacity: config.capacity,
            quota: config.quota,
        };
        Self(Arc::new(Inner { config, state: Mutex::new(state), events: broadcast::Sender::new(1024) }))
    }

    // For the outsider

    /// All things of a control plane.
    #[must_use]
    pub fn things(&self, owner: &ControlPlaneId) -> Vec<Thing> {
        self.state().world.of(owner).0
    }

    /// Whether a data set is there.
    #[must_use]
    pub fn has_data(&self, owner: &ControlPlaneId, data: &DataId) -> bool {
        self.state().world.has_data(owner, data)
    }

    /// How many calls of each operation arrived, or would have.
    #[must_use]
    pub fn calls(&self) -> BTreeMap<&'static str, u64> {
        self.state().calls.clone()
    }

    /// Has the next call of this operation go wrong; later ones follow in the order of the script.
    pub fn script(&self, operation: &'static str, fault: Fault) {
        self.state().faults.script(operation, fault);
    }

    /// Is another provider from now on, or itself again: it answers with this identity.
    pub fn become_another(&self, identity: impl Into<String>) {
        self.state().identity = identity.into();
    }

    /// Makes an instance fail by itself.
    pub fn fail(&self, owner: &ControlPlaneId, id: &InstanceId, reason: &Reason) {
        self.state().world.fail(owner, id, reason);
        self.tell(owner, id);
    }

    /// Deletes an instance behind everybody's back.
    pub fn vanish(&self, owner: &ControlPlaneId, id: &InstanceId) {
        self.state().world.vanish(owner, id);
        self.tell(owner, id);
    }

    /// Deletes data behind everybody's back.
    pub fn vanish_data(&self, owner: &ControlPlaneId, data: &DataId) {
        self.state().world.delete_data(owner, data);
    }

    /// Stops an instance behind everybody's back.
    pub fn stop_behind(&self, owner: &ControlPlaneId, id: &InstanceId) {
        self.state().world.stop_behind(owner, id);
        self.tell(owner, id);
    }

    /// Refuses every call with this kind, without effect, until it is told otherwise.
    pub fn deny(&self, kind: Option<ErrorKind>) {
        self.state().denied = kind;
    }

    /// Has room for so many things that are awake from now on. What is awake stays so.
    pub fn limit_capacity(&self, awake: usize) {
        self.state().capacity = awake;
    }

    /// Lets every control plane have so many things from now on. What is there stays.
    pub fn limit_quota(&self, things: usize) {
        self.state().quota = things;
    }

    /// Has so many of a hundred calls go wrong from now on.
    pub fn set_faults(&self, percent: u64) {
        self.state().faults.set_percent(percent);
    }

    /// Has every call from now on go wrong like this, or none (`None`).
    pub fn befall(&self, fault: Option<Fault>) {
        self.state().befalling = fault;
    }

    /// Writes a customer's note into data; whether the data is there.
    pub fn write_note(&self, owner: &ControlPlaneId, data: &DataId, note: &str) -> bool {
        let mut state = self.state();
        let there = state.world.note(owner, data);
        there.map(|there| *there = Some(note.to_owned())).is_some()
    }

    /// The customer's note in data, if there is one.
    #[must_use]
    pub fn note(&self, owner: &ControlPlaneId, data: &DataId) -> Option<String> {
        self.state().world.note(owner, data).and_then(|note| note.clone())
    }

    fn tell(&self, owner: &ControlPlaneId, id: &InstanceId) {
        // Nobody watching is no fault.
        let _ = self.0.events.send((owner.clone(), id.clone()));
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pace(&self) -> Pace {
        let config = &self.0.config;
        Pace { start: config.start, stop: config.stop, lag: config.lag }
    }

    /// One call: counted, throttled, with its fault, and otherwise with its effect.
    async fn call<T: Send + 'static>(
        &self,
        operation: &'static str,
        cx: &OpContext,
        effect: impl FnOnce(&mut State) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        match self.take(operation, cx)? {
            None => effect(&mut self.state()),
            Some(Fault::Late { after_ms }) => {
                let answer = effect(&mut self.state());
                answer_later(cx, operation, after_ms, answer).await
            }
            Some(Fault::LateEffect { after_ms }) => {
                let this = self.clone();
                tokio::spawn(async move {
                    tokio::time::sleep(Duration::from_millis(after_ms)).await;
                    let mut state = this.state();
                    state.world.tick(this.pace());
                    // Nobody waits for the answer any more.
                    let _ = effect(&mut state);
                });
                Err(given_up(cx, operation).await)
            }
            Some(Fault::Hang) => Err(given_up(cx, operation).await),
            Some(fault @ (Fault::AfterApply | Fault::HalfWay)) => {
                let mut state = self.state();
                // Lost is whatever it was, an error too.
                let acted = effect(&mut state).is_ok();
                if acted && fault == Fault::HalfWay {
                    state.world.stall();
                }
                Err(fault.to_error(operation))
            }
            Some(fault @ (Fault::BeforeSend(_) | Fault::Throttled { .. })) => Err(fault.to_error(operation)),
        }
    }

    /// Takes a call in: refused, or with its fault if it has one.
    fn take(&self, operation: &'static str, cx: &OpContext) -> Result<Option<Fault>> {
        let mut state = self.state();
        *state.calls.entry(operation).or_default() += 1;
        state.world.tick(self.pace());
        if let Some(kind) = state.denied {
            let request = state.calls.values().sum::<u64>();
            return Err(Error::new(kind, operation).with_code("Denied").with_request_id(format!("r-{request}")));
        }
        if state.befalling.is_some() {
            return Ok(state.befalling);
        }
        self.throttle(&mut state, operation)?;
        Ok(state.faults.next(Call::new(operation, cx, self.capabilities().call_max)))
    }

    fn throttle(&self, state: &mut State, operation: &'static str) -> Result<()> {
        let Some(per_second) = self.0.config.calls_per_second else { return Ok(()) };
        let (left, since) = state.tokens;
        let rate = f64::from(per_second);
        let left = (left + since.elapsed().as_secs_f64() * rate).min(rate);
        if left < 1.0 {
            let wait = Duration::from_secs_f64((1.0 - left) / rate);
            return Err(
                Fault::Throttled { after_ms: u64::try_from(wait.as_millis()).unwrap_or(1).max(1) }.to_error(operation)
            );
        }
        state.tokens = (left - 1.0, Instant::now());
        Ok(())
    }

    async fn run(&self, operation: &'static str, cx: &OpContext, target: &Target) -> Result<Observed> {
        let (owner, sent, pace) = (cx.control_plane.clone(), target.clone(), self.pace());
        let observed = self.call(operation, cx, move |state| {
            let thing = state.world.get(&owner, sent.incarnation);
            if thing.is_none() && state.world.count(&owner) >= state.quota {
                return Err(Error::new(ErrorKind::QuotaExceeded, operation));
            }
            if thing.is_none_or(|thing| thing.phase.is_asleep()) && state.world.awake() >= state.capacity {
                return Err(Error::new(ErrorKind::CapacityExhausted, operation));
            }
            state.world.run(operation, &owner, &sent, pace)
        });
        observed.await.map_err(|error| error.with_instance(&target.id))
    }

    async fn stop(&self, operation: &'static str, cx: &OpContext, target: &Target, phase: Phase) -> Result<Observed> {
        let (owner, incarnation, pace) = (cx.control_plane.clone(), target.incarnation, self.pace());
        let stopped = self.call(operation, cx, move |state| Ok(state.world.stop(&owner, incarnation, phase, pace)));
        stopped.await.map_err(|error| error.with_instance(&target.id))
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl Provisioner for MemoryProvisioner {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            settling: self.0.config.lag,
            call_max: Duration::from_secs(5),
            watch: self.0.config.watch,
            conditional_writes: true,
            survives_control_plane: false,
            secrets: SecretSupport::Resolved,
            size_max: self.0.config.size_max,
        }
    }

    fn validate(&self, wanted: &InstanceSpec, _applied: Option<&InstanceSpec>) -> Result<()> {
        Ok(wanted.check_against(&self.capabilities())?)
    }

    async fn identity(&self, cx: &OpContext) -> Result<String> {
        self.call("identity", cx, |state| Ok(state.identity.clone())).await
    }

    async fn create(&self, cx: &OpContext, target: &Target) -> Result<Observed> {
        read_secrets(cx, target).await?;
        self.run("create", cx, target).await
    }

    async fn suspend(&self, cx: &OpContext, target: &Target) -> Result<Observed> {
        self.stop("suspend", cx, target, Phase::Suspended).await
    }

    async fn scale_to_zero(&self, cx: &OpContext, target: &Target) -> Result<Observed> {
        self.stop("scale to zero", cx, target, Phase::Zero).await
    }

    async fn resume(&self, cx: &OpContext, target: &Target) -> Result<Observed> {
        if self.state().world.get(&cx.control_plane, target.incarnation).is_none() {
            return self.call("resume", cx, |_| Ok(Observed::Absent)).await;
        }
        read_secrets(cx, target).await?;
        self.run("resume", cx, target).await
    }

    async fn destroy(&self, cx: &OpContext, target: &Target, data: DataDisposition) -> Result<Observed> {
        let (owner, sent, pace) = (cx.control_plane.clone(), target.clone(), self.pace());
        let destroyed = self.call("destroy", cx, move |state| Ok(state.world.destroy(&owner, &sent, data, pace)));
        destroyed.await.map_err(|error| error.with_instance(&target.id))
    }

    async fn observe(&self, cx: &OpContext, target: &Target) -> Result<Observed> {
        let lag = self.0.config.lag;
        let (owner, incarnation, since) = (cx.control_plane.clone(), target.incarnation, cx.since_last_call);
        let observed = self.call("observe", cx, move |state| match since {
            Some(since) if since < lag => Ok(Observed::Unknown { again: lag - since }),
            _ => Ok(state.world.observe(&owner, incarnation, !lag.is_zero())),
        });
        observed.await.map_err(|error| error.with_instance(&target.id))
    }

    async fn observe_many(&self, cx: &OpContext, targets: &[Target]) -> Vec<Result<Observed>> {
        stream::iter(targets).then(|target| self.observe(cx, target)).collect().await
    }

    fn list(&self, cx: &OpContext) -> BoxStream<'static, Result<Owned>> {
        let (this, cx, owner) = (self.clone(), cx.clone(), cx.control_plane.clone());
        stream::once(async move {
            let listed = this.call("list", &cx, move |state| Ok(state.world.of(&owner))).await;
            let (things, data) = match listed {
                Ok(listed) => listed,
                Err(error) => return stream::iter(vec![Err(error)]),
            };
            let things = things.into_iter().map(|thing| Owned {
                id: thing.id.clone(),
                incarnation: thing.incarnation,
                kind: OwnedKind::Instance,
                data: Some(thing.data.clone()),
                observed: thing.observed(),
            });
            let data = data.into_iter().map(|(data, id, incarnation)| Owned {
                id,
                incarnation,
                kind: OwnedKind::Data,
                data: Some(data),
                observed: Present::new(Phase::Zero, Generation(0), incarnation).into(),
            });
            stream::iter(things.chain(data).map(Ok).collect::<Vec<_>>())
        })
        .flatten()
        .boxed()
    }

    fn watch(&self, cx: &OpContext) -> BoxStream<'static, InstanceId> {
        if !self.0.config.watch {
            return stream::empty().boxed();
        }
        let owner = cx.control_plane.clone();
        let receiver = self.0.events.subscribe();
        stream::unfold((receiver, owner), |(mut receiver, owner)| async move {
            loop {
                match receiver.recv().await {
                    Ok((of, id)) if of == owner => return Some((id, (receiver, owner))),
                    // What was lost costs time, never truth.
                    Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => {}
                    Err(broadcast::error::RecvError::Closed) => return None,
                }
            }
        })
        .boxed()
    }

    async fn delete_data(&self, cx: &OpContext, data: &DataId) -> Result<()> {
        let (owner, data) = (cx.control_plane.clone(), data.clone());
        self.call("delete data", cx, move |state| {
            if state.world.is_in_use(&owner, &data) {
                return Err(Error::new(ErrorKind::Conflict, "delete data").with_message("it is in use"));
            }
            state.world.delete_data(&owner, &data);
            Ok(())
        })
        .await
    }

    async fn maintain(&self, _cx: &OpContext, _plan_only: bool) -> Result<Vec<String>> {
        Ok(Vec::new())
    }
}

/// Secrets are read, as a backend must, and thrown away.
async fn read_secrets(cx: &OpContext, target: &Target) -> Result<()> {
    for reference in target.spec.secrets.values() {
        drop(cx.secrets.resolve(reference).await.map_err(|error| error.with_instance(&target.id))?);
    }
    Ok(())
}
