//! A real control plane that is killed: at every numbered place of every request, while the next one takes up what it
//! left, and at any moment from outside. Whatever happens, the next start ends with what was asked for, once.
//!
//! `CRASH_SEED` repeats a run with the same choices and moments; each test prints its seed.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod check;
mod life;
mod remnant;

use futures::StreamExt;
use life::{End, Life, random_moment};
use provisioner_core::seams::Random;
use tests::verb::Verb;

/// How many lives are lived side by side.
const AT_ONCE: u64 = 4;
/// More places than any request has.
const PLACES_MAX: u64 = 100;
/// One of so many pairs of places is tried, others with another seed.
const PAIRS_SAMPLED: u64 = 6;

macro_rules! killed {
    ($($name:ident: $verb:ident),* $(,)?) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                at_every_place(Verb::$verb).await;
            }
        )*
    };
}

killed! {
    a_create_that_is_killed_at_any_place_ends_with_one_running_instance: Create,
    a_sleep_that_is_killed_at_any_place_ends_with_nothing_running_and_the_data_kept: Sleep,
    a_wake_that_is_killed_at_any_place_ends_with_one_running_instance_on_its_data: Wake,
    a_suspension_that_is_killed_at_any_place_ends_with_nothing_running_and_the_data_kept: Suspend,
    a_lift_that_is_killed_at_any_place_ends_with_one_running_instance_on_its_data: Lift,
    an_update_that_is_killed_at_any_place_ends_with_one_instance_of_the_new_version: Update,
    a_restart_that_is_killed_at_any_place_restarts_once: Restart,
    a_removal_that_is_killed_at_any_place_leaves_nothing: Delete,
    a_removal_with_data_retained_that_is_killed_at_any_place_leaves_the_data_and_nothing_else: Retain,
}

/// Says which round it was when one fails.
struct Round(String);

impl Drop for Round {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("failed: {}", self.0);
        }
    }
}

/// Kills the request at its first place, its second, and so on, until it survives; then likewise what takes it up.
async fn at_every_place(verb: Verb) {
    let places = until_survived(verb, |at| vec![at]).await;
    assert!(places >= 6, "{verb:?} has only {places} places to be killed at");
    let seed = life::seed();
    let mut again = 0;
    for first in 1..=places {
        // Which pairs are sampled moves along with the first place, so that all second places have their turn.
        let offset = (seed + first) % PAIRS_SAMPLED;
        let chosen = (1..=places).filter(|second| second % PAIRS_SAMPLED == offset);
        again += side_by_side(verb, chosen.map(|second| vec![first, second]).collect()).await.len();
    }
    println!("{verb:?}: {places} places, {again} pairs of places, seed {seed}");
}

/// Tries one place after the other until the last ones are never reached; how many places there are.
async fn until_survived(verb: Verb, kills: impl Fn(u64) -> Vec<u64>) -> u64 {
    let mut places = 0;
    for first in (1..=PLACES_MAX).step_by(usize::try_from(AT_ONCE).unwrap()) {
        let rounds = (first..first + AT_ONCE).map(&kills).collect();
        let ends = side_by_side(verb, rounds).await;
        places += ends.iter().filter(|end| **end == End::Killed).count() as u64;
        if ends.last() == Some(&End::Survived) {
            return places;
        }
    }
    panic!("{verb:?} has more than {PLACES_MAX} places to be killed at: raise the bound");
}

/// Lives these lives, some at a time: how the last control plane of each that was to be killed ended.
async fn side_by_side(verb: Verb, rounds: Vec<Vec<u64>>) -> Vec<End> {
    let lives = rounds.into_iter().map(|kills| async move { tokio::spawn(one_life(verb, kills)).await.unwrap() });
    futures::stream::iter(lives).buffered(usize::try_from(AT_ONCE).unwrap()).collect().await
}

/// One instance's life: its starting state, a control plane killed for each place given, and one that takes up the rest.
async fn one_life(verb: Verb, kills: Vec<u64>) -> End {
    let _round = Round(format!("{verb:?} killed at the places {kills:?}, one start after the other"));
    let mut life = Life::prepare(verb).await;
    let mut last = End::Survived;
    for at in kills {
        last = life.killed_at(at).await;
    }
    check::recover(life).await;
    last
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_from_outside_at_any_moment_is_recovered_from() {
    const ROUNDS: u64 = 6;
    let seed = life::seed();
    println!("seed {seed}");
    for round in 0..ROUNDS {
        let lives = Verb::ALL.into_iter().zip(0..).map(|(verb, number)| {
            let random = Random::from_seed(seed ^ (round << 8 | number));
            async move { tokio::spawn(killed_from_outside(verb, random, seed)).await.unwrap() }
        });
        let _: Vec<()> = futures::stream::iter(lives).buffered(usize::try_from(AT_ONCE).unwrap()).collect().await;
    }
}

async fn killed_from_outside(verb: Verb, random: Random, seed: u64) {
    let mut life = Life::prepare(verb).await;
    let moments = [random_moment(&random), random_moment(&random)];
    let _round = Round(format!("{verb:?} killed from outside after {moments:?}, seed {seed}"));
    for moment in moments {
        life.killed_after(moment).await;
    }
    check::recover(life).await;
}
