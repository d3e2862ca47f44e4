//! What is kept of machines and volumes: as little as tells how an instance stands.

use aws_sdk_ec2::types::{Instance, InstanceStateName, Tag, Volume as Ec2Volume, VolumeState};
use provisioner_core::types::{ControlPlaneId, DataId, Generation, Incarnation, InstanceId};

use crate::names;

/// What an instance is meant to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Intended {
    Running,
    /// To run again, with something changed that only can be while it is stopped.
    Updating,
    Zero,
    Suspended,
}

impl Intended {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Updating => "updating",
            Self::Zero => "zero",
            Self::Suspended => "suspended",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        let all = [Self::Running, Self::Updating, Self::Zero, Self::Suspended];
        all.into_iter().find(|intended| intended.as_str() == text)
    }
}

/// What a machine does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    Pending,
    Running,
    Stopping,
    Stopped,
    ShuttingDown,
    Terminated,
}

/// Whose a thing is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Owner {
    pub(crate) control_plane: ControlPlaneId,
    pub(crate) instance: InstanceId,
    pub(crate) incarnation: Incarnation,
    pub(crate) data: DataId,
    pub(crate) tenant: Box<str>,
}

impl Owner {
    /// `None`: a thing of nobody's, whatever else its tags say.
    fn of(tags: &[Tag]) -> Option<Self> {
        Some(Self {
            control_plane: tag(tags, names::CONTROL_PLANE)?.parse().ok()?,
            instance: tag(tags, names::INSTANCE)?.parse().ok()?,
            incarnation: tag(tags, names::INCARNATION)?.parse().ok()?,
            data: tag(tags, names::DATA)?.parse().ok()?,
            tenant: tag(tags, names::TENANT)?.into(),
        })
    }
}

/// Where and how soon a product answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Product {
    pub(crate) port: u16,
    pub(crate) start_timeout_seconds: u32,
    pub(crate) health_path: Box<str>,
}

impl Product {
    pub(crate) fn to_tag(&self) -> String {
        format!("{} {} {}", self.port, self.start_timeout_seconds, self.health_path)
    }

    fn parse(text: &str) -> Option<Self> {
        let mut words = text.splitn(3, ' ');
        Some(Self {
            port: words.next()?.parse().ok()?,
            start_timeout_seconds: words.next()?.parse().ok()?,
            health_path: words.next()?.into(),
        })
    }
}

/// A virtual machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Machine {
    pub(crate) id: Box<str>,
    pub(crate) owner: Owner,
    pub(crate) state: State,
    pub(crate) generation: Generation,
    pub(crate) intended: Intended,
    pub(crate) boot: Box<str>,
    pub(crate) image: Box<str>,
    pub(crate) size: Box<str>,
    pub(crate) spec: Box<str>,
    pub(crate) product: Option<Product>,
    pub(crate) labels: Vec<(Box<str>, Box<str>)>,
    pub(crate) address: Option<Box<str>>,
    /// The data volume that is attached.
    pub(crate) volume: Option<Box<str>>,
    /// Its type.
    pub(crate) kind: Box<str>,
    pub(crate) subnet: Box<str>,
    /// Why it stopped or ended, as the service tells it: a code and words.
    pub(crate) why: Option<(Box<str>, Box<str>)>,
    /// When it was started last, in milliseconds since 1970.
    pub(crate) started_at: i64,
}

