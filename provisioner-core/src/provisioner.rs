//! The contract between the engine and a backend.

use std::{fmt, future::Future, sync::Arc, time::Duration};

use async_trait::async_trait;
use futures::stream::BoxStream;

use crate::{
    context::OpContext,
    error::{Effect, Error, ErrorKind, Result},
    types::{Capabilities, DataDisposition, InstanceId, InstanceSpec, Observed, Owned, Phase, Target},
};

/// A place that makes instances: one implementation per kind of provider, and one per wrapper.
///
/// A value is a shared handle: a clone is the same backend. Each sentence below is a rule that every backend keeps.
///
/// 1. Verbs are level-triggered: a verb starts or continues the move and returns what is seen now. It never waits for
///    readiness.
/// 2. Verbs are idempotent: any verb repeated any number of times, in parallel too, ends in the same state, with one
///    thing made.
/// 3. [`create`](Self::create) on an existing incarnation converges it on the target's spec (a new version, size or
///    environment is an update) and leaves it running; what the provider cannot change in place is
///    [`Conflict`](ErrorKind::Conflict) naming the field, and nothing is touched. [`resume`](Self::resume) takes the same
///    target, as what slept deeply is built again from it. Any verb may follow any other, and destroy may come from
///    anywhere. An older generation does not overwrite a newer one: that is `Conflict` too.
/// 4. A verb cut anywhere (future dropped, process killed, answer lost) and repeated converges: never a second thing,
///    never an orphan.
/// 5. [`suspend`](Self::suspend) and [`scale_to_zero`](Self::scale_to_zero) release compute and keep data; after
///    [`resume`](Self::resume) the data is there and the endpoint works.
/// 6. [`destroy`](Self::destroy) removes everything that costs money, of a half-made incarnation too; it is done only when
///    absence was *observed*; on an absent one it succeeds; what blocks it is named in the reason. Data is deleted or
///    retained as told; retained data is listed as data, and a later instance of the same tenant may be given it.
/// 7. [`observe`](Self::observe) of what is not there is [`Observed::Absent`], never an error; "may not look" and "could
///    not look" are errors, never `Absent`; and a backend whose reads lag behind its writes answers
///    [`Observed::Unknown`] until its [settling time](Capabilities::settling) since the
///    [last mutating call](OpContext::since_last_call) has passed.
/// 8. [`list`](Self::list) yields everything this control plane owns at the provider, by an owner mark, also what its
///    store forgot, and nothing of another control plane in the same account.
/// 9. [`watch`](Self::watch) yields ids worth looking at; losing an event costs time, never truth. A backend without it
///    says so in its capabilities, and the engine polls with [`observe_many`](Self::observe_many).
/// 10. Errors say kind, retry and effect, the operation and the instance, and carry the provider's code and request id.
///     There is a customer-safe message that leaks no internals.
/// 11. A secret reference is resolved through the context, per call, or passed through natively;
///     [`Capabilities::secrets`] says which, and a mismatch is [`InvalidSpec`](ErrorKind::InvalidSpec). Secret values
///     never appear in `Debug`, logs, labels or error texts.
/// 12. Names and tokens at the provider are a function of control plane and incarnation
///     ([`Incarnation::token`](crate::types::Incarnation::token)). Another token for the same thing is another
///     incarnation, allowed only after an error whose effect is none.
/// 13. [`identity`](Self::identity) tells which account, cluster or machine this is.
/// 14. A backend never restarts or retries by itself beyond its client's transport retries: it reports, the engine
///     decides. Where the provider itself starts what died ([`Capabilities::restarts`]), it is told as not running until it
///     answers again, and is then the same thing on the same data; no restart undoes a verb.
///
/// # Cancellation
/// Dropping the future of any call leaves the world as rule 4 says: repeat the call, or observe.
#[async_trait]
pub trait Provisioner: fmt::Debug + fmt::Display + Send + Sync + 'static {
    /// What this backend can do. Constant for the life of the value; no I/O.
    fn capabilities(&self) -> Capabilities;

    /// Checks a spec before it is accepted: a new one, or a change of the one applied last. No I/O.
    ///
    /// # Errors
    /// [`InvalidSpec`](ErrorKind::InvalidSpec) or [`Conflict`](ErrorKind::Conflict), naming the field.
    fn validate(&self, wanted: &InstanceSpec, applied: Option<&InstanceSpec>) -> Result<()>;

    /// Which account, cluster or machine this is: a text that changes when it becomes another one.
    ///
    /// # Errors
    /// When the provider cannot be asked.
    async fn identity(&self, cx: &OpContext) -> Result<String>;

    /// Starts or continues the move to a running instance that matches the target.
    ///
    /// # Errors
    /// Any; [`DataMissing`](ErrorKind::DataMissing) when existing data is not there.
    async fn create(&self, cx: &OpContext, target: &Target) -> Result<Observed>;

    /// Starts or continues being stopped by decision: compute is released, data is kept, requests are refused.
    ///
    /// # Errors
    /// Any. An absent incarnation is [`Observed::Absent`], not an error.
    async fn suspend(&self, cx: &OpContext, target: &Target) -> Result<Observed>;

    /// Starts or continues going to sleep: compute is released, data is kept.
    ///
    /// # Errors
    /// Any. An absent incarnation is [`Observed::Absent`], not an error.
    async fn scale_to_zero(&self, cx: &OpContext, target: &Target) -> Result<Observed>;

    /// Starts or continues waking up, on the target's spec.
    ///
    /// # Errors
    /// Any; [`DataMissing`](ErrorKind::DataMissing) when its data is gone. An absent incarnation is
    /// [`Observed::Absent`], not an error.
    async fn resume(&self, cx: &OpContext, target: &Target) -> Result<Observed>;

    /// Starts or continues removal. Removing what is absent succeeds. Works from the target's id, incarnation and data
    /// alone.
    ///
    /// # Errors
    /// Any; what blocks the removal is named.
    async fn destroy(&self, cx: &OpContext, target: &Target, data: DataDisposition) -> Result<Observed>;

    /// Reads the world. Works from the target's id and incarnation alone.
    ///
    /// # Errors
    /// When the provider may not or could not be asked; never because nothing is there.
    async fn observe(&self, cx: &OpContext, target: &Target) -> Result<Observed>;

    /// Reads the world for many targets in as few calls as the provider allows. Answers in the targets' order.
    async fn observe_many(&self, cx: &OpContext, targets: &[Target]) -> Vec<Result<Observed>>;

    /// Everything that the context's control plane owns here, page by page, also what its store has forgotten. The backend
    /// paces its pages by what the provider allows: an error ends the listing, and nothing follows from what came before.
    fn list(&self, cx: &OpContext) -> BoxStream<'static, Result<Owned>>;

    /// Ids of the context's control plane worth looking at, as things change. Ends when the provider's side ends; the
    /// caller opens it again. Empty without [`Capabilities::watch`].
    fn watch(&self, cx: &OpContext) -> BoxStream<'static, InstanceId>;

    /// Removes data that was retained. Removing what is absent succeeds.
    ///
    /// # Errors
    /// Any; data in use is [`Conflict`](ErrorKind::Conflict).
    async fn delete_data(&self, cx: &OpContext, data: &crate::types::DataId) -> Result<()>;

    /// Cell-wide upkeep; with `plan_only` it tells what it would do and does nothing. Answers one line per action.
    ///
    /// # Errors
    /// Any.
    async fn maintain(&self, cx: &OpContext, plan_only: bool) -> Result<Vec<String>>;
}

