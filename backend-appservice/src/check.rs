//! Checks a spec before it is accepted, and what of it cannot be changed in place.

use std::collections::{BTreeMap, BTreeSet};

use provisioner_core::{
    Error, ErrorKind, Result,
    types::{Capabilities, InstanceSpec, InvalidSpec, Workload},
};

use crate::render;

/// As many as leave room for ours among the 50 tags that a resource has:
/// <https://learn.microsoft.com/azure/azure-resource-manager/management/tag-resources#limitations>.
const LABELS_MAX: usize = 35;
/// A tag has 256 characters, and a time is in it too.
const HEALTH_PATH_MAX: usize = 240;
/// How long the service waits for a container to start and to stop, in seconds:
/// <https://learn.microsoft.com/azure/app-service/reference-app-settings#custom-containers>.
const START_MAX: u32 = 1800;
const STOP_MAX: u32 = 120;
/// Where the service mounts something itself, or a container throws away.
const TAKEN_FOLDERS: [&str; 2] = ["home", "tmp"];
/// What begins with these is no value, but something that the service looks up.
const REFERENCES: [&str; 2] = ["@Microsoft.KeyVault(", "@Microsoft.AppConfiguration("];

/// Whether the service would take a value for a reference. It is not told whether it minds capitals.
pub(crate) fn is_reference(value: &str) -> bool {
    let begins =
        |reference: &&str| value.get(..reference.len()).is_some_and(|start| start.eq_ignore_ascii_case(reference));
    REFERENCES.iter().any(begins)
}

type Checked = std::result::Result<(), InvalidSpec>;

fn refuse(field: &str, problem: &str) -> Checked {
    Err(InvalidSpec::new(field, problem))
}

pub(crate) fn spec(wanted: &InstanceSpec, applied: Option<&InstanceSpec>, capabilities: &Capabilities) -> Result<()> {
    wanted.check_against(capabilities)?;
    product(&wanted.workload)?;
    workload(&wanted.workload)?;
    settings(wanted)?;
    names(wanted)?;
    match applied {
        Some(applied) => change(wanted, applied),
        None => Ok(()),
    }
}

/// What runs.
fn product(workload: &Workload) -> Checked {
    match (&workload.image, &workload.package) {
        (None, None) => {
            refuse("workload.image", "absent, and so is workload.package: expected a container image or a package")
        }
        (Some(_), Some(_)) => refuse("workload.package", "there is an image, too: expected one of the two"),
        (Some(image), None) if image.contains(['|', ' ']) => refuse("workload.image", "expected a container image"),
        (None, Some(package)) if !is_runtime(&package.runtime) => {
            refuse("workload.package.runtime", "expected a runtime and its version, such as NODE|20-lts")
        }
        _ => Ok(()),
    }
}

/// How it runs.
fn workload(workload: &Workload) -> Checked {
    if workload.port.is_none() {
        return refuse("workload.port", "absent: expected the port that the product listens on");
    }
    if let Some(path) = &workload.data_path {
        let parts: Vec<_> = path.split('/').filter(|part| !part.is_empty()).collect();
        let is_taken = parts.first().is_none_or(|first| TAKEN_FOLDERS.contains(first));
        if is_taken || !path.starts_with('/') || parts.iter().any(|part| [".", ".."].contains(part)) {
            let problem = "expected an absolute path of a folder of its own, and not in /home or /tmp";
            return refuse("workload.data_path", problem);
        }
    }
    if workload.start_timeout_seconds > START_MAX {
        return refuse("workload.start_timeout_seconds", "expected up to 1800, as the service waits no longer");
    }
    if workload.stop_grace_seconds > STOP_MAX {
        return refuse("workload.stop_grace_seconds", "expected up to 120, as the service waits no longer");
    }
    if workload.health_path.chars().count() > HEALTH_PATH_MAX {
        let problem = format!("expected up to {HEALTH_PATH_MAX} characters, as the site's tags hold it");
        return refuse("workload.health_path", &problem);
    }
    Ok(())
}

/// Its environment. The service does not tell capitals from small letters in names.
fn settings(wanted: &InstanceSpec) -> Checked {
    let variables = wanted.environment.keys().map(|name| ("environment", name));
    let mut plain_names = BTreeMap::new();
    for (field, name) in variables.chain(wanted.secrets.keys().map(|name| ("secrets", name))) {
        let (plain, path) = (name.as_str().to_ascii_uppercase(), format!("{field}.{name}"));
        if render::OWN_SETTINGS.contains(&&*plain) {
            return refuse(&path, "a setting that this backend makes: expected another name");
        }
        let is_default = render::DEFAULT_SETTINGS.contains(&&*plain) && plain != name.as_str();
        if is_default || plain_names.insert(plain, name).is_some() {
            return refuse(&path, "there is another one that differs in capitals alone: expected one of them");
        }
    }
    for (name, value) in &wanted.environment {
        if is_reference(value) {
            let problem =
                "what the service would look up in a vault: expected a value, or the reference among the secrets";
            return refuse(&format!("environment.{name}"), problem);
        }
    }
    for (name, reference) in &wanted.secrets {
        if reference.scheme() == render::KEY_VAULT && render::key_vault_reference(reference.path()).is_none() {
            let problem = "expected keyvault:VAULT/SECRET or keyvault:VAULT/SECRET/VERSION";
            return refuse(&format!("secrets.{name}"), problem);
        }
    }
    Ok(())
}

