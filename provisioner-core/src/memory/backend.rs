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

use super::{
    config::MemoryConfig,
    world::{Listed, Pace, World},
};
use crate::{
    context::OpContext,
    error::{Error, ErrorKind, Result},
    layers::{Call, Fault, Faults, RandomFaults, answer_later, given_up},
    provisioner::Provisioner,
    types::{
        Capabilities, ControlPlaneId, DataDisposition, DataId, Incarnation, InstanceId, InstanceSpec, Isolation,
        Observed, Owned, Phase, SecretSupport, Target,
    },
};

/// A provider in memory. A clone is the same provider.
#[derive(Debug, Clone)]
pub struct MemoryProvisioner(pub(super) Arc<Inner>);

#[derive(Debug)]
pub(super) struct Inner {
    pub(super) config: MemoryConfig,
    state: Mutex<State>,
    events: broadcast::Sender<(ControlPlaneId, InstanceId)>,
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) world: World,
    pub(super) faults: Faults,
    pub(super) calls: BTreeMap<&'static str, u64>,
    pub(super) identity: String,
    /// The token bucket: what is left of it, and since when.
    tokens: (f64, Instant),
    /// What every call is refused with, if it is.
    pub(super) denied: Option<ErrorKind>,
    pub(super) befalling: Option<Fault>,
    pub(super) capacity: usize,
    pub(super) quota: usize,
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
            world: World::new(config.random.clone(), config.blink_percent, config.lifetime),
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

    pub(super) fn tell(&self, owner: &ControlPlaneId, id: &InstanceId) {
        // Nobody watching is no fault.
        let _ = self.0.events.send((owner.clone(), id.clone()));
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn pace(&self) -> Pace {
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
                state.world.begin();
                // Lost is whatever it was, an error too.
                let acted = effect(&mut state).is_ok();
                if acted && fault == Fault::HalfWay {
                    state.world.stall();
                }
                Err(fault.to_error(operation))
            }
            Some(fault @ (Fault::BeforeSend(_) | Fault::Throttled { .. } | Fault::NoRoomHere)) => {
                Err(fault.to_error(operation))
            }
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
        let call = Call::new(operation, cx, self.capabilities().call_max);
        Ok(state.faults.next(Call { can_be_halved: true, ..call }))
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
            restarts: false,
            secrets: SecretSupport::Resolved,
            size_max: self.0.config.size_max,
            // Rows of a map reach nothing and cannot reach each other.
            egress: true,
            isolation: Isolation::FULL,
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
            _ => Ok(state.world.observe(&owner, incarnation, lag)),
        });
        observed.await.map_err(|error| error.with_instance(&target.id))
    }

    async fn observe_many(&self, cx: &OpContext, targets: &[Target]) -> Vec<Result<Observed>> {
        let lag = self.0.config.lag;
        let incarnations: Vec<_> = targets.iter().map(|target| target.incarnation).collect();
        let (owner, since) = (cx.control_plane.clone(), cx.since_last_call);
        let observed = self.call("observe many", cx, move |state| {
            let look = |incarnation: Incarnation| match since {
                Some(since) if since < lag => Observed::Unknown { again: lag - since },
                _ => state.world.observe(&owner, incarnation, lag),
            };
            Ok(incarnations.into_iter().map(look).collect::<Vec<_>>())
        });
        match observed.await {
            Ok(observed) => observed.into_iter().map(Ok).collect(),
            // One call, so one error: each target hears of it.
            Err(error) => targets.iter().map(|target| Err(same(&error).with_instance(&target.id))).collect(),
        }
    }

    fn list(&self, cx: &OpContext) -> BoxStream<'static, Result<Owned>> {
        let (this, cx) = (self.clone(), cx.clone());
        // Page by page, each a call of its own, until one fails or is the last.
        let pages = stream::unfold(Some(None), move |after: Option<Option<Listed>>| {
            let (this, cx) = (this.clone(), cx.clone());
            async move {
                let after = after?;
                let (owner, limit, lag) = (cx.control_plane.clone(), this.0.config.page.max(1), this.0.config.lag);
                let page =
                    this.call("list", &cx, move |state| Ok(state.world.page(&owner, after.as_ref(), limit, lag))).await;
                Some(match page {
                    Ok((page, end)) => (page.into_iter().map(Ok).collect(), end.map(Some)),
                    Err(error) => (vec![Err(error)], None),
                })
            }
        });
        pages.flat_map(stream::iter).boxed()
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

/// The same error again: there is one answer, and several who wait for it.
fn same(error: &Error) -> Error {
    let mut same = Error::new(error.kind(), error.operation()).with_retry(error.retry()).with_effect(error.effect());
    if let Some(code) = error.code() {
        same = same.with_code(code);
    }
    if let Some(id) = error.request_id() {
        same = same.with_request_id(id);
    }
    same
}
