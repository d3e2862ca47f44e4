//! That the simulation can fail: each bug that is planted is found within a stated number of seeds.
//!
//! `cargo xtask sim --planted` builds and runs this; without the feature there is nothing to find.
#![cfg(feature = "planted-bugs")]

use provisioner_core::engine::PlantedBug;
use simulation::{Request, run};

/// Within so many seeds of so many instances each bug is found. The rarest shows in one seed of thirty, and any change of the
/// engine makes another history of each.
const SEEDS: u64 = 128;
const INSTANCES: usize = 100;

/// What a witness may say of each bug.
fn told_as(bug: PlantedBug) -> &'static [&'static str] {
    match bug {
        PlantedBug::SkipsUnsettledWrite => &["settled on disk"],
        PlantedBug::TrustsOneAbsent => &["was given up, and it is there"],
        PlantedBug::ReusesIncarnation => &["is used again"],
        PlantedBug::IgnoresEpoch => &["had the session"],
        PlantedBug::RevivesGone => &["was revived"],
        PlantedBug::EndsWithoutLooking => &["was given up, and it is there"],
        // A claim that its writes leave as it was is taken over anew by each run, and a call may always just have been made: it is
        // looked at again and again.
        PlantedBug::IgnoresClaims => &["does not work on it", "within an hour"],
        PlantedBug::ForgetsTakeover => &["as if no late call could come any more"],
        PlantedBug::CallsWithoutSession => &["without a session"],
    }
}

/// Those that one control plane may have by itself have to be found with one, and the others with two.
fn replicas(bug: PlantedBug) -> usize {
    use PlantedBug::{CallsWithoutSession, ForgetsTakeover, IgnoresClaims};
    if matches!(bug, IgnoresClaims | ForgetsTakeover | CallsWithoutSession) { 2 } else { 1 }
}

fn is_found(bug: PlantedBug) {
    for seed in 1..=SEEDS {
        let request = Request { planted: Some(bug), replicas: Some(replicas(bug)), ..Request::new(seed, INSTANCES) };
        let outcome = run(&request);
        if let Some(violation) = outcome.violation {
            assert!(told_as(bug).iter().any(|told| violation.contains(told)), "{bug} is told as: {violation}");
            return println!("{bug}: found by seed {seed} after {} steps", outcome.steps);
        }
    }
    panic!("{bug} is not found within {SEEDS} seeds");
}

#[test]
fn a_call_for_a_row_that_is_settled_on_disk_is_found() {
    is_found(PlantedBug::SkipsUnsettledWrite);
}

#[test]
fn a_single_absent_read_that_is_believed_is_found() {
    is_found(PlantedBug::TrustsOneAbsent);
}

#[test]
fn a_making_that_is_used_again_is_found() {
    is_found(PlantedBug::ReusesIncarnation);
}

#[test]
fn a_write_of_a_session_that_is_over_is_found() {
    is_found(PlantedBug::IgnoresEpoch);
}

#[test]
fn a_gone_instance_that_is_revived_is_found() {
    is_found(PlantedBug::RevivesGone);
}

#[test]
fn a_making_that_is_given_up_without_a_look_is_found() {
    is_found(PlantedBug::EndsWithoutLooking);
}

#[test]
fn work_on_what_another_process_works_on_is_found() {
    is_found(PlantedBug::IgnoresClaims);
}

#[test]
fn work_that_was_taken_over_and_is_not_looked_at_again_is_found() {
    is_found(PlantedBug::ForgetsTakeover);
}

#[test]
fn a_call_without_a_session_is_found() {
    is_found(PlantedBug::CallsWithoutSession);
}
