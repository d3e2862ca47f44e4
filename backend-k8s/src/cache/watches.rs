//! The watches that keep the cache current.

use std::{collections::BTreeSet, fmt::Debug, pin::pin, sync::Arc, time::Duration};

use backon::ExponentialBuilder;
use futures::StreamExt;
use k8s_openapi::api::{
    apps::v1::StatefulSet,
    core::v1::{ConfigMap, LimitRange, Namespace, PersistentVolumeClaim, Pod, ResourceQuota, Service, ServiceAccount},
    networking::v1::{Ingress, NetworkPolicy},
};
use k8s_openapi::{NamespaceResourceScope, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use kube::{
    Api, Client, Resource,
    runtime::{utils::ResetTimerBackoff, watcher},
};
use provisioner_core::types::{ControlPlaneId, InstanceId};
use serde::de::DeserializeOwned;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::debug;

use super::{
    Kind, Shared, State,
    digest::{self, ClaimDigest, HomeDigest, PodDigest, SetDigest, held, incarnation_of, version_of},
    listen::listening,
    slices::{Slice, V1, V1Beta1, Version},
    space::{PartDigest, Served, Space},
};
use crate::{
    applied::{self, Lists},
    client::unanswered,
    cluster::Cluster,
    error::{Failure, Refusal},
    home::Home,
    names,
    render::Namespaces,
};

/// Between a watch that failed and the next try, at first and at most.
const AGAIN_MIN: Duration = Duration::from_millis(200);
const AGAIN_MAX: Duration = Duration::from_secs(10);
/// After so long without a failure the next one counts as the first.
const AGAIN_RESET: Duration = Duration::from_secs(60);

/// What a watch does with an object that it tells of.
trait Watched: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static {
    const KIND: Kind;
    /// Puts what matters of it where it belongs.
    fn put(&self, space: &mut Space);
    /// Takes it away.
    fn take(&self, space: &mut Space);
    /// What tells it from others of its kind in its namespace.
    fn key(&self) -> String {
        self.meta().name.clone().unwrap_or_default()
    }
    /// All of its kind that are in this namespace, or in any.
    fn all(client: Client, namespace: Option<&str>) -> Api<Self>;
}

fn within<K: Resource<DynamicType = (), Scope = NamespaceResourceScope>>(
    client: Client,
    namespace: Option<&str>,
) -> Api<K> {
    match namespace {
        Some(namespace) => Api::namespaced(client, namespace),
        None => Api::all(client),
    }
}

/// Starts all of them.
pub(super) fn start(
    cluster: &Cluster,
    control_plane: &ControlPlaneId,
    shared: &Arc<Shared>,
    tasks: &TaskTracker,
    cancel: &CancellationToken,
) {
    let watches = Watches { cluster, control_plane, shared, tasks, cancel };
    match shared.namespaces {
        Namespaces::Each => watches.start::<Namespace>(),
        Namespaces::Shared(_) => watches.start::<ConfigMap>(),
    }
    watches.start::<StatefulSet>();
    watches.start::<Pod>();
    watches.start::<PersistentVolumeClaim>();
    watches.start::<ResourceQuota>();
    watches.start::<LimitRange>();
    watches.start::<NetworkPolicy>();
    watches.start::<ServiceAccount>();
    watches.start::<Service>();
    watches.start::<Ingress>();
    watches.spawn(watch_slices);
}

struct Watches<'a> {
    cluster: &'a Cluster,
    control_plane: &'a ControlPlaneId,
    shared: &'a Arc<Shared>,
    tasks: &'a TaskTracker,
    cancel: &'a CancellationToken,
}

impl Watches<'_> {
    fn start<K: Watched>(&self) {
        self.spawn(watch::<K>);
    }

    fn spawn<F: Future<Output = ()> + Send + 'static>(&self, watch: impl FnOnce(Cluster, Arc<Shared>, String) -> F) {
        let labels = format!("{}={}", names::CONTROL_PLANE, self.control_plane);
        let work = watch(self.cluster.clone(), Arc::clone(self.shared), labels);
        let cancel = self.cancel.clone();
        self.tasks.spawn(async move {
            tokio::select! {
                () = cancel.cancelled() => {}
                () = work => {}
            }
        });
    }
}

