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
