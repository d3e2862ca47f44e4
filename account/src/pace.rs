//! How many calls of each kind an account may make: token buckets, one for each kind that the service counts by itself.
//!
//! Several processes of one control plane share what the account allows: each takes its share, by how many there are.
//!
//! People come first. The background gets every fourth turn, so that neither starves the other.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use provisioner_core::{OpContext, Priority};
use serde::{Deserialize, Serialize};
use tokio::{sync::Notify, time::Instant};

/// How much of what the service refills is used: requests arrive as unevenly as networks carry them.
const SHARE: f64 = 0.95;

/// Every so many turns is the background's.
const BACKGROUND_TURN: u64 = 4;

/// How many requests may come at once, and how many more each second.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bucket {
    /// How many at once.
    pub size: u32,
    /// How many more each second.
    pub refill: u32,
}

/// Who waits, in the order in which they are served.
type Key = (Priority, u64);

#[derive(Debug)]
struct State {
    bucket: Bucket,
    /// How many processes share it.
    replicas: u32,
    tokens: f64,
    counted: Instant,
    /// The service has refused one: nothing is sent before then.
    closed_until: Option<Instant>,
    waiting: BTreeSet<Key>,
    next: u64,
    turns: u64,
}

impl State {
    fn refill_per_second(&self) -> f64 {
        f64::from(self.bucket.refill) * SHARE / f64::from(self.replicas)
    }

    /// How many this process may send at once: one at least.
    fn size(&self) -> f64 {
        f64::from((self.bucket.size / self.replicas).max(1))
    }

    /// From now on, so many share it.
    fn share(&mut self, replicas: u32, now: Instant) {
        if self.replicas != replicas.max(1) {
            self.refill(now);
            self.replicas = replicas.max(1);
            self.tokens = self.tokens.min(self.size());
        }
    }

    fn refill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.counted).as_secs_f64();
        self.tokens = (self.tokens + passed * self.refill_per_second()).min(self.size());
        self.counted = now;
    }

    /// Whose turn it is.
    fn first(&self) -> Option<Key> {
        let of_background = || self.waiting.range((Priority::Background, 0)..).next();
        let is_its_turn = self.turns % BACKGROUND_TURN == BACKGROUND_TURN - 1;
        is_its_turn.then(of_background).flatten().or_else(|| self.waiting.first()).copied()
    }

    /// When so many may be sent next. `None`: now.
    fn opens(&self, count: f64, now: Instant) -> Option<Instant> {
        let closed = self.closed_until.filter(|until| *until > now);
        let lacking = count - self.tokens;
        let filled = (lacking > 0.0).then(|| now + Duration::from_secs_f64(lacking / self.refill_per_second()));
        closed.max(filled)
    }
}

/// The buckets of one account, shared by all that call there. `F` names what the service counts by itself.
#[derive(Debug)]
pub struct Pace<F> {
    families: BTreeMap<F, Queue>,
}

#[derive(Debug)]
struct Queue {
    state: Mutex<State>,
    moved: Notify,
}

impl Queue {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A call was not sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotSent {
    /// The deadline came first.
    TooLate,
    /// The caller gave up.
    Cancelled,
}

/// A place among those who wait. Dropping it gives it up.
struct Ticket<'a> {
    queue: &'a Queue,
    key: Key,
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        self.queue.state().waiting.remove(&self.key);
        // Whoever is next may have waited for this one.
        self.queue.moved.notify_waiters();
    }
}

impl<F: Copy + Ord + Send + Sync> Pace<F> {
    /// Full buckets.
    pub fn new(buckets: impl IntoIterator<Item = (F, Bucket)>) -> Arc<Self> {
        let queue = |bucket: Bucket| Queue {
            state: Mutex::new(State {
                bucket,
                replicas: 1,
                tokens: f64::from(bucket.size),
                counted: Instant::now(),
                closed_until: None,
                waiting: BTreeSet::new(),
                next: 0,
                turns: 0,
            }),
            moved: Notify::new(),
        };
        Arc::new(Self { families: buckets.into_iter().map(|(family, bucket)| (family, queue(bucket))).collect() })
    }

