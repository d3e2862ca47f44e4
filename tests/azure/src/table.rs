//! Things by their names, and what they were a moment ago: reads may lag behind writes.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

/// What there was before the writes of late, each with the time until which it is shown.
type Before<T> = Vec<(Instant, Option<T>)>;

/// Things by their names. Names differ by more than their case.
#[derive(Debug)]
pub(crate) struct Table<T> {
    lag: Duration,
    now: BTreeMap<String, T>,
    before: BTreeMap<String, Before<T>>,
}

impl<T: Clone> Table<T> {
    pub(crate) fn new(lag: Duration) -> Self {
        Self { lag, now: BTreeMap::new(), before: BTreeMap::new() }
    }

    pub(crate) fn get(&self, name: &str) -> Option<&T> {
        self.now.get(&name.to_lowercase())
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = &T> {
        self.now.values()
    }

    pub(crate) fn len(&self) -> usize {
        self.now.len()
    }

    pub(crate) fn put(&mut self, name: &str, thing: T) {
        let key = name.to_lowercase();
        self.remember(&key);
        self.now.insert(key, thing);
    }

    /// Changes a thing. Nothing, where there is none.
    pub(crate) fn change<R>(&mut self, name: &str, change: impl FnOnce(&mut T) -> R) -> Option<R> {
        let key = name.to_lowercase();
        self.remember(&key);
        self.now.get_mut(&key).map(change)
    }

    pub(crate) fn remove(&mut self, name: &str) -> Option<T> {
        let key = name.to_lowercase();
        self.remember(&key);
        self.now.remove(&key)
    }

    /// What a read shows.
    pub(crate) fn shown(&self, name: &str) -> Option<&T> {
        self.shown_of(&name.to_lowercase())
    }

    /// What a list shows, by name.
    pub(crate) fn shown_all(&self) -> Vec<&T> {
        let keys: BTreeSet<_> = self.now.keys().chain(self.before.keys()).collect();
        keys.into_iter().filter_map(|key| self.shown_of(key)).collect()
    }

    fn shown_of(&self, key: &str) -> Option<&T> {
        let now = Instant::now();
        let older = self.before.get(key).and_then(|before| before.iter().find(|(until, _)| *until > now));
        match older {
            Some((_, before)) => before.as_ref(),
            None => self.now.get(key),
        }
    }

    fn remember(&mut self, key: &str) {
        if self.lag.is_zero() {
            return;
        }
        let now = Instant::now();
        self.before.retain(|_, before| {
            before.retain(|(until, _)| *until > now);
            !before.is_empty()
        });
        let before = self.now.get(key).cloned();
        self.before.entry(key.to_owned()).or_default().push((now + self.lag, before));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_is_what_there_was() {
        let mut table = Table::new(Duration::from_millis(80));
        table.put("A", 1);
        assert_eq!((table.get("a"), table.shown("a")), (Some(&1), None));
        std::thread::sleep(Duration::from_millis(100));
        assert_eq!(table.shown_all(), [&1]);
        table.change("a", |it| *it = 2);
        table.remove("a");
        assert_eq!((table.get("a"), table.shown("a")), (None, Some(&1)));
        std::thread::sleep(Duration::from_millis(100));
        assert_eq!(table.shown_all(), [&0; 0]);
    }
}
