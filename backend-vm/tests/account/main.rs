//! Whole lives of instances in an account, through the engine: what befalls them there, what is left of them, and what becomes of
//! requests whose answers are lost.
//!
//! Where `cargo xtask peers` has not prepared the API server, the tests show as ignored with the reason; with `REQUIRED_PEERS` naming
//! `moto`, they fail instead.
#![allow(missing_docs, clippy::unwrap_used, reason = "a test may panic")]

#[path = "../shared/clients.rs"]
mod clients;
mod left;
mod lost;
mod secrets;
mod stage;
mod trouble;
mod updates;

use std::future::Future;

use libtest_mimic::{Arguments, Completion, Trial};

fn main() {
    let trials = vec![
        trial("a_machine_that_somebody_stopped_is_started_again", trouble::stopped),
        trial("a_machine_that_somebody_ended_is_made_again_on_its_data", trouble::ended),
        trial("a_machine_whose_checks_fail_is_replaced_on_its_data", trouble::impaired),
        trial("a_machine_that_retires_soon_is_replaced_and_one_that_retires_later_is_not", trouble::retiring),
        trial("a_machine_that_ends_instead_of_coming_up_is_made_again", trouble::doomed),
        trial("without_room_an_instance_lives_in_the_next_zone", trouble::full_zone),
        trial("a_sleeper_without_room_wakes_as_the_next_type", trouble::full_type),
        trial("a_launch_whose_answer_is_lost_makes_one_machine", lost::launches),
        trial("a_removal_whose_answers_are_lost_leaves_nothing", lost::removals),
        trial("after_many_lives_nothing_is_left_and_nothing_was_untagged", left::by_another_client),
        trial("a_life_on_the_bare_server", left::on_the_bare_server),
        trial(
            "what_can_be_changed_in_place_is_and_the_rest_is_another_machine_on_the_same_data",
            updates::of_each_kind,
        ),
        trial("a_restart_takes_new_secrets_up", secrets::rotated),
        trial("what_lags_is_never_taken_for_the_truth", updates::lagging),
        trial("forty_sign_ups_are_made_within_the_documented_buckets", updates::within_buckets),
        trial("secrets_are_fetched_by_the_machine_and_are_nowhere_else", secrets::native),
    ];
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}

fn trial<F: Future<Output = ()> + Send>(name: &str, test: impl FnOnce() -> F + Send + 'static) -> Trial {
    Trial::ignorable_test(name, || {
        if let Some(reason) = test_ec2::missing()? {
            return Ok(Completion::ignored_with(reason));
        }
        tokio::runtime::Runtime::new()?.block_on(test());
        Ok(Completion::Completed)
    })
}
