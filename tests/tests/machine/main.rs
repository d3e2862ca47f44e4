//! The process backend on a machine of its own, under real systemd with the unit that the project ships: what outlives
//! the service, what does not, and what a reboot leaves.
//!
//! Where User-mode Linux is missing, the tests show as ignored with the reason; with `REQUIRED_PEERS` naming
//! `user-mode-linux`, they fail instead.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod limits;
mod reboot;
mod restart;
mod world;

use libtest_mimic::{Arguments, Completion, Trial};
use tests::machine;

fn main() {
    // Each machine takes a core to itself while it boots, so one after the other.
    let arguments = Arguments { test_threads: Some(1), ..Arguments::from_args() };
    let trials = vec![
        trial("instances_outlive_a_restart_of_the_service_by_its_unit", restart::instances_outlive_by_the_unit),
        trial("instances_outlive_a_restart_of_the_service_by_their_groups", restart::instances_outlive_by_their_groups),
        trial("instances_are_held_to_their_size_by_groups_of_version_2", limits::instances_are_held),
        trial("instances_that_die_with_the_service_are_reported_gone_and_made_again", restart::instances_die),
        trial(
            "after_a_reboot_instances_are_reported_gone_and_made_again_on_their_data",
            reboot::instances_are_made_again,
        ),
    ];
    libtest_mimic::run(&arguments, trials).exit();
}

/// A test on a machine, where there can be one.
fn trial(name: &'static str, test: fn()) -> Trial {
    Trial::ignorable_test(name, move || match machine::missing() {
        Ok(None) => {
            test();
            Ok(Completion::Completed)
        }
        Ok(Some(missing)) => Ok(Completion::ignored_with(missing)),
        Err(required) => Err(required.into()),
    })
}
