//! A backend whose calls go wrong.

use std::{
    collections::BTreeMap,
    fmt,
    future::Future,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use futures::{
    FutureExt, StreamExt,
    stream::{self, BoxStream},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{Instrument, debug, debug_span, info};

use super::{Fault, Faults, RandomFaults, answer_later, fault::Call, given_up};
use crate::{
    context::OpContext,
    error::{Error, Result},
    provisioner::Provisioner,
    seams::Random,
    types::{Capabilities, DataDisposition, DataId, InstanceId, InstanceSpec, Observed, Owned, Target},
};

/// How many items of a listing come before the one that fails, when that is scripted.
const LISTED_BEFORE_CUT: u64 = 2;
/// At random it is from one to so many.
const LISTED_BEFORE_CUT_MAX: u64 = 64;

/// A backend whose calls go wrong: as scripted per call, or at random from a seed. A clone is the same backend.
///
/// Operations are named as in errors: `identity`, `create`, `suspend`, `scale to zero`, `resume`, `destroy`, `observe`,
/// `observe many`, `list`, `watch`, `delete data`, `maintain`. Some go wrong in ways of their own:
///
/// - `list`: what hits it before it was sent is its first item; an answer that is lost is lost half-way, after some items.
/// - `observe many`: a fault hits all answers alike; one at random hits sometimes all and sometimes single ones.
/// - `watch`: a fault, whichever it is, loses one event.
///
/// [`Fault::Hang`] and [`Fault::LateEffect`] wait for the deadline of the context, and for ever when there is none; so
/// they come at random only to calls that have one. Cancelling the context ends them too. A late effect belongs to a call
/// that was sent: neither dropping the call nor [`stop`](Self::stop) takes it back.
///
/// ```
/// use provisioner_core::{Provisioner, ErrorKind, OpContext, layers::{Chaos, Fault}, memory::MemoryProvisioner};
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let chaos = Chaos::new(MemoryProvisioner::new(Default::default()));
/// chaos.script("identity", Fault::BeforeSend(ErrorKind::Unavailable));
/// let cx = OpContext::new(provisioner_core::types::ControlPlaneId::new("prod")?);
/// assert_eq!(chaos.identity(&cx).await.unwrap_err().kind(), ErrorKind::Unavailable);
/// assert_eq!(chaos.identity(&cx).await?, "memory");
/// assert_eq!(chaos.to_string(), "Chaos(Memory(memory))");
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Chaos<P>(Arc<Inner<P>>);

#[derive(Debug)]
struct Inner<P> {
    backend: Arc<P>,
    state: Mutex<State>,
    /// The effects that come late.
    late: TaskTracker,
}

#[derive(Debug)]
struct State {
    faults: Faults,
    calls: BTreeMap<&'static str, u64>,
}

impl<P> Clone for Chaos<P> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<P: fmt::Display> fmt::Display for Chaos<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let odds = *self.0.state().faults.odds();
        match odds.percent {
            0 => write!(f, "Chaos({})", self.0.backend),
            percent => write!(f, "Chaos({}, {percent} % from seed {})", self.0.backend, odds.seed),
        }
    }
}

impl<P: Provisioner> Chaos<P> {
    /// A backend that passes everything through until it is told otherwise.
    #[must_use]
    pub fn new(backend: P) -> Self {
        let faults = Faults::new(Random::from_seed(0), RandomFaults::new(0, 0));
        let state = Mutex::new(State { faults, calls: BTreeMap::new() });
        Self(Arc::new(Inner { backend: Arc::new(backend), state, late: TaskTracker::new() }))
    }

    /// The same, with faults at random from here on. Logs the seed: the same seed has the same faults befall the same
    /// calls in the same order.
    #[must_use]
    pub fn with_random(self, faults: RandomFaults) -> Self {
        info!(backend = %self.0.backend, seed = faults.seed, percent = faults.percent, "calls go wrong at random");
        self.0.state().faults = Faults::new(Random::from_seed(faults.seed), faults);
        self
    }

    /// Has the next call of this operation go wrong; later ones follow in the order of the script.
    pub fn script(&self, operation: &'static str, fault: Fault) {
        self.0.state().faults.script(operation, fault);
    }

    /// Has no call go wrong from now on, neither as scripted nor at random.
    pub fn stop(&self) {
        self.0.state().faults.stop();
    }

