//! Checks a spec before it is accepted, and what of it cannot be changed in place.

use provisioner_core::{
    Error, ErrorKind, Result,
    types::{Capabilities, InstanceSpec, InvalidSpec},
};

use crate::{
    boot::{self, Disk},
    config::VmConfig,
    images, launch,
};

/// As many as leave room for ours: <https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/Using_Tags.html#tag-restrictions>.
const LABELS_MAX: usize = 30;

pub(crate) fn spec(
    wanted: &InstanceSpec,
    applied: Option<&InstanceSpec>,
    capabilities: &Capabilities,
    config: &VmConfig,
) -> Result<()> {
    wanted.check_against(capabilities)?;
    images::check(wanted)?;
    let workload = &wanted.workload;
    if workload.vm_image.as_deref().is_some_and(|image| image.starts_with("lt-")) && config.public_address.is_some() {
        let problem = "a launch template: expected an image, as whether machines of a template get a public address is not for this \
                       cell to say (its public_address is to be none for that)";
        return Err(InvalidSpec::new("workload.vm_image", problem).into());
    }
    if workload.port.is_none() {
        return Err(InvalidSpec::new("workload.port", "absent: expected the port that the product listens on").into());
    }
    if workload.boot_script.is_none() && workload.command.is_empty() {
        let problem = "absent, and so is workload.boot_script: expected one of them to start the product";
        return Err(InvalidSpec::new("workload.command", problem).into());
    }
    let is_own_folder = |path: &String| {
        let mut parts = path.split('/').filter(|part| !part.is_empty()).peekable();
        path.starts_with('/') && parts.peek().is_some() && parts.all(|part| part != "." && part != "..")
    };
    if workload.data_path.as_ref().is_some_and(|path| !is_own_folder(path)) {
        return Err(InvalidSpec::new("workload.data_path", "expected an absolute path of a folder of its own").into());
    }
    if workload.health_path.chars().count() > HEALTH_PATH_MAX {
        let problem = format!("expected up to {HEALTH_PATH_MAX} characters, as the machine's tags hold it");
        return Err(InvalidSpec::new("workload.health_path", problem).into());
    }
    for (name, reference) in &wanted.secrets {
        if ![boot::SECRETS_MANAGER, boot::PARAMETER_STORE].contains(&reference.scheme()) {
            let problem = format!("a secret of {}: expected secretsmanager:NAME or ssm:NAME", reference.scheme());
            return Err(InvalidSpec::new(format!("secrets.{name}"), problem).into());
        }
        if config.instance_profile.is_none() {
            let problem =
                "this cell has no instance_profile, and a machine without one may fetch no secret: expected none";
            return Err(InvalidSpec::new(format!("secrets.{name}"), problem).into());
        }
    }
    if config.types_for(wanted.size).next().is_none() {
        return Err(InvalidSpec::new("size", "no type of machine has room for it: expected less").into());
    }
    if wanted.labels.len() > LABELS_MAX {
        return Err(InvalidSpec::new("labels", format!("expected up to {LABELS_MAX}")).into());
    }
    boot::user_data(wanted, &config.region, Disk { may_format: true, id: None })?;
    match applied {
        Some(applied) => change(wanted, applied),
        None => Ok(()),
    }
}

/// A tag has 256 characters, and port and time are in it too.
const HEALTH_PATH_MAX: usize = 230;

fn change(wanted: &InstanceSpec, applied: &InstanceSpec) -> Result<()> {
    let (new, old) = (launch::volume_gib(wanted), launch::volume_gib(applied));
    if new >= old {
        return Ok(());
    }
    let problem =
        format!("{}: expected {} or more, as volumes do not shrink", wanted.data.size_mib, applied.data.size_mib);
    Err(Error::new(ErrorKind::Conflict, "validate").with_field("data.size_mib").with_message(problem))
}

#[cfg(test)]
mod tests {
    use provisioner_core::types::Workload;

    use super::*;
    use crate::config::Place;

    fn checked(change: impl FnOnce(&mut InstanceSpec), applied: Option<&InstanceSpec>) -> Option<(ErrorKind, String)> {
        let config = VmConfig::new("r", vec![Place { subnet: "subnet-1".into(), zone: "a".into() }]);
        let mut spec = wanted();
        change(&mut spec);
        let mut capabilities = Capabilities::PLAIN;
        capabilities.secrets = provisioner_core::types::SecretSupport::Native;
        let error = super::spec(&spec, applied, &capabilities, &config).err()?;
        Some((error.kind(), error.field().unwrap_or_default().to_owned()))
    }

    fn wanted() -> InstanceSpec {
        let mut workload = Workload::new("1.0").with_command(["/product"]);
        workload.port = Some(80);
        workload.vm_image = Some("ami-1".into());
        let mut spec = InstanceSpec::new(workload);
        spec.data.size_mib = 2048;
        spec
    }

    #[test]
    fn what_is_wrong_is_named() {
        assert_eq!(checked(|_| {}, None), None);
        type Spoil = fn(&mut InstanceSpec);
        let wrong: [(&str, Spoil); 9] = [
            ("workload.port", |spec| spec.workload.port = None),
            ("workload.command", |spec| spec.workload.command.clear()),
            ("workload.vm_image", |spec| spec.workload.vm_image = Some("debian".into())),
            ("workload.data_path", |spec| spec.workload.data_path = Some("/a/../etc".into())),
            // Nobody says there that it gets no public address.
            ("workload.vm_image", |spec| spec.workload.vm_image = Some("lt-1".into())),
            ("workload.data_path", |spec| spec.workload.data_path = Some("/".into())),
            ("workload.health_path", |spec| spec.workload.health_path = format!("/{}", "x".repeat(300))),
            ("size", |spec| spec.size.memory_mib = 1 << 20),
            // Without a profile a machine may fetch none.
            ("secrets.KEY", |spec| {
                spec.secrets.insert("KEY".parse().unwrap(), "ssm:/key".parse().unwrap());
            }),
        ];
        for (field, spoil) in wrong {
            assert_eq!(checked(spoil, None), Some((ErrorKind::InvalidSpec, field.to_owned())));
        }
    }

    #[test]
    fn a_volume_grows_and_does_not_shrink() {
        let applied = wanted();
        assert_eq!(checked(|spec| spec.data.size_mib = 4096, Some(&applied)), None);
        let shrunk = Some((ErrorKind::Conflict, "data.size_mib".to_owned()));
        assert_eq!(checked(|spec| spec.data.size_mib = 1024, Some(&applied)), shrunk);
        // Disks come in whole gibibytes.
        assert_eq!(checked(|spec| spec.data.size_mib = 1025, Some(&applied)), None);
    }
}
