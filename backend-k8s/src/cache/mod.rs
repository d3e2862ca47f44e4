//! What is known of the cluster: digests of all that one control plane has there, kept current by watches.
//!
//! One watch for each kind, over all namespaces or the one that is shared, of what has the control plane's label; never of
//! secrets. The client library starts a watch again after a disconnect, from where it was.

mod awaited;
mod compare;
mod digest;
mod listen;
mod packed;
mod slices;
mod space;
mod watches;

use std::{
    collections::BTreeMap,
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use provisioner_core::types::{ControlPlaneId, Incarnation, InstanceId};
use serde::{Deserialize, Serialize};
use tokio::{
    sync::{Notify, broadcast, watch},
    time::Instant,
};
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};

pub(crate) use self::{
    awaited::Awaited,
    compare::{compare, compare_all},
    digest::{HomeDigest, Intended, PodDigest, SetDigest, Trouble, incarnation_of, is_told, version_of, written_at},
    space::Space,
};
use self::{awaited::Told, packed::Spaces};
use crate::{cluster::Cluster, error::Failure, home::Home, names, render::Namespaces};

/// How many changes a slow reader of a watch may be behind before it loses some.
const CHANGES_KEPT: usize = 4096;

/// The kinds that are watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[repr(u8)]
pub(crate) enum Kind {
    /// The namespace or config map that stands for a data set.
    Home,
    Quota,
    Limits,
    Policy,
    Account,
    Claim,
    Set,
    Pod,
    Service,
    Slice,
    Ingress,
}

impl Kind {
    /// What an operator calls it.
    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::Home => "home",
            Self::Quota => "resource quota",
            Self::Limits => "limit range",
            Self::Policy => "network policy",
            Self::Account => "service account",
            Self::Claim => "claim",
            Self::Set => "stateful set",
            Self::Pod => "pod",
            Self::Service => "service",
            Self::Slice => "endpoint slice",
            Self::Ingress => "ingress",
        }
    }

    pub(crate) const ALL: [Self; 11] = [
        Self::Home,
        Self::Quota,
        Self::Limits,
        Self::Policy,
        Self::Account,
        Self::Claim,
        Self::Set,
        Self::Pod,
        Self::Service,
        Self::Slice,
        Self::Ingress,
    ];
    /// What small objects are, beside routes.
    pub(crate) const PARTS: [Self; 5] = [Self::Quota, Self::Limits, Self::Policy, Self::Account, Self::Service];
}

/// For so long after a watch was opened again, what happened meanwhile may still be on its way.
const CAUGHT_UP_WITHIN: Duration = Duration::from_secs(1);

/// How a watch fares.
#[derive(Debug, Default)]
struct Health {
    /// Everything that there was has been read.
    is_complete: bool,
    /// A watch that follows the last reading was open.
    was_open: bool,
    /// What went wrong since it was open, or since everything was read.
    trouble: Option<Failure>,
    doubt: Doubt,
    /// When the cluster wants to be asked again.
    retry_after: Option<Duration>,
    /// How often it failed.
    failures: u64,
}

/// Whether what is known may be old.
#[derive(Debug, Default)]
enum Doubt {
    #[default]
    None,
    /// Since the watch was interrupted.
    Interrupted,
    /// It was, and what happened meanwhile has been told by then.
    Until(Instant),
}

impl Health {
    fn fail(&mut self, failure: Failure) {
        self.trouble = Some(failure);
        self.failures += 1;
        self.doubt = Doubt::Interrupted;
    }

    /// Everything is about to be read.
    fn read_again(&mut self) {
        self.was_open = false;
        if self.is_complete {
            self.doubt = Doubt::Interrupted;
        }
    }

    fn complete(&mut self) {
        (self.is_complete, self.trouble, self.doubt) = (true, None, Doubt::None);
    }

    /// The watch is about to be opened.
    fn open(&mut self) {
        if self.was_open {
            self.doubt = Doubt::Interrupted;
        }
    }

    /// The watch is open.
    fn opened(&mut self) {
        (self.trouble, self.was_open) = (None, true);
        if matches!(self.doubt, Doubt::Interrupted) {
            self.doubt = Doubt::Until(Instant::now() + CAUGHT_UP_WITHIN);
        }
    }

