//! What the backend is told, checked before anything is touched.

use std::{
    net::{IpAddr, Ipv4Addr},
    ops::RangeInclusive,
    path::PathBuf,
};

use provisioner_core::{Error, ErrorKind, Result, types::SizeMax};
use serde::{Deserialize, Serialize};

use crate::backend::ProcessBackend;

/// What the backend is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProcessConfig {
    /// The folder under which everything is kept. Absolute. Made when it is first needed.
    pub root: PathBuf,
    /// The TCP ports that instances get, one each for their whole life. Keep it apart from the machine's range of
    /// ephemeral ports.
    #[serde(default = "default_ports")]
    pub ports: RangeInclusive<u16>,
    /// The address at which instances are expected to listen, and that goes into their endpoints.
    #[serde(default = "default_address")]
    pub address: IpAddr,
    /// The largest size of one instance.
    #[serde(default)]
    pub size_max: SizeLimit,
    /// `PATH` of instances whose spec sets none. The control plane's own is never handed down.
    #[serde(default = "default_path")]
    pub path: String,
}

/// The largest size of one instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SizeLimit {
    /// Thousandths of a CPU.
    pub cpu_millis: u32,
    /// Mebibytes of memory.
    pub memory_mib: u32,
    /// Mebibytes of data.
    pub data_mib: u32,
}

impl Default for SizeLimit {
    /// No limit.
    fn default() -> Self {
        Self { cpu_millis: u32::MAX, memory_mib: u32::MAX, data_mib: u32::MAX }
    }
}

impl From<SizeLimit> for SizeMax {
    fn from(limit: SizeLimit) -> Self {
        Self { cpu_millis: limit.cpu_millis, memory_mib: limit.memory_mib, data_mib: limit.data_mib }
    }
}

fn default_ports() -> RangeInclusive<u16> {
    20_000..=29_999
}

fn default_address() -> IpAddr {
    Ipv4Addr::LOCALHOST.into()
}

/// What an interactive user of most distributions gets. Scripts that start with `#!/usr/bin/env` need one.
fn default_path() -> String {
    "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".into()
}

impl ProcessConfig {
    /// A configuration with this root and the defaults for all else.
    #[must_use]
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self {
            root: root.into(),
            ports: default_ports(),
            address: default_address(),
            size_max: SizeLimit::default(),
            path: default_path(),
        }
    }

    /// The same with other ports.
    #[must_use]
    pub fn with_ports(mut self, ports: RangeInclusive<u16>) -> Self {
        self.ports = ports;
        self
    }

    /// Checks everything and makes the backend of it. No I/O.
    ///
    /// # Errors
    /// [`InvalidSpec`](ErrorKind::InvalidSpec) naming the first field that is wrong and what was expected.
    pub fn build(self) -> Result<ProcessBackend> {
        self.check()?;
        Ok(ProcessBackend::new(self))
    }

    fn check(&self) -> Result<()> {
        // Instances change their working directory, so a relative root would mean something else to them.
        if !self.root.is_absolute() {
            return Err(wrong("root", "expected an absolute path"));
        }
        // It becomes part of an environment variable and of messages.
        if self.root.to_str().is_none_or(|root| root.chars().any(char::is_control)) {
            return Err(wrong("root", "expected visible UTF-8 text"));
        }
        if self.ports.is_empty() || *self.ports.start() == 0 {
            return Err(wrong("ports", "expected a range within 1 to 65535, the first not above the last"));
        }
        if self.address.is_unspecified() || self.address.is_multicast() {
            return Err(wrong("address", "expected an address that can be connected to, such as 127.0.0.1"));
        }
        for (field, value) in [
            ("size_max.cpu_millis", self.size_max.cpu_millis),
            ("size_max.memory_mib", self.size_max.memory_mib),
            ("size_max.data_mib", self.size_max.data_mib),
        ] {
            if value == 0 {
                return Err(wrong(field, "0: expected 1 or more"));
            }
        }
        if self.path.is_empty()
            || self.path.split(':').any(|folder| !folder.starts_with('/'))
            || self.path.contains('\0')
        {
            return Err(wrong("path", "expected absolute folders, separated by colons"));
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

    #[track_caller]
    fn assert_refused(change: impl FnOnce(&mut ProcessConfig), field: &str) {
        let mut config = ProcessConfig::new("/srv/instances");
        change(&mut config);
        let error = config.build().unwrap_err();
        assert_eq!((error.kind(), error.field()), (ErrorKind::InvalidSpec, Some(field)));
    }

    #[tokio::test]
    async fn each_wrong_field_is_named() {
        assert_refused(|c| c.root = "instances".into(), "root");
        assert_refused(|c| c.ports = 0..=10, "ports");
        #[expect(clippy::reversed_empty_ranges, reason = "that is what is tried")]
        assert_refused(|c| c.ports = 10..=9, "ports");
        assert_refused(|c| c.address = Ipv4Addr::UNSPECIFIED.into(), "address");
        assert_refused(|c| c.size_max.memory_mib = 0, "size_max.memory_mib");
        assert_refused(|c| c.path = "bin".into(), "path");
        let backend = ProcessConfig::new("/srv/instances").build().unwrap();
        assert_eq!(backend.to_string(), "Process(/srv/instances)");
    }

    #[test]
    fn reads_from_a_file_and_refuses_unknown_fields() {
        let config: ProcessConfig = toml::from_str("root = '/srv'\nports = { start = 1000, end = 1999 }").unwrap();
        assert_eq!(config, ProcessConfig::new("/srv").with_ports(1000..=1999));
        assert!(toml::from_str::<ProcessConfig>("root = '/srv'\nrot = 1").is_err());
    }
}
