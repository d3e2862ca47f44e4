//! The backend: what each verb writes, and what is seen.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use futures::{StreamExt, stream::BoxStream};
use k8s_openapi::api::apps::v1::StatefulSet;
use provisioner_core::{
    Error, ErrorKind, OpContext, Provisioner, Result,
    types::{
        Bound, Capabilities, ControlPlaneId, DataDisposition, DataId, Generation, Incarnation, InstanceId,
        InstanceSpec, Isolation, Observed, Owned, Phase, Present, Reason, SecretSupport, Target,
    },
};
use tokio::{sync::broadcast::error::RecvError, time::Instant};
use tokio_util::task::TaskTracker;

use crate::{
    cache::{self, COMPLETE_WITHIN, Cache, Intended, Space},
    client::Calls,
    cluster::Cluster,
    config::KubernetesConfig,
    convert,
    error::During,
    explain,
    home::Home,
    names,
    render::{Layout, Namespaces, Subject},
    verbs::{self, Work},
};

/// How long a verb waits for the watches to tell of what it wrote, before it says that it does not know.
const SHOWN_WITHIN: Duration = Duration::from_millis(500);
/// Writes of other processes are looked for at the cluster itself for so long; after that the watches have told of them.
const FOREIGN_WRITES_FOR: Duration = Duration::from_secs(5);
/// How much later than its end a verb may be written down by who keeps the time since.
const WRITTEN_DOWN_WITHIN: Duration = Duration::from_secs(1);
/// How many homes of a listing are copied out of the cache at a time.
const PAGE: usize = 32;
/// How many targets are looked at at once.
const LOOKS_AT_ONCE: usize = 16;

/// Instances on a Kubernetes cluster. A clone is the same backend.
///
/// Made by [`KubernetesConfig::build`]. Its calls need a tokio runtime with I/O and time. The first call of a control plane
/// connects and begins to watch what that has there; when the last clone is dropped, the watches end and instances go on.
#[derive(Debug, Clone)]
pub struct KubernetesBackend {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    config: KubernetesConfig,
    cluster: Cluster,
    layout: Box<dyn Layout>,
    /// Where the layout has data sets live.
    namespaces: Namespaces,
    caches: Mutex<BTreeMap<ControlPlaneId, Cache>>,
    /// When a verb of this process that wrote about a making was last through.
    written: Mutex<BTreeMap<Incarnation, Instant>>,
    tasks: TaskTracker,
}

impl fmt::Display for KubernetesBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Kubernetes({})", self.shared.cluster)
    }
}

/// A verb that writes. Only what was answered is known: until the verb is through, and when it fails or is dropped, its
/// writes are looked for at the cluster as if another process had made them.
struct Writing<'a> {
    shared: &'a Shared,
    incarnation: Incarnation,
}

impl Writing<'_> {
    /// Every write was answered, and the cache waits for the watches to tell of it.
    fn done(self) {
        let mut written = self.shared.written.lock().unwrap_or_else(PoisonError::into_inner);
        written.retain(|_, at| at.elapsed() < 4 * FOREIGN_WRITES_FOR);
        written.insert(self.incarnation, Instant::now());
        drop(written);
        std::mem::forget(self);
    }

    fn forget(&self) {
        self.shared.written.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.incarnation);
    }
}

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        self.forget();
    }
}

impl KubernetesBackend {
    pub(crate) fn new(config: KubernetesConfig, cluster: Cluster, layout: Box<dyn Layout>) -> Self {
        let (namespaces, tasks) = (layout.namespaces(), TaskTracker::new());
        let (caches, written) = (Mutex::default(), Mutex::default());
        Self { shared: Arc::new(Shared { config, cluster, layout, namespaces, caches, written, tasks }) }
    }

    /// How many data sets a control plane's cache knows, and about how many bytes that takes. None before its first call.
    #[must_use]
    pub fn cache_weight(&self, control_plane: &ControlPlaneId) -> Option<(usize, usize)> {
        let caches = self.shared.caches.lock().unwrap_or_else(PoisonError::into_inner);
        caches.get(control_plane).map(Cache::weight)
    }

    fn check(&self, wanted: &InstanceSpec, applied: Option<&InstanceSpec>) -> Result<()> {
        let (config, layout) = (&self.shared.config, &self.shared.layout);
        convert::check(wanted, applied, &self.capabilities(), config, layout.takes_host_names(config))
    }

