//! What goes wrong when a test says so.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Mutex,
    time::Duration,
};

use tokio::sync::watch;

use crate::stand::locked;

/// What befalls every request until it is over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lasting {
    /// The limit of requests is exceeded.
    Throttled {
        /// How long callers are asked to wait, in whole seconds rounded up; not at all when zero.
        after: Duration,
    },
    /// The caller may do nothing.
    Rights,
    /// There are no instances for a new plan or for more of one.
    Capacity,
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
        /// Whether its names are capitalised, as some of the real service's are.
        capitalised: bool,
    },
    /// The connection is closed, and nothing was executed.
    LostBefore,
    /// It is executed, then the connection is closed without an answer.
    LostAfter,
    /// The answer is a page of some load balancer, and nothing was executed.
    Html500,
    /// It is executed, and the answer ends in its middle.
    MalformedJson,
    /// It is executed, and answered that much later.
    Delay(Duration),
    /// It is accepted and fails later like this, and nothing is changed. One that is answered at once fails at once.
    FailsLater {
        /// The code of the failure.
        code: String,
        /// The message of it.
        message: String,
    },
    /// It is accepted and never ends, and nothing is changed. Another write may follow once this one would have ended.
    NeverEnds,
    /// It is executed, and the address to poll is this one.
    PollElsewhere(String),
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

    pub(crate) fn add(&self, operation: &str, fault: Once) {
        locked(&self.once).entry(operation.to_owned()).or_default().push_back(fault);
    }

    /// What befalls the next request of this operation. It is forgotten then.
    pub(crate) fn next(&self, operation: &str) -> Option<Once> {
        locked(&self.once).get_mut(operation)?.pop_front()
    }

    pub(crate) fn is_short(&self) -> bool {
        *self.lasting.borrow() == Some(Lasting::Capacity)
    }
}
