//! The contracts of backends and of stores, as tables of rules.

use std::{
    collections::BTreeMap,
    fmt::Write,
    process::{Command, Stdio},
};

use test_peers::postgres;

use crate::{
    command, peers,
    test::{
        database::Database,
        libtest::{self, Outcome},
        report::Report,
    },
};

/// The package of the rules, with the backends that take little to build.
const SUITE: &str = "provisioner-contract";

/// Every backend of the workspace.
const BACKENDS: &[Backend] = &[
    Backend { name: "memory", package: SUITE, target: "memory", peers: &[] },
    Backend { name: "process", package: SUITE, target: "process", peers: &[] },
    Backend { name: "k8s", package: "backend-k8s", target: "contract", peers: &["kubernetes"] },
    Backend { name: "vm", package: "backend-vm", target: "contract", peers: &["moto"] },
    Backend { name: "appservice", package: "backend-appservice", target: "contract", peers: &[] },
];

/// A backend, and how its rules are run.
#[derive(Debug)]
struct Backend {
    /// Also how its subjects are called in the names of trials, with the wrapper behind a dash.
    name: &'static str,
    /// The package that tries it.
    package: &'static str,
    /// Its test target.
    target: &'static str,
    /// The peers without which some of its rules are ignored.
    peers: &'static [&'static str],
}

/// Every store.
const STORES: &[Store] = &[
    Store { name: "memory", feature: None, peers: &[] },
    Store { name: "sqlite", feature: None, peers: &[] },
    Store { name: "postgres", feature: Some("postgres"), peers: &[postgres::NAME] },
];

/// A store, and how its rules are run.
#[derive(Debug)]
struct Store {
    /// Also how its subjects are called in the names of trials, with the variant behind an underscore.
    name: &'static str,
    /// The feature of core that it takes beyond the usual ones.
    feature: Option<&'static str>,
    /// The peers without which its rules are ignored.
    peers: &'static [&'static str],
}

/// The backends and the stores that there are.
pub(crate) fn list() -> String {
    format!("backends: {}\nstores: {}\n", backends(), stores())
}

fn backends() -> String {
    BACKENDS.iter().map(|backend| backend.name).collect::<Vec<_>>().join(", ")
}

fn stores() -> String {
    STORES.iter().map(|store| store.name).collect::<Vec<_>>().join(", ")
}

/// Tries every rule on a backend and prints the table.
pub(crate) fn run_backend(name: &str) -> Result<Report, String> {
    let backend = find_backend(name)?;
    peers::check(backend.peers)?;
    let test = ["test", "--package", backend.package, "--test", backend.target, "--"];
    let listed = command::read(command::cargo(&test).arg("--list"))?;
    let run = tried(command::cargo(&test))?;
    run.tell(&listed);
    Ok(run.report())
}

/// Tries every rule on a store and prints the table.
pub(crate) fn run_store(name: &str) -> Result<Report, String> {
    let store = find_store(name)?;
    peers::check(store.peers)?;
    // Only for those that want it: it takes a second.
    let database = if store.peers.contains(&postgres::NAME) { Database::start() } else { Database::default() };
    let mut test = vec!["test", "--package", "provisioner-core", "--test", "store_contract"];
    test.extend(store.feature.iter().flat_map(|feature| ["--features", feature]));
    test.push("--");
    let listed = command::read(database.tell(command::cargo(&test).arg("--list")))?;
    let subjects = store.subjects(&listed);
    if subjects.is_empty() {
        return Err(format!("no rule is run for the store {name}"));
    }
    let mut all = Run::default();
    for subject in subjects {
        // Runs whatever has this in its name, which nothing else has: names of rules have no colon.
        let mut command = command::cargo(&test);
        database.tell(command.arg(format!("{subject}::")));
        all.add(tried(command)?);
    }
    all.tell(&listed);
    Ok(all.report())
}

/// What came of one or more runs of trials.
#[derive(Debug, Default)]
struct Run {
    cases: Vec<(String, Outcome)>,
    /// What failed trials told.
    failures: Vec<String>,
    report: Report,
}

