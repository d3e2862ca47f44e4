//! How machines go from state to state: slowly, and only where the real service lets them.

use std::{sync::Arc, time::Duration};

use crate::{
    answer::{Refusal, answer},
    machine::{Machine, State},
    query::Form,
    service::Service,
    stand::{Stand, locked},
    xml::Element,
};

/// What a machine is told to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verb {
    Start,
    Stop,
    Terminate,
}

impl Verb {
    pub(crate) const fn action(self) -> &'static str {
        match self {
            Self::Start => "StartInstances",
            Self::Stop => "StopInstances",
            Self::Terminate => "TerminateInstances",
        }
    }

    /// The state that a machine comes into at once.
    const fn leads_to(self) -> State {
        match self {
            Self::Start => State::Pending,
            Self::Stop => State::Stopping,
            Self::Terminate => State::ShuttingDown,
        }
    }

    /// Whether it changes a machine.
    fn check(self, id: &str, machine: &Machine) -> Result<bool, Refusal> {
        let incorrect = || {
            let message = format!(
                "The instance '{id}' is not in a state from which it can be {}; it is {}.",
                if self == Self::Start { "started" } else { "stopped" },
                machine.state
            );
            Refusal::new("IncorrectInstanceState", message)
        };
        let protected = |attribute: &str| {
            let message =
                format!("The instance '{id}' may not be changed so. Modify its '{attribute}' instance attribute.");
            Refusal::new("OperationNotPermitted", message)
        };
        match (self, machine.state) {
            (Self::Start, State::Pending | State::Running) => Ok(false),
            (Self::Start, State::Stopped) => Ok(true),
            (Self::Stop, State::Stopping | State::Stopped) => Ok(false),
            (Self::Stop, State::Running) if machine.may_not_stop => Err(protected("disableApiStop")),
            (Self::Stop, State::Running) => Ok(true),
            (Self::Start | Self::Stop, _) => Err(incorrect()),
            (Self::Terminate, State::ShuttingDown | State::Terminated) => Ok(false),
            (Self::Terminate, _) if machine.may_not_terminate => Err(protected("disableApiTermination")),
            (Self::Terminate, _) => Ok(true),
        }
    }
}

impl Stand {
    /// Tells machines what to do: all of them, or none when one of them cannot.
    pub(crate) async fn change(&self, verb: Verb, ids: &[String]) -> Result<Element, Refusal> {
        if ids.is_empty() {
            return Err(Refusal::new("InvalidParameterCombination", "No instances specified"));
        }
        self.know(ids).await?;
        // Counting and starting are one step.
        let one = self.one_by_one.lock().await;
        if verb == Verb::Start {
            self.check_starts(ids)?;
        }
        self.remember(ids).await;
        let changes = self.enter(verb, ids)?;
        drop(one);
        let mut set = Element::new("instancesSet");
        for (id, before, now) in changes {
            let item = Element::new("item").with_text("instanceId", &id);
            set = set.with(item.with(now.to_element("currentState")).with(before.to_element("previousState")));
            if before != now && now == verb.leads_to() {
                self.spawn(self.shared().finish(id));
            }
        }
        Ok(answer(verb.action()).with(set))
    }

    /// Each machine with the state that it was in and the one that it is in.
    fn enter(&self, verb: Verb, ids: &[String]) -> Result<Vec<(String, State, State)>, Refusal> {
        let mut machines = locked(&self.machines);
        let mut changed = Vec::new();
        for id in ids {
            let machine = machines.get(id).ok_or_else(|| Refusal::no_instance(id))?;
            changed.push(verb.check(id, machine)?);
        }
        let mut changes = Vec::new();
        for (id, changed) in ids.iter().zip(changed) {
            let machine = machines.get_mut(id).ok_or_else(|| Refusal::no_instance(id))?;
            let before = machine.state;
            if changed && before != verb.leads_to() {
                machine.enter(verb.leads_to());
            }
            changes.push((id.clone(), before, machine.state));
        }
        Ok(changes)
    }

    fn check_starts(&self, ids: &[String]) -> Result<(), Refusal> {
        let stopped: Vec<_> = {
            let machines = locked(&self.machines);
            let named = ids.iter().filter_map(|id| machines.get(id));
            let stopped = named.filter(|machine| machine.state == State::Stopped);
            stopped.map(|machine| (machine.zone.clone(), machine.kind.clone())).collect()
        };
        stopped.iter().try_for_each(|(zone, kind)| self.faults.check_capacity(zone, kind))?;
        self.check_quota(stopped.len())
    }

    /// Whether so many more may run.
    pub(crate) fn check_quota(&self, more: usize) -> Result<(), Refusal> {
        let runs = |machine: &&Machine| matches!(machine.state, State::Pending | State::Running);
        let running = locked(&self.machines).values().filter(runs).count();
        match self.options.quota {
            Some(quota) if more > 0 && running + more > quota => {
                let message = format!(
                    "You have requested more vCPU capacity than your current vCPU limit of {quota} allows for the instance bucket that the specified instance type belongs to."
                );
                Err(Refusal::new("VcpuLimitExceeded", message))
            }
            _ => Ok(()),
        }
    }

    /// Brings a machine to the end of the transition that it is in, unless another begins before.
    pub(crate) async fn finish(self: Arc<Self>, id: String) {
        let now = |machine: &Machine| (machine.state, machine.changes, machine.service.clone(), machine.doom.is_some());
        let Some((state, changes, service, is_doomed)) = locked(&self.machines).get(&id).map(now) else { return };
        let (time, ends, action): (Duration, _, _) = match state {
            State::Pending if is_doomed => (self.options.start, State::Terminated, "TerminateInstances"),
            State::Pending => (self.options.start, State::Running, "StartInstances"),
            State::Stopping => (self.options.stop, State::Stopped, "StopInstances"),
            State::ShuttingDown => (self.options.terminate, State::Terminated, "TerminateInstances"),
            State::Running | State::Stopped | State::Terminated => return,
        };
        let product = async {
            if let Some(service) = service
                && state != State::Pending
            {
                service.end().await;
            }
        };
        futures::join!(tokio::time::sleep(time), product);
        let is_current = || locked(&self.machines).get(&id).is_some_and(|machine| machine.changes == changes);
        if !is_current() {
            return;
        }
        self.remember(std::slice::from_ref(&id)).await;
        // Only now: until then what the machine has, such as its volumes, is in use. It may be gone behind our back.
        if let Err(refusal) = self.moto.call(&Form::new(action).with("InstanceId.1", &*id)).await {
            tracing::warn!(?refusal, action, "moto did not follow");
        }
        let boots = {
            let mut machines = locked(&self.machines);
            let Some(machine) = machines.get_mut(&id).filter(|machine| machine.changes == changes) else { return };
            machine.enter(ends);
            if ends == State::Running && self.options.boots {
                let service = Service::boot(&self, &id, machine);
                machine.service = Some(Arc::new(service));
            }
            ends == State::Running
        };
        if !boots && let Err(error) = self.unmount(&id) {
            tracing::warn!(error, "what was mounted is left");
        }
    }
}
