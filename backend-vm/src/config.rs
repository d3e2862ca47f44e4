//! What the backend is told, checked before anything is touched.

use std::time::Duration;

use provisioner_account::Bucket;
use provisioner_core::{
    Error, ErrorKind, Result,
    types::{Size, SizeMax},
};
use serde::{Deserialize, Serialize};

use crate::{backend::VmBackend, calls::Clients, pace::Buckets};

/// What the backend is told about one account and region.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmConfig {
    /// The region, such as `eu-central-1`.
    pub region: String,
    /// Where the service is instead of the region's own address: LocalStack, moto, a private cloud.
    #[serde(default)]
    pub endpoint: Option<String>,
    /// Where machines go, in this order: the next one is tried where the one before has no room. Never empty.
    pub places: Vec<Place>,
    /// The types of machines, from the cheapest. An instance gets the first one that has room for its size.
    #[serde(default = "MachineType::usual")]
    pub types: Vec<MachineType>,
    /// Whether machines of types that save up for bursts may use more than they have saved, at extra cost without a bound. By
    /// default they may not, and are slow then.
    #[serde(default)]
    pub unlimited_cpu: bool,
    /// Security groups by id. Empty: the network's own, in which machines usually reach each other at every port: say one that lets
    /// nobody in but the control plane and whatever leads customers there.
    #[serde(default)]
    pub security_groups: Vec<String>,
    /// The instance profile by name: what a machine may do by itself, such as fetching its secrets. It is the same for all of them, and
    /// products can use it: whoever gets into one may read what it lets them read, all customers' secrets among it.
    #[serde(default)]
    pub instance_profile: Option<String>,
    /// Whether machines get a public address: by default they do not. `None`: as their subnet says.
    #[serde(default = "private")]
    pub public_address: Option<bool>,
    /// The size of the disk that a machine boots from, in gibibytes. `None`: as its image says. A launch template says it itself.
    #[serde(default)]
    pub root_gib: Option<u16>,
    /// The key by which disks are encrypted. `None`: the account's own for its block store.
    #[serde(default)]
    pub kms_key: Option<String>,
    /// Whether readiness is asked of the product itself, at its health path: for a control plane in the same network.
    #[serde(default)]
    pub probes: bool,
    /// How long a machine may take from its start to that of the product, whose own time begins then. With `probes`, one that does
    /// not answer after both is rebooted.
    #[serde(default = "boot_time")]
    pub boot_time: Duration,
    /// How many calls the account may make.
    #[serde(default)]
    pub buckets: Buckets,
    /// How long the service's answers may lag behind what was done.
    #[serde(default = "settling")]
    pub settling: Duration,
    /// How long a status check must have failed until the machine is replaced. Many come back by themselves, and the service moves
    /// some of them to other hardware. It counts against the engine's `move_deadline`, in which the other machine has to be up.
    #[serde(default = "impaired_for")]
    pub impaired_for: Duration,
    /// How often what moves is looked at: a machine that starts or stops takes many seconds for that.
    #[serde(default = "look_every")]
    pub look_every: Duration,
    /// How often machines that run are looked at for what nobody here has called for: that one was stopped, ended, or is in
    /// trouble.
    #[serde(default = "watch_every")]
    pub watch_every: Duration,
    /// The largest size of one instance.
    #[serde(default)]
    pub size_max: SizeMax,
}

/// Where a machine may be made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Place {
    /// The subnet by id, which names the zone too.
    pub subnet: String,
    /// Its zone, such as `eu-central-1a`: data that is there already has to be in the same.
    pub zone: String,
}

/// A type of machine, and what it has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineType {
    /// Its name, such as `t3.medium`.
    pub name: String,
    /// Thousandths of a CPU.
    pub cpu_millis: u32,
    /// Mebibytes of memory.
    pub memory_mib: u32,
}