    fn calls<'a>(&'a self, cx: &'a OpContext, operation: &'static str, instance: Option<&'a InstanceId>) -> Calls<'a> {
        self.shared.cluster.during(cx, During { operation, instance })
    }

    /// The cache of a control plane, once it knows everything.
    async fn cache(&self, calls: &Calls<'_>) -> Result<Cache> {
        let cx = calls.cx;
        let cache = {
            let mut caches = self.shared.caches.lock().unwrap_or_else(PoisonError::into_inner);
            let Shared { cluster, namespaces, tasks, .. } = &*self.shared;
            let start = || Cache::start(cluster, &cx.control_plane, namespaces.clone(), tasks);
            caches.entry(cx.control_plane.clone()).or_insert_with(start).clone()
        };
        let limit = Instant::now() + COMPLETE_WITHIN;
        let deadline = cx.deadline.map_or(limit, |deadline| deadline.min(limit));
        cache.complete(deadline).await.map_err(|failure| calls.reading(failure))?;
        Ok(cache)
    }

    /// What is known of a home, as new as anything that was written about the making.
    async fn look(
        &self,
        calls: &Calls<'_>,
        cache: &Cache,
        home: &Home,
        incarnation: Incarnation,
    ) -> Result<Option<Space>> {
        let since = calls.cx.since_last_call.filter(|since| *since < FOREIGN_WRITES_FOR);
        let is_ours = since.is_none_or(|since| {
            let written = self.shared.written.lock().unwrap_or_else(PoisonError::into_inner);
            written.get(&incarnation).is_some_and(|at| at.elapsed() <= since + WRITTEN_DOWN_WITHIN)
        });
        if cache.is_in_doubt() || !is_ours {
            cache::compare(calls, cache, home).await.map_err(|failure| calls.reading(failure))?;
        }
        let shown = Instant::now() + SHOWN_WITHIN;
        cache.catch_up(home, shown).await;
        Ok(cache.space(home))
    }

