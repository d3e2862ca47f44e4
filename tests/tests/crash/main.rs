//! A real control plane that is killed: at every numbered place of every request, while the next one takes up what it
//! left, and at any moment from outside. Whatever happens, the next start ends with what was asked for, once.
//!
//! `CRASH_SEED` repeats a run with the same choices and moments; each test prints its seed. `CRASH_PAIRS=1` tries every pair
//! of places instead of a sample.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod check;
mod full;
mod life;
mod places;
mod remnant;

use std::{fmt, time::Duration};

use futures::StreamExt;
use life::{End, Life, Lived, random_moment};
use provisioner_core::seams::Random;
use tests::verb::Verb;

/// How many lives are lived side by side.
const AT_ONCE: usize = 4;
/// More places than any request has.
const PLACES_MAX: u64 = 100;
/// How many lives are lived for a place that not every run comes to.
const LIVES_MAX: u64 = 20;
/// By how much a clock is set.
const HOURS: Duration = Duration::from_secs(7 * 3600);
/// One of so many pairs of places is tried, others with another seed, unless `CRASH_PAIRS` says one of how many.
const PAIRS_SAMPLED: u64 = 16;

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
    a_retry_that_is_killed_at_any_place_ends_with_one_running_instance_on_its_data: Retry,
    an_adoption_that_is_killed_at_any_place_ends_with_one_running_instance_on_its_data: Adopt,
}

/// The kills of one life.
#[derive(Debug, Clone)]
struct Kills {
    /// At which place each of its control planes is killed.
    places: Vec<u64>,
    /// How far ahead the clock of those is.
    killed_ahead: Duration,
    /// How far ahead the clock of the one is that takes up what they left.
    ahead: Duration,
}

impl Kills {
    fn at(places: impl Into<Vec<u64>>) -> Self {
        Self { places: places.into(), killed_ahead: Duration::ZERO, ahead: Duration::ZERO }
    }
}

impl fmt::Display for Kills {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { places, killed_ahead, ahead } = self;
        write!(
            f,
            "killed at the places {places:?}, one start after the other, with clocks ahead by {killed_ahead:?}, "
        )?;
        write!(f, "and taken up with one ahead by {ahead:?}")
    }
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

/// Has the request count its places, kills it at each of them, and then kills what takes it up as well.
async fn at_every_place(verb: Verb) {
    // Places that other runs come to and this one did not are tried at the end.
    let places = uncut(verb).await;
    assert!(places >= 10, "{verb:?} has only {places} places to be killed at");
    let lives = try_all(verb, (1..=places).map(|at| Kills::at([at]))).await;
    let accepted = accepted_and_killed(&lives);
    assert!(accepted > 0, "{verb:?}: nobody who was killed had accepted it");
    // Timing lets one run look once more than another. So every place is tried until it killed, and so are those that
    // the uncut run did not come to.
    let (mut again, mut killed) = (0, places);
    for (at, life) in (1..).zip(lives) {
        if life.end == End::Survived {
            again += until_killed(verb, at).await.unwrap_or_else(|| panic!("{verb:?} never came to place {at} again"));
        }
    }
    while until_killed(verb, killed + 1).await.is_some() {
        killed += 1;
        assert!(killed <= PLACES_MAX, "{verb:?} has more than {PLACES_MAX} places to be killed at: raise the bound");
    }
    println!("{verb:?}: {places} places counted, {killed} killed at, {again} lives lived again for it");
    println!("{verb:?}: of the {places} first lives {accepted} were killed after it was told as accepted");
    pairs(verb, killed).await;
}

/// How many places the request has when nobody kills it: the fewest of several runs, as one that was held up looks more
/// often, and others never come to its last places.
async fn uncut(verb: Verb) -> u64 {
    let _round = Round(format!("{verb:?}, not killed"));
    let mut fewest = u64::MAX;
    for _ in 0..3 {
        let mut life = Life::prepare(verb).await;
        fewest = fewest.min(life.uncut().await);
        check::recover(life, Duration::ZERO).await;
    }
    fewest
}

/// How many lives it took until one was killed there.
async fn until_killed(verb: Verb, at: u64) -> Option<u64> {
    for lives in 1..=LIVES_MAX {
        if one_life(verb, Kills::at([at])).await.end == End::Killed {
            return Some(lives);
        }
    }
    None
}