    /// How many calls of each operation were made, whatever became of them.
    #[must_use]
    pub fn calls(&self) -> BTreeMap<&'static str, u64> {
        self.0.state().calls.clone()
    }

    /// How many calls are still to have their late effect.
    #[must_use]
    pub fn late_effects(&self) -> usize {
        self.0.late.len()
    }

    /// Takes a call in and says what happens to it.
    fn take(&self, operation: &'static str, cx: &OpContext) -> Option<Fault> {
        let call = Call::new(operation, cx, self.0.backend.capabilities().call_max);
        let mut state = self.0.state();
        *state.calls.entry(operation).or_default() += 1;
        let fault = state.faults.next(call);
        if let Some(fault) = fault {
            debug!(operation, ?fault, "a call goes wrong");
        }
        fault
    }

    async fn call<T, F>(
        &self,
        operation: &'static str,
        cx: &OpContext,
        call: impl FnOnce(Arc<P>, OpContext) -> F + Send,
    ) -> Result<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T>> + Send + 'static,
    {
        let send = |cx: OpContext| call(Arc::clone(&self.0.backend), cx);
        match self.take(operation, cx) {
            None => send(cx.clone()).await,
            Some(fault @ (Fault::BeforeSend(_) | Fault::Throttled { .. } | Fault::NoRoomHere)) => {
                Err(fault.to_error(operation))
            }
            Some(Fault::Hang) => Err(given_up(cx, operation).await),
            Some(fault @ (Fault::AfterApply | Fault::HalfWay)) => {
                // Lost is whatever it was, an error too.
                let _ = send(cx.clone()).await;
                Err(fault.to_error(operation))
            }
            Some(Fault::Late { after_ms }) => {
                let answer = send(cx.clone()).await;
                answer_later(cx, operation, after_ms, answer).await
            }
            Some(Fault::LateEffect { after_ms }) => {
                self.send_late(operation, after_ms, send(sent(cx)));
                Err(given_up(cx, operation).await)
            }
        }
    }

    /// Has a call arrive when nobody waits for it any more.
    fn send_late<T>(&self, operation: &'static str, after_ms: u64, call: impl Future<Output = T> + Send + 'static) {
        let late = async move {
            tokio::time::sleep(Duration::from_millis(after_ms)).await;
            let _ = call.await;
        };
        self.0.late.spawn(late.instrument(debug_span!("late effect", operation)));
    }

    async fn verb<F>(
        &self,
        operation: &'static str,
        cx: &OpContext,
        target: &Target,
        call: impl FnOnce(Arc<P>, OpContext, Target) -> F + Send,
    ) -> Result<Observed>
    where
        F: Future<Output = Result<Observed>> + Send + 'static,
    {
        let sent = target.clone();
        let answer = self.call(operation, cx, |backend, cx| call(backend, cx, sent)).await;
        answer.map_err(|error| about(error, &target.id))
    }

    /// Which answers of many a fault hits: at random sometimes single ones, otherwise all.
    fn hit(&self, answers: usize) -> Vec<bool> {
        let state = self.0.state();
        if state.faults.odds().percent == 0 || state.faults.hits(50) {
            return vec![true; answers];
        }
        (0..answers).map(|_| state.faults.hits(50)).collect()
    }

    /// After how many items a listing that is cut fails.
    fn listed_before_cut(&self) -> usize {
        let state = self.0.state();
        let random = state.faults.odds().percent > 0;
        let items = if random { state.faults.up_to(LISTED_BEFORE_CUT_MAX) } else { LISTED_BEFORE_CUT };
        usize::try_from(items).unwrap_or(usize::MAX)
    }
}

