//! What came of a test run.

use std::{fmt, process::ExitStatus};

/// A test that was not run, or a check that could not be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ignored {
    /// The test target.
    pub(crate) place: String,
    pub(crate) name: String,
    pub(crate) reason: String,
}

#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Report {
    pub(crate) passed: usize,
    pub(crate) failed: usize,
    pub(crate) ignored: Vec<Ignored>,
}

impl Report {
    /// Of a run that ended before it could count: something failed.
    pub(crate) fn broken() -> Self {
        Self { failed: 1, ..Self::default() }
    }

    pub(crate) fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.ignored.extend(other.ignored);
    }

    /// Counts a command that failed without a test that failed, so that it does not look like success.
    pub(crate) fn heed(&mut self, status: ExitStatus, command: &str) {
        if !status.success() && self.failed == 0 {
            println!("{command} failed without naming a test that failed: {status}");
            self.failed = 1;
        }
    }

    /// The line that everything ends with.
    pub(crate) fn sum(&self) -> String {
        format!("{} passed, {} failed, {} ignored", self.passed, self.failed, self.ignored.len())
    }

    /// Prints the report; whether nothing failed.
    pub(crate) fn finish(&self) -> bool {
        print!("{self}");
        self.failed == 0
    }
}

impl fmt::Display for Report {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(formatter)?;
        if !self.ignored.is_empty() {
            writeln!(formatter, "Ignored:")?;
        }
        for Ignored { place, name, reason } in &self.ignored {
            let words: Vec<_> = reason.split_whitespace().collect();
            let reason = if words.is_empty() { "no reason given".to_owned() } else { words.join(" ") };
            writeln!(formatter, "  {place} {name}: {reason}")?;
        }
        writeln!(formatter, "{}", self.sum())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use super::*;

    #[test]
    fn the_last_line_is_the_sum() {
        let mut report = Report { passed: 40, failed: 1, ignored: Vec::new() };
        let ignored = |reason: &str| Ignored { place: "a::b".into(), name: "c".into(), reason: reason.into() };
        report.add(Report { passed: 2, failed: 0, ignored: vec![ignored("two\n lines"), ignored("")] });
        let lines = "\nIgnored:\n  a::b c: two lines\n  a::b c: no reason given\n42 passed, 1 failed, 2 ignored\n";
        assert_eq!(report.to_string(), lines);
        assert_eq!(Report::default().to_string(), "\n0 passed, 0 failed, 0 ignored\n");
    }

    #[test]
    fn a_command_that_fails_is_never_success() {
        let mut report = Report::default();
        report.heed(ExitStatus::from_raw(0), "cargo");
        assert_eq!(report.failed, 0);
        report.heed(ExitStatus::from_raw(101 << 8), "cargo");
        report.heed(ExitStatus::from_raw(101 << 8), "cargo");
        assert_eq!(report.failed, 1);
    }
}
