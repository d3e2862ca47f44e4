//! What goes wrong when a test says so.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Mutex,
    time::Duration,
};

use tokio::sync::watch;

use crate::{answer::Refusal, stand::locked};

/// What befalls every request until it is over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lasting {
    /// The limit of requests is exceeded.
    Throttled,
    /// The caller may do nothing.
    Rights,
    /// No machine can be launched or started.
    Capacity,
    /// The same in these zones, and of these types.
    NoCapacityIn(Vec<String>),
    /// There is no answer. Once this is over the connection is closed; nothing was executed.
    Hang,
    /// Nothing listens, and connections that there are get closed.
    Unreachable,
}

/// What befalls one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Once {
    /// It is refused like this, and not executed.
    BeforeSend {
        /// The status of the answer.
        status: u16,
        /// The code in it.
        code: String,
        /// The message in it.
        message: String,
    },
    /// The connection is closed, and nothing was executed.
    LostBefore,
    /// It is executed, then the connection is closed without an answer.
    LostAfter,
    /// The answer is a page of some load balancer, and nothing was executed.
    Html500,
    /// It is executed, and the answer ends in its middle.
    MalformedXml,
    /// It is executed, and answered that much later.
    Delay(Duration),
}

/// What is to go wrong.
#[derive(Debug)]
pub(crate) struct Faults {
    pub(crate) lasting: watch::Sender<Option<Lasting>>,
    once: Mutex<BTreeMap<String, VecDeque<Once>>>,
}

impl Faults {
    pub(crate) fn none() -> Self {
        Self { lasting: watch::Sender::new(None), once: Mutex::default() }
    }

    pub(crate) fn add(&self, action: &str, fault: Once) {
        locked(&self.once).entry(action.to_owned()).or_default().push_back(fault);
    }

    /// What befalls the next request of this action. It is forgotten then.
    pub(crate) fn next(&self, action: &str) -> Option<Once> {
        locked(&self.once).get_mut(action)?.pop_front()
    }

    /// Whether machines of this type can be had in this zone.
    pub(crate) fn check_capacity(&self, zone: &str, kind: &str) -> Result<(), Refusal> {
        match &*self.lasting.borrow() {
            Some(Lasting::Capacity) => Err(Refusal::no_capacity()),
            Some(Lasting::NoCapacityIn(short)) if short.iter().any(|it| it == zone || it == kind) => {
                Err(Refusal::no_capacity())
            }
            _ => Ok(()),
        }
    }
}
