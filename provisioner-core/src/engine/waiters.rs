//! Who waits for an operation to end.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use tokio::sync::watch;

use crate::{store::OperationEnd, types::OperationId};

/// What is known of the end of an operation that somebody waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum News {
    /// Nothing: it may be under way.
    None,
    /// It has ended, the store knows how.
    Ended,
    /// It has ended like this.
    EndedLike(OperationEnd),
}

/// Wakes those who wait for an operation, when it is known to have ended.
#[derive(Debug, Default)]
pub(crate) struct Waiters(Mutex<Waiting>);

#[derive(Debug, Default)]
struct Waiting {
    operations: BTreeMap<OperationId, Awaited>,
    /// How many entries make it worth looking for those whose waiters gave up.
    clean_at: usize,
}

#[derive(Debug)]
struct Awaited {
    news: watch::Sender<News>,
    /// The session of this process that works on it, and will know of its end.
    worked_on_by: Option<u64>,
}

impl Waiters {
    /// Tells when the operation ended. Ask the store after subscribing, if it may have ended before.
    pub(crate) fn subscribe(&self, id: &OperationId) -> watch::Receiver<News> {
        let mut waiting = self.waiting();
        if waiting.operations.len() >= waiting.clean_at {
            waiting.operations.retain(|_, awaited| !awaited.news.is_closed());
            waiting.clean_at = 64 + 2 * waiting.operations.len();
        }
        let new = || Awaited { news: watch::Sender::new(News::None), worked_on_by: None };
        waiting.operations.entry(id.clone()).or_insert_with(new).news.subscribe()
    }

    /// From now on this session works on what the operation asks for.
    pub(crate) fn worked_on(&self, id: &OperationId, epoch: u64) {
        if let Some(awaited) = self.waiting().operations.get_mut(id) {
            awaited.worked_on_by = Some(epoch);
        }
    }

    /// The operations that somebody waits for, without those that this session works on.
    pub(crate) fn waited_for(&self, not_by: Option<u64>) -> Vec<OperationId> {
        let waiting = self.waiting();
        let is_asked_for =
            |awaited: &Awaited| !awaited.news.is_closed() && (not_by.is_none() || awaited.worked_on_by != not_by);
        waiting.operations.iter().filter(|(_, awaited)| is_asked_for(awaited)).map(|(id, _)| id.clone()).collect()
    }

    /// An operation ended, durably.
    pub(crate) fn ended(&self, id: &OperationId) {
        self.tell(id, || News::Ended);
    }

    /// An operation ended like this, durably.
    pub(crate) fn ended_like(&self, end: &OperationEnd) {
        self.tell(&end.id, || News::EndedLike(end.clone()));
    }

    fn tell(&self, id: &OperationId, news: impl FnOnce() -> News) {
        let awaited = self.waiting().operations.remove(id);
        if let Some(awaited) = awaited {
            awaited.news.send_replace(news());
        }
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
