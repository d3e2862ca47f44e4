//! Writes of ours that the watches have not told of yet: until then, what is known is older than what is there.

use std::{collections::BTreeMap, sync::Arc};

use tokio::sync::Notify;

use super::{Kind, packed::Spaces};

/// What a write of ours will look like to a watch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Awaited {
    /// An object of this kind, as new as that.
    Version(Kind, u64),
    /// The stateful set with this uid, gone or going.
    SetGone(Box<str>),
    /// The home with this uid, gone or going.
    HomeGone(Box<str>),
}

/// How far each watch has come, and what is waited for, by home.
#[derive(Debug, Default)]
pub(super) struct Told {
    /// A watch tells of all objects of its kind in the order of their versions, so whatever is not newer than this has been
    /// told, also of what is gone again.
    heard: BTreeMap<Kind, u64>,
    waiting: BTreeMap<Box<str>, Waiting>,
}

/// What is waited for in one home, and who does.
#[derive(Debug, Default)]
struct Waiting {
    awaited: Vec<Awaited>,
    /// Told when all of it has been told of.
    settled: Arc<Notify>,
}

impl Told {
    /// A watch has told everything up to this version.
    pub(super) fn hear(&mut self, kind: Kind, version: u64) {
        let heard = self.heard.entry(kind).or_default();
        *heard = version.max(*heard);
    }

    /// Something was written. It counts until the watches have told of it.
    pub(super) fn wait_for(&mut self, home: &str, awaited: Awaited) {
        let all = &mut self.waiting.entry(home.into()).or_default().awaited;
        if !all.contains(&awaited) {
            all.push(awaited);
        }
    }

    /// Forgets what has been told of by now.
    pub(super) fn settle(&mut self, spaces: &Spaces) {
        let heard = &self.heard;
        self.waiting.retain(|home, waiting| {
            let space = || spaces.get(home);
            waiting.awaited.retain(|awaited| match awaited {
                Awaited::Version(kind, version) => heard.get(kind).is_none_or(|heard| heard < version),
                Awaited::SetGone(uid) => {
                    space().is_some_and(|space| space.sets.iter().any(|set| set.uid == *uid && !set.is_ending))
                }
                Awaited::HomeGone(uid) => {
                    space().and_then(|space| space.home).is_some_and(|home| home.uid == *uid && !home.is_ending)
                }
            });
            if waiting.awaited.is_empty() {
                waiting.settled.notify_waiters();
            }
            !waiting.awaited.is_empty()
        });
    }

    /// Whether what is known of a home is older than what we wrote there.
    pub(super) fn is_behind(&self, home: &str) -> bool {
        self.waiting.contains_key(home)
    }

    /// What tells that a home is as new as what we wrote there. `None`: it is.
    pub(super) fn settled(&self, home: &str) -> Option<Arc<Notify>> {
        self.waiting.get(home).map(|waiting| Arc::clone(&waiting.settled))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_told_before_anybody_waited_for_it_is_not_waited_for() {
        let (mut told, spaces) = (Told::default(), Spaces::default());
        told.wait_for("a", Awaited::Version(Kind::Service, 100));
        told.settle(&spaces);
        assert!(told.is_behind("a") && !told.is_behind("b"));
        // Of another object, in another home: whatever came before has been told.
        told.hear(Kind::Service, 120);
        told.settle(&spaces);
        assert!(!told.is_behind("a"));
        // An answer that comes after its object was made, told and removed again.
        told.wait_for("a", Awaited::Version(Kind::Service, 110));
        told.settle(&spaces);
        assert!(!told.is_behind("a"));
        told.wait_for("a", Awaited::Version(Kind::Quota, 110));
        told.settle(&spaces);
        assert!(told.is_behind("a"), "each kind has a watch of its own");
    }
}
