//! Writes of ours that the service may not show yet: its answers lag behind, and nothing tells by how much; see
//! <https://docs.aws.amazon.com/ec2/latest/devguide/eventual-consistency.html>.
//!
//! What a verb of this process wrote is believed as soon as an answer shows all of it. Where a write may have been made and nobody
//! knows (its answer was lost, its caller gave up, another process made it), nothing is known until the settling time has passed.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use provisioner_core::types::{Generation, Incarnation};
use tokio::time::Instant;

use crate::{
    digest::{Intended, State},
    seen::Seen,
};

/// How much later than its end a verb may be written down by who keeps the time since.
const WRITTEN_DOWN_WITHIN: Duration = Duration::from_secs(1);

/// What a write of ours will look like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Write {
    /// The machine is in one of these states.
    State(Box<str>, &'static [State]),
    /// The machine says so of itself.
    Generation(Box<str>, Generation),
    Intended(Box<str>, Intended),
    /// The machine has the volume.
    Attached(Box<str>, Box<str>),
    /// The making is the last to use the volume.
    TakenUp(Box<str>),
    /// The volume is marked by the making that used it.
    Marked(Box<str>),
    /// The volume is gone.
    Gone(Box<str>),
}

pub(crate) const STARTED: &[State] = &[State::Pending, State::Running];
pub(crate) const STOPPED: &[State] = &[State::Stopping, State::Stopped];
pub(crate) const ENDED: &[State] = &[State::ShuttingDown, State::Terminated];
pub(crate) const MADE: &[State] =
    &[State::Pending, State::Running, State::Stopping, State::Stopped, State::ShuttingDown, State::Terminated];

impl Write {
    fn is_told(&self, seen: &Seen) -> bool {
        let machine = |id: &str| seen.machines.iter().find(|machine| *machine.id == *id);
        let volume = |id: &str| seen.volumes.iter().find(|volume| *volume.id == *id);
        match self {
            Self::State(id, states) => machine(id).is_some_and(|machine| states.contains(&machine.state)),
            Self::Generation(id, generation) => machine(id).is_some_and(|machine| machine.generation >= *generation),
            Self::Intended(id, intended) => machine(id).is_some_and(|machine| machine.intended == *intended),
            Self::Attached(id, volume) => machine(id).is_some_and(|machine| machine.volume.as_ref() == Some(volume)),
            // A machine tells of its volume.
            Self::TakenUp(id) => volume(id).is_some() || seen.living().is_some(),
            Self::Marked(id) => volume(id).is_none_or(|volume| volume.is_ending() || volume.is_released()),
            Self::Gone(id) => volume(id).is_none(),
        }
    }

    /// Whether a later write about the same thing takes the place of this one.
    fn is_replaced_by(&self, later: &Self) -> bool {
        use Write::{Attached, Generation, Gone, Intended, Marked, State, TakenUp};
        match (self, later) {
            (State(one, _), State(other, _))
            | (Generation(one, _), Generation(other, _))
            | (Intended(one, _), Intended(other, _))
            | (Attached(one, _), Attached(other, _))
            | (Marked(one), Marked(other) | Gone(other))
            | (TakenUp(one), TakenUp(other) | Gone(other)) => one == other,
            // What has ended says nothing any more.
            (Generation(one, _) | Intended(one, _) | Attached(one, _), State(other, states)) => {
                one == other && *states == ENDED
            }
            _ => false,
        }
    }
}

#[derive(Debug)]
struct Entry {
    /// When a verb was last at it.
    at: Instant,
    /// Until then something may have been written that is not among these.
    doubt_until: Option<Instant>,
    writes: Vec<Write>,
}

/// What was written about each making a short time ago.
#[derive(Debug)]
pub(crate) struct Writes {
    settling: Duration,
    entries: Mutex<BTreeMap<Incarnation, Entry>>,
}

/// A verb that writes. When it is dropped before [`done`](Self::done), something may have been written that nobody knows of.
#[derive(Debug)]
pub(crate) struct Writing<'a> {
    writes: &'a Writes,
    incarnation: Incarnation,
    is_sure: bool,
}

impl Writes {
    pub(crate) fn new(settling: Duration) -> Self {
        Self { settling, entries: Mutex::default() }
    }

