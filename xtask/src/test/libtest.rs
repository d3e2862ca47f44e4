//! Reads what `cargo test` prints, be it from Rust's own harness or from libtest-mimic.

use super::report::{Failed, Ignored, Report};

/// Counts every test of this output.
pub(crate) fn read(output: &str) -> Report {
    let mut reader = Reader::default();
    output.lines().for_each(|line| reader.line(line));
    reader.end();
    reader.report
}

/// What came of one test, as a line of its own told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    Passed,
    Failed,
    /// With the reason.
    Ignored(String),
}

/// Each test of this output that a line names, without its kind.
pub(crate) fn cases(output: &str) -> Vec<(String, Outcome)> {
    let mut reader = Reader::default();
    output.lines().for_each(|line| reader.line(line));
    reader.cases
}

/// What this output tells of the tests that failed.
pub(crate) fn failures(output: &str) -> String {
    let told = output.split("\nfailures:\n").nth(1).unwrap_or_default();
    told.trim_matches('\n').to_owned()
}

/// The reason why a test of this name was ignored, where this output says that it was.
pub(crate) fn reason(output: &str, name: &str) -> Option<String> {
    let (name, kind) = without_kind(name);
    // Not one that a process of the test told of.
    let ignored = read(output).ignored.into_iter().find(|ignored| ignored.name == name)?;
    Some(if ignored.reason.is_empty() { kind.unwrap_or_default().to_owned() } else { ignored.reason })
}

/// The name of a test without its kind, as in `[kind] name`, and the kind.
pub(crate) fn without_kind(name: &str) -> (&str, Option<&str>) {
    let parts = name.strip_prefix('[').and_then(|rest| rest.rsplit_once("] "));
    parts.map_or((name, None), |(kind, name)| (name.trim_start(), Some(kind)))
}

#[derive(Debug, Default)]
struct Reader {
    report: Report,
    place: String,
    /// What the binary that runs now told so far; none before it starts and after its result.
    running: Option<Report>,
    /// A test whose outcome comes in a later line, since something else printed in between.
    pending: Option<String>,
    cases: Vec<(String, Outcome)>,
}

impl Reader {
    fn line(&mut self, line: &str) {
        if let Some(place) = place(line) {
            self.end();
            self.place = place;
        } else if line.starts_with("running ") && (line.ends_with(" test") || line.ends_with(" tests")) {
            self.end();
            self.running = Some(Report::default());
        } else if let Some(result) = line.strip_prefix("test result: ") {
            self.result(result);
        } else if let Some((name, outcome)) = line.strip_prefix("test ").and_then(|line| line.split_once(" ... ")) {
            let name = name.trim().to_owned();
            if !self.outcome(&name, outcome) {
                self.pending = Some(name);
            }
        } else if let Some(name) = self.pending.take()
            && !self.outcome(&name, line)
        {
            self.pending = Some(name);
        }
    }

    /// Notes the outcome of a test; whether it is one.
    fn outcome(&mut self, name: &str, outcome: &str) -> bool {
        let Some(running) = &mut self.running else { return true };
        let word = outcome.split([',', ' ', ':']).next().unwrap_or_default();
        let mut case = |outcome| self.cases.push((without_kind(name).0.to_owned(), outcome));
        match word {
            "ok" => {
                running.passed += 1;
                case(Outcome::Passed);
            }
            "FAILED" => {
                case(Outcome::Failed);
                running.fail(self.place.clone(), without_kind(name).0, "");
            }
            "ignored" => {
                let (name, kind) = without_kind(name);
                let reason = told(&outcome[word.len()..]).or(kind).unwrap_or_default();
                case(Outcome::Ignored(reason.to_owned()));
                let (place, name, reason) = (self.place.clone(), name.to_owned(), reason.to_owned());
                running.ignored.push(Ignored { place, name, reason });
            }
            _ => return false,
        }
        true
    }

    /// The counts of the result are the ones to trust: what tests print can hide lines.
    fn result(&mut self, result: &str) {
        let Some(running) = self.running.take() else { return };
        let count = |what: &str| {
            let count = result.split([';', '.']).find_map(|part| part.trim().strip_suffix(what));
            count.and_then(|count| count.trim().parse::<usize>().ok()).unwrap_or(0)
        };
        let mut ignored = running.ignored;
        let place = self.place.clone();
        ignored.resize(
            count("ignored"),
            Ignored { place: place.clone(), name: "a test".to_owned(), reason: String::new() },
        );
        let mut failed = running.failed;
        failed.resize(count("failed"), Failed { place, name: "a test".to_owned(), why: String::new() });
        self.report.add(Report { passed: count("passed"), failed, ignored });
        self.pending = None;
    }

