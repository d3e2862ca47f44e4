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

/// A test that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failed {
    /// The test target, or the command.
    pub(crate) place: String,
    pub(crate) name: String,
    /// Why, in its own words, where it told.
    pub(crate) why: String,
}

#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Report {
    pub(crate) passed: usize,
    pub(crate) failed: Vec<Failed>,
    pub(crate) ignored: Vec<Ignored>,
}

impl Report {
    /// Of a run that ended before it could count.
    pub(crate) fn broken(why: String) -> Self {
        let mut report = Self::default();
        report.fail("the run", "ended early", why);
        report
    }

    pub(crate) fn fail(&mut self, place: impl Into<String>, name: impl Into<String>, why: impl Into<String>) {
        self.failed.push(Failed { place: place.into(), name: name.into(), why: why.into() });
    }

    pub(crate) fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed.extend(other.failed);
        self.ignored.extend(other.ignored);
    }

    /// Counts a command that failed without a test that failed, so that it does not look like success.
    pub(crate) fn heed(&mut self, status: ExitStatus, command: &str) {
        if !status.success() && self.failed.is_empty() {
            self.fail(command, "failed without naming a test that failed", status.to_string());
        }
    }

    /// The line that everything ends with.
    pub(crate) fn sum(&self) -> String {
        format!("{} passed, {} failed, {} ignored", self.passed, self.failed.len(), self.ignored.len())
    }

    /// Prints the report; whether nothing failed.
    pub(crate) fn finish(&self) -> bool {
        print!("{self}");
        self.failed.is_empty()
    }
}

/// How much of what a failed test told is shown again at the end: the last lines of it, which tell most.
const LINES: usize = 25;
const COLUMNS: usize = 400;

/// What failed comes last, where who looks at the end of a long run finds it.
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
        if !self.failed.is_empty() {
            writeln!(formatter, "Failed:")?;
        }
        for Failed { place, name, why } in &self.failed {
            writeln!(formatter, "  {place} {name}")?;
            let lines: Vec<_> = why.lines().filter(|line| !line.trim().is_empty()).collect();
            for line in &lines[lines.len().saturating_sub(LINES)..] {
                let shown: String = line.chars().take(COLUMNS).collect();
                writeln!(formatter, "    {shown}")?;
            }
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
        let mut report = Report { passed: 40, ..Report::default() };
        report.fail("a::b", "d", "why\n\nso");
        let ignored = |reason: &str| Ignored { place: "a::b".into(), name: "c".into(), reason: reason.into() };
        report.add(Report { passed: 2, failed: vec![], ignored: vec![ignored("two\n lines"), ignored("")] });
        let lines = "\nIgnored:\n  a::b c: two lines\n  a::b c: no reason given\n\
                     Failed:\n  a::b d\n    why\n    so\n42 passed, 1 failed, 2 ignored\n";
        assert_eq!(report.to_string(), lines);
        assert_eq!(Report::default().to_string(), "\n0 passed, 0 failed, 0 ignored\n");
    }

    #[test]
    fn of_what_a_test_told_the_end_is_shown() {
        let mut report = Report::default();
        report.fail("a", "b", (1..=LINES + 1).map(|line| format!("{line}\n")).collect::<String>());
        let shown = report.to_string();
        assert!(!shown.contains("    1\n") && shown.contains("    2\n") && shown.contains("    26\n"), "{shown}");
    }

    #[test]
    fn a_command_that_fails_is_never_success() {
        let mut report = Report::default();
        report.heed(ExitStatus::from_raw(0), "cargo");
        assert_eq!(report.failed, []);
        report.heed(ExitStatus::from_raw(101 << 8), "cargo");
        report.heed(ExitStatus::from_raw(101 << 8), "cargo");
        assert_eq!(report.failed.len(), 1);
    }
}
