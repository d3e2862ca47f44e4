//! What is there, and what was there a moment ago.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    ops::Bound,
    sync::Arc,
    time::Duration,
};

use tokio::time::Instant;

use super::thing::Thing;
use crate::{
    error::{Error, ErrorKind, Result},
    seams::Random,
    types::{
        ControlPlaneId, DataDisposition, DataId, DataSource, Generation, Incarnation, InstanceId, InstanceSpec,
        Observed, Owned, OwnedKind, Phase, Present, Reason, Target,
    },
};

#[derive(Debug, Clone)]
struct Data {
    tenant: String,
    last: (InstanceId, Incarnation),
    /// What the customer wrote.
    note: Option<String>,
}

impl Data {
    fn owned(&self, id: &DataId) -> Owned {
        let (instance, incarnation) = self.last.clone();
        Owned {
            id: instance,
            incarnation,
            kind: OwnedKind::Data,
            data: Some(id.clone()),
            observed: Present::new(Phase::Zero, Generation(0), incarnation).into(),
        }
    }
}

pub(super) type Owner = ControlPlaneId;
type Key = (Owner, Incarnation);

/// What was missed for a moment is seen for so long at least: longer than anybody takes to look twice.
const SEEN_AT_LEAST: Duration = Duration::from_secs(3600);

/// How far a listing is: things come before data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Listed {
    /// Up to this thing.
    Thing(Incarnation),
    /// All things.
    Things,
    /// All things, and data up to this.
    Data(DataId),
}

/// All that is there, of all control planes.
#[derive(Debug)]
pub(super) struct World {
    things: BTreeMap<Key, Thing>,
    data: BTreeMap<(Owner, DataId), Data>,
    /// What was there before the changes that reads may not see yet.
    past: BTreeMap<Key, VecDeque<Option<Thing>>>,
    /// When those changes were made, in order.
    changes: VecDeque<(Instant, Key)>,
    // Kept in step with the things, so that a call does not go through all of them.
    /// What is on its way out, and what will die by itself, by when.
    agenda: BTreeSet<(Instant, Key)>,
    awake: usize,
    counts: BTreeMap<Owner, usize>,
    makings: BTreeMap<(Owner, InstanceId), BTreeSet<Incarnation>>,
    users: BTreeMap<(Owner, DataId), BTreeSet<Incarnation>>,
    /// What the call that is being taken in has changed.
    touched: Option<Key>,
    /// Things that looks miss, and since when.
    missed: BTreeMap<Key, Instant>,
    random: Random,
    blink_percent: u64,
    lifetime: Option<Duration>,
}

/// How long things take.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pace {
    pub(super) start: Duration,
    pub(super) stop: Duration,
    pub(super) lag: Duration,
}

impl World {
    pub(super) fn new(random: Random, blink_percent: u64, lifetime: Option<Duration>) -> Self {
        Self {
            things: BTreeMap::new(),
            data: BTreeMap::new(),
            past: BTreeMap::new(),
            changes: VecDeque::new(),
            agenda: BTreeSet::new(),
            awake: 0,
            counts: BTreeMap::new(),
            makings: BTreeMap::new(),
            users: BTreeMap::new(),
            touched: None,
            missed: BTreeMap::new(),
            random,
            blink_percent,
            lifetime,
        }
    }

    /// Nothing dies or is missed any more.
    pub(super) fn calm(&mut self) {
        self.blink_percent = 0;
        self.lifetime = None;
        self.missed.clear();
        for (_, key) in std::mem::take(&mut self.agenda) {
            let Some(thing) = self.things.get_mut(&key) else { continue };
            thing.dies_at = None;
            self.agenda.extend(happens_at(thing).map(|at| (at, key)));
        }
    }

    /// Lets time pass: what was on its way out and has arrived is gone, and what was to die is dead.
    pub(super) fn tick(&mut self, pace: Pace) {
        let now = Instant::now();
        while self.agenda.first().is_some_and(|(at, _)| *at <= now) {
            let Some((_, key)) = self.agenda.pop_first() else { break };
            let thing = self.things[&key].clone();
            match thing.phase {
                Phase::Destroying => self.change(&key, None),
                _ => {
                    let reason = Some(Reason::new("died", "it died by itself"));
                    self.change(&key, Some(Thing { phase: Phase::Failed, reason, dies_at: None, ..thing }));
                }
            }
        }
        while self.changes.front().is_some_and(|(at, _)| *at + pace.lag <= now) {
            let Some((_, key)) = self.changes.pop_front() else { break };
            if let Some(past) = self.past.get_mut(&key) {
                past.pop_front();
                if past.is_empty() {
                    self.past.remove(&key);
                }
            }
        }
    }