impl MachineType {
    /// The smaller ones of the `t3` family; see <https://aws.amazon.com/ec2/instance-types/t3/>.
    #[must_use]
    pub fn usual() -> Vec<Self> {
        let named = |name: &str, cpu_millis, memory_mib| Self { name: name.into(), cpu_millis, memory_mib };
        vec![
            named("t3.micro", 2_000, 1_024),
            named("t3.small", 2_000, 2_048),
            named("t3.medium", 2_000, 4_096),
            named("t3.large", 2_000, 8_192),
            named("t3.xlarge", 4_000, 16_384),
            named("t3.2xlarge", 8_000, 32_768),
        ]
    }

    /// Whether it saves up for bursts: `t2`, `t3`, `t3a`, `t4g`.
    pub(crate) fn is_burstable(&self) -> bool {
        self.name.strip_prefix('t').is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
    }

    fn holds(&self, size: Size) -> bool {
        self.cpu_millis >= size.cpu_millis && self.memory_mib >= size.memory_mib
    }
}

fn private() -> Option<bool> {
    Some(false)
}

/// Longer than machines take from their start to that of their units.
fn boot_time() -> Duration {
    Duration::from_secs(180)
}

/// Longer than answers have been seen to lag.
fn settling() -> Duration {
    Duration::from_secs(60)
}

fn impaired_for() -> Duration {
    Duration::from_secs(120)
}

fn look_every() -> Duration {
    Duration::from_secs(2)
}

fn watch_every() -> Duration {
    Duration::from_secs(60)
}

impl VmConfig {
    /// One with the defaults for all but this.
    pub fn new(region: impl Into<String>, places: Vec<Place>) -> Self {
        Self {
            region: region.into(),
            endpoint: None,
            places,
            types: MachineType::usual(),
            unlimited_cpu: false,
            security_groups: Vec::new(),
            instance_profile: None,
            public_address: private(),
            root_gib: None,
            kms_key: None,
            probes: false,
            boot_time: boot_time(),
            buckets: Buckets::default(),
            settling: settling(),
            impaired_for: impaired_for(),
            look_every: look_every(),
            watch_every: watch_every(),
            size_max: SizeMax::NONE,
        }
    }

    /// The same at another address.
    #[must_use]
    pub fn with_endpoint(mut self, endpoint: impl Into<String>) -> Self {
        self.endpoint = Some(endpoint.into());
        self
    }

    /// Checks everything and makes the backend of it, with credentials as the AWS command line finds them. Touches nothing.
    ///
    /// # Errors
    /// [`InvalidSpec`](ErrorKind::InvalidSpec) naming the first field that is wrong and what was expected.
    pub fn build(self) -> Result<VmBackend> {
        self.check()?;
        Ok(VmBackend::new(self, None))
    }

    /// The same with the caller's own clients, which say where the services are and how they are signed in to. Let them not
    /// retry by themselves: the engine does.
    ///
    /// # Errors
    /// As [`build`](Self::build).
    pub fn build_with(self, ec2: aws_sdk_ec2::Client, sts: aws_sdk_sts::Client) -> Result<VmBackend> {
        self.check()?;
        Ok(VmBackend::new(self, Some(Clients { ec2, sts })))
    }

    /// The types that have room for a size, from the cheapest.
    pub(crate) fn types_for(&self, size: Size) -> impl Iterator<Item = &MachineType> + Clone {
        self.types.iter().filter(move |machine| machine.holds(size))
    }

    /// The most that one machine has.
    pub(crate) fn size_max(&self) -> SizeMax {
        let most = |of: fn(&MachineType) -> u32| self.types.iter().map(of).max().unwrap_or(0);
        SizeMax {
            cpu_millis: most(|machine| machine.cpu_millis).min(self.size_max.cpu_millis),
            memory_mib: most(|machine| machine.memory_mib).min(self.size_max.memory_mib),
            // Of gp3: <https://docs.aws.amazon.com/ebs/latest/userguide/general-purpose.html>.
            data_mib: (64 << 20).min(self.size_max.data_mib),
        }
    }

