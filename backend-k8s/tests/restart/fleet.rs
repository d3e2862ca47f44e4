//! Several instances, who makes and removes them as the engine would, and somebody who looks at the cluster meanwhile
//! through an API server that nobody kills.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use backend_k8s::{Connection, KubernetesBackend, KubernetesConfig};
use futures::{StreamExt, TryStreamExt, future, stream};
use k8s_openapi::api::{apps::v1::StatefulSet, core::v1::Namespace};
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams},
};
use provisioner_core::{
    Chain, Error, OpContext, Provisioner, Retry,
    seams::Random,
    types::{
        ControlPlaneId, DataDisposition, DataSource, Generation, InstanceId, InstanceSpec, Observed, Phase, Present,
        Target, TenantId,
    },
};
use serde_json::json;
use test_peers::kubernetes::volumes::Volumes;

use crate::{
    api_server::ApiServer,
    cluster::{self, Cluster},
};

/// How many there are.
pub(crate) const INSTANCES: usize = 6;
/// How many of them are made at once: so that there are still some to make whenever the API server is killed.
const AT_ONCE: usize = 2;
/// How long each part may take; much longer than it does, as the machine may be busy.
const WITHIN: Duration = Duration::from_secs(300);
/// How long one call may take.
const CALL_WITHIN: Duration = Duration::from_secs(10);
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(50);
/// Kinds that the backend watches, and no API server for itself.
pub(crate) const KINDS: [&str; 3] = ["statefulsets", "ingresses", "networkpolicies"];
const OWNER: &str = "provisioner.internal/control-plane";
const INCARNATION: &str = "provisioner.internal/incarnation";

/// Several instances, through an API server that may be killed, and the cluster beside them.
pub(crate) struct Fleet {
    backend: KubernetesBackend,
    owner: ControlPlaneId,
    targets: Vec<Target>,
    /// Whether `create` of a target was answered, and `destroy` not yet asked for.
    made: Vec<AtomicBool>,
    /// How many are seen running.
    running: AtomicUsize,
    /// How many calls failed.
    failed: AtomicUsize,
    /// Nobody has to look any more.
    enough: AtomicBool,
    /// Every namespace that was there.
    homes: Mutex<BTreeSet<String>>,
    /// Somebody with all rights, at the API server that nobody kills.
    admin: Client,
    volumes: Option<Volumes>,
}

/// What is on the cluster.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub(crate) namespaces: usize,
    /// Those of them that are on their way out.
    pub(crate) ending: usize,
    pub(crate) sets: usize,
    /// As the backend told.
    pub(crate) running: usize,
}

impl Fleet {
    pub(crate) fn new(cluster: &Cluster, server: &ApiServer) -> Self {
        let config = KubernetesConfig {
            connection: Connection::Kubeconfig { path: Some(server.kubeconfig()), context: None },
            storage_class: cluster.class.clone(),
            image_pull_policy: Some("Never".into()),
            cpu_reserved_percent: Some(1),
            ..KubernetesConfig::default()
        };
        let random = Random::from_os();
        let targets: Vec<_> = (0..INSTANCES)
            .map(|number| Target {
                id: InstanceId::new(format!("i-{number}")).expect("a label"),
                tenant: TenantId::new("tenant").expect("a name"),
                incarnation: random.incarnation(1),
                generation: Generation::FIRST,
                spec: Arc::new(spec()),
                data: DataSource::Fresh(random.data_id()),
            })
            .collect();
        Self {
            backend: config.build().expect("a good configuration"),
            owner: ControlPlaneId::new(format!("restart-{:08x}", random.bits() as u32)).expect("a label"),
            made: targets.iter().map(|_| AtomicBool::new(false)).collect(),
            targets,
            running: AtomicUsize::new(0),
            failed: AtomicUsize::new(0),
            enough: AtomicBool::new(false),
            homes: Mutex::default(),
            admin: cluster.admin.clone(),
            volumes: cluster.volumes.clone(),
        }
    }

    fn cx(&self, last_call: Option<Instant>) -> OpContext {
        let mut cx = OpContext::new(self.owner.clone()).with_timeout(CALL_WITHIN);
        cx.since_last_call = last_call.map(|at| at.elapsed());
        cx
    }

    /// Counts a call that failed. What would not be repeated is none that an outage explains.
    fn heed(&self, error: &Error) -> Result<(), String> {
        self.failed.fetch_add(1, Ordering::SeqCst);
        match error.retry() {
            Retry::Never => Err(format!("an outage is told as something that lasts: {}", Chain(error))),
            _ => Ok(()),
        }
    }

    async fn sets(&self) -> Result<BTreeMap<String, usize>, String> {
        let ours = ListParams::default().labels(&format!("{OWNER}={}", self.owner));
        let sets = Api::<StatefulSet>::all(self.admin.clone()).list_metadata(&ours).await.map_err(text)?;
        let mut counts = BTreeMap::new();
        for set in sets {
            *counts.entry(set.labels().get(INCARNATION).cloned().unwrap_or_default()).or_default() += 1;
        }
        Ok(counts)
    }