    fn entries(&self) -> MutexGuard<'_, BTreeMap<Incarnation, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A verb begins.
    pub(crate) fn begin(&self, incarnation: Incarnation) -> Writing<'_> {
        Writing { writes: self, incarnation, is_sure: false }
    }

    /// Whether what is seen is as new as everything that was written about the making, when the last call for it was made so
    /// long ago.
    pub(crate) fn are_told(&self, incarnation: Incarnation, seen: &Seen, since: Option<Duration>) -> bool {
        let Some(since) = since.filter(|since| *since < self.settling) else { return true };
        let now = Instant::now();
        self.entries().get(&incarnation).is_some_and(|entry| {
            let is_ours = now.saturating_duration_since(entry.at) <= since + WRITTEN_DOWN_WITHIN;
            let is_sure = entry.doubt_until.is_none_or(|until| until <= now);
            is_ours && is_sure && entry.writes.iter().all(|write| write.is_told(seen))
        })
    }

    /// Whether what is seen shows what this process wrote, as far as it knows.
    pub(crate) fn are_shown(&self, incarnation: Incarnation, seen: &Seen) -> bool {
        self.entries().get(&incarnation).is_none_or(|entry| {
            entry.at.elapsed() >= self.settling || entry.writes.iter().all(|write| write.is_told(seen))
        })
    }

    fn touch(&self, incarnation: Incarnation, change: impl FnOnce(&mut Entry)) {
        let mut entries = self.entries();
        let now = Instant::now();
        entries.retain(|_, entry| now.saturating_duration_since(entry.at) < 2 * self.settling);
        let entry =
            entries.entry(incarnation).or_insert_with(|| Entry { at: now, doubt_until: None, writes: Vec::new() });
        if now.saturating_duration_since(entry.at) >= self.settling {
            entry.writes.clear();
        }
        entry.at = now;
        change(entry);
    }
}

impl Writing<'_> {
    /// Something was written, and answered.
    pub(crate) fn note(&self, write: Write) {
        self.writes.touch(self.incarnation, |entry| {
            entry.writes.retain(|before| !before.is_replaced_by(&write));
            entry.writes.push(write);
        });
    }

    /// Every write was answered.
    pub(crate) fn done(mut self) {
        self.is_sure = true;
    }
}

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        let doubt = (!self.is_sure).then(|| Instant::now() + self.writes.settling);
        self.writes.touch(self.incarnation, |entry| entry.doubt_until = doubt.or(entry.doubt_until));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SETTLING: Duration = Duration::from_secs(60);

    #[tokio::test(start_paused = true)]
    async fn what_another_process_wrote_or_nobody_knows_of_is_unknown_until_it_has_settled() {
        let (writes, making) = (Writes::new(SETTLING), Incarnation::new(1, 1));
        let seen = Seen::default();
        assert!(writes.are_told(making, &seen, None));
        assert!(!writes.are_told(making, &seen, Some(Duration::ZERO)), "another process's");
        assert!(writes.are_told(making, &seen, Some(SETTLING)));
        drop(writes.begin(making));
        assert!(!writes.are_told(making, &seen, Some(Duration::ZERO)), "a verb was dropped");
        writes.begin(making).done();
        assert!(!writes.are_told(making, &seen, Some(Duration::ZERO)), "and nothing has told since");
        tokio::time::advance(SETTLING).await;
        writes.begin(making).done();
        assert!(writes.are_told(making, &seen, Some(Duration::ZERO)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_write_is_waited_for_until_it_is_shown_or_another_takes_its_place() {
        let (writes, making) = (Writes::new(SETTLING), Incarnation::new(1, 1));
        let writing = writes.begin(making);
        writing.note(Write::State("i-1".into(), STARTED));
        writing.note(Write::Intended("i-1".into(), Intended::Running));
        writing.done();
        assert!(!writes.are_told(making, &Seen::default(), Some(Duration::ZERO)));
        assert!(!writes.are_shown(making, &Seen::default()));
        let writing = writes.begin(making);
        writing.note(Write::State("i-1".into(), ENDED));
        writing.note(Write::Marked("vol-1".into()));
        writing.note(Write::Gone("vol-1".into()));
        writing.done();
        assert_eq!(writes.entries()[&making].writes, [Write::State("i-1".into(), ENDED), Write::Gone("vol-1".into())]);
    }
}
