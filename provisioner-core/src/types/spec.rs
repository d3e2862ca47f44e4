//! What an instance should be.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use serde::{Deserialize, Serialize};

use super::{
    capabilities::{Capabilities, SecretSupport},
    id::{HostName, LabelKey, LabelValue, Network, VariableName},
};
use crate::secret::SecretReference;

/// What an instance should be. Holds references to secrets, never their values.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InstanceSpec {
    /// How the product runs.
    pub workload: Workload,
    /// How much compute it gets.
    #[serde(default)]
    pub size: Size,
    /// Its environment variables.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub environment: BTreeMap<VariableName, String>,
    /// Environment variables whose values are secrets, by reference.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub secrets: BTreeMap<VariableName, SecretReference>,
    /// The host names it is reached under. No two instances of a control plane share one.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub host_names: BTreeSet<HostName>,
    /// Its durable data.
    #[serde(default)]
    pub data: DataVolume,
    /// What it may reach.
    #[serde(default, skip_serializing_if = "Egress::is_anywhere")]
    pub egress: Egress,
    /// When it may be put to sleep for being idle.
    #[serde(default)]
    pub idle: IdlePolicy,
    /// When it ends by itself.
    #[serde(default)]
    pub expiry: ExpiryPolicy,
    /// What the vendor wants to find it by. Visible at the provider where that has labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<LabelKey, LabelValue>,
}

/// How the product runs, told once for every backend. A backend that lacks the part it needs refuses the spec and names
/// the field.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Workload {
    /// The version of the product, for people. A change of it is an update like any other.
    pub version: String,
    /// The container image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// What a runtime of the provider runs, instead of a container image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub package: Option<Package>,
    /// The command line: the program, then its arguments.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub command: Vec<String>,
    /// The VM image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vm_image: Option<String>,
    /// The script that starts the product on a VM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot_script: Option<String>,
    /// The TCP port it listens on. Backends that choose a port themselves hand it over in `PORT`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// The HTTP path that answers with a success status once the product is ready.
    #[serde(default = "Workload::default_health_path")]
    pub health_path: String,
    /// Where the product expects its durable data. Backends that choose the path themselves hand it over in `DATA_PATH`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data_path: Option<String>,
    /// How long it may take from its start until it is ready, in seconds.
    #[serde(default = "Workload::default_start_timeout")]
    pub start_timeout_seconds: u32,
    /// How long it may take to stop by itself after being asked to, in seconds.
    #[serde(default = "Workload::default_stop_grace")]
    pub stop_grace_seconds: u32,
}

/// A product as a ZIP file, for providers that bring a runtime.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Package {
    /// Where the file is: an https URL without a query, as what would be in one is a secret. Whoever runs it reads it as itself.
    pub url: String,
    /// What runs it, in the provider's words, such as `NODE|20-lts`.
    pub runtime: String,
}

/// How much compute an instance gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Size {
    /// Thousandths of a CPU.
    pub cpu_millis: u32,
    /// Mebibytes of memory.
    pub memory_mib: u32,
}

/// An instance's durable data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataVolume {
    /// Mebibytes of it.
    pub size_mib: u32,
}

/// What an instance may reach by itself. Answers to those who reach it are not meant.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Egress {
    /// Everything.
    #[default]
    Anywhere,
    /// Name servers, and these ranges of addresses. A backend that cannot hold it to that refuses the spec; see
    /// [`Capabilities::egress`](super::Capabilities::egress).
    Only(BTreeSet<Network>),
}

impl Egress {
    fn is_anywhere(&self) -> bool {
        *self == Self::Anywhere
    }
}

/// When an instance may be put to sleep for being idle.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IdlePolicy {
    /// Seconds without a request after which it is put to sleep; never when absent. Read by activators.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sleep_after_seconds: Option<u32>,
}

/// When an instance ends by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExpiryPolicy {
    /// Seconds after its creation when it is suspended with the hold `expired`; never when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suspend_after_seconds: Option<u32>,
}

impl Default for Size {
    fn default() -> Self {
        Self { cpu_millis: 250, memory_mib: 256 }
    }
}

