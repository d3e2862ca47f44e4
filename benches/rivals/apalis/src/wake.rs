//! Wakes a worker when something was pushed, so that no job waits for the next poll.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Waker},
};

use apalis::prelude::{PollSnapshot, PollStrategy};

/// Wakes a worker after the commit of a push.
///
/// The update hook of apalis-sqlite would wake it before the commit, when a look on another connection finds nothing.
#[derive(Debug, Clone, Default)]
pub struct Wake(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    pushed: AtomicBool,
    waker: Mutex<Option<Waker>>,
}

impl Wake {
    /// Tells the worker that something was pushed.
    pub fn wake(&self) {
        self.0.pushed.store(true, Ordering::SeqCst);
        let waker = self.0.waker.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl PollStrategy for Wake {
    fn poll_drive(&mut self, cx: &mut Context<'_>, _: &PollSnapshot) -> Poll<Option<()>> {
        *self.0.waker.lock().unwrap_or_else(PoisonError::into_inner) = Some(cx.waker().clone());
        if self.0.pushed.swap(false, Ordering::SeqCst) {
            cx.waker().wake_by_ref();
        }
        // Never ready, so that the strategy behind this one, the interval, arms its timer too.
        Poll::Pending
    }
}
