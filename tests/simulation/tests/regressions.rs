//! The seeds that once found something, and that a run can be repeated.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeMap;

use simulation::{Request, run};

/// Seed, customers, troubles, and how many control planes share the store: one has it by itself where the line does not say.
fn regressions() -> Vec<Request> {
    let lines = include_str!("../regressions.txt").lines().filter(|line| !line.starts_with('#') && !line.is_empty());
    let requests = lines.map(|line| {
        let mut words = line.split_whitespace();
        let mut word = || words.next().unwrap_or_else(|| panic!("seed, customers and troubles are expected: {line}"));
        let (seed, instances) = (word().parse().unwrap(), word().parse().unwrap());
        let troubles = word().parse().unwrap();
        let replicas = Some(words.next().map_or(1, |replicas| replicas.parse().unwrap()));
        Request { troubles, replicas, ..Request::new(seed, instances) }
    });
    requests.collect()
}

#[test]
fn what_was_found_once_is_not_found_again() {
    for request in regressions() {
        let outcome = run(&request);
        assert_eq!(outcome.violation, None, "{request:?}");
    }
}

#[test]
fn the_same_seed_has_the_same_history_and_another_one_another() {
    let history = |seed| run(&Request::new(seed, 20)).history;
    let mut seen = BTreeMap::new();
    let shared = |seed| run(&Request { replicas: Some(3), ..Request::new(seed, 20) }).history;
    for seed in 1..=8 {
        if seed % 4 == 0 {
            assert_eq!(shared(seed), shared(seed), "seed {seed}, three control planes");
        }
        let first = history(seed);
        assert_eq!(history(seed), first, "seed {seed}");
        assert_eq!(seen.insert(first, seed), None, "seed {seed}");
    }
}

#[test]
fn most_of_what_is_put_into_the_inbox_is_accepted() {
    let (mut accepted, mut refused) = (0, 0);
    for seed in 1..=4 {
        let outcome = run(&Request { replicas: Some(2), ..Request::new(seed, 50) });
        assert_eq!(outcome.violation, None, "seed {seed}");
        (accepted, refused) = (accepted + outcome.of_inbox.0, refused + outcome.of_inbox.1);
    }
    assert!(accepted > 20 && accepted > refused, "{accepted} accepted, {refused} refused");
}

#[test]
fn a_fifth_of_all_calls_failing_keeps_no_request_from_coming_true() {
    for (seed, instances) in [(1, 50), (2, 50), (3, 50), (4, 50), (5, 200), (6, 200), (7, 1000)] {
        let outcome = run(&Request { only_faults: true, ..Request::new(seed, instances) });
        assert_eq!(outcome.violation, None, "seed {seed}");
        let good: usize = ["done", "superseded"].iter().filter_map(|end| outcome.ends.get(*end)).sum();
        assert_eq!(good, outcome.accepted, "seed {seed}: {:?}", outcome.ends);
        assert!(outcome.accepted > 4 * instances, "{} accepted", outcome.accepted);
    }
}
