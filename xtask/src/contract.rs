//! The contract of backends, as a table of rules.

use std::{collections::BTreeMap, fmt::Write, process::Stdio};

use crate::{
    command, peers,
    test::{
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

/// The backends that there are.
pub(crate) fn list() -> String {
    BACKENDS.iter().map(|backend| format!("{}\n", backend.name)).collect()
}

/// Tries every rule on a backend and prints the table.
pub(crate) fn run(name: &str) -> Result<Report, String> {
    let backend = find(name)?;
    peers::check(backend.peers)?;
    let test = ["test", "--package", backend.package, "--test", backend.target, "--"];
    let listed = command::read(command::cargo(&test).arg("--list"))?;
    let mut command = command::cargo(&test);
    command.stderr(Stdio::inherit());
    let shown = command::shown(&command);
    let output = command.output().map_err(|error| format!("{shown} does not start: {error}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    print!("{}", table(&in_order(libtest::cases(&text), &listed)));
    let failures = libtest::failures(&text);
    if !failures.is_empty() {
        println!("\n{failures}");
    }
    let mut report = libtest::read(&text);
    report.heed(output.status, &shown);
    Ok(report)
}

fn find(name: &str) -> Result<&'static Backend, String> {
    let found = BACKENDS.iter().find(|backend| backend.name == name);
    found.ok_or_else(|| {
        let names: Vec<_> = BACKENDS.iter().map(|backend| backend.name).collect();
        format!("there is no backend {name:?}; the backends are {}", names.join(", "))
    })
}

/// The cases in the order of this list, and not in that in which they ended.
fn in_order(mut cases: Vec<(String, Outcome)>, listed: &str) -> Vec<(String, Outcome)> {
    let names = listed.lines().filter_map(|line| line.strip_suffix(": test"));
    let places: BTreeMap<_, _> = names.enumerate().map(|(place, name)| (name, place)).collect();
    cases.sort_by_key(|(name, _)| places.get(name.as_str()).copied());
    cases
}

/// The subjects that a rule ended alike on.
type Alike<'a> = Vec<(&'a Outcome, Vec<&'a str>)>;

/// One line per rule, or several where subjects differ, by section. Trials are called `SUBJECT::SECTION::RULE`.
fn table(cases: &[(String, Outcome)]) -> String {
    let mut rules: BTreeMap<&str, (Vec<&str>, BTreeMap<&str, Alike<'_>>)> = BTreeMap::new();
    let mut subjects = Vec::new();
    for (name, outcome) in cases {
        let Some((subject, rest)) = name.split_once("::") else { continue };
        let Some((section, rule)) = rest.split_once("::") else { continue };
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
            let mut first = format!("{section}  {rule:width$}");
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
        assert_eq!(find("process").unwrap().target, "process");
        let error = find("x").unwrap_err();
        assert!(error.contains("\"x\"") && error.contains("memory, process, k8s, vm, appservice"), "{error}");
        assert_eq!(list(), "memory\nprocess\nk8s\nvm\nappservice\n");
    }

    #[test]
    fn rules_are_shown_in_the_order_in_which_they_are_listed() {
        let cases = ["c", "a", "b"].map(|name| (name.to_owned(), Outcome::Passed));
        let ordered = in_order(cases.into(), "b: test\na: test\nc: test\n\n3 tests, 0 benchmarks\n");
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
