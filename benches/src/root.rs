//! Where instances of the process backend live, and whether each is a user of its own.

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use backend_process::{ProcessBackend, ProcessConfig};
use provisioner_core::{Provisioner, Result};
use tempfile::TempDir;

/// A root that everybody may pass through, with the product in it. Removed when dropped.
#[derive(Debug)]
pub struct Root {
    folder: TempDir,
    product: PathBuf,
    users: bool,
}

impl Root {
    /// One where all instances run as the user of this process and, where that can be, one where each is a user of its own.
    ///
    /// # Panics
    /// When there is no room for it.
    #[must_use]
    pub fn with_and_without_users(product: &Path) -> Vec<Self> {
        let make = |users| {
            // Where programs are built, other users are often not let in.
            let folder = tempfile::tempdir().expect("a folder");
            fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).expect("a folder of ours");
            let own = folder.path().join("product");
            fs::copy(product, &own).expect("room for a program");
            Self { folder, product: own, users }
        };
        let both = vec![make(true), make(false)];
        let usable = |root: &Self| root.users == root.backend().expect("a backend").capabilities().isolation.users;
        let (usable, rest): (Vec<_>, Vec<_>) = both.into_iter().partition(usable);
        if !rest.is_empty() {
            println!("Not measured: only root can run instances as users of their own.\n");
        }
        usable
    }

    /// A new backend on it.
    ///
    /// # Errors
    /// When the folder cannot be used.
    pub fn backend(&self) -> Result<ProcessBackend> {
        let config = ProcessConfig::new(self.path().join("instances"));
        if self.users { config.build() } else { config.without_users().build() }
    }

    /// The product, where every instance may execute it.
    #[must_use]
    pub fn product(&self) -> &Path {
        &self.product
    }

    /// The folder of it all.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// What to call it in a row.
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        if self.users { "a user for each" } else { "one user for all" }
    }
}
