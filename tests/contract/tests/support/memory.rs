//! The provider in memory.

use std::{sync::Arc, time::Duration};

use provisioner_contract::{Ability, Outsider, Profile, Setup, Sight, Told, async_trait};
use provisioner_core::{
    memory::{MemoryConfig, MemoryProvisioner},
    types::{ControlPlaneId, DataId, InstanceSpec, Phase, Reason, SizeMax, Target, Workload},
};

/// How long things take on the slow one.
const PACE: Duration = Duration::from_millis(60);

/// The provider in memory.
#[derive(Debug, Clone)]
pub(crate) struct Memory {
    name: &'static str,
    pace: Duration,
}

impl Memory {
    /// Instant and consistent.
    pub(crate) fn instant() -> Self {
        Self { name: "memory", pace: Duration::ZERO }
    }

    /// Things take time to start and stop, and reads lag behind writes.
    pub(crate) fn slow() -> Self {
        Self { name: "memory-slow", pace: PACE }
    }

    fn config(&self) -> MemoryConfig {
        let size_max = SizeMax { cpu_millis: 4000, memory_mib: 8192, data_mib: 65536 };
        MemoryConfig { start: self.pace, stop: self.pace / 2, lag: self.pace / 2, size_max, ..MemoryConfig::default() }
    }
}

fn spec(version: &str) -> InstanceSpec {
    InstanceSpec::new(Workload::new(version))
}

impl Setup for Memory {
    fn name(&self) -> String {
        self.name.to_owned()
    }

    fn profile(&self) -> Profile {
        let provider = MemoryProvisioner::new(self.config());
        let mut profile =
            Profile::new(Arc::new(provider.clone()), spec).with_outsider(MemoryOutsider(provider.clone()));
        profile.deadline = Duration::from_secs(10);
        profile.reopen = Some(Box::new(move || Arc::new(provider.clone())));
        if !self.pace.is_zero() {
            profile.slow = Some((spec("1.0"), self.pace));
        }
        profile
    }
}

/// Looks into the memory.
#[derive(Debug, Clone)]
pub(crate) struct MemoryOutsider(pub(crate) MemoryProvisioner);

#[async_trait]
impl Outsider for MemoryOutsider {
    fn abilities(&self) -> &[Ability] {
        use Ability::*;
        &[Sight, Inventory, Name, Search, Calls, Kill, Delete, DeleteData]
    }

    async fn sight(&self, owner: &ControlPlaneId, target: &Target) -> Told<Sight> {
        let things = self.0.things(owner);
        let of: Vec<_> = things.iter().filter(|thing| thing.incarnation == target.incarnation).collect();
        let awake = of.iter().filter(|thing| matches!(thing.phase, Phase::Running | Phase::Provisioning)).count();
        Ok(Sight { made: of.len(), awake })
    }

    async fn inventory(&self, owner: &ControlPlaneId) -> Told<Vec<String>> {
        Ok(self.0.things(owner).iter().map(|thing| format!("{} {}", thing.id, thing.incarnation)).collect())
    }

    async fn name(&self, owner: &ControlPlaneId, target: &Target) -> Told<String> {
        let things = self.0.things(owner);
        let thing = things.iter().find(|thing| thing.incarnation == target.incarnation).ok_or("no such thing")?;
        Ok(format!("{owner}/{}.{}", thing.id, thing.incarnation))
    }

    async fn search(&self, text: &str) -> Told<Vec<String>> {
        let all = format!("{:?}", self.0);
        Ok(if all.contains(text) { vec!["the memory".to_owned()] } else { Vec::new() })
    }

    async fn calls(&self) -> Told<u64> {
        Ok(self.0.calls().values().sum())
    }

    async fn kill(&self, owner: &ControlPlaneId, target: &Target) -> Told<()> {
        self.0.fail(owner, &target.id, &Reason::new("died", "an outsider killed it"));
        Ok(())
    }

    async fn delete(&self, owner: &ControlPlaneId, target: &Target) -> Told<()> {
        self.0.vanish(owner, &target.id);
        Ok(())
    }

    async fn delete_data(&self, owner: &ControlPlaneId, data: &DataId) -> Told<()> {
        self.0.vanish_data(owner, data);
        Ok(())
    }
}
