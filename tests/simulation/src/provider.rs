//! A provider as one process sees it: through its gate, under the eyes of the witness. And the provider's own side, where
//! calls arrive.

use std::{fmt, sync::Arc};

use async_trait::async_trait;
use futures::{StreamExt, stream::BoxStream};
use provisioner_core::{
    Effect, Error, ErrorKind, OpContext, Provisioner, Result,
    types::{Capabilities, CellName, DataDisposition, DataId, InstanceId, InstanceSpec, Observed, Owned, Target},
};

use tokio_util::sync::CancellationToken;

use crate::{
    gate::{Gate, Life},
    witness::{Answer, Call, Witness},
};

/// A provider as one process sees it.
#[derive(Debug, Clone)]
pub struct SeenProvisioner<P> {
    inner: P,
    cell: CellName,
    gate: Arc<Gate>,
    witness: Arc<Witness>,
    /// Whether a call that its machine was about to make when it began to stand still is made when it goes on, however late.
    calls_late: bool,
}

impl<P> SeenProvisioner<P> {
    /// This cell's provider behind this gate.
    #[must_use]
    pub fn new(inner: P, cell: CellName, gate: Arc<Gate>, witness: Arc<Witness>) -> Self {
        Self { inner, cell, gate, witness, calls_late: false }
    }

    /// The same; what it was about to call when it began to stand still it calls when it goes on.
    #[must_use]
    pub fn calling_late(self) -> Self {
        Self { calls_late: true, ..self }
    }
}

impl<P: fmt::Display> fmt::Display for SeenProvisioner<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Seen({})", self.inner)
    }
}

/// A call that is under way until this is dropped or told the answer.
struct UnderWay<'a>(&'a Witness, Option<Call>);

impl UnderWay<'_> {
    fn answered(mut self, answer: Result<Answer, &provisioner_core::Error>) {
        if let Some(call) = self.1.take() {
            self.0.answered(&call, answer);
        }
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        // Whoever called stopped waiting.
        if let Some(call) = self.1.take() {
            self.0.answered(&call, Ok(Answer::Unknown));
        }
    }
}

fn answer_of(observed: &Observed) -> Answer {
    match observed {
        Observed::Absent => Answer::Absent,
        Observed::Unknown { .. } => Answer::Unknown,
        Observed::Present(present) => Answer::Present(present.phase),
    }
}

impl<P: Provisioner> SeenProvisioner<P> {
    fn begin(&self, operation: &'static str, target: &Target) -> UnderWay<'_> {
        UnderWay(&self.witness, Some(self.witness.calls(self.gate.process, &self.cell, operation, target)))
    }

    fn begin_for_cell(&self, operation: &'static str) -> UnderWay<'_> {
        UnderWay(&self.witness, Some(self.witness.calls_cell(self.gate.process, &self.cell, operation)))
    }

    /// One call for a target through the gate.
    async fn call(&self, verb: Verb, cx: &OpContext, target: &Target) -> Result<Observed> {
        self.gate.leave().await.map_err(|_| buried(verb.as_str()))?;
        if let Verb::Destroy(data) = verb {
            self.witness.removes(self.gate.process, target, data);
        }
        let under_way = self.begin(verb.as_str(), target);
        let answer = match verb {
            Verb::Create => self.inner.create(cx, target).await,
            Verb::Suspend => self.inner.suspend(cx, target).await,
            Verb::ScaleToZero => self.inner.scale_to_zero(cx, target).await,
            Verb::Resume => self.inner.resume(cx, target).await,
            Verb::Destroy(data) => self.inner.destroy(cx, target, data).await,
            Verb::Observe => self.inner.observe(cx, target).await,
        };
        self.gate.leave().await.map_err(|_| buried(verb.as_str()))?;
        under_way.answered(answer.as_ref().map(answer_of));
        answer
    }
}

impl<P: Provisioner + Clone> SeenProvisioner<P> {
    /// The same; where it is to be made late, it is made whether its caller has given up meanwhile or not: of a machine that
    /// stands still, the clock stands still too.
    async fn call_when_it_goes_on(&self, verb: Verb, cx: &OpContext, target: &Target) -> Result<Observed> {
        if !self.calls_late || self.gate.life() != Life::Paused {
            return self.call(verb, cx, target).await;
        }
        let (this, target, mut cx) = (self.clone(), target.clone(), cx.clone());
        let left = cx.deadline.map(|deadline| deadline.saturating_duration_since(tokio::time::Instant::now()));
        let call = tokio::spawn(async move {
            this.gate.leave().await.map_err(|_| buried(verb.as_str()))?;
            (cx.cancel, cx.deadline) = (CancellationToken::new(), None);
            let cx = left.map_or(cx.clone(), |left| cx.with_timeout(left));
            this.call(verb, &cx, &target).await
        });
        call.await.unwrap_or_else(|_| Err(buried(verb.as_str())))
    }
}

/// One kind of call for a target.
#[derive(Debug, Clone, Copy)]
enum Verb {
    Create,
    Suspend,
    ScaleToZero,
    Resume,
    Destroy(DataDisposition),
    Observe,
}

impl Verb {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Suspend => "suspend",
            Self::ScaleToZero => "scale to zero",
            Self::Resume => "resume",
            Self::Destroy(_) => "destroy",
            Self::Observe => "observe",
        }
    }
}