    /// A binary that ended without a result ended badly.
    fn end(&mut self) {
        self.pending = None;
        if let Some(running) = self.running.take() {
            self.report.add(running);
            self.report.fail(self.place.clone(), "ended without a result", "");
        }
    }
}

/// The test target that Cargo says to run: of `Running tests/browser.rs (target/debug/deps/browser-0123456789abcdef)`,
/// `browser tests/browser.rs`.
fn place(line: &str) -> Option<String> {
    let line = line.trim_start();
    if let Some(library) = line.strip_prefix("Doc-tests ") {
        return Some(format!("{library} doc-test"));
    }
    let (source, binary) = line.strip_prefix("Running ")?.strip_suffix(')')?.split_once(" (")?;
    let binary = binary.rsplit('/').next()?;
    let name = binary.rsplit_once('-').map_or(binary, |(name, _)| name);
    Some(format!("{name} {}", source.trim_start_matches("unittests ")))
}

/// Of `, reason` and of ` (reason)`, the reason.
fn told(rest: &str) -> Option<&str> {
    rest.strip_prefix(", ").or_else(|| rest.strip_prefix(" (")?.strip_suffix(')'))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of `cargo test --no-fail-fast`, cut, with paths shortened.
    const RECORDED: &str = include_str!("../../recorded/cargo-test.txt");

    fn failed(place: &str, name: &str) -> Failed {
        Failed { place: place.into(), name: name.into(), why: String::new() }
    }

    fn ignored(place: &str, name: &str, reason: &str) -> Ignored {
        Ignored { place: place.into(), name: name.into(), reason: reason.into() }
    }

    #[test]
    fn every_harness_is_counted_and_every_reason_found() {
        let expected = vec![
            ignored("demo src/lib.rs", "tests::slow", "takes an hour"),
            ignored("demo src/lib.rs", "tests::untold", ""),
            ignored("mimic tests/mimic.rs", "flagged", "needs to mount: permission denied"),
            ignored("mimic tests/mimic.rs", "while_running", "chromedriver is neither on PATH nor in /usr/bin"),
            ignored("demo doc-test", "src/lib.rs - later (line 9)", ""),
        ];
        let failed = vec![failed("demo src/lib.rs", "tests::fails")];
        assert_eq!(read(RECORDED), Report { passed: 3, failed, ignored: expected });
    }

    #[test]
    fn each_test_is_told_with_its_outcome() {
        let told = cases(RECORDED);
        let of = |name: &str| told.iter().find(|(told, _)| told == name).map(|(_, outcome)| outcome.clone());
        assert_eq!(
            of("while_running"),
            Some(Outcome::Ignored("chromedriver is neither on PATH nor in /usr/bin".into()))
        );
        let count = |wanted: &Outcome| told.iter().filter(|(_, outcome)| outcome == wanted).count();
        assert_eq!((count(&Outcome::Passed), count(&Outcome::Failed)), (3, 1));
        assert_eq!(failures("x\n\nfailures:\n\n---- a ----\nwhy\n\n\nfailures:\n    a\n"), "---- a ----\nwhy");
    }

    #[test]
    fn an_outcome_behind_what_a_test_printed_is_found() {
        let output = "running 2 tests\ntest a ... noise\nmore\nignored (why)\ntest b ... x\nok\n\
                      test result: ok. 1 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out\n";
        assert_eq!(read(output), Report { passed: 1, failed: vec![], ignored: vec![ignored("", "a", "why")] });
    }

    #[test]
    fn a_binary_without_a_result_has_failed() {
        let output = "     Running tests/a.rs (target/debug/deps/a-01)\nrunning 2 tests\ntest a ... ok\n\
                      error: test failed, to rerun pass `--test a`\n     Running tests/b.rs (target/debug/deps/b-01)\n";
        let failed = vec![failed("a tests/a.rs", "ended without a result")];
        assert_eq!(read(output), Report { passed: 1, failed, ignored: vec![] });
    }

    #[test]
    fn ignored_tests_that_no_line_names_are_counted() {
        let output = "running 1 test\ntest result: ok. 0 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out\n";
        assert_eq!(read(output).ignored, [ignored("", "a test", "")]);
    }

    #[test]
    fn a_kind_is_a_reason_where_none_is_told() {
        assert_eq!(without_kind("[needs to [really] mount] disk"), ("disk", Some("needs to [really] mount")));
        assert_eq!(without_kind("tests::plain"), ("tests::plain", None));
        let run = "running 1 test\ntest [root] disk ... ignored\n\n\
                   test result: ok. 0 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s\n";
        assert_eq!(reason(run, "[root] disk").as_deref(), Some("root"));
        assert_eq!(reason(run, "another"), None);
        assert_eq!(reason("running 0 tests\n", "disk"), None);
    }
}
