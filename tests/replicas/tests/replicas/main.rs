//! Several control plane processes over one PostgreSQL database. They are killed, paused, cut off and replaced, and so is the
//! database; whatever happens, what was accepted is done, once.
//!
//! Where PostgreSQL is missing, the tests show as ignored with the reason; with `REQUIRED_PEERS` naming `postgres`, they fail
//! instead.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod customers;
mod cut_off;
mod database_killed;
mod inbox;
mod killed;
mod paused;
mod process;
mod products;
mod provider;
mod proxy;
mod upgrade;
mod world;

use std::{future::Future, time::Duration};

use libtest_mimic::{Arguments, Completion, Trial};
use test_peers::postgres::{self, Programs};
use tokio::time::{Instant, sleep};

/// How long anything may take before it counts as not happening, on a machine that is busy with others.
const PATIENCE: Duration = Duration::from_secs(90);

fn main() {
    let trials = vec![
        trial("a_replica_that_is_killed_among_1000_sign_ups_costs_none_of_them", database, killed::among_sign_ups),
        trial("a_replica_that_is_killed_leaves_its_processes_to_the_others", database, products::killed),
        trial("a_call_that_a_paused_replica_makes_late_is_undone", database, paused::about_to_call),
        trial("calls_of_a_paused_replica_that_arrive_late_are_undone", database, paused::calls_under_way),
        trial("a_write_that_a_paused_replica_makes_late_is_refused", database, paused::about_to_write),
        trial("a_database_that_is_killed_among_sign_ups_loses_none", server, database_killed::killed),
        trial("a_database_that_is_restarted_among_sign_ups_loses_none", server, database_killed::restarted),
        trial("a_standby_that_takes_over_among_sign_ups_loses_none", standby, database_killed::failed_over),
        trial("connections_that_are_cut_again_and_again_cost_time_alone", database, cut_off::cut),
        trial("a_network_that_swallows_everything_costs_time_alone", database, cut_off::swallowed),
        trial("a_database_that_lets_nobody_in_costs_time_alone", database, cut_off::refused),
        trial("a_customer_and_the_instance_are_there_together_or_not_at_all", database, inbox::together),
        trial(
            "a_customer_of_python_and_the_instance_are_there_together_or_not_at_all",
            python,
            inbox::together_in_python,
        ),
        trial("replicas_are_replaced_one_by_one_under_load", database, upgrade::rolling),
    ];
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}

/// Why a test cannot run here, if so, and whether the run does not count without it.
type Missing = fn() -> Option<(String, bool)>;

fn database() -> Option<(String, bool)> {
    Some((postgres::url().err()?, postgres::is_required()))
}

fn server() -> Option<(String, bool)> {
    Some((Programs::find().err()?, postgres::is_required()))
}

fn standby() -> Option<(String, bool)> {
    Some((database_killed::no_standby()?, postgres::is_required()))
}

fn python() -> Option<(String, bool)> {
    database().or_else(|| Some((inbox::python().err()?, inbox::python_is_required())))
}

fn trial<F: Future<Output = ()>>(name: &str, missing: Missing, test: impl FnOnce() -> F + Send + 'static) -> Trial {
    Trial::ignorable_test(name, move || match missing() {
        Some((reason, true)) => Err(reason.into()),
        Some((reason, false)) => Ok(Completion::ignored_with(reason)),
        None => {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
            runtime.block_on(test());
            Ok(Completion::Completed)
        }
    })
}

/// Looks again and again until there is an answer.
async fn until<T, F: Future<Output = Option<T>>>(what: &str, mut look: impl FnMut() -> F) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        sleep(Duration::from_millis(5)).await;
    }
}
