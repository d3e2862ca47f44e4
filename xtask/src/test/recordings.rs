//! What the stand-in for Azure was asked in a test run, and answered: all of it is to be as in Microsoft's contract.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::Command,
};

use super::report::{Ignored, Report};
use crate::{command, peers};

/// Tells stand-ins where to write that down.
pub(super) const VARIABLE: &str = "AZURE_RECORDINGS";
const NAME: &str = "what the stand-in for Azure was asked and answered is as in Microsoft's contract";
const VALIDATOR: &str = "tests/azure/official/validate.mjs";

/// An empty folder for them.
pub(super) fn folder() -> Result<PathBuf, String> {
    // Not in Cargo's target folder, wherever that is.
    let folder = command::root().join("target/azure-recordings");
    let problem = |error: io::Error| format!("{}: {error}", folder.display());
    match fs::remove_dir_all(&folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(problem(error)),
        _ => {}
    }
    fs::create_dir_all(&folder).map_err(problem)?;
    Ok(folder)
}

/// Has Microsoft's validator read all of them, as one test. Where nothing was written down that is no test, unless everything was run.
pub(super) fn validate(folder: &Path, of_everything: bool) -> Result<Report, String> {
    let entries = fs::read_dir(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    let mut files: Vec<_> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    files.sort();
    let mut report = Report::default();
    if files.is_empty() {
        if of_everything {
            report.fail(VALIDATOR, NAME, "nothing was written down");
        }
        return Ok(report);
    }
    let node = command::program("node").filter(|_| peers::is_here("oav"));
    let Some(node) = node else {
        let reason = "oav is not here: cargo xtask peers prepares it".to_owned();
        report.ignored.push(Ignored { place: VALIDATOR.to_owned(), name: NAME.to_owned(), reason });
        return Ok(report);
    };
    let mut validator = Command::new(node);
    validator.arg(command::root().join(VALIDATOR)).args(&files);
    let status = validator.status().map_err(|error| format!("{VALIDATOR}: {error}"))?;
    match status.success() {
        true => report.passed += 1,
        false => report.fail(VALIDATOR, NAME, "what it found is above"),
    }
    Ok(report)
}