    fn is_in_doubt(&self) -> bool {
        match self.doubt {
            Doubt::None => false,
            Doubt::Interrupted => true,
            Doubt::Until(when) => Instant::now() < when,
        }
    }
}

#[derive(Debug, Default)]
struct State {
    spaces: Spaces,
    /// Where each making lives: the number of its home, by the nonce, which no other making has.
    makings: BTreeMap<u128, u128>,
    health: BTreeMap<Kind, Health>,
    told: Told,
}

/// What one control plane has at the cluster. A clone is the same. When the last one is dropped, its watches end.
#[derive(Debug, Clone)]
pub(crate) struct Cache {
    shared: Arc<Shared>,
    _cancel_on_drop: Arc<DropGuard>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// Rises with every change.
    changed: watch::Sender<u64>,
    changes: broadcast::Sender<InstanceId>,
    /// Whose they are.
    control_plane: ControlPlaneId,
    namespaces: Namespaces,
    /// Somebody wants to know whether what was refused is refused still.
    asked: Notify,
}

/// How far the watches have come.
enum Standing {
    Complete,
    /// Something may not be read.
    Refused(Failure),
    /// Not everything has been read, and what was in the way last.
    Waits(Option<Failure>),
}

impl State {
    /// The watches that lack rights, and how often each of them has failed.
    fn refusals(&self) -> BTreeMap<Kind, u64> {
        let refused = |health: &Health| health.trouble.as_ref().is_some_and(Failure::is_unauthorized);
        self.health
            .iter()
            .filter(|(_, health)| refused(health))
            .map(|(kind, health)| (*kind, health.failures))
            .collect()
    }

    /// Where the watches stand. Refusals of before are being tried again.
    fn standing(&self, before: &BTreeMap<Kind, u64>) -> Standing {
        let refusals = self.refusals();
        let trouble = |kind: &Kind| self.health.get(kind).and_then(|health| health.trouble.clone());
        // Rights that are taken away later count too: what is known would be older and older.
        let refused = refusals.iter().find(|(kind, failures)| before.get(kind) != Some(failures));
        if let Some(refused) = refused.and_then(|(kind, _)| trouble(kind)) {
            return Standing::Refused(refused);
        }
        let is_complete = |kind: &Kind| self.health.get(kind).is_some_and(|health| health.is_complete);
        let mut lacking = Kind::ALL.iter().filter(|kind| !is_complete(kind) || refusals.contains_key(kind)).peekable();
        if lacking.peek().is_none() {
            return Standing::Complete;
        }
        match lacking.find_map(trouble) {
            Some(refused) if refused.is_refusal() && !refused.is_unauthorized() => Standing::Refused(refused),
            trouble => Standing::Waits(trouble),
        }
    }

    /// The watch of a kind is open from this version on: what is older has been told.
    fn opened(&mut self, kind: Kind, version: u64) {
        self.health.entry(kind).or_default().opened();
        self.heard(kind, version);
    }

    /// A watch has told everything up to this version.
    fn heard(&mut self, kind: Kind, version: u64) {
        self.told.hear(kind, version);
        self.told.settle(&self.spaces);
    }

    /// What is known of a home, if anything is, or may be soon.
    fn look(&self, home: &str) -> Option<Space> {
        let space = self.spaces.get(home);
        let is_behind = self.told.is_behind(home);
        (space.is_some() || is_behind).then(|| self.seen(home, space.unwrap_or_default()))
    }

    /// What is known of a home, as it is shown.
    fn seen(&self, home: &str, mut space: Space) -> Space {
        // Before its making was known a pod was believed by its label.
        let number = names::number(home);
        space.pods.retain(|pod| {
            let lives = self.makings.get(&pod.incarnation.nonce());
            lives.is_none_or(|lives| Some(*lives) == number)
        });
        Space { is_behind: self.told.is_behind(home), ..space }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Cache {
    /// Starts the watches.
    pub(crate) fn start(
        cluster: &Cluster,
        control_plane: &ControlPlaneId,
        namespaces: Namespaces,
        tasks: &TaskTracker,
    ) -> Self {
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            changed: watch::Sender::new(0),
            changes: broadcast::Sender::new(CHANGES_KEPT),
            control_plane: control_plane.clone(),
            namespaces,
            asked: Notify::new(),
        });
        let cancel = CancellationToken::new();
        watches::start(cluster, control_plane, &shared, tasks, &cancel);
        Self { shared, _cancel_on_drop: Arc::new(cancel.drop_guard()) }
    }

