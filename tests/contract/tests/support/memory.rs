//! The provider in memory.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use provisioner_contract::{Ability, Outsider, Profile, Refusal, Setup, Sight, Told, async_trait};
use provisioner_core::{
    ErrorKind,
    layers::Fault,
    memory::{MemoryConfig, MemoryProvisioner, Thing},
    types::{ControlPlaneId, DataId, InstanceSpec, Isolation, Phase, Reason, SizeMax, Target, VariableName, Workload},
};

/// How long things take to start on the slow one.
pub(crate) const PACE: Duration = Duration::from_millis(50);

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

    pub(crate) fn config(&self) -> MemoryConfig {
        let size_max = SizeMax { cpu_millis: 4000, memory_mib: 8192, data_mib: 65536 };
        MemoryConfig {
            page: 16,
            start: self.pace,
            stop: self.pace / 5,
            lag: self.pace / 5,
            size_max,
            ..MemoryConfig::default()
        }
    }
}

pub(crate) fn spec(version: &str) -> InstanceSpec {
    InstanceSpec::new(Workload::new(version))
}

impl Setup for Memory {
    fn name(&self) -> String {
        self.name.to_owned()
    }

    fn profile(&self) -> Profile {
        let provider = MemoryProvisioner::new(self.config());
        let mut profile = Profile::new(Arc::new(provider.clone()), spec).with_outsider(MemoryOutsider {
            provider: provider.clone(),
            is_slow: !self.pace.is_zero(),
            names_by_version: false,
        });
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
pub(crate) struct MemoryOutsider {
    pub(crate) provider: MemoryProvisioner,
    /// Whether a removal takes time, so that it can get stuck.
    pub(crate) is_slow: bool,
    /// Whether things are called by their version too, which is wrong.
    pub(crate) names_by_version: bool,
}

#[async_trait]
impl Outsider for MemoryOutsider {
    fn abilities(&self) -> &[Ability] {
        use Ability::*;
        {
            const ALL: &[Ability] = &[
                Block,
                Sight,
                Inventory,
                Notes,
                Ask,
                Environment,
                Name,
                Search,
                Calls,
                Kill,
                Stop,
                Change,
                Delete,
                DeleteData,
                Throttle,
                Capacity,
                Rights,
                Hang,
                Unreachable,
                Codes,
                Isolation,
            ];
            if self.is_slow { ALL } else { &ALL[1..] }
        }
    }

    async fn sight(&self, owner: &ControlPlaneId, target: &Target) -> Told<Sight> {
        let things = self.provider.things(owner);
        let of: Vec<_> = things.iter().filter(|thing| thing.incarnation == target.incarnation).collect();
        let awake = of.iter().filter(|thing| matches!(thing.phase, Phase::Running | Phase::Provisioning)).count();
        Ok(Sight { made: of.len(), awake })
    }

    async fn isolation(&self, _owner: &ControlPlaneId, _target: &Target) -> Told<Isolation> {
        // Rows of a map have nothing to share.
        Ok(Isolation::FULL)
    }

    async fn inventory(&self, owner: &ControlPlaneId) -> Told<Vec<String>> {
        let things = self.provider.things(owner).into_iter().map(|thing| format!("{} {}", thing.id, thing.incarnation));
        let data = self.provider.data(owner).into_iter().map(|data| format!("data {data}"));
        Ok(things.chain(data).collect())
    }

    async fn write_note(&self, owner: &ControlPlaneId, target: &Target, note: &str) -> Told<()> {
        let written = self.provider.write_note(owner, target.data.id(), note);
        if written { Ok(()) } else { Err("there is no data to write into".to_owned()) }
    }

    async fn read_note(&self, owner: &ControlPlaneId, target: &Target) -> Told<Option<String>> {
        Ok(self.provider.note(owner, target.data.id()))
    }

    async fn ask(&self, endpoint: &str) -> Told<()> {
        let shape = endpoint.strip_prefix("memory://").and_then(|rest| rest.split_once('/'));
        if shape.is_some() { Ok(()) } else { Err(format!("{endpoint} leads nowhere")) }
    }

    async fn environment(&self, owner: &ControlPlaneId, target: &Target) -> Told<BTreeMap<String, String>> {
        let thing = self.thing(owner, target)?;
        let variables = thing.spec.environment.iter();
        Ok(variables.map(|(name, value)| (name.to_string(), value.clone())).collect())
    }

    async fn name(&self, owner: &ControlPlaneId, target: &Target) -> Told<String> {
        let thing = self.thing(owner, target)?;
        let version = if self.names_by_version { &*thing.version } else { "" };
        Ok(format!("{owner}/{}.{}{version}", thing.id, thing.incarnation))
    }

    async fn search(&self, text: &str) -> Told<Vec<String>> {
        let all = format!("{:?}", self.provider);
        Ok(if all.contains(text) { vec!["the memory".to_owned()] } else { Vec::new() })
    }

    async fn calls(&self) -> Told<u64> {
        Ok(self.provider.calls().values().sum())
    }

    async fn kill(&self, owner: &ControlPlaneId, target: &Target) -> Told<()> {
        self.provider.fail(owner, &target.id, &Reason::new("died", "an outsider killed it"));
        Ok(())
    }

    async fn change(&self, owner: &ControlPlaneId, target: &Target, name: &VariableName, value: &str) -> Told<()> {
        let thing = self.thing(owner, target)?;
        let mut spec = (*thing.spec).clone();
        spec.environment.insert(name.clone(), value.to_owned());
        self.provider.change(owner, &target.id, thing.generation, &Arc::new(spec));
        Ok(())
    }

    async fn delete(&self, owner: &ControlPlaneId, target: &Target) -> Told<()> {
        self.provider.vanish(owner, &target.id);
        Ok(())
    }

    async fn delete_data(&self, owner: &ControlPlaneId, data: &DataId) -> Told<()> {
        self.provider.vanish_data(owner, data);
        Ok(())
    }

    async fn stop(&self, owner: &ControlPlaneId, target: &Target) -> Told<()> {
        self.provider.stop_behind(owner, &target.id);
        Ok(())
    }

    async fn block(&self, _owner: &ControlPlaneId, _target: &Target, blocked: bool) -> Told<()> {
        // It gets stuck half-way, until it is called again.
        if blocked {
            self.provider.script("destroy", Fault::HalfWay);
        }
        Ok(())
    }

    async fn refuse(&self, refusal: Option<Refusal>) -> Told<()> {
        let denied = match refusal {
            Some(Refusal::Rights) => Some(ErrorKind::Unauthorized),
            Some(Refusal::Unreachable) => Some(ErrorKind::Unavailable),
            _ => None,
        };
        self.provider.deny(denied);
        self.provider.limit_capacity(if refusal == Some(Refusal::Capacity) { 0 } else { usize::MAX });
        self.provider.befall(match refusal {
            Some(Refusal::Hang) => Some(Fault::Hang),
            Some(Refusal::Throttled { after }) => Some(Fault::Throttled { after_ms: after.as_millis() as u64 }),
            _ => None,
        });
        Ok(())
    }
}

impl MemoryOutsider {
    fn thing(&self, owner: &ControlPlaneId, target: &Target) -> Told<Thing> {
        let things = self.provider.things(owner);
        let thing = things.into_iter().find(|thing| thing.incarnation == target.incarnation);
        thing.ok_or_else(|| "there is no such thing".to_owned())
    }
}