/// What is left of a process that is dead and buried may end.
fn buried(operation: &'static str) -> Error {
    Error::new(ErrorKind::Unavailable, operation).with_effect(Effect::Unknown)
}

/// One call for the whole cell.
macro_rules! seen_cell {
    ($self:ident, $operation:literal, $call:expr) => {{
        $self.gate.leave().await.map_err(|_| buried($operation))?;
        let under_way = $self.begin_for_cell($operation);
        let answer = $call.await;
        $self.gate.leave().await.map_err(|_| buried($operation))?;
        under_way.answered(answer.as_ref().map(|_| Answer::Done));
        answer
    }};
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl<P: Provisioner + Clone> Provisioner for SeenProvisioner<P> {
    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    fn validate(&self, wanted: &InstanceSpec, applied: Option<&InstanceSpec>) -> Result<()> {
        self.inner.validate(wanted, applied)
    }

    async fn identity(&self, cx: &OpContext) -> Result<String> {
        seen_cell!(self, "identity", self.inner.identity(cx))
    }

    async fn create(&self, cx: &OpContext, target: &Target) -> Result<Observed> {
        self.call_when_it_goes_on(Verb::Create, cx, target).await
    }

    async fn suspend(&self, cx: &OpContext, target: &Target) -> Result<Observed> {
        self.call_when_it_goes_on(Verb::Suspend, cx, target).await
    }

    async fn scale_to_zero(&self, cx: &OpContext, target: &Target) -> Result<Observed> {
        self.call_when_it_goes_on(Verb::ScaleToZero, cx, target).await
    }

    async fn resume(&self, cx: &OpContext, target: &Target) -> Result<Observed> {
        self.call_when_it_goes_on(Verb::Resume, cx, target).await
    }

    async fn destroy(&self, cx: &OpContext, target: &Target, data: DataDisposition) -> Result<Observed> {
        self.call_when_it_goes_on(Verb::Destroy(data), cx, target).await
    }

    async fn observe(&self, cx: &OpContext, target: &Target) -> Result<Observed> {
        self.call_when_it_goes_on(Verb::Observe, cx, target).await
    }

    async fn observe_many(&self, cx: &OpContext, targets: &[Target]) -> Vec<Result<Observed>> {
        if self.gate.leave().await.is_err() {
            return targets.iter().map(|_| Err(buried("observe"))).collect();
        }
        let under_way: Vec<_> = targets.iter().map(|target| self.begin("observe", target)).collect();
        let answers = self.inner.observe_many(cx, targets).await;
        if self.gate.leave().await.is_err() {
            return targets.iter().map(|_| Err(buried("observe"))).collect();
        }
        for (under_way, answer) in under_way.into_iter().zip(&answers) {
            under_way.answered(answer.as_ref().map(answer_of));
        }
        answers
    }

    fn list(&self, cx: &OpContext) -> BoxStream<'static, Result<Owned>> {
        // Counted as one call; what it costs a provider is its pages.
        drop(self.begin_for_cell("list"));
        let gate = Arc::clone(&self.gate);
        self.inner
            .list(cx)
            .then(move |owned| {
                let gate = Arc::clone(&gate);
                async move { gate.leave().await.map_err(|_| buried("list")).and(owned) }
            })
            .boxed()
    }

    fn watch(&self, cx: &OpContext) -> BoxStream<'static, InstanceId> {
        let gate = Arc::clone(&self.gate);
        self.inner
            .watch(cx)
            .filter_map(move |id| {
                let gate = Arc::clone(&gate);
                async move { gate.leave().await.ok().map(|()| id) }
            })
            .boxed()
    }

    async fn delete_data(&self, cx: &OpContext, data: &DataId) -> Result<()> {
        self.witness.removes_data(self.gate.process, data);
        seen_cell!(self, "delete data", self.inner.delete_data(cx, data))
    }

    async fn maintain(&self, cx: &OpContext, plan_only: bool) -> Result<Vec<String>> {
        seen_cell!(self, "maintain", self.inner.maintain(cx, plan_only))
    }
}