impl Default for DataVolume {
    fn default() -> Self {
        Self { size_mib: 1024 }
    }
}

/// Which field of a spec is wrong and what it should be. Quotes no value that may be long or private.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct InvalidSpec {
    field: String,
    problem: String,
}

impl InvalidSpec {
    /// A complaint about one field: its path, such as `size.memory_mib`, and what was found and expected.
    pub fn new(field: impl Into<String>, problem: impl Into<String>) -> Self {
        Self { field: field.into(), problem: problem.into() }
    }

    /// The path of the field, such as `size.memory_mib`.
    #[must_use]
    pub fn field(&self) -> &str {
        &self.field
    }

    /// What was found and what was expected.
    #[must_use]
    pub fn problem(&self) -> &str {
        &self.problem
    }
}

/// The longest command line, environment value and so on that every backend must take, in bytes.
const TEXT_BYTES_MAX: usize = 32 * 1024;
/// All of a spec as JSON, in bytes: what one row of a store holds without pain.
const SPEC_BYTES_MAX: usize = 256 * 1024;

impl Workload {
    /// A workload with a version, and the rest to be filled in.
    pub fn new(version: impl Into<String>) -> Self {
        Self {
            version: version.into(),
            image: None,
            package: None,
            command: Vec::new(),
            vm_image: None,
            boot_script: None,
            port: None,
            health_path: Self::default_health_path(),
            data_path: None,
            start_timeout_seconds: Self::default_start_timeout(),
            stop_grace_seconds: Self::default_stop_grace(),
        }
    }

    /// The same with a command line: the program, then its arguments.
    #[must_use]
    pub fn with_command<S: Into<String>>(mut self, command: impl IntoIterator<Item = S>) -> Self {
        self.command = command.into_iter().map(Into::into).collect();
        self
    }

    fn default_health_path() -> String {
        "/".into()
    }

    fn default_start_timeout() -> u32 {
        60
    }

    fn default_stop_grace() -> u32 {
        10
    }

    fn check(&self) -> Result<(), InvalidSpec> {
        check_text("workload.version", &self.version, 128)?;
        for (field, value) in [
            ("workload.image", &self.image),
            ("workload.vm_image", &self.vm_image),
            ("workload.data_path", &self.data_path),
        ] {
            value.as_deref().map_or(Ok(()), |value| check_text(field, value, 1024))?;
        }
        if let Some(package) = &self.package {
            check_text("workload.package.url", &package.url, 1024)?;
            check_text("workload.package.runtime", &package.runtime, 128)?;
            if !package.url.starts_with("https://") || package.url.contains(['?', '#', '@', ' ']) {
                let problem = "expected an https URL without a query or a user, as what is there would be a secret";
                return Err(InvalidSpec::new("workload.package.url", problem));
            }
        }
        if let Some(script) = &self.boot_script {
            check_value("workload.boot_script", script)?;
        }
        for (i, part) in self.command.iter().enumerate() {
            check_value(&format!("workload.command[{i}]"), part)?;
        }
        if self.command.first().is_some_and(String::is_empty) {
            return Err(InvalidSpec::new("workload.command[0]", "empty: expected a program"));
        }
        if self.port == Some(0) {
            return Err(InvalidSpec::new("workload.port", "0: expected 1 to 65535"));
        }
        check_text("workload.health_path", &self.health_path, 1024)?;
        if !self.health_path.starts_with('/') || self.health_path.contains(['#', ' ']) {
            return Err(InvalidSpec::new(
                "workload.health_path",
                "expected a path that starts with '/', such as /healthz",
            ));
        }
        check_range("workload.start_timeout_seconds", self.start_timeout_seconds, 1, 24 * 3600)?;
        check_range("workload.stop_grace_seconds", self.stop_grace_seconds, 0, 3600)
    }
}

impl InstanceSpec {
    /// A spec with a workload and the defaults for all else.
    #[must_use]
    pub fn new(workload: Workload) -> Self {
        Self {
            workload,
            size: Size::default(),
            environment: BTreeMap::new(),
            secrets: BTreeMap::new(),
            host_names: BTreeSet::new(),
            data: DataVolume::default(),
            egress: Egress::default(),
            idle: IdlePolicy::default(),
            expiry: ExpiryPolicy::default(),
            labels: BTreeMap::new(),
        }
    }

