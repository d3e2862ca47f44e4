//! What a machine may not let the tests do.

use std::process::Command;

use backend_process::ProcessConfig;
use provisioner_core::{
    Provisioner,
    types::{Bound, Isolation},
};

#[derive(Debug, Clone, Copy)]
pub(crate) enum Right {
    Users,
    Groups,
    Mounts,
    Namespaces,
}

impl Right {
    /// As in the variable `REQUIRED_RIGHTS`.
    fn name(self) -> &'static str {
        match self {
            Self::Users => "users",
            Self::Groups => "control-groups",
            Self::Mounts => "mounts",
            Self::Namespaces => "namespaces",
        }
    }

    /// Why it cannot be had here, if it cannot.
    ///
    /// # Errors
    /// When it is required.
    pub(crate) fn missing(self) -> Result<Option<String>, String> {
        let missing = match self {
            Self::Users => {
                let users = isolation(|config| config).users;
                (!users).then(|| "only root can run instances as users of their own".to_owned())
            }
            Self::Groups => {
                // Users are enough to bound processes.
                let isolation = isolation(ProcessConfig::without_users);
                let bounds = [isolation.memory, isolation.cpu, isolation.processes];
                let all = bounds.iter().all(|bound| *bound == Bound::Instance);
                (!all).then(|| format!("control groups may not be written here ({isolation:?})"))
            }
            Self::Mounts => can_mount().err().map(|why| format!("nothing can be mounted here: {why}")),
            Self::Namespaces => {
                let options = ["--user", "--map-root-user", "--pid", "--fork", "--mount-proc", "true"];
                run(Command::new("unshare").args(options)).err().map(|why| format!("no namespaces here: {why}"))
            }
        };
        let required = std::env::var("REQUIRED_RIGHTS").unwrap_or_default();
        match missing {
            Some(why) if required.split(',').any(|right| right.trim() == self.name()) => {
                Err(format!("{} are required: {why}", self.name()))
            }
            missing => Ok(missing),
        }
    }
}

/// What the backend says that it can do here.
fn isolation(change: impl FnOnce(ProcessConfig) -> ProcessConfig) -> Isolation {
    change(ProcessConfig::new("/nowhere")).build().unwrap().capabilities().isolation
}

fn can_mount() -> Result<(), String> {
    let place = tempfile::tempdir().unwrap();
    run(Command::new("mount").args(["-t", "tmpfs", "tmpfs"]).arg(place.path()))?;
    run(Command::new("umount").arg(place.path()))
}

fn run(command: &mut Command) -> Result<(), String> {
    let output = command.output().map_err(|error| error.to_string())?;
    // A reason is one line.
    let told = String::from_utf8_lossy(&output.stderr).lines().next().unwrap_or_default().trim().to_owned();
    if output.status.success() { Ok(()) } else { Err(told) }
}