/// The provider's side: tells the witness when a call that makes or wakes something arrives, however late.
#[derive(Debug, Clone)]
pub struct Arrivals<P> {
    inner: P,
    witness: Arc<Witness>,
}

impl<P> Arrivals<P> {
    /// This provider's side.
    #[must_use]
    pub fn new(inner: P, witness: Arc<Witness>) -> Self {
        Self { inner, witness }
    }
}

impl<P: fmt::Display> fmt::Display for Arrivals<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl<P: Provisioner> Provisioner for Arrivals<P> {
    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }
    fn validate(&self, wanted: &InstanceSpec, applied: Option<&InstanceSpec>) -> Result<()> {
        self.inner.validate(wanted, applied)
    }
    async fn identity(&self, cx: &OpContext) -> Result<String> {
        self.inner.identity(cx).await
    }
    async fn create(&self, cx: &OpContext, target: &Target) -> Result<Observed> {
        self.witness.landed("create", target);
        self.inner.create(cx, target).await
    }
    async fn suspend(&self, cx: &OpContext, target: &Target) -> Result<Observed> {
        self.inner.suspend(cx, target).await
    }
    async fn scale_to_zero(&self, cx: &OpContext, target: &Target) -> Result<Observed> {
        self.inner.scale_to_zero(cx, target).await
    }
    async fn resume(&self, cx: &OpContext, target: &Target) -> Result<Observed> {
        self.witness.landed("resume", target);
        self.inner.resume(cx, target).await
    }
    async fn destroy(&self, cx: &OpContext, target: &Target, data: DataDisposition) -> Result<Observed> {
        self.inner.destroy(cx, target, data).await
    }
    async fn observe(&self, cx: &OpContext, target: &Target) -> Result<Observed> {
        self.inner.observe(cx, target).await
    }
    async fn observe_many(&self, cx: &OpContext, targets: &[Target]) -> Vec<Result<Observed>> {
        self.inner.observe_many(cx, targets).await
    }
    fn list(&self, cx: &OpContext) -> BoxStream<'static, Result<Owned>> {
        self.inner.list(cx)
    }
    fn watch(&self, cx: &OpContext) -> BoxStream<'static, InstanceId> {
        self.inner.watch(cx)
    }
    async fn delete_data(&self, cx: &OpContext, data: &DataId) -> Result<()> {
        self.inner.delete_data(cx, data).await
    }
    async fn maintain(&self, cx: &OpContext, plan_only: bool) -> Result<Vec<String>> {
        self.inner.maintain(cx, plan_only).await
    }
}