impl Machine {
    pub(crate) fn of(machine: &Instance) -> Option<Self> {
        let tags = machine.tags();
        let state = match machine.state()?.name()? {
            InstanceStateName::Pending => State::Pending,
            InstanceStateName::Running => State::Running,
            InstanceStateName::Stopping => State::Stopping,
            InstanceStateName::Stopped => State::Stopped,
            InstanceStateName::ShuttingDown => State::ShuttingDown,
            InstanceStateName::Terminated => State::Terminated,
            _ => return None,
        };
        let text = |key| tag(tags, key).unwrap_or_default().into();
        let mut attached = machine.block_device_mappings().iter();
        let data = attached.find(|mapping| mapping.device_name() == Some(names::DEVICE));
        let labels = tags.iter().filter_map(|tag| {
            let label = tag.key()?.strip_prefix(names::LABEL)?;
            Some((label.into(), tag.value().unwrap_or_default().into()))
        });
        Some(Self {
            id: machine.instance_id()?.into(),
            owner: Owner::of(tags)?,
            state,
            generation: Generation(tag(tags, names::GENERATION).and_then(|text| text.parse().ok()).unwrap_or(0)),
            intended: tag(tags, names::INTENDED).and_then(Intended::parse).unwrap_or(Intended::Running),
            boot: text(names::BOOT),
            image: text(names::IMAGE),
            size: text(names::SIZE),
            spec: text(names::SPEC),
            product: tag(tags, names::PRODUCT).and_then(Product::parse),
            labels: labels.collect(),
            address: machine.private_ip_address().map(Into::into),
            volume: data.and_then(|mapping| mapping.ebs()?.volume_id()).map(Into::into),
            kind: machine.instance_type().map_or("", |kind| kind.as_str()).into(),
            subnet: machine.subnet_id().unwrap_or_default().into(),
            why: machine
                .state_reason()
                .map(|reason| (reason.code().unwrap_or_default().into(), reason.message().unwrap_or_default().into())),
            started_at: machine.launch_time().and_then(|at| at.to_millis().ok()).unwrap_or_default(),
        })
    }

    /// Why the service could not make it, though it had said that it would. The codes of a
    /// [`StateReason`](https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_StateReason.html).
    pub(crate) fn failed_launch(&self) -> Option<FailedLaunch<'_>> {
        let (code, message) = self.why.as_ref().filter(|_| self.state == State::Terminated)?;
        let is_full = match &**code {
            "Server.InsufficientInstanceCapacity" => true,
            "Client.InternalError"
            | "Client.InvalidSnapshot.NotFound"
            | "Client.VolumeLimitExceeded"
            | "Server.InternalError" => false,
            _ => return None,
        };
        Some(FailedLaunch { is_full, code, message })
    }

    /// Whether it can be used again.
    pub(crate) const fn is_living(&self) -> bool {
        !matches!(self.state, State::ShuttingDown | State::Terminated)
    }
}

/// Why a machine ended instead of coming up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FailedLaunch<'a> {
    /// There was no room after all.
    pub(crate) is_full: bool,
    pub(crate) code: &'a str,
    pub(crate) message: &'a str,
}

/// A volume that was made with a machine, or given to one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Volume {
    pub(crate) id: Box<str>,
    /// Whether it holds data, and is not one that a machine boots from or that its image brought along. All of them have the tags
    /// of the request that made them.
    pub(crate) is_data: bool,
    /// Whether the service removes it with its machine.
    pub(crate) goes_with_machine: bool,
    /// Who used it last.
    pub(crate) owner: Owner,
    pub(crate) zone: Box<str>,
    pub(crate) size_gib: i32,
    /// The machine that has it.
    pub(crate) machine: Option<Box<str>>,
    /// The making that is done with it.
    pub(crate) released: Option<Incarnation>,
    /// The making with which it is to go.
    pub(crate) ending: Option<Incarnation>,
}

