//! Runs one seed after the other, and tells how to run the bad ones again.

use std::{
    collections::BTreeMap,
    process::ExitCode,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use clap::Parser;
use simulation::{Ends, Outcome, Request, run, trouble::Troubles};

/// The real engine on a virtual clock, with everything going wrong.
#[derive(Debug, Clone, Parser)]
#[command(name = "cargo xtask sim")]
struct Arguments {
    /// How many seeds to run
    #[arg(long, default_value_t = 20)]
    seeds: u64,
    /// How many customers there are in each
    #[arg(long, default_value_t = 200)]
    instances: usize,
    /// The first seed; another one each time when it is not given
    #[arg(long)]
    first_seed: Option<u64>,
    /// How many of a hundred calls go wrong
    #[arg(long, default_value_t = 20)]
    fault_percent: u64,
    /// Nothing goes wrong but calls: no kills, no outsiders, no troubles of providers
    #[arg(long)]
    only_faults: bool,
    /// Which troubles there are besides: all, none, or some with commas between them
    #[arg(long, default_value_t = Troubles::all())]
    troubles: Troubles,
    /// How many control planes share the store; as each seed says when it is not given
    #[arg(long, value_parser = clap::value_parser!(u8).range(1..=8))]
    replicas: Option<u8>,
    /// No new seed after so many minutes
    #[arg(long)]
    minutes: Option<f64>,
    /// Print a line for each seed
    #[arg(long)]
    each: bool,
    /// Run the engine with this bug, until a seed finds it. Needs a build with the feature `planted-bugs`
    #[cfg(feature = "planted-bugs")]
    #[arg(long)]
    planted: Option<provisioner_core::engine::PlantedBug>,
}

impl Arguments {
    fn request(&self, seed: u64) -> Request {
        Request {
            fault_percent: self.fault_percent,
            only_faults: self.only_faults,
            troubles: self.troubles.clone(),
            replicas: self.replicas.map(usize::from),
            #[cfg(feature = "planted-bugs")]
            planted: self.planted,
            ..Request::new(seed, self.instances)
        }
    }

    fn stops_at_the_first(&self) -> bool {
        #[cfg(feature = "planted-bugs")]
        return self.planted.is_some();
        #[cfg(not(feature = "planted-bugs"))]
        false
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let first = arguments.first_seed.unwrap_or_else(|| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        now.as_secs() % 1_000_000 * 1000
    });
    let began = Instant::now();
    let outcomes = run_all(&arguments, first, began);
    let bad = report(&arguments, &outcomes, began.elapsed());
    if bad { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// Runs the seeds, two at a time or as many as there are cores.
fn run_all(arguments: &Arguments, first: u64, began: Instant) -> Vec<Outcome> {
    let (next, outcomes) = (AtomicU64::new(0), Mutex::new(Vec::new()));
    let running = give_up_what_does_not_end(arguments);
    let until = arguments.minutes.map(|minutes| began + Duration::from_secs_f64(minutes * 60.0));
    let work = || {
        loop {
            let number = next.fetch_add(1, Ordering::SeqCst);
            if number >= arguments.seeds || until.is_some_and(|until| Instant::now() >= until) {
                return;
            }
            let request = arguments.request(first + number);
            lock(&running).insert(request.seed, Instant::now());
            let outcome = run(&request);
            lock(&running).remove(&request.seed);
            told(arguments, &outcome);
            if outcome.violation.is_some() && arguments.stops_at_the_first() {
                next.store(u64::MAX / 2, Ordering::SeqCst);
            }
            lock(&outcomes).push(outcome);
        }
    };
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(work);
        }
    });
    let mut outcomes = outcomes.into_inner().unwrap_or_else(PoisonError::into_inner);
    outcomes.sort_by_key(|outcome| outcome.seed);
    outcomes
}

/// How long a seed may take by the true time, which is much more than the largest needs.
const SEED_MAX: Duration = Duration::from_secs(900);

/// What runs, and since when. A seed in which virtual time stands still would never end: it is told, and everything ends.
fn give_up_what_does_not_end(arguments: &Arguments) -> Arc<Mutex<BTreeMap<u64, Instant>>> {
    let (running, arguments) = (Arc::new(Mutex::new(BTreeMap::<u64, Instant>::new())), arguments.clone());
    let watched = Arc::clone(&running);
    thread::spawn(move || {
        loop {
            thread::sleep(Duration::from_secs(1));
            let late = lock(&watched).iter().find(|(_, since)| since.elapsed() > SEED_MAX).map(|(seed, _)| *seed);
            if let Some(seed) = late {
                let violation = Some(format!("it has not ended after {SEED_MAX:?}"));
                told(&arguments, &Outcome { violation, ..Outcome::unlived(seed) });
                std::process::exit(1);
            }
        }
    });
    running
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

fn told(arguments: &Arguments, outcome: &Outcome) {
    if let Some(violation) = &outcome.violation {
        println!("seed {}: {violation}", outcome.seed);
        let Arguments { instances, fault_percent, only_faults, troubles, .. } = arguments;
        let only = if *only_faults { " --only-faults" } else { "" };
        let only =
            arguments.replicas.map_or_else(|| only.to_owned(), |replicas| format!("{only} --replicas {replicas}"));
        #[cfg(feature = "planted-bugs")]
        let only = arguments.planted.map_or_else(|| only.clone(), |bug| format!("{only} --planted {bug}"));
        let how = format!(
            "--instances {instances} --fault-percent {fault_percent}{only} --troubles {troubles} --first-seed {}",
            outcome.seed
        );
        println!("  to run it again: cargo xtask sim --seeds 1 {how}");
    } else if arguments.each {
        println!(
            "seed {}: {} replicas, {} steps, {} accepted, {} processes, {:.1} h, {}",
            outcome.seed,
            outcome.replicas,
            outcome.steps,
            outcome.accepted,
            outcome.processes,
            outcome.virtual_time.as_secs_f64() / 3600.0,
            outcome.history
        );
    }
}

/// Prints the sum; whether anything was found.
fn report(arguments: &Arguments, outcomes: &[Outcome], took: Duration) -> bool {
    let steps: u64 = outcomes.iter().map(|outcome| outcome.steps).sum();
    let accepted: usize = outcomes.iter().map(|outcome| outcome.accepted).sum();
    let mut ends = Ends::new();
    for (end, count) in outcomes.iter().flat_map(|outcome| &outcome.ends) {
        *ends.entry(end.clone()).or_default() += count;
    }
    let bad = outcomes.iter().filter(|outcome| outcome.violation.is_some()).count();
    let busiest = outcomes
        .iter()
        .map(|outcome| outcome.busiest)
        .fold((0, 0), |most, busiest| (usize::max(most.0, busiest.0), usize::max(most.1, busiest.1)));
    #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
    let rate = steps as f64 / took.as_secs_f64();
    println!(
        "{} seeds of {} instances from {}: {steps} steps in {:.1} s, {rate:.0} steps/s; {accepted} requests accepted: \
         {ends:?}; at most {} calls for one instance in a second, {} in an hour",
        outcomes.len(),
        arguments.instances,
        outcomes.first().map_or(0, |outcome| outcome.seed),
        took.as_secs_f64(),
        busiest.0,
        busiest.1,
    );
    println!("{} passed, {bad} failed", outcomes.len() - bad);
    bad > 0
}