    fn change(&mut self, key: &Key, thing: Option<Thing>) {
        self.touched = Some(key.clone());
        if let Some(at) = self.things.get(key).and_then(happens_at) {
            self.agenda.remove(&(at, key.clone()));
        }
        if let Some(thing) = &thing {
            self.awake += usize::from(!thing.phase.is_asleep());
            self.users.entry((key.0.clone(), thing.data.clone())).or_default().insert(key.1);
            self.makings.entry((key.0.clone(), thing.id.clone())).or_default().insert(key.1);
            self.agenda.extend(happens_at(thing).map(|at| (at, key.clone())));
        }
        let stays = thing.is_some();
        let before = match thing {
            Some(thing) => self.things.insert(key.clone(), thing),
            None => self.things.remove(key),
        };
        match (&before, stays) {
            (None, true) => *self.counts.entry(key.0.clone()).or_default() += 1,
            (Some(_), false) => *self.counts.entry(key.0.clone()).or_default() -= 1,
            _ => {}
        }
        if let Some(before) = &before {
            self.awake -= usize::from(!before.phase.is_asleep());
        }
        if let (false, Some(before)) = (stays, &before) {
            self.missed.remove(key);
            remove_from(&mut self.users, (key.0.clone(), before.data.clone()), key.1);
            remove_from(&mut self.makings, (key.0.clone(), before.id.clone()), key.1);
        }
        self.past.entry(key.clone()).or_default().push_back(before);
        self.changes.push_back((Instant::now(), key.clone()));
    }

    /// What a read sees: the present, or what was there before the changes that it may not see yet.
    fn seen(&self, key: &Key, lagging: bool) -> Option<&Thing> {
        let hidden = self.past.get(key).and_then(VecDeque::front).filter(|_| lagging);
        hidden.map_or_else(|| self.things.get(key), Option::as_ref)
    }

    /// Looks at one thing. With a lag, it may be missed for a moment though it is there.
    pub(super) fn observe(&mut self, owner: &Owner, incarnation: Incarnation, lag: Duration) -> Observed {
        let key = (owner.clone(), incarnation);
        if self.things.contains_key(&key) && self.misses(&key, lag) {
            return Observed::Absent;
        }
        self.seen(&key, !lag.is_zero()).map_or(Observed::Absent, Thing::observed)
    }

    /// Whether a look misses what is there: for one lag, and then not again for a while. Who looks twice, a lag apart, never
    /// misses it twice, also when the answer to a look in between was lost.
    fn misses(&mut self, key: &Key, lag: Duration) -> bool {
        match self.missed.get(key) {
            Some(since) if since.elapsed() < lag => true,
            Some(since) if since.elapsed() < SEEN_AT_LEAST => false,
            _ if self.blink_percent > 0 && !lag.is_zero() && self.random.bits() % 100 < self.blink_percent => {
                self.missed.insert(key.clone(), Instant::now());
                true
            }
            _ => false,
        }
    }

    /// All things of one owner, in order.
    pub(super) fn of(&self, owner: &Owner) -> Vec<Thing> {
        let first = (owner.clone(), Incarnation::new(0, 0));
        self.things.range(first..).take_while(|((of, _), _)| of == owner).map(|(_, thing)| thing.clone()).collect()
    }

    /// All data of one owner, in order.
    pub(super) fn data_of(&self, owner: &Owner) -> Vec<DataId> {
        self.data.keys().filter(|(of, _)| of == owner).map(|(_, id)| id.clone()).collect()
    }

    /// One page of what there is of one owner, from where the one before ended; and where this one ends, when it is not the
    /// last. What a look would miss now is not on it.
    pub(super) fn page(
        &self,
        owner: &Owner,
        after: Option<&Listed>,
        limit: usize,
        lag: Duration,
    ) -> (Vec<Owned>, Option<Listed>) {
        let mut page = Vec::new();
        if !matches!(after, Some(Listed::Things | Listed::Data(_))) {
            let from = match after {
                Some(Listed::Thing(last)) => Bound::Excluded((owner.clone(), *last)),
                _ => Bound::Included((owner.clone(), Incarnation::new(0, 0))),
            };
            let keys = self.things.range((from, Bound::Unbounded)).map(|(key, _)| key);
            for key in keys.take_while(|(of, _)| of == owner) {
                if page.len() == limit {
                    let last = page.last().map(|owned: &Owned| Listed::Thing(owned.incarnation));
                    return (page, last);
                }
                let missed = self.missed.get(key).is_some_and(|since| since.elapsed() < lag);
                page.extend(self.seen(key, !lag.is_zero()).filter(|_| !missed).map(Thing::owned));
            }
        }
        let retained = self.data.iter().filter(|((of, id), _)| of == owner && !self.is_in_use(owner, id));
        let rest = retained.skip_while(|((_, id), _)| matches!(after, Some(Listed::Data(last)) if id <= last));
        let mut last = Listed::Things;
        for ((_, id), data) in rest {
            if page.len() == limit {
                return (page, Some(last));
            }
            last = Listed::Data(id.clone());
            page.push(data.owned(id));
        }
        (page, None)
    }

