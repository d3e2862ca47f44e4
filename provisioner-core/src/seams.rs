//! Where the world comes in: time, randomness and death. Everything else in the control plane is a function of these,
//! so the same code runs in production, on a virtual clock and in crash tests.

use std::{
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::Duration,
};

use rand::{Rng, RngExt, SeedableRng, rngs::StdRng};
use tokio::time::Instant;

use crate::types::{DataId, Incarnation, OperationId, Timestamp};

/// Tells the wall-clock time. Sleeping goes through `tokio::time`, which tests can pause.
pub trait Clock: fmt::Debug + Send + Sync + 'static {
    /// The time now.
    fn now(&self) -> Timestamp;
}

/// The machine's clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_unix_ms(jiff::Timestamp::now().as_millisecond())
    }
}

/// A wall clock that follows tokio's: it stands still and jumps with the runtime's paused time.
#[derive(Debug, Clone, Copy)]
pub struct TokioClock {
    start: Instant,
    at_start: Timestamp,
}

impl TokioClock {
    /// A clock that shows this time now. Call it inside the runtime.
    #[must_use]
    pub fn starting_at(at_start: Timestamp) -> Self {
        Self { start: Instant::now(), at_start }
    }
}

impl Clock for TokioClock {
    fn now(&self) -> Timestamp {
        self.at_start.after(self.start.elapsed())
    }
}

/// A wall clock that follows tokio's and that somebody sets forward and back, as happens to the clocks of machines.
#[derive(Debug)]
pub struct SettableClock {
    clock: TokioClock,
    ahead_ms: AtomicI64,
}

impl SettableClock {
    /// A clock that shows this time now. Call it inside the runtime.
    #[must_use]
    pub fn starting_at(at_start: Timestamp) -> Self {
        Self { clock: TokioClock::starting_at(at_start), ahead_ms: AtomicI64::new(0) }
    }

    /// Shows a later time from now on.
    pub fn set_forward(&self, by: Duration) {
        self.ahead_ms.fetch_add(i64::try_from(by.as_millis()).unwrap_or(i64::MAX), Ordering::SeqCst);
    }

    /// Shows an earlier time from now on.
    pub fn set_back(&self, by: Duration) {
        self.ahead_ms.fetch_sub(i64::try_from(by.as_millis()).unwrap_or(i64::MAX), Ordering::SeqCst);
    }
}

impl Clock for SettableClock {
    fn now(&self) -> Timestamp {
        let ahead = self.ahead_ms.load(Ordering::SeqCst);
        Timestamp::from_unix_ms(self.clock.now().unix_ms().saturating_add(ahead))
    }
}

/// Where random bits come from: the operating system, or a seed.
#[derive(Debug, Clone)]
pub struct Random(Arc<Mutex<StdRng>>);

impl Random {
    /// Seeded by the operating system.
    #[must_use]
    pub fn from_os() -> Self {
        Self(Arc::new(Mutex::new(rand::make_rng())))
    }

    /// The same bits for the same seed.
    #[must_use]
    pub fn from_seed(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(StdRng::seed_from_u64(seed))))
    }

    fn with<T>(&self, draw: impl FnOnce(&mut StdRng) -> T) -> T {
        draw(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// 64 random bits.
    #[must_use]
    pub fn bits(&self) -> u64 {
        self.with(|rng| rng.next_u64())
    }

    /// A duration between zero and `max`, evenly: full jitter.
    #[must_use]
    pub fn up_to(&self, max: Duration) -> Duration {
        max.mul_f64(self.with(|rng| rng.random::<f64>()))
    }

    /// A new making with this number.
    #[must_use]
    pub fn incarnation(&self, number: u32) -> Incarnation {
        Incarnation::new(number, self.with(|rng| rng.random()))
    }

    /// A new data id.
    #[must_use]
    pub fn data_id(&self) -> DataId {
        DataId::from_random(self.with(|rng| rng.random()))
    }

    /// A new operation id, made at this time.
    #[must_use]
    pub fn operation_id(&self, now: Timestamp) -> OperationId {
        OperationId::from_parts(u64::try_from(now.unix_ms()).unwrap_or(0), self.with(|rng| rng.random()))
    }
}

/// The places at which a crash test kills the process: before and after every commit and every provider call.
pub trait KillPoints: fmt::Debug + Send + Sync + 'static {
    /// Called when execution passes the place of this name.
    fn pass(&self, place: &'static str);
}

/// Passes every place. What production uses.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoKillPoints;

impl KillPoints for NoKillPoints {
    fn pass(&self, _: &'static str) {}
}

/// Numbers the places as they are passed and kills the process at one of them.
#[derive(Debug)]
pub struct KillAt {
    at: u64,
    kill: fn(),
    passed: AtomicU64,
}

impl KillAt {
    /// Kills at the `at`-th place passed, counted from 1; 0 never kills and only counts.
    ///
    /// `kill` sends the process a signal that cannot be caught. Whatever it does, the thread that reached the place goes no
    /// further.
    #[must_use]
    pub fn new(at: u64, kill: fn()) -> Self {
        Self { at, kill, passed: AtomicU64::new(0) }
    }

    /// How many places were passed so far.
    #[must_use]
    pub fn passed(&self) -> u64 {
        self.passed.load(Ordering::SeqCst)
    }
}

impl KillPoints for KillAt {
    fn pass(&self, place: &'static str) {
        let number = self.passed.fetch_add(1, Ordering::SeqCst) + 1;
        if number == self.at {
            tracing::error!(number, place, "killed at a numbered place, as asked");
            (self.kill)();
            // A signal may take a moment to arrive, and no line after this place may run meanwhile.
            loop {
                std::thread::park();
            }
        }
    }
}

/// All seams together.
#[derive(Debug, Clone)]
pub struct Seams {
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Randomness.
    pub random: Random,
    /// Death.
    pub kill_points: Arc<dyn KillPoints>,
    /// A bug, for those who prove that they would find it.
    #[cfg(feature = "planted-bugs")]
    pub planted: Option<crate::engine::PlantedBug>,
}

impl Seams {
    /// Makes a durable write, between two places to be killed at.
    pub(crate) async fn durably<T>(&self, write: impl Future<Output = T>) -> T {
        self.kill_points.pass("before a commit");
        let done = write.await;
        self.kill_points.pass("after a commit");
        done
    }

    /// Makes a provider call, between two places to be killed at.
    pub(crate) async fn calling<T>(&self, call: impl Future<Output = T>) -> T {
        self.kill_points.pass("before a call");
        let answer = call.await;
        self.kill_points.pass("after a call");
        answer
    }
}

impl Default for Seams {
    fn default() -> Self {
        Self {
            clock: Arc::new(SystemClock),
            random: Random::from_os(),
            kill_points: Arc::new(NoKillPoints),
            #[cfg(feature = "planted-bugs")]
            planted: None,
        }
    }
}
