//! One call for many callers: what is asked for within a short time is asked in one request, and each gets its own part of the
//! answer.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    future::Future,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use provisioner_core::{OpContext, Priority, types::ControlPlaneId};
use tokio::sync::{Semaphore, watch};
use tokio_util::task::TaskTracker;

use crate::pace::until;

/// How long a batch waits for more callers.
const WINDOW: Duration = Duration::from_millis(20);

/// Why a caller has no answer that others may have yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GivenUp {
    /// Its deadline came first.
    TooLate,
    /// It was cancelled.
    Cancelled,
    /// Whoever asked for all ended without an answer for it.
    Unanswered,
}

type Answers<K, V, E> = Arc<BTreeMap<K, Result<V, E>>>;
type Running<K, V, E> = Pin<Box<dyn Future<Output = BTreeMap<K, Result<V, E>>> + Send>>;
/// Asks for all of these at once.
type Ask<K, V, E> = Arc<dyn Fn(BTreeSet<K>, Many) -> Running<K, V, E> + Send + Sync>;

/// Those on whose behalf a request is sent: what all of them have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Many {
    /// Whether people wait for it.
    pub priority: Priority,
    /// How many processes share what the account allows, as the last of them told it.
    pub replicas: u32,
}

impl Many {
    /// The context of who asks on their behalf and is none of them: without their deadlines, its calls end within this time.
    #[must_use]
    pub fn context(self, within: Duration) -> OpContext {
        let mut cx = OpContext::new(ControlPlaneId::new("many").expect("a DNS label")).with_timeout(within);
        (cx.priority, cx.replicas) = (self.priority, self.replicas);
        cx
    }
}

/// Those who wait for one request that was not sent yet.
struct Open<K, V, E> {
    /// Each with what those hold who wait for it.
    keys: Arc<Mutex<BTreeMap<K, Vec<Weak<()>>>>>,
    answers: watch::Receiver<Option<Answers<K, V, E>>>,
}

type AllOpen<K, V, E> = Mutex<BTreeMap<Priority, Open<K, V, E>>>;

/// What gathers callers: `K` is what each asks for, `V` and `E` what it gets.
pub struct Batches<K, V, E> {
    open: Arc<AllOpen<K, V, E>>,
    ask: Ask<K, V, E>,
    keys_max: usize,
    /// One request of a kind and priority is under way at a time. More of them would tell nothing sooner: those who come meanwhile
    /// share the next one.
    turns: Arc<BTreeMap<Priority, Semaphore>>,
    /// As the last caller told it.
    replicas: Arc<AtomicU32>,
    tasks: TaskTracker,
}

