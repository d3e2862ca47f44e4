//! What is there, and what was there a moment ago.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use tokio::time::Instant;

use crate::{
    error::{Error, ErrorKind, Result},
    types::{
        ControlPlaneId, DataDisposition, DataId, DataSource, Generation, Incarnation, InstanceId, InstanceSpec,
        Observed, Phase, Present, Reason, Target,
    },
};

/// A thing at the provider.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Thing {
    /// The instance it belongs to.
    pub id: InstanceId,
    /// The making it belongs to.
    pub incarnation: Incarnation,
    /// The spec it was made with or last updated to.
    pub generation: Generation,
    /// The version of the workload.
    pub version: String,
    /// The spec that it runs with, or will.
    pub spec: Arc<InstanceSpec>,
    /// The data it runs on.
    pub data: DataId,
    /// Where it stands or is going.
    pub phase: Phase,
    /// Why, when it failed.
    pub reason: Option<Reason>,
    /// When it gets there; on its way until then.
    done_at: Instant,
}

#[derive(Debug, Clone)]
struct Data {
    tenant: String,
    last: (InstanceId, Incarnation),
    /// What the customer wrote.
    note: Option<String>,
}

/// Longer than anybody waits: what is this far from being done has stalled.
const NEVER: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

pub(super) type Owner = ControlPlaneId;
type Key = (Owner, Incarnation);

/// All that is there, of all control planes.
#[derive(Debug, Default)]
pub(super) struct World {
    things: BTreeMap<Key, Thing>,
    data: BTreeMap<(Owner, DataId), Data>,
    /// What was there before the changes that reads may not see yet.
    past: BTreeMap<Key, VecDeque<Option<Thing>>>,
    /// When those changes were made, in order.
    changes: VecDeque<(Instant, Key)>,
    // Kept in step with the things, so that a call does not go through all of them.
    leaving: BTreeSet<Key>,
    awake: usize,
    counts: BTreeMap<Owner, usize>,
    users: BTreeMap<(Owner, DataId), BTreeSet<Incarnation>>,
}

/// How long things take.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pace {
    pub(super) start: Duration,
    pub(super) stop: Duration,
    pub(super) lag: Duration,
}

impl World {
    /// Lets time pass: what was on its way out and has arrived is gone.
    pub(super) fn tick(&mut self, pace: Pace) {
        let now = Instant::now();
        let keys: Vec<_> = self.leaving.iter().filter(|key| self.things[*key].done_at <= now).cloned().collect();
        for key in keys {
            self.change(&key, None);
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
        if let Some(thing) = &thing {
            self.awake += usize::from(!thing.phase.is_asleep());
            self.users.entry((key.0.clone(), thing.data.clone())).or_default().insert(key.1);
            if thing.phase == Phase::Destroying {
                self.leaving.insert(key.clone());
            }
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
            self.leaving.remove(key);
            let data = (key.0.clone(), before.data.clone());
            if let Some(users) = self.users.get_mut(&data) {
                users.remove(&key.1);
                if users.is_empty() {
                    self.users.remove(&data);
                }
            }
        }
        self.past.entry(key.clone()).or_default().push_back(before);
        self.changes.push_back((Instant::now(), key.clone()));
    }

    /// What a read sees: the present, or what was there before the changes that it may not see yet.
    fn seen(&self, key: &Key, lagging: bool) -> Option<&Thing> {
        let hidden = self.past.get(key).and_then(VecDeque::front).filter(|_| lagging);
        hidden.map_or_else(|| self.things.get(key), Option::as_ref)
    }

    pub(super) fn observe(&self, owner: &Owner, incarnation: Incarnation, lagging: bool) -> Observed {
        self.seen(&(owner.clone(), incarnation), lagging).map_or(Observed::Absent, Thing::observed)
    }

    /// Things and data of one owner, in order.
    pub(super) fn of(&self, owner: &Owner) -> (Vec<Thing>, Vec<(DataId, InstanceId, Incarnation)>) {
        let things: Vec<_> =
            self.things.iter().filter(|((of, _), _)| of == owner).map(|(_, thing)| thing.clone()).collect();
        let used = |id: &DataId| things.iter().any(|thing| thing.data == *id);
        let data = self.data.iter().filter(|((of, id), _)| of == owner && !used(id));
        let data = data.map(|((_, id), data)| (id.clone(), data.last.0.clone(), data.last.1)).collect();
        (things, data)
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
        let thing = Thing { phase, reason: None, done_at: Instant::now() + stop, ..thing.clone() };
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
            let thing = Thing { phase: Phase::Destroying, done_at: Instant::now() + pace.stop, ..thing.clone() };
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
            let thing = Thing { phase: Phase::Failed, reason: Some(reason.clone()), ..self.things[&key].clone() };
            self.change(&key, Some(thing));
        }
    }

    /// Has been stopped, and nobody said why.
    pub(super) fn stop_behind(&mut self, owner: &Owner, id: &InstanceId) {
        for key in self.keys_of(owner, id) {
            let thing = self.things[&key].clone();
            if thing.phase != Phase::Destroying {
                self.change(&key, Some(Thing { phase: Phase::Zero, reason: None, done_at: Instant::now(), ..thing }));
            }
        }
    }

    /// Has what was changed last stay on its way until a verb is called for it again.
    pub(super) fn stall(&mut self) {
        let thing = self.changes.back().and_then(|(_, key)| self.things.get_mut(key));
        if let Some(thing) = thing {
            thing.done_at = Instant::now() + NEVER;
        }
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
        let of_id = |(key, thing): &(&Key, &Thing)| key.0 == *owner && thing.id == *id;
        self.things.iter().filter(of_id).map(|(key, _)| key.clone()).collect()
    }
}

impl Thing {
    fn has_stalled(&self) -> bool {
        self.done_at.saturating_duration_since(Instant::now()) > NEVER / 2
    }

    pub(super) fn observed(&self) -> Observed {
        let left = self.done_at.saturating_duration_since(Instant::now());
        let on_its_way = !left.is_zero();
        let phase = match self.phase {
            Phase::Running if on_its_way => Phase::Provisioning,
            Phase::Zero | Phase::Suspended if on_its_way => Phase::Running,
            phase => phase,
        };
        let mut present = Present::new(phase, self.generation, self.incarnation);
        if phase == Phase::Running && !on_its_way {
            present = present.with_endpoint(format!("memory://{}/{}", self.id, self.version));
        }
        if on_its_way && !self.has_stalled() {
            present = present.look_again(left);
        }
        present.reason = self.reason.clone();
        if self.has_stalled() {
            present.reason = Some(Reason::new("stalled", "it got stuck on its way, until the verb is called again"));
        }
        present.into()
    }
}
