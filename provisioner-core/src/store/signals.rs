//! What one writer tells all readers of a store: kept for those that are a little behind, and counted as missed by others.

use futures::{
    StreamExt,
    stream::{self, BoxStream},
};
use tokio::sync::broadcast::{self, error::RecvError};

use super::Signal;

/// How many signals a reader may be behind before it misses some.
const SIGNALS_KEPT: usize = 1024;

/// Signals, told to whoever listens now.
#[derive(Debug, Clone)]
pub(super) struct Signals(broadcast::Sender<Signal>);

impl Signals {
    pub(super) fn new() -> Self {
        Self(broadcast::Sender::new(SIGNALS_KEPT))
    }

    pub(super) fn tell(&self, signal: Signal) {
        // Nobody may be listening.
        let _ = self.0.send(signal);
    }

    /// All that is told from now on. Ends with the store.
    pub(super) fn stream(&self) -> BoxStream<'static, Signal> {
        let next = async |mut receiver: broadcast::Receiver<Signal>| match receiver.recv().await {
            Ok(signal) => Some((signal, receiver)),
            Err(RecvError::Lagged(_)) => Some((Signal::Missed, receiver)),
            Err(RecvError::Closed) => None,
        };
        stream::unfold(self.0.subscribe(), next).boxed()
    }
}
