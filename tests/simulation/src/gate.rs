//! What stands between a control plane and the world: it can be paused, and it can die, between any two things it does.

use std::{
    future::pending,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use crate::signal::Signal;
use provisioner_core::{seams::KillPoints, store::Store};

/// How a control plane's process is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Life {
    /// It works.
    Alive,
    /// Its machine stands still: whatever it does next happens when it goes on.
    Paused,
    /// It was killed: whatever it does next never happens.
    Dead,
}

/// The gate of one control plane's process. Everything that it does to the store or a provider passes here, before and after.
#[derive(Debug)]
pub struct Gate {
    /// Which process of the run it is, counted from 1.
    pub process: u64,
    life: Signal<Life>,
    store: Mutex<Option<Arc<dyn Store>>>,
    /// How many more kill points it passes before it dies; 0: as many as there are.
    passes_left: AtomicU64,
}

impl Gate {
    /// A live process on this store that dies at its n-th kill point; 0: at none.
    #[must_use]
    pub fn new(process: u64, store: Arc<dyn Store>, dies_at: u64) -> Arc<Self> {
        Arc::new(Self {
            process,
            life: Signal::new(Life::Alive),
            store: Mutex::new(Some(store)),
            passes_left: AtomicU64::new(dies_at),
        })
    }

    /// Goes on once the process may do something. Never, when it is dead.
    pub async fn enter(&self) -> Arc<dyn Store> {
        let life = self.life.wait_for(|life| *life != Life::Paused).await;
        let store = self.store.lock().unwrap_or_else(PoisonError::into_inner).clone();
        match (life, store) {
            (Life::Alive, Some(store)) => store,
            _ => pending().await,
        }
    }

    /// Goes on once the process may learn what came of it.
    pub async fn leave(&self) {
        drop(self.enter().await);
    }

    /// How it is.
    #[must_use]
    pub fn life(&self) -> Life {
        self.life.get()
    }

    /// Stands still until [`resume`](Self::resume).
    pub fn pause(&self) {
        self.life.replace_if(|life| *life == Life::Alive, Life::Paused);
    }

    /// Goes on where it stood still.
    pub fn resume(&self) {
        self.life.replace_if(|life| *life == Life::Paused, Life::Alive);
    }

    /// Dies. The store's handle is given back, as the file of a store belongs to one process.
    pub fn kill(&self) {
        self.life.replace(Life::Dead);
        drop(self.store.lock().unwrap_or_else(PoisonError::into_inner).take());
    }

    /// Returns when it is dead.
    pub async fn died(&self) {
        self.life.wait_for(|life| *life == Life::Dead).await;
    }
}

impl KillPoints for Gate {
    fn pass(&self, _: &'static str) {
        let last = |left: u64| left.checked_sub(1);
        if self.passes_left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, last) == Ok(1) {
            self.kill();
        }
    }
}
