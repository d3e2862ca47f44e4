//! A value that tasks wait for, waking them in the order in which they came: tokio's `watch` wakes them at random, and a run
//! could not be repeated.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// A value that tasks wait for.
#[derive(Debug, Default)]
pub struct Signal<T> {
    value: Mutex<T>,
    changed: Notify,
}

impl<T: Clone> Signal<T> {
    /// A value to begin with.
    #[must_use]
    pub fn new(value: T) -> Self {
        Self { value: Mutex::new(value), changed: Notify::new() }
    }

    fn value(&self) -> MutexGuard<'_, T> {
        self.value.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The value now.
    #[must_use]
    pub fn get(&self) -> T {
        self.value().clone()
    }

    /// Puts another value in its place and answers with the one before.
    pub fn replace(&self, value: T) -> T {
        let before = std::mem::replace(&mut *self.value(), value);
        self.changed.notify_waiters();
        before
    }

    /// Puts another value in its place if the one there is as told.
    pub fn replace_if(&self, is: impl FnOnce(&T) -> bool, value: T) {
        let mut there = self.value();
        if is(&there) {
            *there = value;
            drop(there);
            self.changed.notify_waiters();
        }
    }

    /// The value, once it is as told.
    pub async fn wait_for(&self, is: impl Fn(&T) -> bool) -> T {
        loop {
            // Before the look, so that no change in between is missed.
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let value = self.get();
            if is(&value) {
                return value;
            }
            changed.await;
        }
    }
}