/// Kills the request at one place and its next start at another: a sample of all pairs, and every second place for a
/// first one in the middle.
async fn pairs(verb: Verb, places: u64) {
    let seed = life::seed();
    let one_of = std::env::var("CRASH_PAIRS").map_or(PAIRS_SAMPLED, |set| set.parse().expect("CRASH_PAIRS: a number"));
    let middle = places / 2;
    let chosen = (1..=places).flat_map(|first| {
        // Which pairs are sampled moves along with the first place, so that all second places have their turn.
        let offset = (seed + first) % one_of;
        let sampled = (1..=places).filter(move |second| first == middle || second % one_of == offset);
        sampled.map(move |second| Kills::at([first, second]))
    });
    let chosen: Vec<_> = chosen.collect();
    let (tried, all) = (chosen.len(), places * places);
    let lives = try_all(verb, chosen).await;
    let (killed, accepted) = (killed(&lives), accepted_and_killed(&lives));
    // What takes a request up has fewer places than the request, as a part is done already.
    println!("{verb:?}: {tried} of {all} pairs of places tried, {killed} killed twice, seed {seed}");
    println!("{verb:?}: {accepted} of those after it was told as accepted");
    assert!(killed * 4 > tried, "{verb:?}: only {killed} of {tried} starts were killed");
}

fn killed(lives: &[Lived]) -> usize {
    lives.iter().filter(|life| life.end == End::Killed).count()
}

/// How many were killed after one of their control planes had told that it accepted the request.
fn accepted_and_killed(lives: &[Lived]) -> usize {
    lives.iter().filter(|life| life.end == End::Killed && life.accepted).count()
}

/// Lives these lives, some at a time.
async fn try_all(verb: Verb, rounds: impl IntoIterator<Item = Kills>) -> Vec<Lived> {
    let lives = rounds.into_iter().map(|kills| async move { tokio::spawn(one_life(verb, kills)).await.unwrap() });
    futures::stream::iter(lives).buffered(AT_ONCE).collect().await
}

/// One instance's life: its starting state, a control plane killed for each place given, and one that takes up the rest.
async fn one_life(verb: Verb, kills: Kills) -> Lived {
    let _round = Round(format!("{verb:?} {kills}"));
    let mut life = Life::prepare(verb).await;
    let mut end = End::Killed;
    for at in kills.places {
        if life.killed_at(at, kills.killed_ahead).await == End::Survived {
            end = End::Survived;
        }
    }
    let accepted = life.accepted.is_some();
    check::recover(life, kills.ahead).await;
    Lived { end, accepted }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_set_by_hours_when_the_control_plane_is_killed_delays_and_parks_nothing() {
    let seed = life::seed();
    let mut rounds = 0;
    for verb in Verb::ALL {
        let places = uncut(verb).await;
        let set = |at| match (at + seed) % 2 {
            // Back: what was killed was ahead.
            0 => Kills { killed_ahead: HOURS, ..Kills::at([at]) },
            // Forward: what takes it up is.
            _ => Kills { ahead: HOURS, ..Kills::at([at]) },
        };
        let lives = try_all(verb, (1..=places).map(set)).await;
        let killed = killed(&lives);
        // Timing lets one run look once less than another.
        assert!(killed * 10 > lives.len() * 8, "{verb:?}: only {killed} of {} starts were killed", lives.len());
        rounds += lives.len();
    }
    println!("{rounds} lives with the clock set between a kill and the next start, seed {seed}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_from_outside_at_any_moment_is_recovered_from() {
    const ROUNDS: u64 = 6;
    let seed = life::seed();
    println!("seed {seed}");
    let (mut lived, mut accepted) = (0, 0);
    for round in 0..ROUNDS {
        let lives = Verb::ALL.into_iter().zip(0..).map(|(verb, number)| {
            let random = Random::from_seed(seed ^ (round << 8 | number));
            async move { tokio::spawn(killed_from_outside(verb, random, seed)).await.unwrap() }
        });
        let told: Vec<bool> = futures::stream::iter(lives).buffered(AT_ONCE).collect().await;
        lived += told.len();
        accepted += told.into_iter().filter(|told| *told).count();
    }
    println!("{lived} lives to be killed from outside, {accepted} of them told of an acceptance before");
}

/// Whether it was told as accepted before the last of its control planes was killed.
async fn killed_from_outside(verb: Verb, random: Random, seed: u64) -> bool {
    let mut life = Life::prepare(verb).await;
    let moments = [random_moment(&random), random_moment(&random)];
    let _round = Round(format!("{verb:?} killed from outside after {moments:?}, seed {seed}"));
    for moment in moments {
        life.killed_after(moment).await;
    }
    let accepted = life.accepted.is_some();
    check::recover(life, Duration::ZERO).await;
    accepted
}