impl<P> Inner<P> {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The context of a call that was sent: whether its caller still waits makes no difference to it.
fn sent(cx: &OpContext) -> OpContext {
    let mut cx = cx.clone();
    cx.deadline = None;
    cx.cancel = CancellationToken::new();
    cx
}

fn about(error: Error, instance: &InstanceId) -> Error {
    if error.instance().is_none() { error.with_instance(instance) } else { error }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl<P: Provisioner> Provisioner for Chaos<P> {
    fn capabilities(&self) -> Capabilities {
        self.0.backend.capabilities()
    }

    fn validate(&self, wanted: &InstanceSpec, applied: Option<&InstanceSpec>) -> Result<()> {
        self.0.backend.validate(wanted, applied)
    }

    async fn identity(&self, cx: &OpContext) -> Result<String> {
        self.call("identity", cx, |backend, cx| async move { backend.identity(&cx).await }).await
    }

    async fn create(&self, cx: &OpContext, target: &Target) -> Result<Observed> {
        let call = |backend: Arc<P>, cx, target| async move { backend.create(&cx, &target).await };
        self.verb("create", cx, target, call).await
    }

    async fn suspend(&self, cx: &OpContext, target: &Target) -> Result<Observed> {
        let call = |backend: Arc<P>, cx, target| async move { backend.suspend(&cx, &target).await };
        self.verb("suspend", cx, target, call).await
    }

    async fn scale_to_zero(&self, cx: &OpContext, target: &Target) -> Result<Observed> {
        let call = |backend: Arc<P>, cx, target| async move { backend.scale_to_zero(&cx, &target).await };
        self.verb("scale to zero", cx, target, call).await
    }

    async fn resume(&self, cx: &OpContext, target: &Target) -> Result<Observed> {
        let call = |backend: Arc<P>, cx, target| async move { backend.resume(&cx, &target).await };
        self.verb("resume", cx, target, call).await
    }

    async fn destroy(&self, cx: &OpContext, target: &Target, data: DataDisposition) -> Result<Observed> {
        let call = move |backend: Arc<P>, cx, target| async move { backend.destroy(&cx, &target, data).await };
        self.verb("destroy", cx, target, call).await
    }

    async fn observe(&self, cx: &OpContext, target: &Target) -> Result<Observed> {
        let call = |backend: Arc<P>, cx, target| async move { backend.observe(&cx, &target).await };
        self.verb("observe", cx, target, call).await
    }

    async fn observe_many(&self, cx: &OpContext, targets: &[Target]) -> Vec<Result<Observed>> {
        const OPERATION: &str = "observe many";
        let errors =
            |fault: Fault| targets.iter().map(move |target| fault.to_error(OPERATION).with_instance(&target.id));
        match self.take(OPERATION, cx) {
            None => self.0.backend.observe_many(cx, targets).await,
            Some(Fault::Hang | Fault::LateEffect { .. }) => {
                let error = given_up(cx, OPERATION).await;
                let all = targets.iter().map(|target| {
                    Err(Error::new(error.kind(), OPERATION).with_effect(error.effect()).with_instance(&target.id))
                });
                all.collect()
            }
            Some(Fault::Late { after_ms }) => {
                let answers = self.0.backend.observe_many(cx, targets).await;
                match answer_later(cx, OPERATION, after_ms, Ok(answers)).await {
                    Ok(answers) => answers,
                    Err(_) => errors(Fault::Hang).map(Err).collect(),
                }
            }
            Some(fault) => {
                let hit = self.hit(targets.len());
                if hit.iter().all(|hit| *hit) {
                    return errors(fault).map(Err).collect();
                }
                let answers = self.0.backend.observe_many(cx, targets).await;
                let answers = answers.into_iter().zip(errors(fault)).zip(hit);
                answers.map(|((answer, error), hit)| if hit { Err(error) } else { answer }).collect()
            }
        }
    }

    fn list(&self, cx: &OpContext) -> BoxStream<'static, Result<Owned>> {
        const OPERATION: &str = "list";
        let (this, cx) = (self.clone(), cx.clone());
        let listed = async move {
            let failed = |error: Error| stream::once(async move { Err(error) }).boxed();
            match this.take(OPERATION, &cx) {
                None => this.0.backend.list(&cx),
                Some(fault @ (Fault::BeforeSend(_) | Fault::Throttled { .. } | Fault::NoRoomHere)) => {
                    failed(fault.to_error(OPERATION))
                }
                Some(fault @ (Fault::AfterApply | Fault::HalfWay)) => {
                    let items = this.0.backend.list(&cx).take(this.listed_before_cut());
                    items.chain(failed(fault.to_error(OPERATION))).boxed()
                }
                Some(Fault::Late { after_ms }) => match answer_later(&cx, OPERATION, after_ms, Ok(())).await {
                    Ok(()) => this.0.backend.list(&cx),
                    Err(error) => failed(error),
                },
                Some(Fault::Hang | Fault::LateEffect { .. }) => failed(given_up(&cx, OPERATION).await),
            }
        };
        listed.into_stream().flatten().boxed()
    }

    fn watch(&self, cx: &OpContext) -> BoxStream<'static, InstanceId> {
        *self.0.state().calls.entry("watch").or_default() += 1;
        let this = self.clone();
        let kept = move |_: &InstanceId| {
            let lost = this.0.state().faults.loses_event("watch");
            async move { !lost }
        };
        self.0.backend.watch(cx).filter(kept).boxed()
    }

    async fn delete_data(&self, cx: &OpContext, data: &DataId) -> Result<()> {
        let data = data.clone();
        self.call("delete data", cx, |backend, cx| async move { backend.delete_data(&cx, &data).await }).await
    }

    async fn maintain(&self, cx: &OpContext, plan_only: bool) -> Result<Vec<String>> {
        let call = move |backend: Arc<P>, cx| async move { backend.maintain(&cx, plan_only).await };
        self.call("maintain", cx, call).await
    }
}

#[cfg(test)]
mod tests;