    fn check(&self) -> Result<()> {
        if self.region.is_empty() {
            return Err(wrong("region", "empty: expected a region such as eu-central-1"));
        }
        if self.places.is_empty() {
            return Err(wrong("places", "empty: expected at least one subnet and its zone"));
        }
        for (i, place) in self.places.iter().enumerate() {
            if !place.subnet.starts_with("subnet-") {
                return Err(wrong(&format!("places[{i}].subnet"), "expected the id of a subnet, subnet-..."));
            }
            if place.zone.is_empty() {
                return Err(wrong(&format!("places[{i}].zone"), "empty: expected a zone such as eu-central-1a"));
            }
        }
        if self.types.is_empty() {
            return Err(wrong("types", "empty: expected at least one type of machine"));
        }
        if let Some(i) = self.types.iter().position(|machine| machine.name.is_empty()) {
            return Err(wrong(&format!("types[{i}].name"), "empty: expected a type such as t3.medium"));
        }
        if let Some(i) = self.security_groups.iter().position(|group| !group.starts_with("sg-")) {
            return Err(wrong(&format!("security_groups[{i}]"), "expected the id of a security group, sg-..."));
        }
        if self.root_gib == Some(0) {
            return Err(wrong("root_gib", "0: expected 1 or more, or none"));
        }
        for (name, every) in [("look_every", self.look_every), ("watch_every", self.watch_every)] {
            if every < Duration::from_millis(1) {
                return Err(wrong(name, "expected a millisecond or more, such as 2 s"));
            }
        }
        for (_, name, Bucket { size, refill }) in self.buckets.all() {
            if size == 0 || refill == 0 {
                return Err(wrong(&format!("buckets.{name}"), "expected a size and a refill of 1 or more"));
            }
        }
        Ok(())
    }
}

fn wrong(field: &str, problem: &str) -> Error {
    Error::new(ErrorKind::InvalidSpec, "configure").with_field(field).with_message(problem)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> VmConfig {
        VmConfig::new("us-east-1", vec![Place { subnet: "subnet-1".into(), zone: "us-east-1a".into() }])
    }

    #[track_caller]
    fn assert_refused(change: impl FnOnce(&mut VmConfig), field: &str) {
        let mut config = config();
        change(&mut config);
        let error = config.build().unwrap_err();
        assert_eq!((error.kind(), error.field()), (ErrorKind::InvalidSpec, Some(field)));
    }

    #[test]
    fn each_wrong_field_is_named() {
        assert_refused(|c| c.region = String::new(), "region");
        assert_refused(|c| c.places.clear(), "places");
        assert_refused(|c| c.places[0].subnet = "vpc-1".into(), "places[0].subnet");
        assert_refused(|c| c.places[0].zone = String::new(), "places[0].zone");
        assert_refused(|c| c.types.clear(), "types");
        assert_refused(|c| c.security_groups = vec!["default".into()], "security_groups[0]");
        assert_refused(|c| c.root_gib = Some(0), "root_gib");
        assert_refused(|c| c.look_every = Duration::ZERO, "look_every");
        assert_refused(|c| c.watch_every = Duration::ZERO, "watch_every");
        assert_refused(|c| c.buckets.run.refill = 0, "buckets.run");
    }

    #[test]
    fn an_instance_gets_the_cheapest_machine_that_has_room() {
        let config = config();
        let first = |cpu_millis, memory_mib| {
            config.types_for(Size { cpu_millis, memory_mib }).next().map(|machine| machine.name.as_str())
        };
        assert_eq!(first(250, 256), Some("t3.micro"));
        assert_eq!(first(250, 3_000), Some("t3.medium"));
        assert_eq!(first(3_000, 256), Some("t3.xlarge"));
        assert_eq!(first(9_000, 256), None);
        assert_eq!((config.size_max().cpu_millis, config.size_max().memory_mib), (8_000, 32_768));
    }
}