/// Implements the trait for a pointer to an implementation.
macro_rules! forward {
    ($pointer:ident) => {
        #[async_trait]
        #[deny(clippy::missing_trait_methods)]
        impl<P: Provisioner + ?Sized> Provisioner for $pointer<P> {
            fn capabilities(&self) -> Capabilities {
                (**self).capabilities()
            }
            fn validate(&self, wanted: &InstanceSpec, applied: Option<&InstanceSpec>) -> Result<()> {
                (**self).validate(wanted, applied)
            }
            async fn identity(&self, cx: &OpContext) -> Result<String> {
                (**self).identity(cx).await
            }
            async fn create(&self, cx: &OpContext, target: &Target) -> Result<Observed> {
                (**self).create(cx, target).await
            }
            async fn suspend(&self, cx: &OpContext, target: &Target) -> Result<Observed> {
                (**self).suspend(cx, target).await
            }
            async fn scale_to_zero(&self, cx: &OpContext, target: &Target) -> Result<Observed> {
                (**self).scale_to_zero(cx, target).await
            }
            async fn resume(&self, cx: &OpContext, target: &Target) -> Result<Observed> {
                (**self).resume(cx, target).await
            }
            async fn destroy(&self, cx: &OpContext, target: &Target, data: DataDisposition) -> Result<Observed> {
                (**self).destroy(cx, target, data).await
            }
            async fn observe(&self, cx: &OpContext, target: &Target) -> Result<Observed> {
                (**self).observe(cx, target).await
            }
            async fn observe_many(&self, cx: &OpContext, targets: &[Target]) -> Vec<Result<Observed>> {
                (**self).observe_many(cx, targets).await
            }
            fn list(&self, cx: &OpContext) -> BoxStream<'static, Result<Owned>> {
                (**self).list(cx)
            }
            fn watch(&self, cx: &OpContext) -> BoxStream<'static, InstanceId> {
                (**self).watch(cx)
            }
            async fn delete_data(&self, cx: &OpContext, data: &crate::types::DataId) -> Result<()> {
                (**self).delete_data(cx, data).await
            }
            async fn maintain(&self, cx: &OpContext, plan_only: bool) -> Result<Vec<String>> {
                (**self).maintain(cx, plan_only).await
            }
        }
    };
}

