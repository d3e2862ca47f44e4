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
    /// The TCP ports that instances get, one each, asleep or not. Keep it apart from the machine's range of
    /// ephemeral ports.
    #[serde(default = "default_ports")]
    pub ports: RangeInclusive<u16>,
    /// The address at which instances are expected to listen, and that goes into their endpoints.
    #[serde(default = "default_address")]
    pub address: IpAddr,
    /// The largest size of one instance.
    #[serde(default)]
    pub size_max: SizeMax,
    /// `PATH` of instances whose spec sets none. The control plane's own is never handed down.
    #[serde(default = "default_path")]
    pub path: String,
    /// The user ids that instances run as, one for each data set, when the control plane runs as root. Group ids are the
    /// same. Nobody else may have them, also not another root on this machine. `None`: instances run as the control plane's
    /// own user, as they always do when that is not root, or root in a user namespace that lacks some of the ids, or root
    /// without the capabilities for it: [`Isolation::users`](provisioner_core::types::Isolation::users) tells.
    #[serde(default = "default_users")]
    pub users: Option<RangeInclusive<u32>>,
    /// The control group below which every instance gets one of its own, from the top of each hierarchy that may be
    /// written. `None`: none; memory is then bounded for each process, and CPU time is not.
    #[serde(default = "default_cgroup")]
    pub cgroup: Option<String>,
    /// The most processes and threads that one instance may have at a time.
    #[serde(default = "default_processes_max")]
    pub processes_max: u32,
    /// Mebibytes that the log of an instance may grow to before it is turned over. One old one is kept.
    #[serde(default = "default_log_mib_max")]
    pub log_mib_max: u32,
    /// Says that the service manager which runs the control plane leaves its children alone when it stops it, as systemd
    /// does with `KillMode=process`. Of no account where instances have control groups, or there is no such manager.
    #[serde(default)]
    pub service_spares_children: bool,
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

/// Used by no distribution, by no container runtime and by no dynamic user: see <https://systemd.io/UIDS-GIDS/>.
#[expect(clippy::unnecessary_wraps, reason = "it is the default of an option")]
fn default_users() -> Option<RangeInclusive<u32>> {
    Some(1_900_000_000..=1_900_065_535)
}

#[expect(clippy::unnecessary_wraps, reason = "it is the default of an option")]
fn default_cgroup() -> Option<String> {
    Some("provisioner".into())
}

fn default_processes_max() -> u32 {
    1024
}

fn default_log_mib_max() -> u32 {
    16
}

impl ProcessConfig {
    /// A configuration with this root and the defaults for all else.
    #[must_use]
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self {
            root: root.into(),
            ports: default_ports(),
            address: default_address(),
            size_max: SizeMax::default(),
            path: default_path(),
            users: default_users(),
            cgroup: default_cgroup(),
            processes_max: default_processes_max(),
            log_mib_max: default_log_mib_max(),
            service_spares_children: false,
        }
    }

    /// The same with other ports.
    #[must_use]
    pub fn with_ports(mut self, ports: RangeInclusive<u16>) -> Self {
        self.ports = ports;
        self
    }

    /// The same with instances that run as the control plane's own user.
    #[must_use]
    pub fn without_users(mut self) -> Self {
        self.users = None;
        self
    }

    /// Checks everything and makes the backend of it. Looks at what this machine lets it do; touches nothing.
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
        if let Some(users) = &self.users
            && (users.is_empty() || *users.start() == 0 || *users.end() == u32::MAX)
        {
            return Err(wrong("users", "expected a range within 1 to 4294967294, the first not above the last"));
        }
        if self.cgroup.as_ref().is_some_and(|name| !is_group_name(name)) {
            return Err(wrong("cgroup", "expected names of groups, separated by '/', such as \"provisioner\""));
        }
        for (field, value) in [
            ("processes_max", self.processes_max),
            ("log_mib_max", self.log_mib_max),
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

fn is_group_name(name: &str) -> bool {
    let fits = |c: char| c.is_ascii_alphanumeric() || "-_.@:".contains(c);
    name.split('/').all(|part| !part.is_empty() && !part.starts_with('.') && part.chars().all(fits))
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
        for range in [0..=10, 5..=u32::MAX] {
            assert_refused(|c| c.users = Some(range), "users");
        }
        for name in ["", "/provisioner", "a//b", "..", "a b"] {
            assert_refused(|c| c.cgroup = Some(name.into()), "cgroup");
        }
        assert_refused(|c| c.processes_max = 0, "processes_max");
        assert_refused(|c| c.log_mib_max = 0, "log_mib_max");
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