    /// Waits until everything that there is has been read once.
    ///
    /// # Errors
    /// What keeps a watch from that, when it has not come to it by then. What may not be read is not waited for: it is tried
    /// once more at once, as rights may have been given since.
    pub(crate) async fn complete(&self, deadline: Instant) -> Result<(), Failure> {
        let mut changed = self.shared.changed.subscribe();
        let before = self.shared.state().refusals();
        if !before.is_empty() {
            self.shared.asked.notify_waiters();
        }
        loop {
            let trouble = match self.shared.state().standing(&before) {
                Standing::Complete => return Ok(()),
                Standing::Refused(refused) => return Err(refused),
                Standing::Waits(trouble) => trouble,
            };
            if tokio::time::timeout_at(deadline, changed.changed()).await.is_err() {
                return Err(trouble.unwrap_or(Failure::TimedOut));
            }
        }
    }

    /// Whether a watch was interrupted, and what happened meanwhile may not have been told: what is known may be old.
    pub(crate) fn is_in_doubt(&self) -> bool {
        self.shared.state().health.values().any(Health::is_in_doubt)
    }

    /// What is known of a home.
    pub(crate) fn space(&self, home: &Home) -> Option<Space> {
        self.shared.state().look(home.name())
    }

    /// Where a making lives.
    pub(crate) fn home(&self, incarnation: Incarnation) -> Option<Home> {
        let number = self.shared.state().makings.get(&incarnation.nonce()).copied()?;
        Some(Home::named(&self.shared.namespaces, names::numbered(number)))
    }

    /// A page of what is known: what follows a home, in their order.
    pub(crate) fn page(&self, after: Option<&str>, length: usize) -> Vec<(String, Space)> {
        let state = self.shared.state();
        let page = state.spaces.after(after).take(length);
        page.map(|(home, space)| {
            let space = state.seen(&home, space);
            (home, space)
        })
        .collect()
    }

    /// Notes what was written, so that nothing older is taken for what is there.
    pub(crate) fn await_written(&self, home: &Home, awaited: Awaited) {
        let mut state = self.shared.state();
        let State { told, spaces, .. } = &mut *state;
        told.wait_for(home.name(), awaited);
        told.settle(spaces);
    }

    /// Waits until what is known of a home is as new as what we wrote there, or the deadline.
    pub(crate) async fn catch_up(&self, home: &Home, deadline: Instant) {
        loop {
            let Some(settled) = self.shared.state().told.settled(home.name()) else { return };
            let mut told = pin!(settled.notified());
            told.as_mut().enable();
            // It may have been told in between, and something else been written since.
            let still = self.shared.state().told.settled(home.name());
            if still.is_none_or(|still| !Arc::ptr_eq(&still, &settled)) {
                continue;
            }
            if tokio::time::timeout_at(deadline, told).await.is_err() {
                return;
            }
        }
    }

    /// Waits until a home and its data are gone, or the deadline: `false`.
    pub(crate) async fn until_gone(&self, home: &Home, deadline: Instant) -> bool {
        // With a namespace everything is gone.
        let is_gone = |space: Space| space.home.is_none() && (!home.is_shared() || space.claim.is_none());
        let is_gone = |state: &State| state.spaces.get(home.name()).is_none_or(is_gone);
        self.until(deadline, is_gone).await
    }

    async fn until(&self, deadline: Instant, condition: impl Fn(&State) -> bool) -> bool {
        let mut changed = self.shared.changed.subscribe();
        loop {
            if condition(&self.shared.state()) {
                return true;
            }
            if tokio::time::timeout_at(deadline, changed.changed()).await.is_err() {
                return false;
            }
        }
    }

    /// Ids of instances that something changed of, from now on.
    pub(crate) fn changes(&self) -> broadcast::Receiver<InstanceId> {
        self.shared.changes.subscribe()
    }

    /// How many homes are known, and about how many bytes that takes.
    pub(crate) fn weight(&self) -> (usize, usize) {
        let state = self.shared.state();
        (state.spaces.len(), state.spaces.bytes() + state.makings.len() * size_of::<(u128, u128)>())
    }
}

/// How long reads wait for the first look at everything.
pub(crate) const COMPLETE_WITHIN: Duration = Duration::from_secs(20);