/// By which names it is found.
fn names(wanted: &InstanceSpec) -> Checked {
    if wanted.labels.len() > LABELS_MAX {
        return refuse("labels", &format!("expected up to {LABELS_MAX}"));
    }
    let labels: BTreeSet<_> = wanted.labels.keys().map(|key| key.as_str().to_ascii_lowercase()).collect();
    if labels.len() < wanted.labels.len() {
        return refuse("labels", "two of them differ in capitals alone: expected one of them");
    }
    match wanted.host_names.iter().find(|host| host.as_str().ends_with(".azurewebsites.net")) {
        Some(host) => refuse("host_names", &format!("{host}: the service's own: expected names of the customer's")),
        None => Ok(()),
    }
}

/// As `az webapp list-runtimes` names them, but for the service's own word for containers.
fn is_runtime(text: &str) -> bool {
    let is_word =
        |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b));
    text.split_once('|').is_some_and(|(name, version)| is_word(name) && is_word(version) && name != "DOCKER")
}

fn change(wanted: &InstanceSpec, applied: &InstanceSpec) -> Result<()> {
    if render::share_gib(wanted) >= render::share_gib(applied) {
        return Ok(());
    }
    let problem =
        format!("{}: expected {} or more, as data does not shrink", wanted.data.size_mib, applied.data.size_mib);
    Err(Error::new(ErrorKind::Conflict, "validate").with_field("data.size_mib").with_message(problem))
}

#[cfg(test)]
mod tests {
    use provisioner_core::types::{Package, SecretSupport};

    use super::*;

    fn checked(change: impl FnOnce(&mut InstanceSpec), applied: Option<&InstanceSpec>) -> Option<(ErrorKind, String)> {
        let mut spec = wanted();
        change(&mut spec);
        let mut capabilities = Capabilities::PLAIN;
        capabilities.secrets = SecretSupport::Resolved;
        let error = super::spec(&spec, applied, &capabilities).err()?;
        Some((error.kind(), error.field().unwrap_or_default().to_owned()))
    }

    fn wanted() -> InstanceSpec {
        let mut workload = Workload::new("1.0");
        workload.image = Some("registry.example.com/product:1.0".into());
        workload.port = Some(8080);
        let mut spec = InstanceSpec::new(workload);
        spec.data.size_mib = 2048;
        spec
    }

    fn package(url: &str, runtime: &str) -> Package {
        Package { url: url.into(), runtime: runtime.into() }
    }

    #[test]
    fn what_is_wrong_is_named() {
        assert_eq!(checked(|_| {}, None), None);
        let packed = |spec: &mut InstanceSpec| {
            spec.workload.image = None;
            spec.workload.package = Some(package("https://a.blob.core.windows.net/p/1.zip", "NODE|20-lts"));
        };
        assert_eq!(checked(packed, None), None);
        type Spoil = fn(&mut InstanceSpec);
        let wrong: [(&str, Spoil); 20] = [
            ("workload.image", |spec| spec.workload.image = None),
            ("workload.image", |spec| spec.workload.image = Some("DOCKER|a".into())),
            ("workload.package", |spec| spec.workload.package = Some(package("https://a/1.zip", "NODE|20-lts"))),
            ("workload.package.url", |spec| {
                spec.workload.package = Some(package("https://a/1.zip?sig=x", "NODE|20-lts"))
            }),
            ("workload.package.runtime", |spec| {
                spec.workload.image = None;
                spec.workload.package = Some(package("https://a/1.zip", "DOCKER|a"));
            }),
            ("workload.port", |spec| spec.workload.port = None),
            ("workload.data_path", |spec| spec.workload.data_path = Some("//home/data".into())),
            ("workload.data_path", |spec| spec.workload.data_path = Some("/tmp".into())),
            ("workload.start_timeout_seconds", |spec| spec.workload.start_timeout_seconds = 1801),
            ("workload.stop_grace_seconds", |spec| spec.workload.stop_grace_seconds = 121),
            ("environment.websites_port", |spec| {
                spec.environment.insert("websites_port".parse().unwrap(), "1".into());
            }),
            ("environment.key", |spec| {
                for name in ["KEY", "key"] {
                    spec.environment.insert(name.parse().unwrap(), "1".into());
                }
            }),
            ("labels", |spec| {
                for key in ["Tier", "tier"] {
                    spec.labels.insert(key.parse().unwrap(), "1".parse().unwrap());
                }
            }),
            ("host_names", |spec| {
                spec.host_names.insert("a.azurewebsites.net".parse().unwrap());
            }),
            ("workload.data_path", |spec| spec.workload.data_path = Some("/a/../etc".into())),
            ("workload.data_path", |spec| spec.workload.data_path = Some("/".into())),
            ("workload.health_path", |spec| spec.workload.health_path = format!("/{}", "x".repeat(300))),
            ("environment.KEY", |spec| {
                spec.environment.insert("KEY".parse().unwrap(), "@Microsoft.KeyVault(SecretUri=x)".into());
            }),
            ("secrets.KEY", |spec| {
                spec.secrets.insert("KEY".parse().unwrap(), "keyvault:vault".parse().unwrap());
            }),
            ("labels", |spec| {
                spec.labels = (0..40).map(|n| (format!("l{n}").parse().unwrap(), "v".parse().unwrap())).collect();
            }),
        ];
        for (field, spoil) in wrong {
            assert_eq!(checked(spoil, None), Some((ErrorKind::InvalidSpec, field.to_owned())));
        }
    }

    #[test]
    fn data_grows_and_does_not_shrink() {
        let applied = wanted();
        assert_eq!(checked(|spec| spec.data.size_mib = 4096, Some(&applied)), None);
        let shrunk = Some((ErrorKind::Conflict, "data.size_mib".to_owned()));
        assert_eq!(checked(|spec| spec.data.size_mib = 1024, Some(&applied)), shrunk);
        // Shares come in whole gibibytes.
        assert_eq!(checked(|spec| spec.data.size_mib = 1025, Some(&applied)), None);
    }
}
