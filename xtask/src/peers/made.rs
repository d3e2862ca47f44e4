//! Folders that are made here, which every user may enter: instances run as users that own nothing.

use std::{fs, path::Path, process::Command};

use crate::command;

/// Where they are. The tests look there, too.
const FOLDER: &str = "/var/tmp/provisioner-peers";
/// Written last, in each: what it was made of. Without it, the folder is a beginning that was left.
const NOTE: &str = "made-of.txt";

/// Whether a folder is here, made of just that.
pub(super) fn is_here(name: &str, made_of: &str) -> bool {
    fs::read_to_string(Path::new(FOLDER).join(name).join(NOTE)).is_ok_and(|noted| noted == made_of)
}

/// Makes a folder, unless it is here. What fills it gets its path: a folder that is empty.
pub(super) fn prepare(name: &str, made_of: &str, fill: impl FnOnce(&Path) -> Result<(), String>) -> Result<(), String> {
    if is_here(name, made_of) {
        return Ok(());
    }
    let folder = Path::new(FOLDER).join(name);
    let problem = |what: &str, error: std::io::Error| format!("{} could not be {what}: {error}", folder.display());
    if folder.exists() {
        fs::remove_dir_all(&folder).map_err(|error| problem("removed", error))?;
    }
    fs::create_dir_all(&folder).map_err(|error| problem("made", error))?;
    fill(&folder)?;
    write(&folder.join(NOTE), made_of)
}

pub(super) fn write(path: &Path, text: &str) -> Result<(), String> {
    fs::write(path, text).map_err(|error| format!("{} could not be written: {error}", path.display()))
}

pub(super) fn run(command: &mut Command) -> Result<(), String> {
    println!("{}", command::shown(command));
    command::run(command)
}
