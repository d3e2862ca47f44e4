//! Products from PyPI, each in an environment of its own.

use std::process::Command;

use super::made;

/// Debian's own: one of a user's home may not be entered by others.
const PYTHON: &str = "/usr/bin/python3";

/// A product with all that it needs.
#[derive(Debug)]
pub(super) struct Environment {
    pub(super) name: &'static str,
    /// Every package of it with its version, as pip reads it.
    pub(super) requirements: &'static str,
}

impl Environment {
    pub(super) fn is_here(&self) -> bool {
        made::is_here(self.name, self.requirements)
    }

    /// Makes it, unless it is here.
    pub(super) fn prepare(&self) -> Result<(), String> {
        made::prepare(self.name, self.requirements, |folder| {
            made::run(Command::new(PYTHON).args(["-m", "venv"]).arg(folder))?;
            let requirements = folder.join("requirements.txt");
            made::write(&requirements, self.requirements)?;
            let install = ["install", "--quiet", "--no-input", "--no-deps", "--requirement"];
            made::run(Command::new(folder.join("bin/pip")).args(install).arg(requirements))
        })
    }
}
