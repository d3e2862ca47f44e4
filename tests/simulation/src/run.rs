//! One run, from its seed to its end.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::time::Instant;

use crate::{driver::drive, gate::Life, ledger::Ledger, rest, scenario::Request, world::World};

/// What came of a run.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// Its seed.
    pub seed: u64,
    /// How many commits and calls there were.
    pub steps: u64,
    /// How many requests were accepted.
    pub accepted: usize,
    /// How they ended: done, superseded by a newer one, or failed for a reason with this code.
    pub ends: Ends,
    /// How many processes there were.
    pub processes: u64,
    /// How much time went by in the world.
    pub virtual_time: Duration,
    /// The most calls that one instance had in a second, and in an hour.
    pub busiest: (u32, u32),
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
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    let runtime = runtime.expect("a runtime");
    runtime.block_on(live(request.clone()))
}

async fn live(request: Request) -> Outcome {
    let began = Instant::now();
    let (seed, instances) = (request.seed, request.instances);
    let world = Arc::new(World::new(&request));
    let ledger = Arc::new(Ledger::default());
    drive(&world, &ledger, instances).await;
    let mut violation = world.witness.violation();
    if violation.is_none() {
        violation = rest::check(&world, &ledger).await.err();
    }
    let violation = violation.or_else(|| world.witness.violation());
    let ends = ends(&world, &ledger).await;
    Outcome {
        seed,
        steps: world.witness.steps(),
        accepted: ledger.count(),
        ends,
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
    let Some(process) = world.current.get().filter(|process| process.gate.life() == Life::Alive) else { return ends };
    let store = process.gate.enter().await;
    for accepted in ledger.operations() {
        let Some(kept) = store.operation(&accepted.id).await.ok().flatten() else { continue };
        let end = kept.failure.map_or_else(|| kept.state.as_str().to_owned(), |failure| failure.code);
        *ends.entry(end).or_default() += 1;
    }
    ends
}