    /// Waits until so many of this family may be sent: requests, or what they name. More than the bucket holds are taken for as
    /// many as it holds. Dropping the future gives the place up.
    ///
    /// # Errors
    /// When the caller's deadline comes first, or it gives up.
    ///
    /// # Panics
    /// For a family that has no bucket.
    pub async fn take(&self, family: F, count: u32, cx: &OpContext) -> Result<(), NotSent> {
        let queue = &self.families[&family];
        let ticket = {
            let mut state = queue.state();
            state.share(cx.replicas, Instant::now());
            let key = (cx.priority, state.next);
            state.next += 1;
            state.waiting.insert(key);
            Ticket { queue, key }
        };
        loop {
            let moved = queue.moved.notified();
            let opens = {
                let (mut state, now) = (queue.state(), Instant::now());
                state.refill(now);
                let count = f64::from(count).min(state.size());
                match (state.first() == Some(ticket.key), state.opens(count, now)) {
                    (true, None) => {
                        state.tokens -= count;
                        state.turns += 1;
                        return Ok(());
                    }
                    (true, opens) => opens,
                    // Whoever is first says when that changes.
                    (false, _) => None,
                }
            };
            tokio::select! {
                () = moved => {}
                () = until(opens) => {}
                () = until(cx.deadline) => return Err(NotSent::TooLate),
                () = cx.cancel.cancelled() => return Err(NotSent::Cancelled),
            }
        }
    }

    /// The service has refused a request of this family: what it counts is less than what is counted here.
    pub fn refused(&self, family: F, pause: Duration) {
        let mut state = self.families[&family].state();
        state.tokens = 0.0;
        state.counted = Instant::now();
        state.closed_until = state.closed_until.max(Some(Instant::now() + pause));
    }

    /// The service says how many more of this family it takes: no more than that are sent at once.
    pub fn remaining(&self, family: F, count: u32) {
        let mut state = self.families[&family].state();
        state.refill(Instant::now());
        state.tokens = state.tokens.min(f64::from(count));
    }
}

