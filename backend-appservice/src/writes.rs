//! Writes of ours that the service may not show yet.
//!
//! Each write leaves a random word on what it wrote. So an answer is as new as what this process wrote when it shows the last word,
//! and what a `start` or `stop` leaves. Where a write may have been made and nobody knows (its answer was lost, its caller gave up,
//! another process made it), nothing is known until the settling time has passed.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use provisioner_core::types::Incarnation;
use tokio::time::Instant;

use crate::seen::Seen;

/// How much later than its end a verb may be written down by who keeps the time since.
const WRITTEN_DOWN_WITHIN: Duration = Duration::from_secs(1);

/// What is to be seen of the last writes about a thing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
enum Expected {
    #[default]
    Anything,
    /// This word.
    Word(Box<str>),
    Gone,
}

#[derive(Debug)]
struct Entry {
    /// When a verb was last at it.
    at: Instant,
    /// Until then something may have been written that is not among these.
    doubt_until: Option<Instant>,
    site: Expected,
    runs: Option<bool>,
    share: Expected,
}

impl Entry {
    fn is_told(&self, seen: &Seen) -> bool {
        let site = match (&self.site, &seen.site) {
            (Expected::Anything, _) | (Expected::Gone, None) => true,
            (Expected::Word(word), Some(site)) => site.written == *word,
            _ => false,
        };
        let runs = self.runs.is_none_or(|runs| seen.site.as_ref().is_none_or(|site| site.is_running == runs));
        let share = match (&self.share, &seen.share) {
            (Expected::Anything, _) | (Expected::Gone, None) => true,
            (Expected::Word(word), Some(share)) => share.written == *word,
            // A site that is there tells enough: nobody has asked for its share.
            (_, None) => seen.site.is_some() && !seen.share_was_read,
            _ => false,
        };
        site && runs && share
    }
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
            is_ours && is_sure && entry.is_told(seen)
        })
    }

    /// Whether this process has removed all of a making a short time ago.
    pub(crate) fn has_removed(&self, incarnation: Incarnation) -> bool {
        let now = Instant::now();
        self.entries().get(&incarnation).is_some_and(|entry| {
            let is_sure = entry.doubt_until.is_none_or(|until| until <= now);
            is_sure && entry.site == Expected::Gone && now.saturating_duration_since(entry.at) < self.settling
        })
    }

    /// Whether what is seen shows what this process wrote, as far as it knows.
    pub(crate) fn are_shown(&self, incarnation: Incarnation, seen: &Seen) -> bool {
        self.entries().get(&incarnation).is_none_or(|entry| entry.at.elapsed() >= self.settling || entry.is_told(seen))
    }

    fn touch(&self, incarnation: Incarnation, change: impl FnOnce(&mut Entry)) {
        let mut entries = self.entries();
        let now = Instant::now();
        entries.retain(|_, entry| now.saturating_duration_since(entry.at) < 2 * self.settling);
        let new =
            || Entry { at: now, doubt_until: None, site: Expected::Anything, runs: None, share: Expected::Anything };
        let entry = entries.entry(incarnation).or_insert_with(new);
        if now.saturating_duration_since(entry.at) >= self.settling {
            *entry = Entry { doubt_until: entry.doubt_until, ..new() };
        }
        entry.at = now;
        change(entry);
    }
}

impl Writing<'_> {
    /// The site was written, with this word.
    pub(crate) fn site(&self, word: &str) {
        self.writes.touch(self.incarnation, |entry| entry.site = Expected::Word(word.into()));
    }

    /// The site was started or stopped.
    pub(crate) fn site_runs(&self, runs: bool) {
        self.writes.touch(self.incarnation, |entry| entry.runs = Some(runs));
    }

    pub(crate) fn site_gone(&self) {
        self.writes.touch(self.incarnation, |entry| (entry.site, entry.runs) = (Expected::Gone, None));
    }

    pub(crate) fn share(&self, word: &str) {
        self.writes.touch(self.incarnation, |entry| entry.share = Expected::Word(word.into()));
    }

    pub(crate) fn share_gone(&self) {
        self.writes.touch(self.incarnation, |entry| entry.share = Expected::Gone);
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

    const SETTLING: Duration = Duration::from_secs(10);

    #[tokio::test(start_paused = true)]
    async fn what_another_process_wrote_or_nobody_knows_of_is_unknown_until_it_has_settled() {
        let (writes, making) = (Writes::new(SETTLING), Incarnation::new(1, 1));
        let seen = Seen::default();
        assert!(writes.are_told(making, &seen, None));
        assert!(!writes.are_told(making, &seen, Some(Duration::ZERO)), "another process's");
        drop(writes.begin(making));
        assert!(!writes.are_told(making, &seen, Some(Duration::ZERO)), "a verb was dropped");
        tokio::time::advance(SETTLING).await;
        writes.begin(making).done();
        assert!(writes.are_told(making, &seen, Some(Duration::ZERO)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_write_is_waited_for_until_it_is_shown_or_a_later_one_takes_its_place() {
        let (writes, making) = (Writes::new(SETTLING), Incarnation::new(1, 1));
        let writing = writes.begin(making);
        writing.site("one");
        writing.done();
        assert!(!writes.are_told(making, &Seen::default(), Some(Duration::ZERO)));
        assert!(!writes.are_shown(making, &Seen::default()));
        let writing = writes.begin(making);
        writing.site_gone();
        writing.done();
        assert!(writes.are_told(making, &Seen::default(), Some(Duration::ZERO)));
    }
}