impl Run {
    fn add(&mut self, other: Self) {
        self.cases.extend(other.cases);
        self.failures.extend(other.failures);
        self.report.add(other.report);
    }

    /// Prints the table, and below it what failed trials told.
    fn tell(&self, listed: &str) {
        print!("{}", table(&in_order(self.cases.clone(), listed)));
        for failures in &self.failures {
            println!("\n{failures}");
        }
    }

    fn report(self) -> Report {
        self.report
    }
}

/// Runs trials without showing them.
fn tried(mut command: Command) -> Result<Run, String> {
    command.stderr(Stdio::inherit());
    let shown = command::shown(&command);
    let output = command.output().map_err(|error| format!("{shown} does not start: {error}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let failures = Some(libtest::failures(&text)).filter(|failures| !failures.is_empty());
    let mut report = libtest::read(&text);
    report.heed(output.status, &shown);
    Ok(Run { cases: libtest::cases(&text), failures: failures.into_iter().collect(), report })
}

fn find_backend(name: &str) -> Result<&'static Backend, String> {
    let found = BACKENDS.iter().find(|backend| backend.name == name);
    found.ok_or_else(|| format!("there is no backend {name:?}; the backends are {}", backends()))
}

fn find_store(name: &str) -> Result<&'static Store, String> {
    let found = STORES.iter().find(|store| store.name == name);
    found.ok_or_else(|| format!("there is no store {name:?}; the stores are {}", stores()))
}

impl Store {
    /// Its subjects among the trials of this list, in order.
    fn subjects<'a>(&self, listed: &'a str) -> Vec<&'a str> {
        let is_own =
            |name: &str| name.strip_prefix(self.name).is_some_and(|rest| rest.is_empty() || rest.starts_with('_'));
        let mut subjects = Vec::new();
        for (subject, _) in trials(listed).filter_map(|name| name.split_once("::")) {
            if is_own(subject) && !subjects.contains(&subject) {
                subjects.push(subject);
            }
        }
        subjects
    }
}

/// The names of the trials of this list, without their kinds.
fn trials(listed: &str) -> impl Iterator<Item = &str> {
    listed.lines().filter_map(|line| line.strip_suffix(": test")).map(|name| libtest::without_kind(name).0)
}

/// The cases in the order of this list, and not in that in which they ended.
fn in_order(mut cases: Vec<(String, Outcome)>, listed: &str) -> Vec<(String, Outcome)> {
    let places: BTreeMap<_, _> = trials(listed).enumerate().map(|(place, name)| (name, place)).collect();
    cases.sort_by_key(|(name, _)| places.get(name.as_str()).copied());
    cases
}

/// The subjects that a rule ended alike on.
type Alike<'a> = Vec<(&'a Outcome, Vec<&'a str>)>;

