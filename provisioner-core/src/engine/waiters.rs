//! Who waits for an operation to end.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

use tokio::sync::watch;

use crate::types::OperationId;

/// Wakes those who wait for an operation, when a commit of this process ended it.
#[derive(Debug, Default)]
pub(crate) struct Waiters(Mutex<BTreeMap<OperationId, watch::Sender<bool>>>);

impl Waiters {
    /// Tells when the operation ended. Ask the store after subscribing: it may have ended before.
    pub(crate) fn subscribe(&self, id: &OperationId) -> watch::Receiver<bool> {
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Those who gave up leave their entry behind until then.
        waiting.retain(|_, sender| !sender.is_closed());
        waiting.entry(id.clone()).or_insert_with(|| watch::Sender::new(false)).subscribe()
    }

    /// An operation ended, durably.
    pub(crate) fn ended(&self, id: &OperationId) {
        let sender = self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
        if let Some(sender) = sender {
            sender.send_replace(true);
        }
    }
}
