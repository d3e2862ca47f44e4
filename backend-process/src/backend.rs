//! The backend: each verb takes its turn on the instance, works where blocking is allowed, and tells what it sees.

use std::{fmt, future::Future, sync::Arc, time::Duration};

use async_trait::async_trait;
use futures::{FutureExt, StreamExt, stream::BoxStream};
use provisioner_core::{
    Effect, Error, ErrorKind, OpContext, Provisioner, Result,
    types::{Capabilities, DataDisposition, DataId, InstanceId, InstanceSpec, Observed, Owned, SecretSupport, Target},
};
use tokio::{
    sync::{OwnedMutexGuard, broadcast::error::RecvError},
    time::Instant,
};
use tokio_util::sync::DropGuard;

use crate::{
    config::ProcessConfig,
    convert::{self, Order},
    error::Problem,
    health::Seen,
    instance::{Instance, Shared},
    layout::{Key, Patience},
    records::Intended,
    remove,
    start::{self, Acted},
    stop::{self, blocking},
    supervise, upkeep,
};

/// How long a first look at an adopted instance waits for its answer to one probe.
const ADOPTION_PROBE_WAIT: Duration = Duration::from_millis(300);
/// How many of [`observe_many`](Provisioner::observe_many)'s targets are looked at side by side.
const LOOKS_AT_ONCE: usize = 16;

/// What a verb has for its waits.
#[derive(Debug, Clone, Copy)]
struct Waits {
    /// When the caller stops waiting, if ever.
    deadline: Option<Instant>,
    /// When the call itself does: what it has not begun by then, for want of a lock, it does not begin.
    patience: Patience,
}

impl Waits {
    fn of(cx: &OpContext) -> Self {
        Self { deadline: cx.deadline, patience: Patience::from_now() }
    }
}

/// Instances as local processes. A clone is the same backend.
///
/// Made by [`ProcessConfig::build`]. Its calls need a tokio runtime with I/O and time. When the last clone is dropped, or
/// after [`shutdown`](Self::shutdown), nothing is watched any more and stops in progress are cut; instances go on, and
/// the next backend on the same root adopts them.
#[derive(Debug, Clone)]
pub struct ProcessBackend {
    shared: Arc<Shared>,
    _cancel_on_drop: Arc<DropGuard>,
}

impl fmt::Display for ProcessBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Process({})", self.shared.layout.root().display())
    }
}

impl ProcessBackend {
    pub(crate) fn new(config: ProcessConfig) -> Self {
        let shared = Shared::new(config);
        let guard = shared.cancel.clone().drop_guard();
        Self { shared, _cancel_on_drop: Arc::new(guard) }
    }

    /// Stops watching, cuts stops in progress, and returns when the last piece of work has ended. Instances go on.
    ///
    /// # Cancellation
    /// Dropping the future leaves the work ending by itself.
    pub async fn shutdown(&self) {
        self.shared.cancel.cancel();
        self.shared.tasks.close();
        self.shared.tasks.wait().await;
    }

    fn entry(&self, cx: &OpContext, target: &Target) -> Arc<Instance> {
        self.shared.instance(&Key {
            control_plane: cx.control_plane.clone(),
            id: target.id.clone(),
            incarnation: target.incarnation,
        })
    }

