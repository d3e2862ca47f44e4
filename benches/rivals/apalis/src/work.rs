//! The work: what a job holds, and the call that it makes.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use apalis::prelude::BoxDynError;
use provisioner_core::{
    OpContext, Provisioner,
    memory::{MemoryConfig, MemoryProvisioner},
    seams::Random,
    types::{
        ControlPlaneId, DataDisposition, DataId, DataSource, Generation, Incarnation, InstanceId, InstanceSpec,
        Observed, Phase, Target, TenantId, VariableName, Workload,
    },
};
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

/// Callers at once, as in `benches/src/bin/lives.rs`.
pub const CALLERS: usize = 256;
/// Requests in a life: create, sleep, wake, destroy.
pub const VERBS: u8 = 4;

/// One request, or one step of a life.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Job {
    pub caller: usize,
    pub verb: u8,
    id: InstanceId,
    tenant: TenantId,
    incarnation: Incarnation,
    data: DataId,
    /// Left out where the verb does without it.
    spec: Option<InstanceSpec>,
}

impl Job {
    /// The first of a life. The name of what is made is on disk before the call, as it is on the engine.
    pub fn first(caller: usize, number: usize, random: &Random) -> Result<Self, BoxDynError> {
        Ok(Self {
            caller,
            verb: 0,
            id: InstanceId::new(format!("i-{caller}-{number}"))?,
            tenant: TenantId::new(format!("tenant {caller}"))?,
            incarnation: random.incarnation(1),
            data: random.data_id(),
            spec: Some(spec()?),
        })
    }

    /// The one behind it, with all that it may need.
    pub fn next(self) -> Self {
        Self { verb: self.verb + 1, ..self }
    }

    /// The same without what this verb does without.
    pub fn trimmed(&self) -> Self {
        let spec = if matches!(self.verb, 0 | 2) { self.spec.clone() } else { None };
        Self { spec, ..self.clone() }
    }

    fn target(&self) -> Target {
        let data = self.data.clone();
        Target {
            id: self.id.clone(),
            tenant: self.tenant.clone(),
            incarnation: self.incarnation,
            generation: Generation(1),
            spec: Arc::new(self.spec.clone().unwrap_or_else(|| InstanceSpec::new(Workload::new("")))),
            data: if self.verb == 0 { DataSource::Fresh(data) } else { DataSource::Existing(data) },
        }
    }
}

/// As in `benches/src/bin/lives.rs`.
fn spec() -> Result<InstanceSpec, BoxDynError> {
    let mut spec = InstanceSpec::new(Workload::new("1.0").with_command(["/usr/bin/product", "--serve"]));
    spec.environment.insert(VariableName::new("CONFIGURATION")?, "x".repeat(600));
    Ok(spec)
}

/// What jobs work with, and who waits for them.
#[derive(Debug)]
pub struct World {
    provider: MemoryProvisioner,
    plane: ControlPlaneId,
    waiting: Vec<Mutex<Option<oneshot::Sender<()>>>>,
    ends: Vec<Mutex<Vec<Instant>>>,
}

impl World {
    pub fn new() -> Result<Self, BoxDynError> {
        Ok(Self {
            provider: MemoryProvisioner::new(MemoryConfig::default()),
            plane: ControlPlaneId::new("bench")?,
            waiting: (0..CALLERS).map(|_| Mutex::default()).collect(),
            ends: (0..CALLERS).map(|_| Mutex::default()).collect(),
        })
    }

    /// Makes the call, and checks what it did.
    pub async fn act(&self, job: &Job) -> Result<(), BoxDynError> {
        let (cx, target) = (OpContext::new(self.plane.clone()), job.target());
        let (seen, wanted) = match job.verb {
            0 => (self.provider.create(&cx, &target).await?, Some(Phase::Running)),
            1 => (self.provider.scale_to_zero(&cx, &target).await?, Some(Phase::Zero)),
            2 => (self.provider.resume(&cx, &target).await?, Some(Phase::Running)),
            _ => (self.provider.destroy(&cx, &target, DataDisposition::Delete).await?, None),
        };
        let phase = match seen {
            Observed::Present(present) => Some(present.phase),
            _ => None,
        };
        assert_eq!(phase, wanted, "the provider is instant, so that no step has to look again");
        self.ends[job.caller].lock().unwrap_or_else(PoisonError::into_inner).push(Instant::now());
        Ok(())
    }

    /// What the next [`tell`](Self::tell) for this caller wakes.
    pub fn wait(&self, caller: usize) -> oneshot::Receiver<()> {
        let (sender, receiver) = oneshot::channel();
        *self.waiting[caller].lock().unwrap_or_else(PoisonError::into_inner) = Some(sender);
        receiver
    }

    /// Tells a caller that what they wait for is true.
    pub fn tell(&self, caller: usize) {
        let sender = self.waiting[caller].lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(sender) = sender {
            // Whoever does not wait any more is not told.
            let _ = sender.send(());
        }
    }

    /// When the calls of this caller ended, since the last time that somebody asked.
    pub fn ends(&self, caller: usize) -> Vec<Instant> {
        std::mem::take(&mut self.ends[caller].lock().unwrap_or_else(PoisonError::into_inner))
    }
}
