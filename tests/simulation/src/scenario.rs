//! What a seed decides: how the providers are, how the engine goes about its work, and what goes wrong how often.

use std::time::Duration;

use provisioner_core::{engine::EngineConfig, seams::Random};

use crate::trouble::{Trouble, Troubles, stream};

/// How a run is asked for.
#[derive(Debug, Clone)]
pub struct Request {
    /// What everything derives from.
    pub seed: u64,
    /// How many customers there are.
    pub instances: usize,
    /// How many of a hundred calls go wrong.
    pub fault_percent: u64,
    /// Whether failing calls are all that goes wrong: no kills, no outsiders, no troubles of providers.
    pub only_faults: bool,
    /// Which of the troubles there are that draw from streams of their own.
    pub troubles: Troubles,
    /// How many control planes work at once; as the seed says when it is not given.
    pub replicas: Option<usize>,
    /// A bug of the engine to be found.
    #[cfg(feature = "planted-bugs")]
    pub planted: Option<provisioner_core::engine::PlantedBug>,
}

impl Request {
    /// A run from this seed, with so many customers, and a fifth of all calls going wrong.
    #[must_use]
    pub fn new(seed: u64, instances: usize) -> Self {
        Self {
            seed,
            instances,
            fault_percent: 20,
            only_faults: false,
            troubles: Troubles::all(),
            replicas: None,
            #[cfg(feature = "planted-bugs")]
            planted: None,
        }
    }
}

/// What a seed decided.
#[derive(Debug, Clone)]
pub struct Scenario {
    /// How many providers there are.
    pub cells: usize,
    /// How many instances of a cell are worked on at once.
    pub calls_max: usize,
    /// How long things take to start and stop.
    pub start: Duration,
    /// Likewise.
    pub stop: Duration,
    /// How far reads lag behind writes.
    pub lag: Duration,
    /// How many of a hundred looks miss what is there for a moment.
    pub blink_percent: u64,
    /// Whether providers tell of changes.
    pub watch: bool,
    /// How many things one page of a listing holds.
    pub page: usize,
    /// How many calls a second a provider takes.
    pub calls_per_second: Option<u32>,
    /// After how long a thing dies by itself, on average.
    pub lifetime: Option<Duration>,
    /// How many of a hundred calls go wrong on their way.
    pub fault_percent: u64,
    /// How many of a thousand commits fail.
    pub store_failures_per_mille: u64,
    /// Whether the store is a real file; then one process at a time has it open.
    pub on_disk: bool,
    /// How long customers go on asking for things.
    pub duration: Duration,
    /// How many requests there are.
    pub requests: usize,
    /// How many times somebody meddles.
    pub meddlings: usize,
    /// How many times the control plane is killed or stands still.
    pub crashes: usize,
    /// How several control planes share the store; none where there is one at a time.
    pub sharing: Option<Sharing>,
    /// How the engine goes about its work.
    pub config: EngineConfig,
}

/// How several control planes share the store.
#[derive(Debug, Clone)]
pub struct Sharing {
    /// How many there are at a time.
    pub replicas: usize,
    /// After how much silence a session lapses.
    pub lapses_after: Duration,
    /// How long a request to the store takes at most, and how long its answer.
    pub latency_max: Duration,
    /// How many of a hundred signals are lost.
    pub signals_lost_percent: u64,
}

/// How many control planes a seed has: one of two has one at a time, on a store that is nobody else's.
const REPLICAS: [usize; 4] = [1, 1, 2, 3];

impl Sharing {
    /// What this seed decides about it. It draws from a stream of its own: with one control plane a run is what it would be if
    /// there had never been more.
    fn of(request: &Request) -> Option<(Self, usize)> {
        let dice = stream(request.seed, "replicas");
        let one = |choices: &[u64]| choices[usize::try_from(dice.bits() % choices.len() as u64).unwrap_or(0)];
        let drawn = REPLICAS[usize::try_from(dice.bits() % REPLICAS.len() as u64).unwrap_or(0)];
        let signals_lost = one(&[0, 5, 50, 100]);
        let sharing = Self {
            replicas: request.replicas.unwrap_or(drawn),
            lapses_after: Duration::from_secs(one(&[10, 15, 30])),
            latency_max: Duration::from_millis(one(&[0, 0, 4, 50])),
            signals_lost_percent: if request.troubles.has(Trouble::LostSignals) { signals_lost } else { 0 },
        };
        let crashes = usize::try_from(one(&[0, 4, 8, 16])).unwrap_or(0);
        (sharing.replicas > 1).then_some((sharing, crashes))
    }
}

/// Of so many seeds one has its store in a real file.
const ON_DISK_OF: u64 = 8;

impl Scenario {
    /// What this seed decides.
    #[must_use]
    pub fn of(request: &Request, random: &Random) -> Self {
        let one = |choices: &[u64]| choices[usize::try_from(random.bits() % choices.len() as u64).unwrap_or(0)];
        let millis = |choices: &[u64]| Duration::from_millis(one(choices));
        let mut config = EngineConfig::default();
        config.call_timeout = Duration::from_secs(one(&[5, 20, 60]));
        config.drift_interval = Duration::from_secs(one(&[600, 3600]));
        config.stable_after = Duration::from_secs(one(&[10, 600]));
        let lag = millis(&[0, 0, 200, 2000]);
        let scenario = Self {
            cells: usize::try_from(one(&[1, 1, 2, 3])).unwrap_or(1),
            calls_max: usize::try_from(one(&[4, 16, 64])).unwrap_or(4),
            start: millis(&[0, 700, 700, 20_000]),
            stop: millis(&[0, 300, 5000]),
            lag,
            blink_percent: if lag.is_zero() { 0 } else { one(&[0, 3]) },
            watch: one(&[0, 1, 1]) == 1,
            page: usize::try_from(one(&[10, 100, 1000])).unwrap_or(10),
            calls_per_second: [None, None, Some(20), Some(100)][usize::try_from(one(&[0, 1, 2, 3])).unwrap_or(0)],
            lifetime: [None, Some(Duration::from_secs(6 * 3600))][usize::try_from(one(&[0, 1])).unwrap_or(0)],
            fault_percent: request.fault_percent,
            store_failures_per_mille: one(&[0, 0, 5]),
            on_disk: random.bits().is_multiple_of(ON_DISK_OF),
            duration: Duration::from_secs(one(&[600, 3600, 4 * 3600])),
            requests: request.instances * 6,
            meddlings: request.instances * 6 / 20,
            crashes: usize::try_from(one(&[0, 2, 5, 10])).unwrap_or(0),
            sharing: None,
            config,
        };
        // A listing of more pages than a burst has calls would never come to its end.
        let page = if scenario.calls_per_second.is_some() { 1000 } else { scenario.page };
        let scenario = match Sharing::of(request) {
            Some((sharing, crashes)) => Self { page, sharing: Some(sharing), crashes, on_disk: false, ..scenario },
            None => Self { page, ..scenario },
        };
        match request.only_faults {
            true => Self {
                calls_per_second: None,
                lifetime: None,
                store_failures_per_mille: 0,
                meddlings: 0,
                crashes: 0,
                ..scenario
            },
            false => scenario,
        }
    }
}
