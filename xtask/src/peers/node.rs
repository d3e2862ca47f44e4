//! Packages from npm with all that they need, in one folder.

use std::process::{Command, Stdio};

use super::made;
use crate::command;

/// Packages that are used together.
#[derive(Debug)]
pub(super) struct Packages {
    pub(super) name: &'static str,
    /// `package.json`: those that are wanted.
    pub(super) manifest: &'static str,
    /// `package-lock.json`: all of them, each with its version and what its content hashes to.
    pub(super) lock: &'static str,
}

impl Packages {
    pub(super) fn is_here(&self) -> bool {
        made::is_here(self.name, self.lock)
    }

    /// Makes the folder, unless it is here.
    pub(super) fn prepare(&self) -> Result<(), String> {
        made::prepare(self.name, self.lock, |folder| {
            let npm = command::program("npm").ok_or("npm is not here")?;
            made::write(&folder.join("package.json"), self.manifest)?;
            made::write(&folder.join("package-lock.json"), self.lock)?;
            // Nothing that comes with a package runs here, and one that is made for a newer Node is an error now, not in a test.
            let quiet = ["--no-audit", "--no-fund", "--no-update-notifier", "--loglevel=error"];
            let install = ["ci", "--ignore-scripts", "--engine-strict"];
            made::run(Command::new(npm).args(install).args(quiet).current_dir(folder).stdin(Stdio::null()))
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::super::{Made, PEERS};

    #[test]
    fn every_package_is_locked_to_a_content_and_to_no_registry() {
        for peer in PEERS {
            let Some(Made::Packages(packages)) = &peer.made else { continue };
            let lock: Value = serde_json::from_str(packages.lock).unwrap();
            let manifest: Value = serde_json::from_str(packages.manifest).unwrap();
            let locked = lock["packages"].as_object().unwrap();
            assert_eq!(locked[""]["dependencies"], manifest["dependencies"]);
            for (name, version) in manifest["dependencies"].as_object().unwrap() {
                assert_eq!(&locked[&format!("node_modules/{name}")]["version"], version, "{name}");
            }
            for (path, package) in locked.iter().filter(|(path, _)| !path.is_empty()) {
                assert!(package["integrity"].as_str().is_some_and(|hash| hash.starts_with("sha512-")), "{path}");
                assert!(package["resolved"].is_null(), "{path}");
            }
        }
    }
}