    /// A verb begins to write about a making.
    fn write(&self, incarnation: Incarnation) -> Writing<'_> {
        let writing = Writing { shared: &self.shared, incarnation };
        writing.forget();
        writing
    }

    async fn run(&self, cx: &OpContext, operation: &'static str, target: &Target, make: bool) -> Result<Observed> {
        let calls = self.calls(cx, operation, Some(&target.id));
        self.check(&target.spec, None).map_err(|error| renamed(error, operation, &target.id))?;
        let cache = self.cache(&calls).await?;
        let home = self.home_of(cx, target.data.id());
        if let Some(lives) = cache.home(target.incarnation)
            && lives != home
            && convert::observed(cache.space(&lives).as_ref(), target.incarnation) != Observed::Absent
        {
            return Err(calls.error(ErrorKind::Conflict).with_field("data").with_message("it runs on other data"));
        }
        let space = self.look(&calls, &cache, &home, target.incarnation).await?;
        let work = self.work(calls.clone(), &cache, &home, target);
        let writing = self.write(target.incarnation);
        work.run(space, make).await?;
        let seen = self.see(&calls, &cache, &home, target).await;
        writing.done();
        seen
    }

    fn work<'a>(&'a self, calls: Calls<'a>, cache: &'a Cache, home: &'a Home, target: &'a Target) -> Work<'a> {
        let cx: &'a OpContext = calls.cx;
        let Shared { config, namespaces, layout, .. } = &*self.shared;
        let subject = Subject { control_plane: &cx.control_plane, target, config, namespaces };
        Work { calls, cache, home, home_uid: OnceLock::new(), subject, layout: &**layout }
    }

    async fn rest(
        &self,
        cx: &OpContext,
        operation: &'static str,
        target: &Target,
        intended: Intended,
    ) -> Result<Observed> {
        let calls = self.calls(cx, operation, Some(&target.id));
        let cache = self.cache(&calls).await?;
        let home = self.home(&calls, &cache, target);
        let space = self.look(&calls, &cache, &home, target.incarnation).await?;
        let writing = self.write(target.incarnation);
        self.work(calls.clone(), &cache, &home, target).rest(space, intended).await?;
        let seen = self.see(&calls, &cache, &home, target).await;
        writing.done();
        seen
    }

    /// Where a making lives: by the watches, or by its data.
    fn home(&self, calls: &Calls<'_>, cache: &Cache, target: &Target) -> Home {
        // Where both are the same, this one knows its data.
        let said = self.home_of(calls.cx, target.data.id());
        cache.home(target.incarnation).filter(|lives| *lives != said).unwrap_or(said)
    }

    fn home_of(&self, cx: &OpContext, data: &DataId) -> Home {
        Home::of(&self.shared.namespaces, &cx.control_plane, data)
    }

    async fn see(&self, calls: &Calls<'_>, cache: &Cache, home: &Home, target: &Target) -> Result<Observed> {
        cache.catch_up(home, Instant::now() + SHOWN_WITHIN).await;
        let mut space = cache.space(home);
        let mut seen = convert::observed(space.as_ref(), target.incarnation);
        if seen == Observed::Absent {
            // A watch alone is not believed in that: its connection may be dead, and nobody have noticed.
            cache::compare(calls, cache, home).await.map_err(|failure| calls.reading(failure))?;
            cache.catch_up(home, Instant::now() + SHOWN_WITHIN).await;
            space = cache.space(home);
            seen = convert::observed(space.as_ref(), target.incarnation);
        }
        let Some(space) = space else { return Ok(seen) };
        // Of what somebody changed no generation is told, but for one that is newer than the caller knows: it goes on from there.
        if let (Observed::Present(present), Some(set)) = (&mut seen, space.set_of(target.incarnation))
            && set.generation > target.generation
        {
            present.generation = set.generation;
        }
        if seen != Observed::Absent || !convert::is_last_user(&space, target.incarnation) {
            return Ok(explain::explained(calls, home, &space, seen).await);
        }
        // It has the data, and its set is not seen: gone, or without its labels.
        let name = names::making(&calls.cx.control_plane, &target.id, target.incarnation);
        let found =
            calls.get::<StatefulSet>(Some(home.namespace()), &name).await.map_err(|failure| calls.reading(failure))?;
        if found.is_none() {
            return Ok(Observed::Absent);
        }
        let phase = if convert::uses(&space, target.incarnation) { Phase::Provisioning } else { Phase::Destroying };
        let present = Present::new(phase, Generation(0), target.incarnation);
        Ok(present.with_reason(Reason::new("set-unlabelled", "its stateful set has lost its labels")).into())
    }
}