    pub(super) fn has_data(&self, owner: &Owner, data: &DataId) -> bool {
        self.data.contains_key(&(owner.clone(), data.clone()))
    }

    /// The customer's note in a data set that is there.
    pub(super) fn note(&mut self, owner: &Owner, data: &DataId) -> Option<&mut Option<String>> {
        self.data.get_mut(&(owner.clone(), data.clone())).map(|data| &mut data.note)
    }

    /// How many things have compute.
    pub(super) fn awake(&self) -> usize {
        self.awake
    }

    pub(super) fn get(&self, owner: &Owner, incarnation: Incarnation) -> Option<&Thing> {
        self.things.get(&(owner.clone(), incarnation))
    }

    /// Makes, updates, starts or starts again.
    pub(super) fn run(
        &mut self,
        operation: &'static str,
        owner: &Owner,
        target: &Target,
        pace: Pace,
    ) -> Result<Observed> {
        let key = (owner.clone(), target.incarnation);
        let now = Instant::now();
        if let Some(thing) = self.things.get(&key) {
            if thing.data != *target.data.id() {
                let error = Error::new(ErrorKind::Conflict, operation).with_field("data");
                return Err(error.with_message("it runs on other data, and that cannot be changed in place"));
            }
            if thing.generation > target.generation {
                return Err(Error::new(ErrorKind::Conflict, operation)
                    .with_field("generation")
                    .with_message(format!("it is at {}, newer than {}", thing.generation, target.generation)));
            }
            let awake = matches!(thing.phase, Phase::Running | Phase::Provisioning);
            if thing.phase == Phase::Destroying
                || (awake && thing.generation == target.generation && !thing.has_stalled())
            {
                return Ok(thing.observed());
            }
        }
        self.take_data(operation, owner, target)?;
        let thing = Thing {
            id: target.id.clone(),
            incarnation: target.incarnation,
            generation: target.generation,
            version: target.spec.workload.version.clone(),
            spec: Arc::clone(&target.spec),
            data: target.data.id().clone(),
            phase: Phase::Running,
            reason: None,
            done_at: now + pace.start,
            dies_at: self.lifetime.map(|mean| now + pace.start + self.random.up_to(mean * 2)),
        };
        let observed = thing.observed();
        self.change(&key, Some(thing));
        Ok(observed)
    }

    fn take_data(&mut self, operation: &'static str, owner: &Owner, target: &Target) -> Result<()> {
        let key = (owner.clone(), target.data.id().clone());
        let error = |kind| Error::new(kind, operation).with_field("data").with_message(key.1.to_string());
        let others = |users: &BTreeSet<Incarnation>| users.iter().any(|user| *user != target.incarnation);
        let used_by_other = self.users.get(&key).is_some_and(others);
        let was_made = self.things.contains_key(&(owner.clone(), target.incarnation));
        let last = (target.id.clone(), target.incarnation);
        match self.data.get_mut(&key) {
            Some(data) if data.tenant != target.tenant.digest() || used_by_other => Err(error(ErrorKind::Conflict)),
            Some(data) => {
                data.last = last;
                Ok(())
            }
            // What was made once had its data.
            None if matches!(target.data, DataSource::Existing(_)) || was_made => Err(error(ErrorKind::DataMissing)),
            None => {
                self.data.insert(key, Data { tenant: target.tenant.digest(), last, note: None });
                Ok(())
            }
        }
    }

    /// Puts to sleep or suspends.
    pub(super) fn stop(&mut self, owner: &Owner, incarnation: Incarnation, phase: Phase, pace: Pace) -> Observed {
        let key = (owner.clone(), incarnation);
        let Some(thing) = self.things.get(&key) else { return Observed::Absent };
        if thing.phase == Phase::Destroying || (thing.phase == phase && !thing.has_stalled()) {
            return thing.observed();
        }
        let stop = if thing.phase.is_asleep() { Duration::ZERO } else { pace.stop };
        let thing = Thing { phase, reason: None, done_at: Instant::now() + stop, dies_at: None, ..thing.clone() };
        let observed = thing.observed();
        self.change(&key, Some(thing));
        observed
    }

