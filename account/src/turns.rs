//! One at a time.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use provisioner_core::OpContext;
use tokio::sync::OwnedMutexGuard;

use crate::{NotSent, until};

/// Lets one caller at a time be at a thing.
#[derive(Debug)]
pub struct Turns<K> {
    turns: Mutex<BTreeMap<K, Weak<tokio::sync::Mutex<()>>>>,
}

impl<K> Default for Turns<K> {
    fn default() -> Self {
        Self { turns: Mutex::default() }
    }
}

/// Whoever holds it is alone at its thing.
#[derive(Debug)]
pub struct Turn {
    _held: OwnedMutexGuard<()>,
}

impl<K: Ord> Turns<K> {
    /// Waits until it is the caller's turn, in the order in which they came.
    ///
    /// # Errors
    /// When the caller's deadline comes first, or it gives up.
    pub async fn take(&self, key: K, cx: &OpContext) -> Result<Turn, NotSent> {
        let turn = {
            let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
            turns.retain(|_, turn| turn.strong_count() > 0);
            let turn = turns.get(&key).and_then(Weak::upgrade).unwrap_or_default();
            turns.insert(key, Arc::downgrade(&turn));
            turn
        };
        tokio::select! {
            biased;
            () = cx.cancel.cancelled() => Err(NotSent::Cancelled),
            () = until(cx.deadline) => Err(NotSent::TooLate),
            held = turn.lock_owned() => Ok(Turn { _held: held }),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use provisioner_core::types::ControlPlaneId;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn one_at_a_time_is_at_a_thing_and_others_wait_no_longer_than_they_may() {
        let (turns, cx) = (Turns::default(), OpContext::new(ControlPlaneId::new("p").unwrap()));
        let held = turns.take(1, &cx).await.unwrap();
        assert!(turns.take(2, &cx).await.is_ok(), "another thing");
        let hasty = cx.clone().with_timeout(Duration::from_millis(5));
        assert_eq!(turns.take(1, &hasty).await.unwrap_err(), NotSent::TooLate);
        let cancelled = OpContext::new(ControlPlaneId::new("p").unwrap());
        cancelled.cancel.cancel();
        assert_eq!(turns.take(1, &cancelled).await.unwrap_err(), NotSent::Cancelled);
        drop(held);
        assert!(turns.take(1, &cx).await.is_ok());
    }
}