/// An error of a check, as one of the verb that made it.
fn renamed(error: Error, operation: &'static str, instance: &InstanceId) -> Error {
    let mut renamed = Error::new(error.kind(), operation).with_instance(instance);
    if let Some(field) = error.field() {
        renamed = renamed.with_field(field);
    }
    let customer = error.customer_message().to_owned();
    renamed.with_customer_message(customer).with_source(error)
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl Provisioner for KubernetesBackend {
    fn capabilities(&self) -> Capabilities {
        let mut capabilities = Capabilities::PLAIN;
        // What is older than a write of this process is told as unknown, and other processes' writes are looked for.
        capabilities.settling = Duration::ZERO;
        capabilities.call_max = Duration::from_secs(60);
        capabilities.watch = true;
        capabilities.conditional_writes = true;
        capabilities.survives_control_plane = true;
        // By its kubelet, with pauses that grow up to five minutes:
        // <https://kubernetes.io/docs/concepts/workloads/pods/pod-lifecycle/#restart-policy>.
        capabilities.restarts = true;
        capabilities.secrets = SecretSupport::Resolved;
        capabilities.size_max = self.shared.config.size_max;
        // As far as the cluster enforces network policies, which none of them tells.
        capabilities.egress = true;
        // The number of processes is the node's to bound, by its kubelet's podPidsLimit.
        capabilities.isolation =
            Isolation { users: true, memory: Bound::Instance, cpu: Bound::Instance, processes: Bound::None };
        capabilities
    }

    fn validate(&self, wanted: &InstanceSpec, applied: Option<&InstanceSpec>) -> Result<()> {
        self.check(wanted, applied)
    }

    async fn identity(&self, cx: &OpContext) -> Result<String> {
        let calls = self.calls(cx, "identify", None);
        let uid = calls.cluster_uid().await.map_err(|failure| calls.reading(failure))?;
        let uid = uid.ok_or_else(|| calls.error(ErrorKind::Internal).with_message("there is no kube-system"))?;
        // In another namespace nothing of it would be seen.
        Ok(match self.shared.namespaces.shared() {
            None => format!("kubernetes {uid}"),
            Some(namespace) => format!("kubernetes {uid} namespace {namespace}"),
        })
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
        let calls = self.calls(cx, "destroy", Some(&target.id));
        let cache = self.cache(&calls).await?;
        let home = self.home(&calls, &cache, target);
        let space = self.look(&calls, &cache, &home, target.incarnation).await?;
        let writing = self.write(target.incarnation);
        self.work(calls.clone(), &cache, &home, target).destroy(space, data).await?;
        let seen = self.see(&calls, &cache, &home, target).await;
        writing.done();
        seen
    }

    async fn observe(&self, cx: &OpContext, target: &Target) -> Result<Observed> {
        let calls = self.calls(cx, "observe", Some(&target.id));
        let cache = self.cache(&calls).await?;
        let home = self.home(&calls, &cache, target);
        self.look(&calls, &cache, &home, target.incarnation).await?;
        self.see(&calls, &cache, &home, target).await
    }

    async fn observe_many(&self, cx: &OpContext, targets: &[Target]) -> Vec<Result<Observed>> {
        // Only in doubt, and of what is absent or in trouble, is anything asked of the cluster.
        let looks: Vec<_> = targets.iter().map(|target| self.observe(cx, target)).collect();
        futures::stream::iter(looks).buffered(LOOKS_AT_ONCE).collect().await
    }

    fn list(&self, cx: &OpContext) -> BoxStream<'static, Result<Owned>> {
        let (backend, cx) = (self.clone(), cx.clone());
        let first = async move {
            let calls = backend.calls(&cx, "list", None);
            let cache = backend.cache(&calls).await?;
            if cache.is_in_doubt() {
                cache::compare_all(&calls, &cache, &backend.shared.namespaces)
                    .await
                    .map_err(|failure| calls.reading(failure))?;
            }
            Ok(cache)
        };
        let pages = futures::stream::once(first).flat_map(|cache| match cache {
            Err(error) => futures::stream::iter([Err(error)]).boxed(),
            Ok(cache) => futures::stream::unfold((cache, None::<String>), |(cache, after)| async move {
                let page = cache.page(after.as_deref(), PAGE);
                let last = page.last()?.0.clone();
                let owned: Vec<_> = page.iter().flat_map(|(_, space)| convert::owned(space)).map(Ok).collect();
                Some((futures::stream::iter(owned), (cache, Some(last))))
            })
            .flatten()
            .boxed(),
        });
        pages.boxed()
    }

    fn watch(&self, cx: &OpContext) -> BoxStream<'static, InstanceId> {
        let (backend, cx, cancel) = (self.clone(), cx.clone(), cx.cancel.clone());
        let first = async move {
            let calls = backend.calls(&cx, "watch", None);
            match backend.cache(&calls).await {
                Ok(cache) => Some((cache.changes(), cache)),
                Err(error) => {
                    tracing::warn!(%error, "nothing can be watched");
                    None
                }
            }
        };
        futures::stream::once(first)
            .filter_map(std::future::ready)
            .flat_map(|(changes, cache)| {
                futures::stream::unfold((changes, cache), |(mut changes, cache)| async move {
                    loop {
                        match changes.recv().await {
                            Ok(id) => return Some((id, (changes, cache))),
                            // A slow reader loses events, never truth.
                            Err(RecvError::Lagged(_)) => {}
                            Err(RecvError::Closed) => return None,
                        }
                    }
                })
            })
            .take_until(async move { cancel.cancelled().await })
            .boxed()
    }

    async fn delete_data(&self, cx: &OpContext, data: &DataId) -> Result<()> {
        let calls = self.calls(cx, "delete data", None);
        let cache = self.cache(&calls).await?;
        verbs::delete_data(&calls, &cache, &self.home_of(cx, data)).await
    }

    async fn maintain(&self, _cx: &OpContext, _plan_only: bool) -> Result<Vec<String>> {
        // Everything goes with its home.
        Ok(Vec::new())
    }
}
