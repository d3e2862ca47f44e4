//! What the callers of replicas do: whoever gets no answer, or is told to come back, asks another replica with the same key.

use std::{
    collections::BTreeMap,
    future::Future,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    time::Duration,
};

use futures::StreamExt;
use test_replicas::command::{Answer, Ask, Drift, Instance, Verb};
use tokio::time::{Instant, timeout};

use crate::{PATIENCE, provider::Provider, until, world::World};

/// How long a replica may take for an answer: a transaction, and as long again to find out what became of it, with time to
/// spare on a busy machine.
const ANSWER_MAX: Duration = Duration::from_secs(30);
/// How many requests are under way at once.
const AT_ONCE: usize = 64;
/// How many customers sign up one instance after the other.
const CUSTOMERS: usize = 8;
/// How long each of them rests in between.
const BETWEEN: Duration = Duration::from_millis(50);

/// A request that was accepted in the end.
#[derive(Debug, Clone)]
pub(crate) struct Accepted {
    pub(crate) name: String,
    pub(crate) operation: String,
    /// By which replica.
    pub(crate) by: String,
    /// What the ones before said that did not accept it. None: nothing.
    pub(crate) refusals: Vec<Option<String>>,
}

impl World {
    /// Asks until it is accepted, beginning with this replica.
    pub(crate) async fn insist(&self, verb: Verb, name: &str, first: usize) -> Accepted {
        let key = format!("{verb:?} {name}");
        let (deadline, mut refusals) = (Instant::now() + PATIENCE, Vec::new());
        for turn in first.. {
            let replicas = self.replicas();
            let replica = &replicas[turn % replicas.len()];
            let ask = Ask::Request { verb, name: name.to_owned(), key: key.clone() };
            let answer = timeout(ANSWER_MAX, replica.ask(ask)).await;
            match answer.unwrap_or_else(|_| panic!("{}: no end of {key} within {ANSWER_MAX:?}", replica.name)) {
                Some(Answer::Accepted { operation }) => {
                    self.accepted.fetch_add(1, Ordering::SeqCst);
                    return Accepted { name: name.to_owned(), operation, by: replica.name.clone(), refusals };
                }
                Some(Answer::Failed { kind, text }) => {
                    assert_eq!(kind, "unavailable", "{}, {key}: {text}", replica.name);
                    self.refused.fetch_add(1, Ordering::SeqCst);
                    refusals.push(Some(text));
                }
                Some(other) => panic!("{}: {other:?} is no answer to {key}", replica.name),
                None => refusals.push(None),
            }
            assert!(Instant::now() < deadline, "{key} is not accepted within {PATIENCE:?}: {refusals:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        unreachable!("there are enough numbers")
    }

    /// Signs these up, many at once, each beginning with another replica.
    pub(crate) async fn sign_up(&self, names: &[String]) -> Vec<Accepted> {
        let requests = names.iter().zip(0..).map(|(name, first)| self.insist(Verb::Create, name, first));
        futures::stream::iter(requests).buffer_unordered(AT_ONCE).collect().await
    }

    /// Signs up one after the other, some at once, for as long as the other thing lasts.
    pub(crate) async fn sign_up_during(&self, disturbance: impl Future<Output = ()>) -> Vec<Accepted> {
        let (number, is_over) = (AtomicUsize::new(0), AtomicBool::new(false));
        let customer = async || {
            let mut accepted = Vec::new();
            while !is_over.load(Ordering::SeqCst) {
                let number = number.fetch_add(1, Ordering::SeqCst);
                accepted.push(self.insist(Verb::Create, &format!("i-{number}"), number).await);
                tokio::time::sleep(BETWEEN).await;
            }
            accepted
        };
        let disturbance = async {
            disturbance.await;
            is_over.store(true, Ordering::SeqCst);
        };
        let customers = futures::future::join_all((0..CUSTOMERS).map(|_| customer()));
        let ((), accepted) = futures::join!(disturbance, customers);
        accepted.concat()
    }

    /// Waits until so many requests were accepted.
    pub(crate) async fn until_accepted(&self, count: usize) {
        let accepted = || async { (self.accepted.load(Ordering::SeqCst) >= count).then_some(()) };
        until(&format!("{count} requests are accepted"), accepted).await;
    }

    /// Waits until so many more were refused.
    pub(crate) async fn until_refused(&self, count: usize) {
        let before = self.refused.load(Ordering::SeqCst);
        let refused = || async { (self.refused.load(Ordering::SeqCst) >= before + count).then_some(()) };
        until(&format!("{count} requests are refused"), refused).await;
    }

    /// How an operation ended, asked of one replica after the other.
    pub(crate) async fn end_of(&self, operation: &str) -> (String, Option<String>) {
        let (deadline, mut refusals) = (Instant::now() + PATIENCE, Vec::new());
        for turn in operation.bytes().map(usize::from).sum::<usize>().. {
            let replicas = self.replicas();
            let replica = &replicas[turn % replicas.len()];
            let asked = replica.ask(Ask::Wait { operation: operation.to_owned() });
            match timeout(deadline - Instant::now(), asked).await {
                Ok(Some(Answer::Ended { state, failure })) => return (state, failure),
                // It could not read, or goes down.
                Ok(Some(Answer::Failed { kind, text })) if ["unavailable", "cancelled"].contains(&&*kind) => {
                    refusals.push(text);
                }
                Ok(None) => {}
                other => panic!("{}: {other:?} is no answer of operation {operation}: {refusals:?}", replica.name),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
            assert!(Instant::now() < deadline, "operation {operation} does not end within {PATIENCE:?}: {refusals:?}");
        }
        unreachable!("there are enough numbers")
    }

    pub(crate) async fn done(&self, operation: &str) {
        assert_eq!(self.end_of(operation).await, ("done".to_owned(), None), "operation {operation}");
    }

    /// Asks for something, and waits until it is done.
    pub(crate) async fn ask(&self, verb: Verb, name: &str) {
        let accepted = self.insist(verb, name, 0).await;
        self.done(&accepted.operation).await;
    }

    /// Waits for all of these, which must succeed.
    pub(crate) async fn all_done(&self, accepted: &[Accepted]) {
        let ends = accepted.iter().map(|accepted| self.done(&accepted.operation));
        futures::stream::iter(ends).buffer_unordered(AT_ONCE).collect::<()>().await;
    }

    /// How an instance is, as a replica knows it. None: there is none.
    pub(crate) async fn look(&self, name: &str) -> Option<Instance> {
        match self.replicas()[0].insist(Ask::Look { name: name.to_owned() }).await {
            Answer::Instance(instance) => Some(instance),
            Answer::Failed { kind, .. } if kind == "not-found" => None,
            other => panic!("{name}: {other:?}"),
        }
    }

    /// What differs between provider and store.
    pub(crate) async fn drift(&self) -> Drift {
        match self.replicas()[0].insist(Ask::Drift).await {
            Answer::Drift(drift) => drift,
            other => panic!("{other:?}"),
        }
    }

    /// All of these end well, and there is one thing of each.
    pub(crate) async fn all_are_there(&self, accepted: &[Accepted]) {
        self.all_done(accepted).await;
        self.exactly(&accepted.iter().map(|accepted| accepted.name.clone()).collect::<Vec<_>>()).await;
    }

    /// One thing of each of these, each made once, all of them known; and the store is whole.
    pub(crate) async fn exactly(&self, names: &[String]) {
        self.provider.nothing_was_made_twice();
        let things = self.provider.things();
        let there: Vec<_> = sorted(things.iter().map(|thing| thing.id.to_string()));
        assert_eq!(there, sorted(names.iter().cloned()));
        let nothing = Drift { listed: there.len() as u64, differing: 0, vanished: 0, remnants: 0, strangers: 0 };
        assert_eq!(self.drift().await, nothing);
        // Positions without gaps, and each end told once.
        let gaps = "SELECT count(*) FROM (SELECT position - lag(position) OVER (ORDER BY position) AS step FROM events) AS steps
             WHERE step <> 1";
        assert_eq!(self.database.number(gaps).await, 0, "gaps between events");
        let open = "SELECT count(*) FROM operations WHERE ended_at IS NULL";
        assert_eq!(self.database.number(open).await, 0, "operations that never ended");
    }
}

pub(crate) fn sorted<T: Ord>(all: impl IntoIterator<Item = T>) -> Vec<T> {
    let mut all: Vec<_> = all.into_iter().collect();
    all.sort_unstable();
    all
}

/// The names of so many instances.
pub(crate) fn names(count: usize) -> Vec<String> {
    (0..count).map(|number| format!("i-{number}")).collect()
}

/// How many instances one replica had called something for, and then another one did.
pub(crate) fn taken_over(provider: &Provider, from: &str) -> usize {
    let mut callers = BTreeMap::<String, Vec<String>>::new();
    for call in provider.arrived() {
        callers.entry(call.name).or_default().push(call.by);
    }
    let taken_over = |by: &&Vec<String>| by.iter().skip_while(|by| *by != from).any(|by| by != from);
    callers.values().filter(taken_over).count()
}
