//! One run, from its seed to its end.

use std::{
    cell::Cell,
    collections::BTreeMap,
    sync::{Arc, Once},
    time::Duration,
};

use tokio::time::Instant;

use crate::{
    customers::inbox::{ACCEPTED, REFUSED},
    driver::drive,
    gate::Life,
    ledger::Ledger,
    rest,
    scenario::Request,
    world::World,
};

/// How long a world may last. One goes on for three days at most; where nobody comes to an end, time goes on all the same, and fast.
const WORLD_MAX: Duration = Duration::from_secs(4 * 24 * 3600);

/// What came of a run.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// Its seed.
    pub seed: u64,
    /// How many commits and calls there were.
    pub steps: u64,
    /// How many requests were accepted.
    pub accepted: usize,
    /// How many of those put into the inbox were accepted, and how many were refused.
    pub of_inbox: (u64, u64),
    /// How they ended: done, superseded by a newer one, or failed for a reason with this code.
    pub ends: Ends,
    /// How many control planes there were at a time.
    pub replicas: usize,
    /// How many processes there were in all.
    pub processes: u64,
    /// How much time went by in the world.
    pub virtual_time: Duration,
    /// The most calls that one instance had in a second, and in an hour.
    pub busiest: (usize, usize),
    /// The hash of everything that happened.
    pub history: String,
    /// What must never be, and was.
    pub violation: Option<String>,
}

/// Runs the world of a seed to its end, on a thread and a clock of its own.
///
/// # Panics
/// When the runtime cannot be made.
#[must_use]
pub fn run(request: &Request) -> Outcome {
    count_panics();
    let before = PANICS.get();
    let lived = std::panic::catch_unwind(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
        runtime.expect("a runtime").block_on(async { tokio::time::timeout(WORLD_MAX, live(request.clone())).await })
    });
    let lived = lived.map(|ended| ended.unwrap_or_else(|_| Outcome::endless(request.seed)));
    let mut outcome = lived.unwrap_or_else(|_| Outcome::unlived(request.seed));
    // The engine catches the panics of its parts and goes on; here none is forgiven.
    let panics = PANICS.get() - before;
    if panics > 0 {
        outcome.violation.get_or_insert_with(|| format!("{panics} panics, as printed"));
    }
    outcome
}

thread_local! {
    /// How often this thread has panicked. A run has a thread of its own.
    static PANICS: Cell<u64> = const { Cell::new(0) };
}

/// Has panics counted, whoever catches them.
fn count_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let printed = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            PANICS.set(PANICS.get() + 1);
            printed(panic);
        }));
    });
}

impl Outcome {
    /// Of a run that was given up.
    fn endless(seed: u64) -> Self {
        let told = format!("it has not come to its end after {} days", WORLD_MAX.as_secs() / 86_400);
        Self { virtual_time: WORLD_MAX, violation: Some(told), ..Self::unlived(seed) }
    }

    /// Of a run of which nothing is known, as it ended in a panic, or not at all.
    #[must_use]
    pub fn unlived(seed: u64) -> Self {
        Self {
            seed,
            steps: 0,
            accepted: 0,
            of_inbox: (0, 0),
            ends: Ends::new(),
            replicas: 0,
            processes: 0,
            virtual_time: Duration::ZERO,
            busiest: (0, 0),
            history: String::new(),
            violation: None,
        }
    }
}

async fn live(request: Request) -> Outcome {
    let began = Instant::now();
    let world = Arc::new(World::new(&request));
    let ledger = Arc::new(Ledger::default());
    drive(&world, &ledger, &request).await;
    let mut violation = world.witness.violation();
    if violation.is_none() {
        violation = rest::check(&world, &ledger).await.err();
    }
    let violation = violation.or_else(|| world.witness.violation());
    let ends = ends(&world, &ledger).await;
    Outcome {
        seed: request.seed,
        steps: world.witness.steps(),
        accepted: ledger.count(),
        of_inbox: (world.witness.count_of(ACCEPTED), world.witness.count_of(REFUSED)),
        ends,
        replicas: world.places.len(),
        processes: world.processes(),
        virtual_time: began.elapsed(),
        busiest: world.witness.busiest(),
        history: world.witness.history(),
        violation,
    }
}

/// How accepted requests ended, by words: `done`, `superseded`, `pending`, or the code of what they failed for.
pub type Ends = BTreeMap<String, usize>;

async fn ends(world: &World, ledger: &Ledger) -> Ends {
    let mut ends = Ends::new();
    let Some(process) = world.somebody().filter(|process| process.gate.life() == Life::Alive) else { return ends };
    let store = process.gate.store().await;
    for accepted in ledger.operations() {
        let Some(kept) = store.operation(&accepted.id).await.ok().flatten() else { continue };
        let end = kept.failure.map_or_else(|| kept.state.as_str().to_owned(), |failure| failure.code);
        *ends.entry(end).or_default() += 1;
    }
    ends
}
