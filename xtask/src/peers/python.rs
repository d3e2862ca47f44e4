//! Products from PyPI, each in an environment of its own that every user may enter: instances run as users that own nothing.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::command;

/// Where they are. The tests look there, too.
const FOLDER: &str = "/var/tmp/provisioner-peers";
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
    fn folder(&self) -> PathBuf {
        Path::new(FOLDER).join(self.name)
    }

    /// Written last: what it was made of.
    fn made_of(&self) -> PathBuf {
        self.folder().join("made-of.txt")
    }

    pub(super) fn is_here(&self) -> bool {
        fs::read_to_string(self.made_of()).is_ok_and(|made_of| made_of == self.requirements)
    }

    /// Makes it, unless it is here.
    pub(super) fn prepare(&self) -> Result<(), String> {
        if self.is_here() {
            return Ok(());
        }
        let folder = self.folder();
        let problem = |what: &str, error: std::io::Error| format!("{} could not be {what}: {error}", folder.display());
        if folder.exists() {
            fs::remove_dir_all(&folder).map_err(|error| problem("removed", error))?;
        }
        fs::create_dir_all(FOLDER).map_err(|error| problem("made", error))?;
        run(Command::new(PYTHON).args(["-m", "venv"]).arg(&folder))?;
        let requirements = folder.join("requirements.txt");
        fs::write(&requirements, self.requirements).map_err(|error| problem("written to", error))?;
        let pip = folder.join("bin/pip");
        run(Command::new(pip)
            .args(["install", "--quiet", "--no-input", "--no-deps", "--requirement"])
            .arg(requirements))?;
        fs::write(self.made_of(), self.requirements).map_err(|error| problem("written to", error))
    }
}

fn run(command: &mut Command) -> Result<(), String> {
    println!("{}", command::shown(command));
    command::run(command)
}
