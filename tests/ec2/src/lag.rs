//! Reads that lag behind writes: for a time they answer what there was before.

use std::{
    collections::BTreeMap,
    sync::Mutex,
    time::{Duration, Instant},
};

use crate::{stand::locked, xml::Element};

/// What a read shows of a resource.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Shown {
    /// What there is.
    Current,
    /// What there was.
    Older(Box<Element>),
    /// Nothing: it had not been made.
    Nothing,
}

/// What there was before the writes of late, each with the time until which it is shown.
type Before = Vec<(Instant, Option<Element>)>;

/// What there was of each resource.
#[derive(Debug)]
pub(crate) struct Lag {
    pub(crate) time: Duration,
    before: Mutex<BTreeMap<String, Before>>,
}

impl Lag {
    pub(crate) fn new(time: Duration) -> Self {
        Self { time, before: Mutex::default() }
    }

    pub(crate) fn is_none(&self) -> bool {
        self.time.is_zero()
    }

    /// Remembers what is about to change; nothing, when it is about to be made.
    pub(crate) fn remember(&self, id: &str, before: Option<Element>) {
        if !self.is_none() {
            locked(&self.before).entry(id.to_owned()).or_default().push((Instant::now() + self.time, before));
        }
    }

    pub(crate) fn shown(&self, id: &str) -> Shown {
        if self.is_none() {
            return Shown::Current;
        }
        let mut before = locked(&self.before);
        let Some(entries) = before.get_mut(id) else { return Shown::Current };
        let now = Instant::now();
        entries.retain(|(until, _)| *until > now);
        match entries.first() {
            None => Shown::Current,
            Some((_, None)) => Shown::Nothing,
            Some((_, Some(element))) => Shown::Older(Box::new(element.clone())),
        }
    }
}
