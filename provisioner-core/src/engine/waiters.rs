//! Who waits for an operation to end.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

use tokio::sync::watch;

use crate::types::OperationId;

/// Wakes those who wait for an operation, when a commit of this process ended it.
#[derive(Debug, Default)]
pub(crate) struct Waiters(Mutex<Waiting>);

#[derive(Debug, Default)]
struct Waiting {
    operations: BTreeMap<OperationId, watch::Sender<bool>>,
    /// How many entries make it worth looking for those whose waiters gave up.
    clean_at: usize,
}

impl Waiters {
    /// Tells when the operation ended. Ask the store after subscribing: it may have ended before.
    pub(crate) fn subscribe(&self, id: &OperationId) -> watch::Receiver<bool> {
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.operations.len() >= waiting.clean_at {
            waiting.operations.retain(|_, sender| !sender.is_closed());
            waiting.clean_at = 64 + 2 * waiting.operations.len();
        }
        waiting.operations.entry(id.clone()).or_insert_with(|| watch::Sender::new(false)).subscribe()
    }

    /// The operations that somebody waits for.
    pub(crate) fn waited_for(&self) -> Vec<OperationId> {
        let waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.operations.iter().filter(|(_, sender)| !sender.is_closed()).map(|(id, _)| id.clone()).collect()
    }

    /// An operation ended, durably.
    pub(crate) fn ended(&self, id: &OperationId) {
        let sender = self.0.lock().unwrap_or_else(PoisonError::into_inner).operations.remove(id);
        if let Some(sender) = sender {
            sender.send_replace(true);
        }
    }
}