/// In the version that the cluster has, also when that is another one some day.
async fn watch_slices(cluster: Cluster, shared: Arc<Shared>, labels: String) {
    loop {
        watch_while_served::<Slice<V1>>(&cluster, &shared, &labels).await;
        let missing = watch_while_served::<Slice<V1Beta1>>(&cluster, &shared, &labels).await;
        fail::<Slice<V1Beta1>>(&shared, missing);
        tokio::time::sleep(AGAIN_MIN).await;
    }
}

async fn watch<K: Watched>(cluster: Cluster, shared: Arc<Shared>, labels: String) {
    loop {
        let missing = watch_while_served::<K>(&cluster, &shared, &labels).await;
        fail::<K>(&shared, missing);
        tokio::time::sleep(AGAIN_MAX).await;
    }
}

/// Ends when the cluster has no such kind, with its word for that.
async fn watch_while_served<K: Watched>(cluster: &Cluster, shared: &Arc<Shared>, labels: &str) -> Failure {
    let client = loop {
        match cluster.client().await {
            Ok(client) => break client.clone(),
            Err(failure) => wait_for_way::<K>(shared, failure).await,
        }
    };
    let client = listening(client, K::KIND, shared);
    let backoff = ExponentialBuilder::default()
        .with_min_delay(AGAIN_MIN)
        .with_max_delay(AGAIN_MAX)
        .without_max_times()
        .with_jitter();
    // The library's own pause after a failure begins anew with each reading, also of one that fails again.
    let mut pauses = ResetTimerBackoff::new(watcher::ExponentialBackoff::from(backoff), AGAIN_RESET);
    loop {
        let config = watcher::Config::default().labels(labels);
        let mut events = watcher(K::all(client.clone(), shared.namespaces.shared()), config).boxed();
        let mut read = None;
        while let Some(event) = events.next().await {
            let error = match event {
                Ok(event) => {
                    hear(shared, event, &mut read);
                    continue;
                }
                Err(error) => error,
            };
            let (failure, after) = failed_with::<K>(shared, &error);
            if failure.is_not_found() {
                return failure;
            }
            let mut asked = pin!(shared.asked.notified());
            asked.as_mut().enable();
            fail::<K>(shared, failure.clone());
            let pause = pauses.next().unwrap_or(AGAIN_MAX);
            tokio::select! {
                () = tokio::time::sleep(after.map_or(pause, |after| after.max(pause))) => {}
                () = asked, if failure.is_unauthorized() && after.is_none() => tokio::time::sleep(AGAIN_MIN).await,
            }
            // The library reads everything again where a watch says that it is too old, not where it is refused for that.
            if failure.is_gone() {
                break;
            }
        }
    }
}

/// There is no client for the cluster. It is asked for again after a while, and where rights are missing, at once with the next call.
async fn wait_for_way<K: Watched>(shared: &Shared, failure: Failure) {
    let mut asked = pin!(shared.asked.notified());
    asked.as_mut().enable();
    let (after, is_unauthorized) = (failure.retry_after(), failure.is_unauthorized());
    fail::<K>(shared, failure);
    tokio::select! {
        () = tokio::time::sleep(after.unwrap_or(AGAIN_MAX)) => {}
        () = asked, if is_unauthorized && after.is_none() => tokio::time::sleep(AGAIN_MIN).await,
    }
}

/// What a watch failed of, and when the cluster wants to be asked again.
fn failed_with<K: Watched>(shared: &Shared, error: &watcher::Error) -> (Failure, Option<Duration>) {
    let after = shared.state().health.entry(K::KIND).or_default().retry_after.take();
    let mut failure = failure_of::<K>(error);
    if let Failure::Refused(refusal) = &mut failure {
        refusal.retry_after = after;
    }
    (failure, after)
}

fn fail<K: Watched>(shared: &Shared, failure: Failure) {
    debug!(kind = ?K::KIND, ?failure, "a watch was interrupted");
    shared.state().health.entry(K::KIND).or_default().fail(failure);
    shared.changed.send_modify(|changed| *changed += 1);
}