/// Returns then; never, without a time.
pub async fn until(when: Option<Instant>) {
    match when {
        Some(when) => tokio::time::sleep_until(when).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use futures::{FutureExt, future::join_all};
    use provisioner_core::types::ControlPlaneId;

    use super::*;

    fn cx(priority: Priority) -> OpContext {
        let mut cx = OpContext::new(ControlPlaneId::new("p").unwrap());
        cx.priority = priority;
        cx
    }

    #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
    enum Family {
        Run,
        Stop,
    }

    fn pace(size: u32, refill: u32) -> Arc<Pace<Family>> {
        Pace::new([(Family::Run, Bucket { size, refill }), (Family::Stop, Bucket { size: 50, refill: 5 })])
    }

    #[tokio::test(start_paused = true)]
    async fn so_many_at_once_and_then_so_many_a_second() {
        let (pace, began) = (pace(5, 2), Instant::now());
        let mut times = Vec::new();
        for _ in 0..9 {
            pace.take(Family::Run, 1, &cx(Priority::Interactive)).await.unwrap();
            times.push(began.elapsed().as_millis());
        }
        assert_eq!(times[..5], [0; 5]);
        assert!(times[5..].iter().zip([526, 1053, 1579, 2105]).all(|(time, expected)| time.abs_diff(expected) <= 2));
        // Another family has a bucket of its own.
        assert_eq!(pace.take(Family::Stop, 1, &cx(Priority::Interactive)).now_or_never(), Some(Ok(())));
    }

    #[tokio::test(start_paused = true)]
    async fn of_several_processes_each_takes_its_share() {
        let pace = pace(10, 4);
        let mut cx = cx(Priority::Interactive);
        cx.replicas = 2;
        let began = Instant::now();
        let mut times = Vec::new();
        for _ in 0..7 {
            pace.take(Family::Run, 1, &cx).await.unwrap();
            times.push(began.elapsed().as_millis());
        }
        assert_eq!(times[..5], [0; 5], "half of what may come at once");
        assert!(times[5..].iter().zip([526, 1053]).all(|(time, expected)| time.abs_diff(expected) <= 2), "{times:?}");
        // Alone again.
        cx.replicas = 1;
        let began = Instant::now();
        pace.take(Family::Run, 2, &cx).await.unwrap();
        assert!(began.elapsed().as_millis().abs_diff(526) <= 2, "{:?}", began.elapsed());
        // More share it than it holds: one at a time, still.
        cx.replicas = 100;
        pace.take(Family::Run, 5, &cx).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn people_come_first_and_the_background_gets_every_fourth_turn() {
        let pace = pace(1, 10);
        let order = Arc::new(Mutex::new(Vec::new()));
        pace.take(Family::Run, 1, &cx(Priority::Interactive)).await.unwrap();
        let callers = [Priority::Background, Priority::Interactive].into_iter().flat_map(|priority| [priority; 6]);
        join_all(callers.map(|priority| {
            let (pace, order) = (&pace, Arc::clone(&order));
            async move {
                pace.take(Family::Run, 1, &cx(priority)).await.unwrap();
                order.lock().unwrap().push(priority == Priority::Interactive);
            }
        }))
        .await;
        let order = order.lock().unwrap();
        assert_eq!(order[..8], [true, true, false, true, true, true, false, true]);
    }

    #[tokio::test(start_paused = true)]
    async fn who_gives_up_or_is_too_late_holds_nobody_up() {
        let pace = pace(1, 1);
        pace.take(Family::Run, 1, &cx(Priority::Interactive)).await.unwrap();
        let late = cx(Priority::Interactive).with_timeout(Duration::from_millis(10));
        let (cancelled, patient) = (cx(Priority::Interactive), cx(Priority::Background));
        cancelled.cancel.cancel();
        let began = Instant::now();
        let answers = tokio::join!(
            pace.take(Family::Run, 1, &late),
            pace.take(Family::Run, 1, &cancelled),
            pace.take(Family::Run, 1, &patient)
        );
        assert_eq!(answers, (Err(NotSent::TooLate), Err(NotSent::Cancelled), Ok(())));
        assert!(began.elapsed() <= Duration::from_millis(1060), "{:?}", began.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn many_that_one_request_names_count_each() {
        let pace = pace(10, 2);
        let (cx, began) = (cx(Priority::Interactive), Instant::now());
        let mut times = Vec::new();
        for count in [8, 2, 4, 100] {
            pace.take(Family::Run, count, &cx).await.unwrap();
            times.push(began.elapsed().as_millis());
        }
        // More than the bucket holds are as many as it holds.
        assert!(
            times.iter().zip([0, 0, 2_105, 7_368]).all(|(time, expected)| time.abs_diff(expected) <= 5),
            "{times:?}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn after_a_refusal_nothing_is_sent_for_a_while() {
        let pace = pace(5, 2);
        pace.refused(Family::Run, Duration::from_secs(3));
        let began = Instant::now();
        pace.take(Family::Run, 1, &cx(Priority::Interactive)).await.unwrap();
        assert!(began.elapsed() >= Duration::from_secs(3));
    }

    #[tokio::test(start_paused = true)]
    async fn what_the_service_says_is_left_is_heeded() {
        let (pace, began) = (pace(100, 2), Instant::now());
        pace.remaining(Family::Run, 1);
        pace.remaining(Family::Run, 50);
        pace.take(Family::Run, 1, &cx(Priority::Interactive)).await.unwrap();
        assert_eq!(began.elapsed(), Duration::ZERO);
        pace.take(Family::Run, 1, &cx(Priority::Interactive)).await.unwrap();
        assert!(began.elapsed() >= Duration::from_millis(500), "{:?}", began.elapsed());
    }
}