    /// The spec of a thing whose spec is forgotten. Good for `observe` and `destroy` alone.
    #[must_use]
    pub fn forgotten() -> Self {
        Self::new(Workload::new("forgotten"))
    }

    /// Checks what holds for every backend.
    ///
    /// # Errors
    /// [`InvalidSpec`] naming the first field that is wrong and what was expected.
    pub fn check(&self) -> Result<(), InvalidSpec> {
        self.workload.check()?;
        check_range("size.cpu_millis", self.size.cpu_millis, 1, u32::MAX)?;
        check_range("size.memory_mib", self.size.memory_mib, 1, u32::MAX)?;
        check_range("data.size_mib", self.data.size_mib, 1, u32::MAX)?;
        for (name, value) in &self.environment {
            check_value(&format!("environment.{name}"), value)?;
            if self.secrets.contains_key(name) {
                let problem = "also in environment: expected each variable in one of the two";
                return Err(InvalidSpec::new(format!("secrets.{name}"), problem));
            }
        }
        if let Some(seconds) = self.idle.sleep_after_seconds {
            check_range("idle.sleep_after_seconds", seconds, 1, u32::MAX)?;
        }
        if let Some(seconds) = self.expiry.suspend_after_seconds {
            check_range("expiry.suspend_after_seconds", seconds, 1, u32::MAX)?;
        }
        let bytes = serde_json::to_vec(self).map_or(usize::MAX, |json| json.len());
        if bytes > SPEC_BYTES_MAX {
            return Err(InvalidSpec::new("spec", format!("{bytes} bytes as JSON: expected up to {SPEC_BYTES_MAX}")));
        }
        Ok(())
    }

    /// Checks what [`check`](Self::check) does and what a backend's capabilities allow: sizes, egress and secrets. Backends
    /// call it first in their [`validate`](crate::Provisioner::validate).
    ///
    /// # Errors
    /// [`InvalidSpec`] naming the first field that is wrong and what was expected.
    pub fn check_against(&self, capabilities: &Capabilities) -> Result<(), InvalidSpec> {
        self.check()?;
        let max = capabilities.size_max;
        check_range("size.cpu_millis", self.size.cpu_millis, 1, max.cpu_millis)?;
        check_range("size.memory_mib", self.size.memory_mib, 1, max.memory_mib)?;
        check_range("data.size_mib", self.data.size_mib, 1, max.data_mib)?;
        if !capabilities.egress && !self.egress.is_anywhere() {
            let problem = "only some networks: this cell cannot hold an instance to that: expected anywhere";
            return Err(InvalidSpec::new("egress", problem));
        }
        match (capabilities.secrets, self.secrets.iter().next()) {
            (SecretSupport::None, Some((name, _))) => {
                Err(InvalidSpec::new(format!("secrets.{name}"), "this cell takes no secrets: expected none"))
            }
            _ => Ok(()),
        }
    }
}

/// Environment values are left out: they are the customer's, and people put secrets where they do not belong.
impl fmt::Debug for InstanceSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InstanceSpec")
            .field("workload", &self.workload)
            .field("size", &self.size)
            .field("environment", &self.environment.keys())
            .field("secrets", &self.secrets)
            .field("host_names", &self.host_names)
            .field("data", &self.data)
            .field("egress", &self.egress)
            .field("idle", &self.idle)
            .field("expiry", &self.expiry)
            .field("labels", &self.labels)
            .finish()
    }
}

fn check_range(field: &str, value: u32, min: u32, max: u32) -> Result<(), InvalidSpec> {
    if (min..=max).contains(&value) {
        return Ok(());
    }
    let expected = if max == u32::MAX { format!("{min} or more") } else { format!("{min} to {max}") };
    Err(InvalidSpec::new(field, format!("{value}: expected {expected}")))
}