fn failure_of<K: Watched>(error: &watcher::Error) -> Failure {
    use watcher::Error as E;
    let status = match error {
        E::InitialListFailed(kube::Error::Api(status))
        | E::WatchStartFailed(kube::Error::Api(status))
        | E::WatchFailed(kube::Error::Api(status))
        | E::WatchError(status) => Some(status),
        _ => None,
    };
    match status {
        Some(status) => Failure::Refused(Box::new(Refusal {
            code: http::StatusCode::from_u16(status.code).unwrap_or(http::StatusCode::INTERNAL_SERVER_ERROR),
            status: (**status).clone(),
            retry_after: None,
            audit_id: None,
            request: match (error, K::group(&()).as_ref()) {
                (E::InitialListFailed(_), "") => format!("list {}", K::plural(&())),
                (E::InitialListFailed(_), group) => format!("list {}.{group}", K::plural(&())),
                (_, "") => format!("watch {}", K::plural(&())),
                (_, group) => format!("watch {}.{group}", K::plural(&())),
            },
        })),
        None => match error {
            E::InitialListFailed(error) | E::WatchStartFailed(error) | E::WatchFailed(error) => unanswered(error),
            _ => Failure::Unanswered { was_sent: true, message: error.to_string() },
        },
    }
}

/// Which objects a reading of everything has told of so far.
type Read = Option<BTreeSet<(String, String)>>;

fn hear<K: Watched>(shared: &Shared, event: watcher::Event<K>, read: &mut Read) {
    let mut changed = BTreeSet::new();
    // Nothing can be told of a part of what there is.
    let is_part = matches!(event, watcher::Event::Init | watcher::Event::InitApply(_));
    {
        let mut state = shared.state();
        match event {
            watcher::Event::Init => {
                state.health.entry(K::KIND).or_default().read_again();
                *read = Some(BTreeSet::new());
            }
            watcher::Event::InitApply(object) => {
                if let Some(home) = home_of(&state, shared, &object) {
                    put(&mut state, &home, &object, &mut changed);
                    if let Some(read) = read {
                        read.insert((home, object.key()));
                    }
                }
            }
            watcher::Event::InitDone => {
                forget_unread::<K>(&mut state, shared, &read.take().unwrap_or_default(), &mut changed);
                state.health.entry(K::KIND).or_default().complete();
                // What was written since this reading began may be newer than it: the watch that follows tells.
                let State { told, spaces, .. } = &mut *state;
                told.settle(spaces);
            }
            watcher::Event::Apply(object) => {
                match home_of(&state, shared, &object) {
                    Some(home) => put(&mut state, &home, &object, &mut changed),
                    None => take(&mut state, shared, &object, &mut changed),
                }
                state.heard(K::KIND, version_of(object.meta()));
            }
            watcher::Event::Delete(object) => {
                take(&mut state, shared, &object, &mut changed);
                state.heard(K::KIND, version_of(object.meta()));
            }
        }
    }
    if !is_part {
        shared.changed.send_modify(|changed| *changed += 1);
    }
    for id in changed {
        // Nobody listens: nobody misses it.
        let _ = shared.changes.send(id);
    }
}

/// The home that an object belongs to. `None`: it is not where its data are, as a backup that was restored beside them, or it
/// is of a making that lives elsewhere, or it says nothing that can be believed.
fn home_of<K: Watched>(state: &State, shared: &Shared, object: &K) -> Option<String> {
    let meta = object.meta();
    let said = || digest::data_of(meta).map(|data| names::home(&shared.control_plane, &data));
    let home = match K::KIND {
        // Nothing is noted on what the cluster makes: its making is believed first, by which the cluster chose it.
        Kind::Pod | Kind::Slice => lives(state, meta).or_else(said)?,
        _ => said()?,
    };
    let home = Home::named(&shared.namespaces, home);
    let is_there = match K::KIND {
        Kind::Home => meta.namespace.as_deref() == home.scope(),
        _ => meta.namespace.as_deref() == Some(home.namespace()),
    };
    (is_there && home.could_hold(K::KIND, &object.key())).then(|| home.name().to_owned())
}

/// The home of the making that an object is of, where that is known.
fn lives(state: &State, meta: &ObjectMeta) -> Option<String> {
    let number = state.makings.get(&incarnation_of(meta)?.nonce())?;
    Some(names::numbered(*number))
}

