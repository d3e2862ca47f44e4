//! What is due by itself and when, so that nobody has to go through everything to find it.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    store::{IncarnationRow, InstanceRow, Lane},
    types::{CellName, Incarnation, InstanceId, Timestamp},
};

const EARLIEST: Timestamp = Timestamp::from_unix_ms(i64::MIN);
const LATEST: Timestamp = Timestamp::from_unix_ms(i64::MAX);

/// Instances and ended makings by when they are due.
#[derive(Debug, Default)]
pub(super) struct DueIndex {
    instances: BTreeMap<(CellName, Lane, Timestamp), BTreeSet<InstanceId>>,
    /// Of one time in the order of their texts, as in the other stores.
    incarnations: BTreeMap<(CellName, Timestamp), BTreeMap<String, Incarnation>>,
}

impl DueIndex {
    pub(super) fn replace_instance(&mut self, before: Option<&InstanceRow>, after: Option<&InstanceRow>) {
        let place = |row: &InstanceRow| Some((row.cell.clone(), row.lane, row.due_at?));
        if let Some((row, place)) = before.and_then(|row| Some((row, place(row)?)))
            && let Some(there) = self.instances.get_mut(&place)
        {
            there.remove(&row.id);
            if there.is_empty() {
                self.instances.remove(&place);
            }
        }
        if let Some((row, place)) = after.and_then(|row| Some((row, place(row)?))) {
            self.instances.entry(place).or_default().insert(row.id.clone());
        }
    }

    pub(super) fn replace_incarnation(&mut self, before: Option<&IncarnationRow>, after: Option<&IncarnationRow>) {
        let place = |row: &IncarnationRow| Some((row.cell.clone(), row.due_at?));
        if let Some((row, place)) = before.and_then(|row| Some((row, place(row)?)))
            && let Some(there) = self.incarnations.get_mut(&place)
        {
            there.remove(&row.incarnation.to_string());
            if there.is_empty() {
                self.incarnations.remove(&place);
            }
        }
        if let Some((row, place)) = after.and_then(|row| Some((row, place(row)?))) {
            self.incarnations.entry(place).or_default().insert(row.incarnation.to_string(), row.incarnation);
        }
    }

    /// Instances due at `now` or before, in the order of due time and id, after the given place.
    pub(super) fn instances<'a>(
        &'a self,
        cell: &CellName,
        lane: Lane,
        now: Timestamp,
        after: Option<&'a (Timestamp, InstanceId)>,
    ) -> impl Iterator<Item = &'a InstanceId> {
        let from = after.map_or(EARLIEST, |(at, _)| *at);
        let range = (cell.clone(), lane, from.min(now))..=(cell.clone(), lane, now);
        let places = self.instances.range(range).flat_map(|((_, _, at), ids)| ids.iter().map(|id| (*at, id)));
        places
            .filter(move |(at, id)| after.is_none_or(|(after_at, after_id)| (*at, *id) > (*after_at, after_id)))
            .map(|(_, id)| id)
    }

    /// Ended makings to be looked for at `now` or before.
    pub(super) fn incarnations(&self, cell: &CellName, now: Timestamp) -> impl Iterator<Item = &Incarnation> {
        self.incarnations.range((cell.clone(), EARLIEST)..=(cell.clone(), now)).flat_map(|(_, there)| there.values())
    }

    /// The earliest time of a cell after `now`, of both.
    pub(super) fn next(&self, cell: &CellName, now: Timestamp) -> Option<Timestamp> {
        use std::ops::Bound::{Excluded, Included};
        let instances = Lane::ALL.into_iter().filter_map(|lane| {
            let range = (Excluded((cell.clone(), lane, now)), Included((cell.clone(), lane, LATEST)));
            self.instances.range(range).next().map(|((_, _, at), _)| *at)
        });
        let range = (Excluded((cell.clone(), now)), Included((cell.clone(), LATEST)));
        let incarnation = self.incarnations.range(range).next().map(|((_, at), _)| *at);
        instances.chain(incarnation).min()
    }
}