/// One line per rule, or several where subjects differ, by section. Trials are called `SUBJECT::SECTION::RULE`, or `SUBJECT::RULE` where
/// there are no sections.
fn table(cases: &[(String, Outcome)]) -> String {
    let mut rules: BTreeMap<&str, (Vec<&str>, BTreeMap<&str, Alike<'_>>)> = BTreeMap::new();
    let mut subjects = Vec::new();
    for (name, outcome) in cases {
        let Some((subject, rest)) = name.split_once("::") else { continue };
        let (section, rule) = rest.split_once("::").unwrap_or(("", rest));
        if !subjects.contains(&subject) {
            subjects.push(subject);
        }
        let (order, section) = rules.entry(section).or_default();
        if !order.contains(&rule) {
            order.push(rule);
        }
        let alike = section.entry(rule).or_default();
        match alike.iter_mut().find(|(other, _)| *other == outcome) {
            Some((_, on)) => on.push(subject),
            None => alike.push((outcome, vec![subject])),
        }
    }
    let width = rules.values().flat_map(|(order, _)| order).map(|rule| rule.len()).max().unwrap_or_default();
    let mut text = format!("Tried on {}.\n\n", subjects.join(", "));
    for (section, (order, outcomes)) in &rules {
        for rule in order {
            let section = if section.is_empty() { String::new() } else { format!("{section}  ") };
            let mut first = format!("{section}{rule:width$}");
            for (outcome, on) in &outcomes[rule] {
                let on = if on.len() == subjects.len() { String::new() } else { format!("  on {}", on.join(", ")) };
                let line = match outcome {
                    Outcome::Passed => format!("passed{on}"),
                    Outcome::Failed => format!("FAILED{on}"),
                    Outcome::Ignored(reason) => format!("ignored{on}: {reason}"),
                };
                // Writing to a text cannot fail.
                let _ = writeln!(text, "{first}  {line}");
                first = " ".repeat(first.len());
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_backend_is_refused_naming_those_that_there_are() {
        assert_eq!(find_backend("process").unwrap().target, "process");
        let error = find_backend("x").unwrap_err();
        assert!(error.contains("\"x\"") && error.contains("memory, process, k8s, vm, appservice"), "{error}");
    }

    #[test]
    fn an_unknown_store_is_refused_naming_those_that_there_are() {
        assert_eq!(find_store("sqlite").unwrap().name, "sqlite");
        let error = find_store("process").unwrap_err();
        assert!(error.contains("store \"process\"") && error.contains("memory, sqlite, postgres"), "{error}");
    }

    #[test]
    fn the_list_names_backends_and_stores() {
        assert_eq!(list(), "backends: memory, process, k8s, vm, appservice\nstores: memory, sqlite, postgres\n");
    }

    #[test]
    fn a_store_stands_for_all_its_variants() {
        let listed = "memory::a: test\nmemory::sqlite: test\nmemory_shared::a: test\nsqlite_grouped::a: test\n\
                      sqlite_inline::a: test\nsqliteish::a: test\n[why] postgres::a: test\n\n7 tests, 0 benchmarks\n";
        let subjects = |name: &str| find_store(name).unwrap().subjects(listed);
        assert_eq!(subjects("memory"), ["memory", "memory_shared"]);
        assert_eq!(subjects("sqlite"), ["sqlite_grouped", "sqlite_inline"]);
        assert_eq!(subjects("postgres"), ["postgres"]);
    }

    #[test]
    fn rules_without_sections_are_a_table_too() {
        let cases = [
            ("s_one::short".to_owned(), Outcome::Passed),
            ("s_two::short".to_owned(), Outcome::Passed),
            ("s_one::it_is_so".to_owned(), Outcome::Failed),
        ];
        assert_eq!(table(&cases), "Tried on s_one, s_two.\n\nshort     passed\nit_is_so  FAILED  on s_one\n");
    }

    #[test]
    fn rules_are_shown_in_the_order_in_which_they_are_listed() {
        let cases = ["c", "a", "b"].map(|name| (name.to_owned(), Outcome::Passed));
        let ordered = in_order(cases.into(), "b: test\n[why] a: test\nc: test\n\n3 tests, 0 benchmarks\n");
        assert_eq!(ordered.into_iter().map(|(name, _)| name).collect::<Vec<_>>(), ["b", "a", "c"]);
    }

    #[test]
    fn subjects_that_end_alike_share_a_line() {
        let case = |name: &str, outcome: Outcome| (name.to_owned(), outcome);
        let cases = [
            case("b::02::it_is_so", Outcome::Passed),
            case("b-box::02::it_is_so", Outcome::Passed),
            case("b::01::short", Outcome::Ignored("no outsider".to_owned())),
            case("b-box::01::short", Outcome::Failed),
            case("something else", Outcome::Failed),
        ];
        let expected = "Tried on b, b-box.\n\n\
                        01  short     ignored  on b: no outsider\n\
                        \u{20}             FAILED  on b-box\n\
                        02  it_is_so  passed\n";
        assert_eq!(table(&cases), expected);
    }
}