/// The homes that may know of an object, whatever has become of it.
fn homes_with<K: Watched>(state: &State, shared: &Shared, object: &K) -> BTreeSet<String> {
    let meta = object.meta();
    let of_all = || state.spaces.after(None).map(|(home, _)| home).collect();
    let homes: BTreeSet<_> = match (&shared.namespaces, K::KIND) {
        (_, Kind::Home) => [object.key()].into(),
        (Namespaces::Each, _) => meta.namespace.iter().cloned().collect(),
        (Namespaces::Shared(_), _) => {
            let said =
                [digest::data_of(meta), applied::noted_labels(meta).get(names::DATA).and_then(|it| it.parse().ok())];
            let said = said.into_iter().flatten().map(|data| names::home(&shared.control_plane, &data));
            let homes: BTreeSet<_> = said.chain(lives(state, meta)).collect();
            // Nothing is left on it that tells.
            if homes.is_empty() { of_all() } else { homes }
        }
    };
    let may_have = |home: &String| {
        Home::named(&shared.namespaces, home.clone()).could_hold(K::KIND, &object.key())
            && state.spaces.get(home).is_some()
    };
    homes.into_iter().filter(may_have).collect()
}

/// Whose home it is, as far as that is known.
fn instance_in(space: &Space) -> Option<InstanceId> {
    space.home.as_ref().map(|home| home.instance.clone())
}

fn put<K: Watched>(state: &mut State, home: &str, object: &K, changed: &mut BTreeSet<InstanceId>) {
    state.spaces.change(home, |space| {
        let before = (K::KIND == Kind::Home).then(|| instance_in(space)).flatten();
        object.put(space);
        changed.extend(before);
        changed.extend(instance_in(space));
    });
    let (Some(incarnation), Some(number)) = (incarnation_of(object.meta()), names::number(home)) else { return };
    match K::KIND {
        Kind::Pod | Kind::Slice => {}
        // Its making is not noted on it: another one may come.
        Kind::Home | Kind::Claim => {
            state.makings.entry(incarnation.nonce()).or_insert(number);
        }
        _ => {
            state.makings.insert(incarnation.nonce(), number);
        }
    }
}

fn take<K: Watched>(state: &mut State, shared: &Shared, object: &K, changed: &mut BTreeSet<InstanceId>) {
    for home in homes_with(state, shared, object) {
        let Some(before) = state.spaces.get(&home) else { continue };
        let mut after = before.clone();
        object.take(&mut after);
        if before == after {
            continue;
        }
        changed.extend(instance_in(&before));
        state.spaces.change(&home, |space| *space = after);
        forget_makings(state, &home);
    }
}

/// A reading of everything is over: what it did not tell of is gone.
fn forget_unread<K: Watched>(
    state: &mut State,
    shared: &Shared,
    read: &BTreeSet<(String, String)>,
    changed: &mut BTreeSet<InstanceId>,
) {
    let kept = |home: &str, space: &mut Space| {
        let named = Home::named(&shared.namespaces, home.to_owned());
        space.keep(K::KIND, &named, |name| read.contains(&(home.to_owned(), name.to_owned())))
    };
    let lost: Vec<_> =
        state.spaces.after(None).filter_map(|(home, mut space)| kept(&home, &mut space).then_some(home)).collect();
    for home in lost {
        state.spaces.change(&home, |space| {
            changed.extend(instance_in(space));
            kept(&home, space);
        });
        forget_makings(state, &home);
    }
}

/// Nothing is known of a home any more: no making lives there.
fn forget_makings(state: &mut State, home: &str) {
    if state.spaces.get(home).is_none()
        && let Some(number) = names::number(home)
    {
        state.makings.retain(|_, home| *home != number);
    }
}

impl Space {
    /// Keeps what has one of these names; `true`: something went.
    fn keep(&mut self, kind: Kind, home: &Home, is_read: impl Fn(&str) -> bool) -> bool {
        let sizes = |space: &Self| {
            let lists = [space.sets.len(), space.pods.len(), space.parts.len(), space.served.len()];
            (space.home.is_some(), space.claim.is_some(), lists)
        };
        let before = sizes(self);
        match kind {
            Kind::Home => self.home = self.home.take().filter(|_| is_read(home.name())),
            Kind::Claim => self.claim = self.claim.take().filter(|_| is_read(home.claim())),
            Kind::Set => self.sets.retain(|it| is_read(&it.name)),
            Kind::Pod => self.pods.retain(|it| is_read(&it.name)),
            Kind::Slice => self.served.retain(|it| is_read(&it.slice)),
            kind => self.parts.retain(|it| it.kind != kind || is_read(&it.name)),
        }
        before != sizes(self)
    }
}