fn check_text(field: &str, value: &str, length_max: usize) -> Result<(), InvalidSpec> {
    let length = value.chars().count();
    if value.trim().is_empty() || length > length_max {
        let problem = format!("{length} characters: expected 1 to {length_max}, not only white space");
        return Err(InvalidSpec::new(field, problem));
    }
    if value.chars().any(char::is_control) {
        return Err(InvalidSpec::new(field, "a control character in it: expected none"));
    }
    Ok(())
}

fn check_value(field: &str, value: &str) -> Result<(), InvalidSpec> {
    if value.len() > TEXT_BYTES_MAX {
        return Err(InvalidSpec::new(field, format!("{} bytes: expected up to {TEXT_BYTES_MAX}", value.len())));
    }
    if value.contains('\0') {
        return Err(InvalidSpec::new(field, "a zero byte in it: expected none"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> InstanceSpec {
        InstanceSpec::new(Workload::new("1.0").with_command(["/bin/product"]))
    }

    #[track_caller]
    fn assert_refused(change: impl FnOnce(&mut InstanceSpec), field: &str, problem: &str) {
        let mut spec = spec();
        change(&mut spec);
        let error = spec.check().unwrap_err();
        assert_eq!(error.field(), field);
        assert!(error.problem().contains(problem), "{error}");
    }

    #[test]
    fn each_wrong_field_is_named_with_what_was_expected() {
        assert_eq!(spec().check(), Ok(()));
        assert_refused(|s| s.size.memory_mib = 0, "size.memory_mib", "0: expected 1 or more");
        assert_refused(|s| s.size.cpu_millis = 0, "size.cpu_millis", "expected 1");
        assert_refused(|s| s.data.size_mib = 0, "data.size_mib", "expected 1");
        assert_refused(|s| s.workload.version = String::new(), "workload.version", "expected 1 to 128");
        assert_refused(|s| s.workload.version = "a\nb".into(), "workload.version", "control");
        assert_refused(|s| s.workload.port = Some(0), "workload.port", "1 to 65535");
        assert_refused(|s| s.workload.health_path = "healthz".into(), "workload.health_path", "starts with '/'");
        assert_refused(|s| s.workload.start_timeout_seconds = 0, "workload.start_timeout_seconds", "1 to 86400");
        assert_refused(|s| s.workload.command = vec![String::new()], "workload.command[0]", "a program");
        assert_refused(|s| s.workload.command.push("a\0b".into()), "workload.command[1]", "zero byte");
        let name = VariableName::new("KEY").unwrap();
        assert_refused(|s| drop(s.environment.insert(name.clone(), "x".repeat(40_000))), "environment.KEY", "32768");
        assert_refused(
            |s| {
                s.environment.insert(name.clone(), String::new());
                s.secrets.insert(name.clone(), "env:KEY".parse().unwrap());
            },
            "secrets.KEY",
            "one of the two",
        );
    }

    #[test]
    fn a_size_beyond_the_cell_is_refused() {
        let max = super::super::SizeMax { cpu_millis: 1000, memory_mib: 512, data_mib: 2048 };
        let capabilities = Capabilities { size_max: max, ..Capabilities::PLAIN };
        let mut spec = spec();
        spec.size.memory_mib = 512;
        assert_eq!(spec.check_against(&capabilities), Ok(()));
        spec.size.memory_mib = 513;
        let error = spec.check_against(&capabilities).unwrap_err();
        assert_eq!(error.to_string(), "size.memory_mib: 513: expected 1 to 512");
    }

    #[test]
    fn egress_is_for_cells_that_can_hold_to_it() {
        let mut spec = spec();
        assert!(!serde_json::to_string(&spec).unwrap().contains("egress"));
        spec.egress = serde_json::from_str(r#"{"only": ["203.0.113.0/24"]}"#).unwrap();
        let error = spec.check_against(&Capabilities::PLAIN).unwrap_err();
        assert_eq!(error.field(), "egress");
        assert_eq!(spec.check_against(&Capabilities { egress: true, ..Capabilities::PLAIN }), Ok(()));
    }

    #[test]
    fn debug_shows_no_environment_value() {
        let mut spec = spec();
        spec.environment.insert(VariableName::new("KEY").unwrap(), "hunter2".into());
        assert!(!format!("{spec:?}").contains("hunter2"));
    }
}
