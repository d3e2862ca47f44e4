//! A provider as one process sees it: through its gate, under the eyes of the witness. And the provider's own side, where
//! calls arrive.

use std::{fmt, sync::Arc};

use async_trait::async_trait;
use futures::{StreamExt, stream::BoxStream};
use provisioner_core::{
    OpContext, Provisioner, Result,
    types::{Capabilities, CellName, DataDisposition, DataId, InstanceId, InstanceSpec, Observed, Owned, Target},
};

use crate::{
    gate::Gate,
    witness::{Answer, Call, Witness},
};

/// A provider as one process sees it.
#[derive(Debug)]
pub struct SeenProvisioner<P> {
    inner: P,
    cell: CellName,
    gate: Arc<Gate>,
    witness: Arc<Witness>,
}

impl<P> SeenProvisioner<P> {
    /// This cell's provider behind this gate.
    #[must_use]
    pub fn new(inner: P, cell: CellName, gate: Arc<Gate>, witness: Arc<Witness>) -> Self {
        Self { inner, cell, gate, witness }
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
}

/// One call for a target through the gate.
macro_rules! seen {
    ($self:ident, $operation:literal, $target:ident, $call:expr) => {{
        $self.gate.leave().await;
        let under_way = $self.begin($operation, $target);
        let answer = $call.await;
        $self.gate.leave().await;
        under_way.answered(answer.as_ref().map(answer_of));
        answer
    }};
}

/// One call for the whole cell.
macro_rules! seen_cell {
    ($self:ident, $operation:literal, $call:expr) => {{
        $self.gate.leave().await;
        let under_way = $self.begin_for_cell($operation);
        let answer = $call.await;
        $self.gate.leave().await;
        under_way.answered(answer.as_ref().map(|_| Answer::Done));
        answer
    }};
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl<P: Provisioner> Provisioner for SeenProvisioner<P> {
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
        seen!(self, "create", target, self.inner.create(cx, target))
    }

    async fn suspend(&self, cx: &OpContext, target: &Target) -> Result<Observed> {
        seen!(self, "suspend", target, self.inner.suspend(cx, target))
    }

    async fn scale_to_zero(&self, cx: &OpContext, target: &Target) -> Result<Observed> {
        seen!(self, "scale to zero", target, self.inner.scale_to_zero(cx, target))
    }

    async fn resume(&self, cx: &OpContext, target: &Target) -> Result<Observed> {
        seen!(self, "resume", target, self.inner.resume(cx, target))
    }

    async fn destroy(&self, cx: &OpContext, target: &Target, data: DataDisposition) -> Result<Observed> {
        self.witness.removes(self.gate.process, target, data);
        seen!(self, "destroy", target, self.inner.destroy(cx, target, data))
    }

    async fn observe(&self, cx: &OpContext, target: &Target) -> Result<Observed> {
        seen!(self, "observe", target, self.inner.observe(cx, target))
    }

    async fn observe_many(&self, cx: &OpContext, targets: &[Target]) -> Vec<Result<Observed>> {
        self.gate.leave().await;
        let under_way: Vec<_> = targets.iter().map(|target| self.begin("observe", target)).collect();
        let answers = self.inner.observe_many(cx, targets).await;
        self.gate.leave().await;
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
                async move {
                    gate.leave().await;
                    owned
                }
            })
            .boxed()
    }

    fn watch(&self, cx: &OpContext) -> BoxStream<'static, InstanceId> {
        let gate = Arc::clone(&self.gate);
        self.inner
            .watch(cx)
            .then(move |id| {
                let gate = Arc::clone(&gate);
                async move {
                    gate.leave().await;
                    id
                }
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
