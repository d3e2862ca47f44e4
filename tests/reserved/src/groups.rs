//! Control groups of a test's own: what a test leaves running, and the groups it ran in, are nobody's to find later, and
//! thousands of empty groups slow the whole machine down.

use std::{
    fs,
    hash::{DefaultHasher, Hash, Hasher},
    path::{Path, PathBuf},
};

const ALL: &str = "/sys/fs/cgroup";

/// The name of the group that those of all instances on this root lie below: for every process that is told the root the
/// same.
#[must_use]
pub fn name(root: &Path) -> String {
    let mut hasher = DefaultHasher::new();
    root.hash(&mut hasher);
    format!("provisioner-tests/{:016x}", hasher.finish())
}

/// The folders of a group, one for each hierarchy that has it, in order.
#[must_use]
pub fn folders(name: &str) -> Vec<PathBuf> {
    let hierarchies = fs::read_dir(ALL).into_iter().flatten().flatten().map(|entry| entry.path());
    let top = std::iter::once(PathBuf::from(ALL));
    let folders = hierarchies.chain(top).map(|hierarchy| hierarchy.join(name));
    let mut folders: Vec<_> = folders.filter(|folder| folder.join("cgroup.procs").exists()).collect();
    folders.sort_unstable();
    folders
}

/// Removes the groups of a root on which nothing runs any more.
pub fn remove(root: &Path) {
    for folder in folders(&name(root)) {
        remove_with_all_below(&folder);
    }
}

fn remove_with_all_below(folder: &Path) {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    for below in entries.filter(|entry| entry.file_type().is_ok_and(|what| what.is_dir())) {
        remove_with_all_below(&below.path());
    }
    // One that is not empty yet is left.
    let _ = fs::remove_dir(folder);
}
