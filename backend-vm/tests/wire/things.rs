//! Machines and volumes, as the service shows them.

use std::collections::BTreeMap;

use provisioner_core::types::Target;

use crate::server::{Answer, Asked, ok};

/// A machine or a volume of a target.
#[derive(Debug, Clone)]
pub(crate) struct Thing {
    id: String,
    tags: String,
    said: BTreeMap<&'static str, String>,
}

impl Thing {
    fn of(target: &Target, id: String) -> Self {
        let tags = [
            ("control-plane", "plane".to_owned()),
            ("instance", target.id.to_string()),
            ("incarnation", target.incarnation.to_string()),
            ("data", target.data.id().to_string()),
            ("tenant", target.tenant.digest()),
            ("generation", "1".to_owned()),
            ("intended", "running".to_owned()),
        ];
        let tag = |(key, value)| format!("<item><key>provisioner:{key}</key><value>{value}</value></item>");
        Self { id, tags: tags.map(tag).concat(), said: BTreeMap::new() }
    }

    /// A machine in this state, with the number of the target's incarnation.
    pub(crate) fn machine(target: &Target, state: &str) -> Self {
        Self::of(target, format!("i-{}", target.incarnation.nonce())).with("state", state)
    }

    /// A volume that no machine has.
    pub(crate) fn volume(target: &Target, number: u32) -> Self {
        Self::of(target, format!("vol-{number}"))
    }

    /// The same, of which this is said: `state`, `volume`, `kind`, `subnet`, or the `code` of a reason.
    pub(crate) fn with(mut self, key: &'static str, value: &str) -> Self {
        self.said.insert(key, value.to_owned());
        self
    }

    fn said(&self, key: &str, show: impl Fn(&str) -> String) -> String {
        self.said.get(key).map(|value| show(value)).unwrap_or_default()
    }
}

/// The answer that shows these machines.
pub(crate) fn machines(asked: &Asked, all: &[Thing]) -> Answer {
    let shown = all.iter().map(|thing| {
        let said = [
            thing.said("state", |state| format!("<instanceState><code>0</code><name>{state}</name></instanceState>")),
            thing.said("kind", |kind| format!("<instanceType>{kind}</instanceType>")),
            thing.said("subnet", |subnet| format!("<subnetId>{subnet}</subnetId>")),
            thing.said("code", |code| {
                format!("<stateReason><code>{code}</code><message>it says why</message></stateReason>")
            }),
            thing.said("volume", |volume| {
                let ebs = format!("<ebs><volumeId>{volume}</volumeId></ebs>");
                let item = format!("<item><deviceName>/dev/sdf</deviceName>{ebs}</item>");
                format!("<blockDeviceMapping>{item}</blockDeviceMapping>")
            }),
        ];
        let (id, tags) = (&thing.id, &thing.tags);
        let item = format!("<item><instanceId>{id}</instanceId>{}<tagSet>{tags}</tagSet></item>", said.concat());
        format!("<item><instancesSet>{item}</instancesSet></item>")
    });
    ok(asked, &format!("<reservationSet>{}</reservationSet>", shown.collect::<String>()))
}

/// The answer that shows these volumes.
pub(crate) fn volumes(asked: &Asked, all: &[Thing]) -> Answer {
    let shown = all.iter().map(|thing| {
        let zone = "<availabilityZone>us-east-1a</availabilityZone>";
        let (id, tags) = (&thing.id, &thing.tags);
        format!("<item><volumeId>{id}</volumeId><status>available</status>{zone}<tagSet>{tags}</tagSet></item>")
    });
    ok(asked, &format!("<volumeSet>{}</volumeSet>", shown.collect::<String>()))
}
