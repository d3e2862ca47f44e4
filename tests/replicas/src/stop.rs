//! Where a replica stops as a whole, as if somebody had sent it a signal at just that moment.

use std::{
    sync::{Mutex, PoisonError},
    thread,
    time::Duration,
};

use provisioner_core::{
    store::{Change, Claiming, Committed, StoreError},
    types::InstanceId,
};
use rustix::process::{Signal, getpid, kill_process};
use serde::{Deserialize, Serialize};
use tests::watched::Witness;

use crate::command::{Refused, Why};

/// A signal stops every thread a moment after it was sent.
const MOMENT: Duration = Duration::from_millis(100);

/// What a replica is about to do when it stops.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stop {
    /// Send this call to the provider.
    Call {
        /// As in the engine's log.
        verb: String,
        /// About which instance.
        name: String,
    },
    /// Write down what came of its work on this instance.
    Record {
        /// Which.
        name: String,
    },
}

/// The stops that are to come, each once, and the writes that were refused so far.
#[derive(Debug, Default)]
pub struct Stops {
    to_come: Mutex<Vec<Stop>>,
    refused: Mutex<Vec<Refused>>,
}

impl Stops {
    /// One more to come.
    pub fn add(&self, stop: Stop) {
        self.to_come.lock().unwrap_or_else(PoisonError::into_inner).push(stop);
    }

    /// The writes that were refused so far.
    #[must_use]
    pub fn refused(&self) -> Vec<Refused> {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Stops here if that was asked for, until somebody lets this process go on; whether it did.
    pub fn pass(&self, here: &Stop) -> bool {
        let mut to_come = self.to_come.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(found) = to_come.iter().position(|stop| stop == here) else { return false };
        to_come.remove(found);
        drop(to_come);
        kill_process(getpid(), Signal::STOP).expect("a process may stop itself");
        thread::sleep(MOMENT);
        true
    }
}

impl Witness for Stops {
    fn before(&self, change: &Change) {
        if let (Claiming::Release, Some(write)) = (change.claiming, &change.instance) {
            self.pass(&Stop::Record { name: write.id().to_string() });
        }
    }

    fn after(&self, instance: Option<&InstanceId>, committed: &Result<Committed, StoreError>) {
        let why = match committed {
            Err(StoreError::SessionLost) => Why::SessionLost,
            Err(StoreError::Stale) => Why::Stale,
            _ => return,
        };
        if let Some(instance) = instance {
            let refused = Refused { instance: instance.to_string(), why };
            self.refused.lock().unwrap_or_else(PoisonError::into_inner).push(refused);
        }
    }
}
