//! What is logged while a rule listens.

use std::{
    fmt::{self, Write},
    sync::{
        Mutex, OnceLock, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use tracing::{
    Event, Metadata, Subscriber,
    field::{Field, Visit},
    span::{Attributes, Id, Record},
    subscriber::Interest,
};

static LISTENING: AtomicUsize = AtomicUsize::new(0);
static LINES: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Keeps what is logged, by whomever, for as long as it lives. Where the process logs elsewhere already, that is nothing.
pub(crate) struct Logs;

impl Logs {
    pub(crate) fn listen() -> Self {
        static INSTALLED: OnceLock<bool> = OnceLock::new();
        INSTALLED.get_or_init(|| tracing::subscriber::set_global_default(Listener).is_ok());
        LISTENING.fetch_add(1, Ordering::SeqCst);
        Self
    }

    /// The first line that holds this text.
    pub(crate) fn find(&self, text: &str) -> Option<String> {
        let lines = LINES.lock().unwrap_or_else(PoisonError::into_inner);
        lines.iter().find(|line| line.contains(text)).cloned()
    }
}

impl Drop for Logs {
    fn drop(&mut self) {
        if LISTENING.fetch_sub(1, Ordering::SeqCst) == 1 {
            LINES.lock().unwrap_or_else(PoisonError::into_inner).clear();
        }
    }
}

struct Listener;

struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // Writing to a text cannot fail.
        let _ = write!(self.0, " {field}={value:?}");
    }
}

impl Line {
    fn keep(self) {
        LINES.lock().unwrap_or_else(PoisonError::into_inner).push(self.0);
    }
}

impl Subscriber for Listener {
    fn register_callsite(&self, _metadata: &'static Metadata<'static>) -> Interest {
        // Or the answer of the first time would be kept.
        Interest::sometimes()
    }

    fn enabled(&self, _metadata: &Metadata<'_>) -> bool {
        LISTENING.load(Ordering::SeqCst) > 0
    }

    fn new_span(&self, attributes: &Attributes<'_>) -> Id {
        let mut line = Line(attributes.metadata().name().to_owned());
        attributes.record(&mut line);
        line.keep();
        Id::from_u64(1)
    }

    fn record(&self, _span: &Id, values: &Record<'_>) {
        let mut line = Line(String::new());
        values.record(&mut line);
        line.keep();
    }

    fn record_follows_from(&self, _span: &Id, _follows: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut line = Line(event.metadata().target().to_owned());
        event.record(&mut line);
        line.keep();
    }

    fn enter(&self, _span: &Id) {}

    fn exit(&self, _span: &Id) {}
}