    async fn namespaces(&self) -> Result<Vec<Namespace>, String> {
        let ours = ListParams::default().labels(&format!("{OWNER}={}", self.owner));
        let namespaces = Api::<Namespace>::all(self.admin.clone()).list(&ours).await.map_err(text)?.items;
        self.homes().extend(namespaces.iter().map(ResourceExt::name_any));
        Ok(namespaces)
    }

    fn homes(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.homes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the cluster is so.
    pub(crate) async fn until(&self, what: &str, is_so: impl Fn(&Seen) -> bool) -> Result<(), String> {
        let deadline = Instant::now() + WITHIN;
        loop {
            let namespaces = self.namespaces().await?;
            let seen = Seen {
                namespaces: namespaces.len(),
                ending: namespaces.iter().filter(|it| it.metadata.deletion_timestamp.is_some()).count(),
                sets: self.sets().await?.len(),
                running: self.running.load(Ordering::SeqCst),
            };
            if is_so(&seen) {
                return Ok(());
            }
            in_time(deadline, what, &seen)?;
            // Shorter than it takes to make one.
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Kills the API server, waits until that was felt, and starts it again.
    pub(crate) async fn endure_a_restart_of(&self, server: &mut ApiServer) -> Result<(), String> {
        server.kill();
        // From now on; a call that was on its way may have been answered already.
        let before = self.failed.load(Ordering::SeqCst);
        let deadline = Instant::now() + WITHIN;
        while self.failed.load(Ordering::SeqCst) == before {
            in_time(deadline, "a call that fails without an API server", &())?;
            tokio::time::sleep(PAUSE).await;
        }
        server.start().await
    }

    /// What is seen of a target. To be told absent while it is there is a failure.
    async fn look(&self, target: &Target, last_call: Option<Instant>) -> Result<Option<Observed>, String> {
        let is_there = self.sets().await?.contains_key(&target.incarnation.to_string());
        match self.backend.observe(&self.cx(last_call), target).await {
            Ok(Observed::Absent) if is_there => Err(format!("{} is there, and was told to be absent", target.id)),
            Ok(observed) => Ok(Some(observed)),
            Err(error) => self.heed(&error).map(|()| None),
        }
    }

    /// Makes all of them, each as the engine does: what failed is repeated.
    pub(crate) async fn all_up(&self) -> Result<(), String> {
        let numbers = stream::iter((0..self.targets.len()).map(Ok));
        numbers.try_for_each_concurrent(AT_ONCE, |number| self.up(number)).await
    }

    async fn up(&self, number: usize) -> Result<(), String> {
        let target = &self.targets[number];
        let deadline = Instant::now() + WITHIN;
        let mut last_call = None;
        loop {
            let seen = self.look(target, last_call).await?;
            match &seen {
                Some(Observed::Present(Present { phase: Phase::Running, .. })) => {
                    self.running.fetch_add(1, Ordering::SeqCst);
                    return Ok(());
                }
                // Also a verb that was cut is repeated.
                Some(Observed::Absent | Observed::Present(_)) if !self.made[number].load(Ordering::SeqCst) => {
                    match self.backend.create(&self.cx(last_call), target).await {
                        Ok(_) => self.made[number].store(true, Ordering::SeqCst),
                        Err(error) => self.heed(&error)?,
                    }
                    last_call = Some(Instant::now());
                }
                _ => tokio::time::sleep(PAUSE).await,
            }
            in_time(deadline, "an instance that runs", &seen)?;
        }
    }

    /// Removes all of them at once.
    pub(crate) async fn all_down(&self) -> Result<(), String> {
        future::try_join_all((0..self.targets.len()).map(|number| self.down(number))).await.map(drop)
    }

    async fn down(&self, number: usize) -> Result<(), String> {
        let target = &self.targets[number];
        self.made[number].store(false, Ordering::SeqCst);
        let deadline = Instant::now() + WITHIN;
        let (mut last_call, mut is_told) = (None, false);
        loop {
            let seen = if is_told {
                self.look(target, last_call).await?
            } else {
                let told = self.backend.destroy(&self.cx(last_call), target, DataDisposition::Delete).await;
                last_call = Some(Instant::now());
                is_told = told.is_ok();
                match told {
                    Ok(observed) => Some(observed),
                    Err(error) => self.heed(&error).map(|()| None)?,
                }
            };
            if seen == Some(Observed::Absent) {
                let incarnation = target.incarnation.to_string();
                let left = self.namespaces().await?;
                return match left.iter().find(|left| left.labels().get(INCARNATION) == Some(&incarnation)) {
                    None => Ok(()),
                    Some(left) => Err(format!("{} was told to be absent, and {} is there", target.id, left.name_any())),
                };
            }
            in_time(deadline, "an instance that is gone", &seen)?;
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Looks at all of them, one by one and by listing, until that is enough. None that was made may be missing.
    pub(crate) async fn looked_after(&self) -> Result<(), String> {
        while !self.enough.swap(false, Ordering::SeqCst) {
            let is_made = |number: &usize| self.made[*number].load(Ordering::SeqCst);
            let made: BTreeSet<_> = (0..self.targets.len()).filter(is_made).collect();
            match self.backend.list(&self.cx(None)).try_collect::<Vec<_>>().await {
                Ok(listed) => {
                    let listed: BTreeSet<_> = listed.iter().map(|owned| owned.incarnation).collect();
                    // Of those that nobody has begun to remove meanwhile.
                    let mut missing = made.iter().filter(|number| is_made(number)).map(|number| &self.targets[*number]);
                    if let Some(missing) = missing.find(|target| !listed.contains(&target.incarnation)) {
                        return Err(format!("{} is there, and was not listed", missing.id));
                    }
                }
                Err(error) => self.heed(&error)?,
            }
            for number in made {
                let seen = self.look(&self.targets[number], None).await?;
                if seen == Some(Observed::Absent) && is_made(&number) {
                    return Err(format!("{} was made, and was told to be absent", self.targets[number].id));
                }
            }
            tokio::time::sleep(PAUSE).await;
        }
        Ok(())
    }

    /// Ends [`looked_after`](Self::looked_after).
    pub(crate) fn enough(&self) {
        self.enough.store(true, Ordering::SeqCst);
    }

    /// Each has one stateful set, and all of them run.
    pub(crate) async fn expect_one_of_each(&self) -> Result<(), String> {
        let sets = self.sets().await?;
        let expected: BTreeMap<_, _> = self.targets.iter().map(|it| (it.incarnation.to_string(), 1)).collect();
        if sets != expected {
            return Err(format!("the stateful sets by incarnation are {sets:?}, expected {expected:?}"));
        }
        let namespaces = self.namespaces().await?.len();
        if namespaces != self.targets.len() {
            return Err(format!("{namespaces} namespaces for {} instances", self.targets.len()));
        }
        for target in &self.targets {
            self.until_seen(target, |phase| phase == Phase::Running).await?;
        }
        Ok(())
    }

    async fn until_seen(&self, target: &Target, is_so: impl Fn(Phase) -> bool) -> Result<(), String> {
        let deadline = Instant::now() + WITHIN;
        loop {
            let seen = self.look(target, None).await?;
            if let Some(Observed::Present(present)) = &seen
                && is_so(present.phase)
            {
                return Ok(());
            }
            in_time(deadline, "an instance in another phase", &seen)?;
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Watches that nobody asked anything of are open again, and tell what somebody else did.
    pub(crate) async fn expect_to_hear_of_others(&self, server: &ApiServer) -> Result<(), String> {
        let deadline = Instant::now() + WITHIN;
        for kind in KINDS {
            while server.watches(kind).await? == 0 {
                in_time(deadline, "a watch that is open again", &kind)?;
                tokio::time::sleep(PAUSE).await;
            }
        }
        let target = &self.targets[0];
        let mut told = self.backend.watch(&self.cx(None));
        let ours = ListParams::default().labels(&format!("{INCARNATION}={}", target.incarnation));
        let sets = Api::<StatefulSet>::all(self.admin.clone()).list(&ours).await.map_err(text)?;
        let set = sets.items.first().ok_or("the stateful set is gone")?;
        let api = Api::<StatefulSet>::namespaced(self.admin.clone(), &set.namespace().unwrap_or_default());
        let patch = Patch::Merge(json!({"spec": {"replicas": 0}}));
        api.patch(&set.name_any(), &PatchParams::default(), &patch).await.map_err(text)?;
        let heard = async {
            while let Some(id) = told.next().await {
                if id == target.id {
                    return Ok(());
                }
            }
            Err("the watch ended".to_owned())
        };
        tokio::time::timeout(WITHIN, heard).await.map_err(|_| "what somebody else did is not told".to_owned())??;
        self.until_seen(target, |phase| phase != Phase::Running).await
    }

    /// Removes what is left of all of them, and waits until it is gone.
    pub(crate) async fn remove_all(&self) -> Result<(), String> {
        let api = Api::<Namespace>::all(self.admin.clone());
        let left: Vec<_> = self.namespaces().await?.iter().map(ResourceExt::name_any).collect();
        for name in &left {
            // It may be on its way out.
            let _ = api.delete(name, &DeleteParams::default()).await;
        }
        self.until("none", |seen| seen.namespaces == 0).await?;
        let homes: Vec<_> = self.homes().iter().cloned().collect();
        match &self.volumes {
            Some(volumes) => volumes.until_gone(&homes, WITHIN).await,
            None => Ok(()),
        }
    }
}

fn spec() -> InstanceSpec {
    let mut spec = cluster::spec("1.0");
    (spec.workload.start_timeout_seconds, spec.size.memory_mib) = (240, 64);
    spec
}

fn in_time(deadline: Instant, what: &str, seen: &dyn fmt::Debug) -> Result<(), String> {
    if Instant::now() > deadline {
        return Err(format!("{what}: not within {WITHIN:?}; seen last: {seen:?}"));
    }
    Ok(())
}

fn text(error: kube::Error) -> String {
    error.to_string()
}
