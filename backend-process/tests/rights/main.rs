//! The backend with real processes, where it needs rights that not every machine gives to everybody: users, control groups,
//! mounts, namespaces.
//!
//! What cannot be had here shows as ignored, with the reason; with `REQUIRED_RIGHTS` naming it (`users`, `control-groups`,
//! `mounts`, `namespaces`, with commas between), the tests fail instead.

#![allow(clippy::unwrap_used)] // All of it is test code, helpers too.

mod disk;
mod isolation;
mod limits;
mod namespaces;
mod right;
#[path = "../backend/support.rs"]
#[allow(dead_code, reason = "shared with the other target")]
mod support;

use std::pin::Pin;

use libtest_mimic::{Arguments, Completion, Failed, Trial};

use self::right::Right::{self, Groups, Mounts, Namespaces, Users};

type Test = fn() -> Pin<Box<dyn Future<Output = ()>>>;

/// Tests by their modules and names, with the rights that each takes.
macro_rules! tests {
    ($($module:ident::$name:ident: $rights:expr,)*) => {
        vec![$(trial(concat!(stringify!($module), "::", stringify!($name)), &$rights, || Box::pin($module::$name()))),*]
    };
}

fn main() {
    // One that is not listed here is dead code, of which the compiler tells.
    let mut trials = tests![
        disk::on_a_full_disk_nothing_is_half_made_and_with_room_it_goes_on: [Mounts],
        disk::on_a_disk_that_may_only_be_read_it_is_told_and_nothing_changes: [Mounts],
        isolation::each_instance_is_a_user_of_its_own_that_cannot_reach_the_others: [Users],
        isolation::no_instance_gains_rights: [],
        isolation::data_keeps_its_user_for_as_long_as_it_lives_and_gives_it_back: [Users],
        isolation::data_from_before_there_were_users_is_handed_over_once: [Users],
        isolation::data_keeps_its_user_when_the_one_it_asked_for_first_gets_free: [Users],
        isolation::a_sleepers_user_is_given_to_nobody_when_its_reservation_is_lost: [Users],
        isolation::data_whose_user_is_of_another_range_is_handed_over_and_nothing_else_is: [Users],
        isolation::a_user_is_given_again_as_late_as_can_be: [Users],
        isolation::when_there_are_no_more_users_it_is_told_and_nothing_is_left_behind: [Users],
        isolation::no_new_data_gets_a_user_that_something_on_the_machine_runs_as: [Users],
        isolation::nothing_that_the_control_plane_inherited_is_handed_down: [],
        isolation::a_program_that_not_everybody_may_execute_is_refused_before_anything_is_touched: [Users],
        isolation::a_root_that_users_cannot_get_to_is_told: [Users],
        isolation::what_it_prints_can_be_opened_again_by_itself_alone: [],
        limits::an_instance_has_a_group_of_its_size_for_as_long_as_it_runs: [Groups],
        limits::memory_that_is_used_up_is_the_reason_that_is_told: [Groups],
        limits::another_instance_is_not_hurt_by_one_that_wants_too_much: [Groups],
        limits::where_there_are_no_groups_each_process_is_bounded: [],
        limits::what_it_uses_is_told_while_it_runs: [],
        limits::a_process_that_left_everything_but_its_group_is_stopped_with_the_others: [Groups],
        limits::what_runs_without_a_folder_is_ended_by_upkeep: [Groups],
        limits::a_log_that_has_grown_is_turned_over: [],
        limits::a_log_is_turned_over_also_while_a_product_is_not_ready: [],
        limits::without_the_group_that_was_promised_nothing_starts_and_it_is_tried_again: [Groups, Mounts],
        limits::memory_that_was_used_up_while_no_control_plane_ran_is_the_reason_all_the_same: [Groups],
        limits::memory_that_was_used_up_by_all_together_is_told_apart: [Groups],
        limits::the_last_words_are_told_also_right_after_the_log_was_turned_over: [],
        namespaces::what_ends_with_the_first_process_of_a_container_is_not_said_to_go_on: [Namespaces],
        namespaces::root_of_a_namespace_that_lacks_the_users_runs_instances_as_itself_and_says_so: [Namespaces],
    ];
    trials.push(Trial::test("no_test_is_passed_over", no_test_is_passed_over));
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}

fn trial(name: &'static str, rights: &'static [Right], test: Test) -> Trial {
    Trial::ignorable_test(name, move || {
        for right in rights {
            if let Some(missing) = right.missing()? {
                return Ok(Completion::ignored_with(missing));
            }
        }
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        runtime.block_on(test());
        Ok(Completion::Completed)
    })
}

/// The attribute of a test makes it vanish from a target without the harness, in silence.
fn no_test_is_passed_over() -> Result<(), Failed> {
    let sources = [
        include_str!("disk.rs"),
        include_str!("isolation.rs"),
        include_str!("limits.rs"),
        include_str!("namespaces.rs"),
    ];
    let mut lines = sources.into_iter().flat_map(str::lines);
    let marked = lines.find(|line| line.starts_with("#[tokio::test") || line.starts_with("#[test"));
    match marked.and(lines.next()) {
        Some(test) => Err(format!("it needs to be listed in main.rs, and no attribute: {test}").into()),
        None => Ok(()),
    }
}
