//! Checks a spec before it is accepted, and what of it cannot be changed in place.

use provisioner_core::{
    Error, ErrorKind, Result,
    types::{Capabilities, InstanceSpec, InvalidSpec},
};

use crate::{config::AppServiceConfig, render};

/// As many as leave room for ours among the 50 tags that a resource has:
/// <https://learn.microsoft.com/azure/azure-resource-manager/management/tag-resources#limitations>.
const LABELS_MAX: usize = 35;
/// A tag has 256 characters, and a time is in it too.
const HEALTH_PATH_MAX: usize = 240;
/// What begins with these is no value, but something that the service looks up.
const REFERENCES: [&str; 2] = ["@Microsoft.KeyVault(", "@Microsoft.AppConfiguration("];

pub(crate) fn spec(
    wanted: &InstanceSpec,
    applied: Option<&InstanceSpec>,
    capabilities: &Capabilities,
    config: &AppServiceConfig,
) -> Result<()> {
    wanted.check_against(capabilities)?;
    let workload = &wanted.workload;
    let refuse = |field: &str, problem: &str| Err(InvalidSpec::new(field, problem).into());
    match &workload.image {
        None => return refuse("workload.image", "absent: expected a container image"),
        Some(image) if image.contains(['|', ' ']) => return refuse("workload.image", "expected a container image"),
        Some(_) => {}
    }
    if workload.port.is_none() {
        return refuse("workload.port", "absent: expected the port that the product listens on");
    }
    let is_own_folder = |path: &String| {
        let mut parts = path.split('/').filter(|part| !part.is_empty()).peekable();
        path.starts_with('/') && parts.peek().is_some() && parts.all(|part| part != "." && part != "..")
    };
    if workload.data_path.as_ref().is_some_and(|path| !is_own_folder(path) || path.starts_with("/home")) {
        let problem =
            "expected an absolute path of a folder of its own, and not below /home, which the service mounts itself";
        return refuse("workload.data_path", problem);
    }
    if workload.health_path.chars().count() > HEALTH_PATH_MAX {
        let problem = format!("expected up to {HEALTH_PATH_MAX} characters, as the site's tags hold it");
        return refuse("workload.health_path", &problem);
    }
    for (name, value) in &wanted.environment {
        if REFERENCES.iter().any(|reference| value.starts_with(reference)) {
            let problem =
                "what the service would look up in a vault: expected a value, or the reference among the secrets";
            return refuse(&format!("environment.{name}"), problem);
        }
    }
    for (name, reference) in &wanted.secrets {
        if reference.scheme() == render::KEY_VAULT && render::key_vault_reference(reference.path()).is_none() {
            return refuse(
                &format!("secrets.{name}"),
                "expected keyvault:VAULT/SECRET or keyvault:VAULT/SECRET/VERSION",
            );
        }
    }
    if wanted.labels.len() > LABELS_MAX {
        return refuse("labels", &format!("expected up to {LABELS_MAX}"));
    }
    if config.size_max.data_mib < wanted.data.size_mib {
        return refuse("data.size_mib", "expected less, as the cell says");
    }
    match applied {
        Some(applied) => change(wanted, applied),
        None => Ok(()),
    }
}

fn change(wanted: &InstanceSpec, applied: &InstanceSpec) -> Result<()> {
    if render::share_gib(wanted) >= render::share_gib(applied) {
        return Ok(());
    }
    let problem =
        format!("{}: expected {} or more, as data does not shrink", wanted.data.size_mib, applied.data.size_mib);
    Err(Error::new(ErrorKind::Conflict, "validate").with_field("data.size_mib").with_message(problem))
}