impl<K, V, E> fmt::Debug for Batches<K, V, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Batches").field("keys_max", &self.keys_max).finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<K, V, E> Batches<K, V, E>
where
    K: Clone + Ord + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
    E: Clone + From<GivenUp> + Send + Sync + 'static,
{
    /// No request names more than `keys_max`. Requests run as tasks: a caller that gives up takes nothing from the others.
    pub fn new<F>(
        keys_max: usize,
        tasks: &TaskTracker,
        ask: impl Fn(BTreeSet<K>, Many) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = BTreeMap<K, Result<V, E>>> + Send + 'static,
    {
        let ask: Ask<K, V, E> = Arc::new(move |keys, many| Box::pin(ask(keys, many)));
        let turns = [Priority::Interactive, Priority::Background].map(|priority| (priority, Semaphore::new(1))).into();
        let (turns, replicas) = (Arc::new(turns), Arc::new(AtomicU32::new(1)));
        Self { open: Arc::default(), ask, keys_max, turns, replicas, tasks: tasks.clone() }
    }

    /// The answer for one key. People and background never share a request, as they do not wait for the same turn.
    ///
    /// # Errors
    /// What was answered for the key, or that the caller's deadline came first or it was cancelled: what it asked for may be done all
    /// the same.
    pub async fn get(&self, key: K, cx: &OpContext) -> Result<V, E> {
        // Held as long as somebody waits: what nobody waits for any more is not asked for.
        let waits = Arc::new(());
        self.replicas.store(cx.replicas, Ordering::Relaxed);
        let mut answers = self.join(key.clone(), cx.priority, &waits);
        tokio::select! {
            answered = answers.wait_for(Option::is_some) => {
                let answers = answered.ok().and_then(|answers| answers.clone());
                let answer = answers.and_then(|answers| answers.get(&key).cloned());
                answer.unwrap_or_else(|| Err(GivenUp::Unanswered.into()))
            }
            () = until(cx.deadline) => Err(GivenUp::TooLate.into()),
            () = cx.cancel.cancelled() => Err(GivenUp::Cancelled.into()),
        }
    }

    fn join(&self, key: K, priority: Priority, waits: &Arc<()>) -> watch::Receiver<Option<Answers<K, V, E>>> {
        let mut all = lock(&self.open);
        if let Some(open) = all.get(&priority) {
            let mut keys = lock(&open.keys);
            keys.entry(key.clone()).or_default().push(Arc::downgrade(waits));
            let answers = open.answers.clone();
            let is_full = keys.len() >= self.keys_max;
            drop(keys);
            if is_full {
                all.remove(&priority);
            }
            return answers;
        }
        let (keys, (sender, answers)) =
            (Arc::new(Mutex::new(BTreeMap::from([(key, vec![Arc::downgrade(waits)])]))), watch::channel(None));
        if self.keys_max > 1 {
            all.insert(priority, Open { keys: Arc::clone(&keys), answers: answers.clone() });
        }
        let (all, ask) = (Arc::clone(&self.open), Arc::clone(&self.ask));
        let (turns, replicas) = (Arc::clone(&self.turns), Arc::clone(&self.replicas));
        self.tasks.spawn(async move {
            tokio::time::sleep(WINDOW).await;
            // Never closed. Until it is this one's turn, others can join.
            let _turn = turns[&priority].acquire().await;
            {
                let mut all = lock(&all);
                // Unless it was full before, and another one is open by now.
                if all.get(&priority).is_some_and(|open| Arc::ptr_eq(&open.keys, &keys)) {
                    all.remove(&priority);
                }
            }
            let keys = std::mem::take(&mut *lock(&keys));
            let is_waited_for = |waits: &Vec<Weak<()>>| waits.iter().any(|waits| waits.strong_count() > 0);
            let keys: BTreeSet<_> =
                keys.into_iter().filter(|(_, waits)| is_waited_for(waits)).map(|(key, _)| key).collect();
            if keys.is_empty() {
                return;
            }
            let answered = ask(keys, Many { priority, replicas: replicas.load(Ordering::Relaxed) }).await;
            // Everybody may have given up.
            let _ = sender.send(Some(Arc::new(answered)));
        });
        answers
    }
}

#[cfg(test)]
mod tests {
    use futures::future::join_all;

    use super::*;

    fn cx(priority: Priority) -> OpContext {
        let mut cx = OpContext::new(ControlPlaneId::new("p").unwrap());
        cx.priority = priority;
        cx
    }

    type Noted = Arc<Mutex<Vec<Vec<u32>>>>;

    /// Doubles numbers, and notes what was asked at once.
    fn doubling(keys_max: usize) -> (Batches<u32, u32, GivenUp>, Noted) {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let noted = Arc::clone(&asked);
        let batches = Batches::new(keys_max, &TaskTracker::new(), move |keys: BTreeSet<u32>, _| {
            noted.lock().unwrap().push(keys.iter().copied().collect::<Vec<_>>());
            async move { keys.into_iter().map(|key| (key, Ok(key * 2))).collect() }
        });
        (batches, asked)
    }

    #[tokio::test(start_paused = true)]
    async fn who_asks_at_the_same_time_shares_a_request_of_bounded_size() {
        let (batches, asked) = doubling(4);
        let cx = cx(Priority::Interactive);
        let answers = join_all((0..10).map(|key| batches.get(key, &cx))).await;
        assert_eq!(
            answers.into_iter().map(Result::unwrap).collect::<Vec<_>>(),
            (0..10).map(|n| n * 2).collect::<Vec<_>>()
        );
        assert_eq!(*asked.lock().unwrap(), [vec![0, 1, 2, 3], vec![4, 5, 6, 7], vec![8, 9]]);
    }

    #[tokio::test(start_paused = true)]
    async fn people_do_not_wait_for_the_background() {
        let (batches, asked) = doubling(100);
        let (people, background) = (cx(Priority::Interactive), cx(Priority::Background));
        let both = tokio::join!(batches.get(1, &people), batches.get(2, &background));
        assert!(both.0.is_ok() && both.1.is_ok());
        assert_eq!(asked.lock().unwrap().len(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn who_asks_for_many_takes_the_share_of_one_process_too() {
        let told = Arc::new(Mutex::new(Vec::new()));
        let noted = Arc::clone(&told);
        let batches =
            Batches::<u32, u32, GivenUp>::new(100, &TaskTracker::new(), move |keys: BTreeSet<u32>, many: Many| {
                noted.lock().unwrap().push(many.context(Duration::from_secs(1)).replicas);
                async move { keys.into_iter().map(|key| (key, Ok(key))).collect() }
            });
        let mut cx = cx(Priority::Background);
        for replicas in [1, 4, 2] {
            cx.replicas = replicas;
            batches.get(1, &cx).await.unwrap();
        }
        assert_eq!(*told.lock().unwrap(), [1, 4, 2]);
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_gives_up_takes_nothing_from_the_others() {
        let (batches, asked) = doubling(100);
        let (patient, hasty) = (cx(Priority::Interactive), cx(Priority::Interactive).with_timeout(Duration::ZERO));
        let (first, second) = tokio::join!(batches.get(1, &hasty), batches.get(2, &patient));
        assert_eq!(first, Err(GivenUp::TooLate));
        assert_eq!(second.unwrap(), 4);
        assert_eq!(*asked.lock().unwrap(), [vec![2]], "nobody waits for the other any more");
    }
}