    pub(super) fn destroy(&mut self, owner: &Owner, target: &Target, data: DataDisposition, pace: Pace) -> Observed {
        let key = (owner.clone(), target.incarnation);
        let others = |users: &BTreeSet<Incarnation>| users.iter().any(|user| *user != target.incarnation);
        let data_key = (owner.clone(), target.data.id().clone());
        if data == DataDisposition::Delete && !self.users.get(&data_key).is_some_and(others) {
            self.delete_data(owner, target.data.id());
        }
        let Some(thing) = self.things.get(&key) else { return Observed::Absent };
        if thing.phase != Phase::Destroying || thing.has_stalled() {
            let done_at = Instant::now() + pace.stop;
            let thing = Thing { phase: Phase::Destroying, done_at, dies_at: None, ..thing.clone() };
            self.change(&key, Some(thing));
        }
        self.tick(pace);
        self.things.get(&key).map_or(Observed::Absent, Thing::observed)
    }

    pub(super) fn delete_data(&mut self, owner: &Owner, data: &DataId) {
        self.data.remove(&(owner.clone(), data.clone()));
    }

    pub(super) fn fail(&mut self, owner: &Owner, id: &InstanceId, reason: &Reason) {
        for key in self.keys_of(owner, id) {
            let reason = Some(reason.clone());
            let thing = Thing { phase: Phase::Failed, reason, dies_at: None, ..self.things[&key].clone() };
            self.change(&key, Some(thing));
        }
    }

    /// Has been stopped, and nobody said why.
    pub(super) fn stop_behind(&mut self, owner: &Owner, id: &InstanceId) {
        for key in self.keys_of(owner, id) {
            let thing = self.things[&key].clone();
            if thing.phase != Phase::Destroying {
                let now = Instant::now();
                self.change(
                    &key,
                    Some(Thing { phase: Phase::Zero, reason: None, done_at: now, dies_at: None, ..thing }),
                );
            }
        }
    }

    /// Has been given another spec, and nobody said why.
    pub(super) fn change_spec(
        &mut self,
        owner: &Owner,
        id: &InstanceId,
        generation: Generation,
        spec: &Arc<InstanceSpec>,
    ) {
        for key in self.keys_of(owner, id) {
            let thing = self.things[&key].clone();
            self.change(
                &key,
                Some(Thing { generation, version: spec.workload.version.clone(), spec: Arc::clone(spec), ..thing }),
            );
        }
    }

    /// What is changed from here on is the next call's doing.
    pub(super) fn begin(&mut self) {
        self.touched = None;
    }

    /// Has what the call changed, if anything, stay on its way until a verb is called for it again.
    pub(super) fn stall(&mut self) {
        let Some(key) = self.touched.clone() else { return };
        let Some(thing) = self.things.get_mut(&key) else { return };
        if let Some(at) = happens_at(thing) {
            self.agenda.remove(&(at, key.clone()));
        }
        thing.stall();
        self.agenda.extend(happens_at(thing).map(|at| (at, key)));
    }

    pub(super) fn vanish(&mut self, owner: &Owner, id: &InstanceId) {
        for key in self.keys_of(owner, id) {
            self.change(&key, None);
        }
    }

    /// How many things of a control plane there are.
    pub(super) fn count(&self, owner: &Owner) -> usize {
        self.counts.get(owner).copied().unwrap_or_default()
    }

    /// Whether something runs or sleeps on this data.
    pub(super) fn is_in_use(&self, owner: &Owner, data: &DataId) -> bool {
        self.users.contains_key(&(owner.clone(), data.clone()))
    }

    fn keys_of(&self, owner: &Owner, id: &InstanceId) -> Vec<Key> {
        let makings = self.makings.get(&(owner.clone(), id.clone()));
        makings.into_iter().flatten().map(|incarnation| (owner.clone(), *incarnation)).collect()
    }
}

/// When something happens to a thing by itself: it is gone, or it dies.
fn happens_at(thing: &Thing) -> Option<Instant> {
    match thing.phase {
        Phase::Destroying => Some(thing.done_at),
        Phase::Running => thing.dies_at,
        _ => None,
    }
}

fn remove_from<K: Ord>(index: &mut BTreeMap<K, BTreeSet<Incarnation>>, key: K, incarnation: Incarnation) {
    if let Some(there) = index.get_mut(&key) {
        there.remove(&incarnation);
        if there.is_empty() {
            index.remove(&key);
        }
    }
}
