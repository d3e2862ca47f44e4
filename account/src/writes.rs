//! Writes of ours that a service may not show yet: its answers lag behind, and nothing tells by how much.
//!
//! What a verb of this process wrote is believed as soon as an answer shows all of it. Where a write may have been made and nobody
//! knows (its answer was lost, its caller gave up, another process made it), nothing is known until the settling time has passed.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use provisioner_core::types::Incarnation;
use tokio::time::Instant;

/// How much later than its end a verb may be written down by who keeps the time since.
const WRITTEN_DOWN_WITHIN: Duration = Duration::from_secs(1);

/// A write that was answered.
pub trait Write {
    /// What is seen of a making.
    type Seen;

    /// Whether what is seen shows it.
    fn is_told(&self, seen: &Self::Seen) -> bool;

    /// Whether a later write about the same thing takes the place of this one.
    fn is_replaced_by(&self, later: &Self) -> bool;
}

#[derive(Debug)]
struct Entry<W> {
    /// When a verb was last at it.
    at: Instant,
    /// Until then something may have been written that is not among these.
    doubt_until: Option<Instant>,
    writes: Vec<W>,
}

impl<W> Entry<W> {
    fn is_sure(&self, now: Instant) -> bool {
        self.doubt_until.is_none_or(|until| until <= now)
    }
}

/// What was written about each making a short time ago.
#[derive(Debug)]
pub struct Writes<W> {
    settling: Duration,
    entries: Mutex<BTreeMap<Incarnation, Entry<W>>>,
}

/// A verb that writes. When it is dropped before [`done`](Self::done), something may have been written that nobody knows of.
#[derive(Debug)]
pub struct Writing<'a, W> {
    writes: &'a Writes<W>,
    incarnation: Incarnation,
    is_sure: bool,
}

impl<W> Writes<W> {
    /// None. `settling`: how long answers may lag.
    #[must_use]
    pub fn new(settling: Duration) -> Self {
        Self { settling, entries: Mutex::default() }
    }

    fn entries(&self) -> MutexGuard<'_, BTreeMap<Incarnation, Entry<W>>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A verb begins.
    pub fn begin(&self, incarnation: Incarnation) -> Writing<'_, W> {
        Writing { writes: self, incarnation, is_sure: false }
    }

    /// Whether this process has made such a write a short time ago, and nothing that it does not know of.
    pub fn have(&self, incarnation: Incarnation, is_it: impl Fn(&W) -> bool) -> bool {
        let now = Instant::now();
        self.entries().get(&incarnation).is_some_and(|entry| {
            let is_fresh = now.saturating_duration_since(entry.at) < self.settling;
            is_fresh && entry.is_sure(now) && entry.writes.iter().any(is_it)
        })
    }

    fn touch(&self, incarnation: Incarnation, change: impl FnOnce(&mut Entry<W>)) {
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

impl<W: Write> Writes<W> {
    /// Whether what is seen is as new as everything that was written about the making, when the last call for it was made so
    /// long ago.
    pub fn are_told(&self, incarnation: Incarnation, seen: &W::Seen, since: Option<Duration>) -> bool {
        let Some(since) = since.filter(|since| *since < self.settling) else { return true };
        let now = Instant::now();
        self.entries().get(&incarnation).is_some_and(|entry| {
            let is_ours = now.saturating_duration_since(entry.at) <= since + WRITTEN_DOWN_WITHIN;
            is_ours && entry.is_sure(now) && entry.writes.iter().all(|write| write.is_told(seen))
        })
    }

    /// Whether what is seen shows what this process wrote, as far as it knows.
    pub fn are_shown(&self, incarnation: Incarnation, seen: &W::Seen) -> bool {
        self.entries().get(&incarnation).is_none_or(|entry| {
            entry.at.elapsed() >= self.settling || entry.writes.iter().all(|write| write.is_told(seen))
        })
    }
}

impl<W: Write> Writing<'_, W> {
    /// Something was written, and answered.
    pub fn note(&self, write: W) {
        self.writes.touch(self.incarnation, |entry| {
            entry.writes.retain(|before| !before.is_replaced_by(&write));
            entry.writes.push(write);
        });
    }
}

impl<W> Writing<'_, W> {
    /// Every write was answered.
    pub fn done(mut self) {
        self.is_sure = true;
    }
}

impl<W> Drop for Writing<'_, W> {
    fn drop(&mut self) {
        let doubt = (!self.is_sure).then(|| Instant::now() + self.writes.settling);
        self.writes.touch(self.incarnation, |entry| entry.doubt_until = doubt.or(entry.doubt_until));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SETTLING: Duration = Duration::from_secs(60);

    /// That something is this number.
    #[derive(Debug, PartialEq, Eq)]
    struct Number(u32);

    impl Write for Number {
        type Seen = u32;

        fn is_told(&self, seen: &u32) -> bool {
            self.0 == *seen
        }

        fn is_replaced_by(&self, _: &Self) -> bool {
            true
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_another_process_wrote_or_nobody_knows_of_is_unknown_until_it_has_settled() {
        let (writes, making) = (Writes::<Number>::new(SETTLING), Incarnation::new(1, 1));
        assert!(writes.are_told(making, &0, None));
        assert!(!writes.are_told(making, &0, Some(Duration::ZERO)), "another process's");
        assert!(writes.are_told(making, &0, Some(SETTLING)));
        drop(writes.begin(making));
        assert!(!writes.are_told(making, &0, Some(Duration::ZERO)), "a verb was dropped");
        writes.begin(making).done();
        assert!(!writes.are_told(making, &0, Some(Duration::ZERO)), "and nothing has told since");
        tokio::time::advance(SETTLING).await;
        writes.begin(making).done();
        assert!(writes.are_told(making, &0, Some(Duration::ZERO)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_write_is_waited_for_until_it_is_shown_or_another_takes_its_place() {
        let (writes, making) = (Writes::new(SETTLING), Incarnation::new(1, 1));
        let write = |number| {
            let writing = writes.begin(making);
            writing.note(Number(number));
            writing.done();
        };
        write(1);
        assert!(!writes.are_told(making, &0, Some(Duration::ZERO)) && !writes.are_shown(making, &0));
        assert!(writes.are_told(making, &1, Some(Duration::ZERO)) && writes.have(making, |write| write.0 == 1));
        write(2);
        assert!(writes.are_told(making, &2, Some(Duration::ZERO)) && !writes.have(making, |write| write.0 == 1));
        drop(writes.begin(making));
        assert!(!writes.have(making, |write| write.0 == 2), "something else may have been written");
    }
}