forward!(Arc);
forward!(Box);

/// Conveniences for those who use a backend without the engine. Backends cannot override them.
pub trait ProvisionerExt: Provisioner {
    /// Creates the target and looks again until it runs.
    ///
    /// # Errors
    /// What `create` and `observe` answer; [`Timeout`](ErrorKind::Timeout) with its last reason when it did not run
    /// within `timeout`; [`Unavailable`](ErrorKind::Unavailable) with the reason when it failed to start.
    ///
    /// # Cancellation
    /// Dropping the future leaves the instance as it is then: call again, or destroy it.
    fn create_and_wait(
        &self,
        cx: &OpContext,
        target: &Target,
        timeout: Duration,
    ) -> impl Future<Output = Result<Observed>> + Send {
        async move {
            let deadline = tokio::time::Instant::now() + timeout;
            let mut observed = self.create(cx, target).await?;
            loop {
                let (again, reason) = match &observed {
                    Observed::Present(present) => match present.phase {
                        Phase::Running if present.generation >= target.generation => return Ok(observed),
                        Phase::Failed => {
                            let reason = present.reason.as_ref().map(ToString::to_string).unwrap_or_default();
                            return Err(Error::new(ErrorKind::Unavailable, "create")
                                .with_instance(&target.id)
                                .with_effect(Effect::Unknown)
                                .with_message(reason));
                        }
                        _ => (present.again, present.reason.clone()),
                    },
                    Observed::Unknown { again } => (Some(*again), None),
                    Observed::Absent => (None, None),
                };
                let again = again.unwrap_or(Duration::from_millis(100)).min(Duration::from_secs(5));
                if tokio::time::Instant::now() + again > deadline {
                    return Err(Error::new(ErrorKind::Timeout, "create")
                        .with_instance(&target.id)
                        .with_effect(Effect::Unknown)
                        .with_message(reason.map(|reason| reason.to_string()).unwrap_or_default()));
                }
                tokio::time::sleep(again).await;
                observed = self.observe(cx, target).await?;
            }
        }
    }
}

impl<P: Provisioner + ?Sized> ProvisionerExt for P {}
