//! What stands between a control plane and the world: it can be paused, and it can die, between any two things it does.

use std::{
    fmt,
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
    /// The same, and nobody waits for it any more: what is left of it may end.
    Buried,
}

/// What becomes of requests to a store that cannot be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// They fail at once.
    Fails,
    /// They wait until it can be reached again.
    Hangs,
}

/// Whoever did this is dead and buried.
#[derive(Debug, Clone, Copy)]
pub struct Buried;

impl fmt::Display for Buried {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("dead and buried")
    }
}

impl std::error::Error for Buried {}

/// The gate of one control plane's process. Everything that it does to the store or a provider passes here, before and after.
#[derive(Debug)]
pub struct Gate {
    /// Which process of the run it is, counted from 1.
    pub process: u64,
    life: Signal<Life>,
    store: Mutex<Option<Arc<dyn Store>>>,
    /// Whether it cannot reach the store, and whether nobody can.
    cut: Signal<Option<Cut>>,
    outage: Arc<Signal<Option<Cut>>>,
    /// How many more kill points it passes before it dies; 0: as many as there are.
    passes_left: AtomicU64,
}

impl Gate {
    /// A live process on this store that dies at its n-th kill point; 0: at none.
    #[must_use]
    pub fn new(process: u64, store: Arc<dyn Store>, dies_at: u64) -> Arc<Self> {
        Self::of_replica(process, store, dies_at, Arc::new(Signal::new(None)))
    }

    /// The same, on a store that answers nobody while there is an outage.
    #[must_use]
    pub fn of_replica(
        process: u64,
        store: Arc<dyn Store>,
        dies_at: u64,
        outage: Arc<Signal<Option<Cut>>>,
    ) -> Arc<Self> {
        Arc::new(Self {
            process,
            life: Signal::new(Life::Alive),
            store: Mutex::new(Some(store)),
            cut: Signal::new(None),
            outage,
            passes_left: AtomicU64::new(dies_at),
        })
    }

    /// Goes on once the process may do something. Not while it is dead.
    ///
    /// # Errors
    /// When it is buried.
    pub async fn enter(&self) -> Result<Arc<dyn Store>, Buried> {
        match self.life.wait_for(|life| *life != Life::Paused).await {
            Life::Buried => return Err(Buried),
            Life::Alive | Life::Paused | Life::Dead => {}
        }
        if let (Life::Alive, Some(store)) = (self.life(), self.peek()) {
            return Ok(store);
        }
        self.life.wait_for(|life| *life == Life::Buried).await;
        Err(Buried)
    }

    /// Goes on once the process may learn what came of it.
    ///
    /// # Errors
    /// When it is buried.
    pub async fn leave(&self) -> Result<(), Buried> {
        self.enter().await.map(drop)
    }

    /// The store, for who looks at it from outside; never, when the process is dead.
    pub async fn store(&self) -> Arc<dyn Store> {
        match self.enter().await {
            Ok(store) => store,
            Err(Buried) => pending().await,
        }
    }

    /// The store, whether the process may do something or not; none when it is dead.
    #[must_use]
    pub fn peek(&self) -> Option<Arc<dyn Store>> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How requests of this process to the store end now, if it cannot be reached.
    #[must_use]
    pub fn is_cut(&self) -> Option<Cut> {
        self.outage.get().or_else(|| self.cut.get())
    }

    /// Cuts it off from the store, or connects it again.
    pub fn cut_off(&self, cut: Option<Cut>) {
        self.cut.replace(cut);
    }

    /// Returns when the store can be reached again.
    ///
    /// # Errors
    /// When the process is buried meanwhile.
    pub async fn reachable(&self) -> Result<(), Buried> {
        while self.is_cut().is_some() {
            tokio::select! {
                biased;
                _ = self.life.wait_for(|life| *life == Life::Buried) => return Err(Buried),
                () = async {
                    self.outage.wait_for(Option::is_none).await;
                    self.cut.wait_for(Option::is_none).await;
                } => {}
            }
        }
        Ok(())
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
        self.life.replace_if(|life| *life != Life::Buried, Life::Dead);
        drop(self.store.lock().unwrap_or_else(PoisonError::into_inner).take());
    }

    /// Has whatever is left of a dead one end.
    pub fn bury(&self) {
        self.kill();
        self.life.replace(Life::Buried);
    }

    /// Returns when it is dead.
    pub async fn died(&self) {
        self.life.wait_for(|life| matches!(life, Life::Dead | Life::Buried)).await;
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