    /// Works on an instance in its turn. Once begun, the work is seen through.
    async fn act<T: Send + 'static>(
        &self,
        cx: &OpContext,
        operation: &'static str,
        instance: &Arc<Instance>,
        waits: Waits,
        work: impl FnOnce(&Arc<Shared>, &Arc<Instance>) -> crate::error::Result<T> + Send + 'static,
    ) -> Result<T> {
        let turn = self.turn(cx, operation, instance, waits).await?;
        let (shared, own) = (Arc::clone(&self.shared), Arc::clone(instance));
        let done = blocking(move || {
            let _turn = turn;
            work(&shared, &own)
        });
        let done = done.map(|done| done.map_err(|problem| problem.during(operation, Some(&instance.key.id))));
        by(waits.deadline, operation, Some(&instance.key.id), done).await
    }

    async fn turn(
        &self,
        cx: &OpContext,
        operation: &'static str,
        instance: &Instance,
        waits: Waits,
    ) -> Result<OwnedMutexGuard<()>> {
        let id = &instance.key.id;
        let ended = |kind| Err(Error::new(kind, operation).with_instance(id).with_effect(Effect::None));
        tokio::select! {
            biased;
            () = cx.cancel.cancelled() => ended(ErrorKind::Cancelled),
            () = self.shared.cancel.cancelled() => ended(ErrorKind::Cancelled),
            () = passed(cx.deadline) => ended(ErrorKind::Timeout),
            turn = instance.turn() => Ok(turn),
            () = passed(Some(waits.patience.end().into())) => ended(ErrorKind::Timeout),
        }
    }

    /// `create`, and `resume` without the making.
    async fn run(&self, cx: &OpContext, operation: &'static str, target: &Target, make: bool) -> Result<Observed> {
        convert::check(&target.spec, &self.capabilities())
            .map_err(|problem| problem.during(operation, Some(&target.id)))?;
        let (instance, waits) = (self.entry(cx, target), Waits::of(cx));
        let (wanted, patience) = (target.clone(), waits.patience);
        let mut acted = self
            .act(cx, operation, &instance, waits, move |shared, instance| {
                start::run(shared, instance, &wanted, None, make, patience)
            })
            .await?;
        if acted == Acted::NeedsOrder {
            let order = Order::new(target, cx.resolve_secrets(operation, target).await?);
            let wanted = target.clone();
            acted = self
                .act(cx, operation, &instance, waits, move |shared, instance| {
                    start::run(shared, instance, &wanted, Some(order), make, patience)
                })
                .await?;
        }
        match acted {
            Acted::Absent => Ok(Observed::Absent),
            Acted::Done | Acted::NeedsOrder => self.see(waits, operation, &instance).await,
        }
    }

    async fn rest(
        &self,
        cx: &OpContext,
        operation: &'static str,
        target: &Target,
        intended: Intended,
    ) -> Result<Observed> {
        let (instance, waits) = (self.entry(cx, target), Waits::of(cx));
        let work = move |shared: &Arc<Shared>, instance: &Arc<Instance>| {
            stop::rest(shared, instance, intended, waits.patience)
        };
        let there = self.act(cx, operation, &instance, waits, work).await?;
        if there { self.see(waits, operation, &instance).await } else { Ok(Observed::Absent) }
    }

    /// What is seen of an instance now.
    async fn see(&self, waits: Waits, operation: &'static str, instance: &Arc<Instance>) -> Result<Observed> {
        let id = &instance.key.id;
        let look = instance.look_in_turn(&self.shared, Some(waits.patience));
        let look = look.map(|view| view.map_err(|problem: Problem| problem.during(operation, Some(id))));
        let mut view = by(waits.deadline, operation, Some(id), look).await?;
        let adopted = view.as_ref().and_then(|view| supervise::adopt(&self.shared, instance, view));
        if let (Some(view), Some(mut seen)) = (&mut view, adopted) {
            let probed = seen.wait_for(|seen| *seen != Seen::Nothing);
            let probed = tokio::time::timeout(ADOPTION_PROBE_WAIT, probed).await;
            view.seen = probed.ok().and_then(|probed| probed.ok().map(|seen| seen.clone()));
        }
        Ok(convert::observed(view.as_ref(), instance.key.incarnation, |port| upkeep::endpoint(&self.shared, port)))
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl Provisioner for ProcessBackend {
    fn capabilities(&self) -> Capabilities {
        let mut capabilities = Capabilities::PLAIN;
        capabilities.settling = Duration::ZERO;
        // Waiting for locks included, which ends after half of it. What goes on after that is known to the backend, or gone
        // with its process.
        capabilities.call_max = Duration::from_secs(10);
        capabilities.watch = true;
        capabilities.conditional_writes = true;
        capabilities.survives_control_plane = self.shared.survives_control_plane;
        capabilities.secrets = SecretSupport::Resolved;
        capabilities.size_max = self.shared.config.size_max;
        capabilities.isolation = self.shared.isolation();
        capabilities
    }

    fn validate(&self, wanted: &InstanceSpec, _applied: Option<&InstanceSpec>) -> Result<()> {
        convert::check(wanted, &self.capabilities()).map_err(|problem| problem.during("validate", None))
    }

    async fn identity(&self, _cx: &OpContext) -> Result<String> {
        let shared = Arc::clone(&self.shared);
        blocking(move || upkeep::identity(&shared)).await.map_err(|problem| problem.during("identify", None))
    }

    async fn create(&self, cx: &OpContext, target: &Target) -> Result<Observed> {
        self.run(cx, "create", target, true).await
    }

    async fn suspend(&self, cx: &OpContext, target: &Target) -> Result<Observed> {
        self.rest(cx, "suspend", target, Intended::Suspended).await
    }

    async fn scale_to_zero(&self, cx: &OpContext, target: &Target) -> Result<Observed> {
        self.rest(cx, "scale to zero", target, Intended::Zero).await
    }

    async fn resume(&self, cx: &OpContext, target: &Target) -> Result<Observed> {
        self.run(cx, "resume", target, false).await
    }

    async fn destroy(&self, cx: &OpContext, target: &Target, data: DataDisposition) -> Result<Observed> {
        let (instance, waits) = (self.entry(cx, target), Waits::of(cx));
        let id = target.data.id().clone();
        let work = move |shared: &Arc<Shared>, instance: &Arc<Instance>| {
            remove::destroy(shared, instance, &id, data, waits.patience)
        };
        self.act(cx, "destroy", &instance, waits, work).await?;
        self.see(waits, "destroy", &instance).await
    }

    async fn observe(&self, cx: &OpContext, target: &Target) -> Result<Observed> {
        self.see(Waits::of(cx), "observe", &self.entry(cx, target)).await
    }

    async fn observe_many(&self, cx: &OpContext, targets: &[Target]) -> Vec<Result<Observed>> {
        // Entries first: a stream over borrowed targets would tie the future to them in ways the trait cannot say.
        let entries: Vec<_> = targets.iter().map(|target| self.entry(cx, target)).collect();
        let cx = cx.clone();
        let looks = entries.into_iter().map(|instance| {
            // Each from when it begins: they are not all looked at at once.
            let waits = Waits::of(&cx);
            async move { self.see(waits, "observe", &instance).await }
        });
        futures::stream::iter(looks).buffered(LOOKS_AT_ONCE).collect().await
    }

    fn list(&self, cx: &OpContext) -> BoxStream<'static, Result<Owned>> {
        upkeep::list(&self.shared, &cx.control_plane)
            .map(|owned| owned.map_err(|problem| problem.during("list", None)))
            .boxed()
    }

    fn watch(&self, cx: &OpContext) -> BoxStream<'static, InstanceId> {
        // Subscribed first, so that nothing is missed between the adoption and the first poll.
        let changes = self.shared.changes.subscribe();
        let (shared, control_plane) = (Arc::clone(&self.shared), cx.control_plane.clone());
        let adoption = async move { supervise::adopt_all(&shared, &control_plane).await };
        let ended = {
            let (own, caller) = (self.shared.cancel.clone(), cx.cancel.clone());
            async move {
                tokio::select! {
                    () = own.cancelled() => {}
                    () = caller.cancelled() => {}
                }
            }
        };
        let control_plane = cx.control_plane.clone();
        let adopted = async move {
            if let Err(problem) = adoption.await {
                tracing::warn!(%problem, "not everything was adopted");
            }
            None
        };
        let changes = futures::stream::unfold(changes, |mut changes| async move {
            loop {
                match changes.recv().await {
                    Ok(change) => return Some((change, changes)),
                    // A slow reader loses events, never truth.
                    Err(RecvError::Lagged(_)) => {}
                    Err(RecvError::Closed) => return None,
                }
            }
        });
        let changes = changes.filter_map(move |(of, id)| std::future::ready((of == control_plane).then_some(Some(id))));
        futures::stream::select(futures::stream::once(adopted), changes)
            .filter_map(std::future::ready)
            .take_until(ended)
            .boxed()
    }

    async fn delete_data(&self, cx: &OpContext, data: &DataId) -> Result<()> {
        let (shared, control_plane, id) = (Arc::clone(&self.shared), cx.control_plane.clone(), data.clone());
        let done = blocking(move || remove::delete_data(&shared, &control_plane, &id));
        let done = done.map(|done| done.map_err(|problem| problem.during("delete data", None)));
        by(cx.deadline, "delete data", None, done).await
    }

    async fn maintain(&self, cx: &OpContext, plan_only: bool) -> Result<Vec<String>> {
        let (shared, control_plane) = (Arc::clone(&self.shared), cx.control_plane.clone());
        let done = blocking(move || upkeep::maintain(&shared, &control_plane, plan_only));
        let done = done.map(|done| done.map_err(|problem| problem.during("maintain", None)));
        by(cx.deadline, "maintain", None, done).await
    }
}

/// What the work answers, or that the deadline came first. The work is seen through all the same.
async fn by<T>(
    deadline: Option<Instant>,
    operation: &'static str,
    instance: Option<&InstanceId>,
    work: impl Future<Output = Result<T>>,
) -> Result<T> {
    tokio::select! {
        biased;
        done = work => done,
        () = passed(deadline) => {
            let error = Error::new(ErrorKind::Timeout, operation).with_effect(Effect::Unknown);
            Err(match instance {
                Some(instance) => error.with_instance(instance),
                None => error,
            })
        }
    }
}

/// Returns when the deadline has passed.
async fn passed(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
