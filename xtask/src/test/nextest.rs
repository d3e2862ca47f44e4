//! Running tests with cargo-nextest. It runs each test in a process of its own and takes one that says only while it
//! runs that it is ignored for one that passed, so what the tests printed is read too.

use std::{
    fs, io,
    num::NonZero,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
};

use serde_json::Value;

use super::{
    binaries::Binaries,
    database::Database,
    junit::{self, Case},
    libtest,
    report::{Ignored, Report},
};
use crate::command;

/// The profile in `.config/nextest.toml`, and how many of its threads there are for each processor.
const PROFILE: &str = "everything";
const THREADS_EACH: usize = 6;

/// Runs the tests that these arguments choose.
pub(crate) fn run(
    chosen: &[String],
    recordings: &Path,
    database: &Database,
    binaries: &Binaries,
) -> Result<Report, String> {
    // With the ignored ones, or every ignored test there is would be told, chosen or not.
    let list = ["nextest", "list", "--message-format", "json", "--run-ignored", "all"];
    // Some look for their peers before they list themselves.
    let listed = listed(&command::read(database.tell(command::cargo(&list).args(chosen)))?)?;
    // Not in Cargo's target folder, wherever that is.
    let file = command::root().join("target/nextest").join(PROFILE).join("junit.xml");
    // That of an earlier run would be believed.
    match fs::remove_file(&file) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(format!("{}: {error}", file.display())),
        _ => {}
    }
    let processors = thread::available_parallelism().map_or(1, NonZero::get);
    let threads = (processors * THREADS_EACH).to_string();
    let mut command = command::cargo(&["nextest", "run", "--no-fail-fast", "--profile", PROFILE]);
    command.args(["--test-threads", &threads]).args(chosen).env(super::recordings::VARIABLE, recordings);
    let status =
        binaries.tell(database.tell(&mut command)).status().map_err(|error| format!("cargo nextest: {error}"))?;
    let cases = fs::read_to_string(&file).map(|text| junit::cases(&text)).unwrap_or_default();
    let mut report = counted(cases);
    report.heed(status, "cargo nextest run");
    report.ignored.extend(listed.iter().map(|test| test.explained(database)));
    Ok(report)
}

fn counted(cases: Vec<Case>) -> Report {
    let mut report = Report::default();
    for Case { place, name, failed, output } in cases {
        match (failed, libtest::reason(&output, &name)) {
            (Some(why), _) => report.fail(place, name, why),
            (None, None) => report.passed += 1,
            (None, Some(reason)) => report.ignored.push(Ignored { place, name, reason }),
        }
    }
    report
}

/// A test that is ignored from the start.
#[derive(Debug, PartialEq, Eq)]
struct Listed {
    place: String,
    /// With its kind.
    name: String,
    binary: PathBuf,
    folder: PathBuf,
}

/// What is ignored from the start, of what nextest lists.
fn listed(json: &str) -> Result<Vec<Listed>, String> {
    let list: Value = serde_json::from_str(json).map_err(|error| format!("cargo nextest list: {error}"))?;
    let suites = list["rust-suites"].as_object().ok_or("cargo nextest list names no suites")?;
    let ignored = suites.iter().flat_map(|(place, suite)| {
        let path = |field: &str| suite[field].as_str().map(PathBuf::from).unwrap_or_default();
        let tests = suite["testcases"].as_object().into_iter().flatten();
        let chosen = tests.filter(|(_, test)| test["filter-match"]["status"] == "matches");
        chosen.filter(|(_, test)| test["ignored"] == true).map(move |(name, _)| Listed {
            place: place.clone(),
            name: name.clone(),
            binary: path("binary-path"),
            folder: path("cwd"),
        })
    });
    Ok(ignored.collect())
}

impl Listed {
    /// Asks the test's own binary for the reason: run without being told to run ignored tests, it says so.
    fn explained(&self, database: &Database) -> Ignored {
        let mut command = Command::new(&self.binary);
        command.args([self.name.as_str(), "--exact"]).stdin(Stdio::null());
        command.current_dir(if self.folder.as_os_str().is_empty() { Path::new(".") } else { &self.folder });
        let output = database.tell(&mut command).output();
        let output = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
        let (name, kind) = libtest::without_kind(&self.name);
        let reason = libtest::reason(&output, &self.name).or_else(|| kind.map(str::to_owned)).unwrap_or_default();
        Ignored { place: self.place.clone(), name: name.to_owned(), reason }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of `cargo nextest list --message-format json`, cut, with everything chosen but `tests::untold`.
    const RECORDED: &str = include_str!("../../recorded/nextest-list.json");

    #[test]
    fn what_is_ignored_from_the_start_is_listed_and_what_was_not_chosen_is_not() {
        let listed = listed(RECORDED).unwrap();
        let names: Vec<_> = listed.iter().map(|test| (test.place.as_str(), test.name.as_str())).collect();
        let expected = [("demo", "tests::slow"), ("demo::mimic", "[needs to mount: permission denied] flagged")];
        assert_eq!(names, expected);
        assert_eq!(listed[1].folder, Path::new("/demo"));
    }

    #[test]
    fn a_test_that_says_while_it_runs_that_it_is_ignored_has_not_passed() {
        let report = counted(junit::cases(include_str!("../../recorded/junit.xml")));
        assert_eq!((report.passed, report.failed.len()), (2, 1));
        let reason = "chromedriver is neither on PATH nor in /usr/bin".to_owned();
        assert_eq!(report.ignored, [Ignored { place: "demo::mimic".into(), name: "while_running".into(), reason }]);
    }

    #[test]
    fn without_a_binary_the_kind_is_the_reason() {
        let listed = |name: &str| Listed {
            place: "demo".into(),
            name: name.into(),
            binary: "/nowhere/at/all".into(),
            folder: PathBuf::new(),
        };
        let database = Database::default();
        let ignored = listed("[root] disk").explained(&database);
        assert_eq!((ignored.name.as_str(), ignored.reason.as_str()), ("disk", "root"));
        assert_eq!(listed("disk").explained(&database).reason, "");
    }
}