impl Watched for Namespace {
    const KIND: Kind = Kind::Home;

    fn put(&self, space: &mut Space) {
        space.home = HomeDigest::of_namespace(self);
    }

    fn take(&self, space: &mut Space) {
        space.home = None;
    }

    fn all(client: Client, _: Option<&str>) -> Api<Self> {
        Api::all(client)
    }
}

impl Watched for ConfigMap {
    const KIND: Kind = Kind::Home;

    fn put(&self, space: &mut Space) {
        space.home = HomeDigest::of_config_map(self);
    }

    fn take(&self, space: &mut Space) {
        space.home = None;
    }

    fn all(client: Client, namespace: Option<&str>) -> Api<Self> {
        within(client, namespace)
    }
}

impl Watched for StatefulSet {
    const KIND: Kind = Kind::Set;

    fn put(&self, space: &mut Space) {
        self.take(space);
        space.sets.extend(SetDigest::of(self));
    }

    fn take(&self, space: &mut Space) {
        space.sets.retain(|set| *set.name != self.key());
    }

    fn all(client: Client, namespace: Option<&str>) -> Api<Self> {
        within(client, namespace)
    }
}

impl Watched for Pod {
    const KIND: Kind = Kind::Pod;

    fn put(&self, space: &mut Space) {
        self.take(space);
        space.pods.extend(PodDigest::of(self));
    }

    fn take(&self, space: &mut Space) {
        space.pods.retain(|pod| *pod.name != self.key());
    }

    fn all(client: Client, namespace: Option<&str>) -> Api<Self> {
        within(client, namespace)
    }
}

impl Watched for PersistentVolumeClaim {
    const KIND: Kind = Kind::Claim;

    fn put(&self, space: &mut Space) {
        space.claim = Some(ClaimDigest::of(self));
    }

    fn take(&self, space: &mut Space) {
        space.claim = None;
    }

    fn all(client: Client, namespace: Option<&str>) -> Api<Self> {
        within(client, namespace)
    }
}

impl<V: Version> Watched for Slice<V> {
    const KIND: Kind = Kind::Slice;

    fn put(&self, space: &mut Space) {
        self.take(space);
        let served = self.ready().map(|pod| Served { slice: self.key().into(), pod: pod.into() });
        space.served.extend(served);
    }

    fn take(&self, space: &mut Space) {
        space.served.retain(|served| *served.slice != self.key());
    }

    fn all(client: Client, namespace: Option<&str>) -> Api<Self> {
        within(client, namespace)
    }
}

macro_rules! watched_parts {
    ($($kind:ident: $object:ty, $lists:expr;)*) => {
        $(impl Watched for $object {
            const KIND: Kind = Kind::$kind;

            fn put(&self, space: &mut Space) {
                self.take(space);
                let Some(incarnation) = incarnation_of(self.meta()) else { return };
                space.parts.push(PartDigest {
                    kind: Self::KIND,
                    name: self.key().into(),
                    incarnation,
                    version: version_of(self.meta()),
                    generation: applied::generation(self.meta()),
                    is_foreign: !applied::is_intact(self.meta(), self, $lists),
                    held: held(self.meta()),
                });
            }

            fn take(&self, space: &mut Space) {
                space.parts.retain(|part| part.kind != Self::KIND || *part.name != self.key());
            }

            fn all(client: Client, namespace: Option<&str>) -> Api<Self> {
                within(client, namespace)
            }
        })*
    };
}

watched_parts! {
    Quota: ResourceQuota, Lists::Whole;
    Limits: LimitRange, Lists::Whole;
    Policy: NetworkPolicy, Lists::Whole;
    Account: ServiceAccount, Lists::Whole;
    Service: Service, Lists::Shared;
    Ingress: Ingress, Lists::Whole;
}