impl Volume {
    /// `None`: a thing of nobody's, or one that is gone.
    pub(crate) fn of(volume: &Ec2Volume) -> Option<Self> {
        if matches!(volume.state(), Some(VolumeState::Deleting | VolumeState::Deleted)) {
            return None;
        }
        let attachment = volume.attachments().first();
        let device = attachment.and_then(|attachment| attachment.device());
        let is_copy =
            volume.snapshot_id().is_some_and(|id| !id.is_empty()) && tag(volume.tags(), names::RESTORED).is_none();
        let tags = volume.tags();
        let making = |key| tag(tags, key).and_then(|text| text.parse().ok());
        Some(Self {
            id: volume.volume_id()?.into(),
            is_data: device.map_or(!is_copy, |device| device == names::DEVICE),
            goes_with_machine: attachment.is_some_and(|it| it.delete_on_termination().unwrap_or(true)),
            owner: Owner::of(tags)?,
            zone: volume.availability_zone().unwrap_or_default().into(),
            size_gib: volume.size().unwrap_or(0),
            machine: attachment.and_then(|attachment| attachment.instance_id()).map(Into::into),
            released: making(names::RELEASED),
            ending: making(names::ENDING),
        })
    }

    /// Whether it is to go with the making that used it last.
    pub(crate) fn is_ending(&self) -> bool {
        self.ending == Some(self.owner.incarnation)
    }

    /// Whether the making that used it last has left it to others.
    pub(crate) fn is_released(&self) -> bool {
        self.released == Some(self.owner.incarnation)
    }
}

fn tag<'a>(tags: &'a [Tag], key: &str) -> Option<&'a str> {
    tags.iter().find(|tag| tag.key() == Some(key))?.value()
}

#[cfg(test)]
mod tests {
    use aws_sdk_ec2::types::{InstanceState, VolumeAttachment};

    use super::*;

    fn tags(others: &[(&str, &str)]) -> Vec<Tag> {
        let all = [
            (names::CONTROL_PLANE, "plane"),
            (names::INSTANCE, "acme"),
            (names::INCARNATION, "1-0000000000000000000000000000000a"),
            (names::DATA, "0000000000000000000000000000000b"),
            (names::TENANT, "0123456789abcdef"),
        ];
        all.iter().chain(others).map(|(key, value)| Tag::builder().key(*key).value(*value).build()).collect()
    }

    #[test]
    fn a_machine_is_known_by_its_tags() {
        let known = tags(&[(names::GENERATION, "7"), (names::INTENDED, "zero"), (names::PRODUCT, "80 60 /health z")]);
        let machine = |tags| {
            let state = InstanceState::builder().name(InstanceStateName::Stopped).build();
            Machine::of(&Instance::builder().instance_id("i-1").state(state).set_tags(Some(tags)).build())
        };
        let seen = machine(known).unwrap();
        assert_eq!((seen.state, seen.intended, seen.generation), (State::Stopped, Intended::Zero, Generation(7)));
        assert_eq!((seen.owner.incarnation, seen.owner.control_plane.as_str()), (Incarnation::new(1, 10), "plane"));
        assert_eq!(seen.product.unwrap().to_tag(), "80 60 /health z");
        assert_eq!(machine(tags(&[])[1..].to_vec()), None, "whose it is has to be said");
    }

    #[test]
    fn a_volume_that_a_machine_boots_from_is_no_data() {
        let volume = |device: Option<&str>, snapshot: &str, others: &[(&str, &str)]| {
            let attachment = device.map(|device| VolumeAttachment::builder().device(device).instance_id("i-1").build());
            let volume = Ec2Volume::builder().volume_id("vol-1").set_tags(Some(tags(others))).snapshot_id(snapshot);
            Volume::of(&volume.set_attachments(attachment.map(|it| vec![it])).build()).unwrap()
        };
        assert!(!volume(Some("/dev/xvda"), "snap-1", &[]).is_data);
        let data = volume(Some(names::DEVICE), "", &[]);
        assert_eq!((data.is_data, data.machine.as_deref()), (true, Some("i-1")));
        // What is left of a machine comes from its image.
        assert!(!volume(None, "snap-1", &[]).is_data);
        assert!(volume(None, "", &[]).is_data);
        assert!(volume(None, "snap-1", &[(names::RESTORED, "yes")]).is_data, "an operator says so");
    }
}
