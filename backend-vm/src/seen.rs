//! What is seen of a making, and what follows from it. Pure.

use std::time::Duration;

use provisioner_core::types::{Generation, Incarnation, Observed, Phase, Present, Reason, Timestamp};

use crate::digest::{Intended, Machine, State, Volume};

/// Stands for the time to look again at what moves, until [`together`] says when.
pub(crate) const MOVING: Duration = Duration::from_secs(1);
/// The same while the service may not show what was done.
pub(crate) const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// The same answer, with times to look again at which others look, too: whoever looks at the same moment shares a request.
/// `every`: how often what moves is looked at.
pub(crate) fn together(observed: Observed, now: Timestamp, every: Duration) -> Observed {
    match observed {
        Observed::Present(mut present) if present.again == Some(MOVING) => {
            present.again = Some(next(now, every));
            Observed::Present(present)
        }
        Observed::Unknown { again: LOOK_AGAIN } => Observed::Unknown { again: next(now, LOOK_AGAIN) },
        other => other,
    }
}

/// The next moment of those that are so far apart, but for one that comes too soon.
fn next(now: Timestamp, apart: Duration) -> Duration {
    let apart_ms = (apart.as_millis() as i64).max(1);
    let left = Duration::from_millis((apart_ms - now.unix_ms().rem_euclid(apart_ms)).unsigned_abs());
    if left < apart / 2 { left + apart } else { left }
}

/// The machines and volumes of one making.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) machines: Vec<Machine>,
    pub(crate) volumes: Vec<Volume>,
    /// Whether it was to be removed, as far as this process knows.
    pub(crate) is_removed: bool,
}

/// How a machine that runs does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Health {
    Answers,
    /// It has time left.
    Starting(Option<Reason>),
    /// It does not answer, and has had its time.
    Silent(Reason),
    /// The machine itself is in trouble: it is replaced.
    Unfit(Reason),
}

impl Seen {
    /// The machine that is there: of several, the one with the volume, and then the oldest.
    pub(crate) fn living(&self) -> Option<&Machine> {
        let living = self.machines.iter().filter(|machine| machine.is_living());
        living.min_by_key(|machine| (machine.volume.is_none(), machine.started_at, machine.id.clone()))
    }

    /// Others of the same making, of which there should be none.
    pub(crate) fn beside<'a>(&'a self, living: &'a Machine) -> impl Iterator<Item = &'a Machine> {
        self.machines.iter().filter(|machine| machine.is_living() && machine.id != living.id)
    }

    /// Says of a machine what was just done to it.
    pub(crate) fn change(&mut self, id: &str, change: impl FnOnce(&mut Machine)) {
        if let Some(machine) = self.machines.iter_mut().find(|machine| *machine.id == *id) {
            change(machine);
        }
    }

    /// One that is on its way out.
    pub(crate) fn leaving(&self) -> Option<&Machine> {
        self.machines.iter().find(|machine| machine.state == State::ShuttingDown)
    }

    /// The last one that is out.
    pub(crate) fn ended(&self) -> Option<&Machine> {
        let ended = self.machines.iter().filter(|machine| machine.state == State::Terminated);
        ended.max_by_key(|machine| (machine.started_at, machine.id.clone()))
    }

    /// Whether a machine runs, so that its health counts.
    pub(crate) fn to_check(&self) -> Option<&Machine> {
        self.living().filter(|machine| {
            machine.state == State::Running && machine.intended != Intended::Updating && machine.volume.is_some()
        })
    }

    /// What is seen of the making. `health` is that of [`to_check`](Self::to_check).
    pub(crate) fn observed(&self, incarnation: Incarnation, health: Option<Health>) -> Observed {
        let Some(machine) = self.living() else {
            if let Some(machine) = self.leaving() {
                return Present::new(Phase::Destroying, machine.generation, incarnation).look_again(MOVING).into();
            }
            return self.without_machine(incarnation);
        };
        let present = |phase| Present::new(phase, generation(machine), incarnation);
        // Without an endpoint: on its way to sleep.
        let falls_asleep = || present(Phase::Running).look_again(MOVING);
        let present = match (machine.state, machine.intended) {
            (State::Stopped, Intended::Zero) => present(Phase::Zero),
            (State::Stopped, Intended::Suspended) => present(Phase::Suspended),
            (State::Stopped, Intended::Running) => present(Phase::Failed).with_reason(stopped(machine)),
            // Also one that was to sleep when it could not be stopped yet: nothing but another call will.
            (State::Running, Intended::Running | Intended::Zero | Intended::Suspended) => {
                let moving = present(Phase::Provisioning).look_again(MOVING);
                match health {
                    Some(Health::Answers) => match endpoint(machine) {
                        Some(endpoint) => present(Phase::Running).with_endpoint(endpoint),
                        None => moving,
                    },
                    Some(Health::Starting(Some(why))) => moving.with_reason(why),
                    Some(Health::Silent(why) | Health::Unfit(why)) => present(Phase::Failed).with_reason(why),
                    Some(Health::Starting(None)) | None => moving,
                }
            }
            (_, Intended::Zero | Intended::Suspended) => falls_asleep(),
            _ => present(Phase::Provisioning).look_again(MOVING),
        };
        present.into()
    }

    fn without_machine(&self, incarnation: Incarnation) -> Observed {
        // It follows its machine.
        let mut ending =
            self.volumes.iter().filter(|volume| volume.is_ending() && volume.owner.incarnation == incarnation);
        if let Some(volume) = ending.next() {
            let reason = Reason::new("volume-left", format!("its volume {} is to go yet", volume.id));
            let present = Present::new(Phase::Destroying, Generation(0), incarnation).look_again(MOVING);
            return present.with_reason(reason).into();
        }
        match self.ended().and_then(Machine::failed_launch).filter(|_| !self.is_removed) {
            Some(failed) => {
                let reason = Reason::new("launch-failed", format!("{}: {}", failed.code, failed.message));
                Present::new(Phase::Failed, Generation(0), incarnation).with_reason(reason).into()
            }
            None => Observed::Absent,
        }
    }
}

/// What is half done is of no generation: whoever called for it calls again.
fn generation(machine: &Machine) -> Generation {
    match machine.state {
        State::Running | State::Stopped if machine.volume.is_none() => Generation(0),
        _ => machine.generation,
    }
}

fn endpoint(machine: &Machine) -> Option<String> {
    let (address, product) = (machine.address.as_deref()?, machine.product.as_ref()?);
    Some(format!("http://{address}:{}", product.port))
}

fn stopped(machine: &Machine) -> Reason {
    let why = machine.why.as_ref().map_or("the service does not say why", |(_, message)| message);
    Reason::new("stopped", format!("the machine {} was stopped: {why}", machine.id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_looks_again_does_so_at_the_same_moments() {
        let next = |now| next(Timestamp::from_unix_ms(now), MOVING).as_millis();
        assert_eq!([0, 1, 500, 501, 999, 1_000].map(next), [1_000, 999, 500, 1_499, 1_001, 1_000]);
        let unknown = |again| together(Observed::Unknown { again }, Timestamp::from_unix_ms(100), MOVING);
        assert_eq!(unknown(LOOK_AGAIN), Observed::Unknown { again: Duration::from_millis(400) });
        let soon = Duration::from_millis(70);
        assert_eq!(unknown(soon), Observed::Unknown { again: soon }, "it has settled then");
    }
}
