//! What flaws make of verbs.

use std::{sync::Arc, time::Duration};

use provisioner_contract::Verb;
use provisioner_core::{
    Error, ErrorKind, OpContext, Provisioner, Result,
    memory::Thing,
    secret::ExposeSecret,
    types::{DataDisposition, DataSource, Incarnation, Observed, Phase, Reason, Target},
};

use super::{
    cases::On,
    flaw::{Broken, Cached, Flaw, NEVER_RUNS},
};

/// A call on its way.
struct Call {
    verb: Verb,
    cx: OpContext,
    target: Target,
    /// Whether another one is on its way too.
    crossing: bool,
}

impl Call {
    fn runs(&self) -> bool {
        matches!(self.verb, Verb::Create | Verb::Resume)
    }

    fn sleeps(&self) -> bool {
        matches!(self.verb, Verb::Suspend | Verb::Zero)
    }

    fn refuse(&self, kind: ErrorKind) -> Option<Result<Observed>> {
        Some(Err(Error::new(kind, self.verb.operation()).with_instance(&self.target.id)))
    }
}

impl Broken {
    pub(super) async fn verb(&self, verb: Verb, cx: &OpContext, target: &Target) -> Result<Observed> {
        let crossing = {
            let mut state = self.state();
            state.owners.insert(cx.control_plane.clone());
            state.known.insert(target.incarnation);
            state.last.insert(target.incarnation, verb);
            if verb == Verb::Suspend {
                state.suspended.insert(target.incarnation);
            }
            state.cache.remove(&target.incarnation);
            if verb == Verb::Create {
                state.first.entry(target.id.clone()).or_insert(target.incarnation);
                state.tenants.entry(target.data.id().clone()).or_insert_with(|| target.tenant.clone());
            }
            let in_flight = state.in_flight.entry(target.incarnation).or_default();
            *in_flight += 1;
            *in_flight > 1
        };
        let mut call = Call { verb, cx: cx.clone(), target: target.clone(), crossing };
        let answer = match self.before(&mut call).await {
            Some(answer) => answer,
            None => {
                let was_there = self.thing(&call.cx.control_plane, call.target.incarnation);
                let answer = call.verb.call(&self.provider, &call.cx, &call.target).await;
                self.after(&call, was_there, answer).await
            }
        };
        *self.state().in_flight.entry(target.incarnation).or_default() -= 1;
        answer.map(|seen| self.flawed_sight(target, seen)).map_err(|error| self.flawed_error(error))
    }

    /// What the flaw makes of a call before it is sent; its answer, if it is not.
    async fn before(&self, call: &mut Call) -> Option<Result<Observed>> {
        if let Some(answer) = self.before_making(call).await {
            return Some(answer);
        }
        if let Some(answer) = self.before_ending(call).await {
            return Some(answer);
        }
        if let Some(answer) = self.before_carrying(call).await {
            return Some(answer);
        }
        if self.on == On::Native {
            // The provider has them.
            let mut spec = (*call.target.spec).clone();
            spec.secrets.clear();
            call.target.spec = Arc::new(spec);
        }
        if self.is_plain() && self.flaw != Flaw::TakesSecretsItCannot && call.runs() {
            return call.target.spec.check_against(&self.capabilities()).err().map(|invalid| Err(invalid.into()));
        }
        None
    }

    /// Flaws of what makes, updates and wakes.
    async fn before_making(&self, call: &mut Call) -> Option<Result<Observed>> {
        let thing = self.thing(&call.cx.control_plane, call.target.incarnation);
        match (self.flaw, thing) {
            (Flaw::ResumeMakes, None) if call.verb == Verb::Resume => call.verb = Verb::Create,
            (Flaw::RepeatedCreateMakesASecond, Some(_)) if call.verb == Verb::Create => {
                self.make_a_second(&call.cx, &call.target).await;
            }
            (Flaw::CreatesAtOnceMakeASecond, _) if call.verb == Verb::Create => {
                tokio::time::sleep(Duration::from_millis(5)).await;
                if call.crossing {
                    self.make_a_second(&call.cx, &call.target).await;
                }
            }
            (Flaw::IgnoresUpdates, Some(thing)) if call.verb == Verb::Create => {
                call.target.generation = thing.generation
            }
            (Flaw::ResumesOldSpec, Some(thing)) if call.verb == Verb::Resume => call.target.spec = thing.spec,
            (Flaw::KeepsWhatOutsidersChanged, Some(thing)) if call.runs() => {
                let mut spec = (*call.target.spec).clone();
                spec.environment.extend(thing.spec.environment.clone());
                call.target.spec = Arc::new(spec);
            }
            (Flaw::TakesOlderGenerations, Some(thing)) if call.runs() => {
                call.target.generation = call.target.generation.max(thing.generation);
            }
            (Flaw::OlderGenerationsOverwrite, Some(_)) if call.runs() && call.target.generation.0 < 16 => {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            (Flaw::TakesOtherData, Some(thing)) if thing.data != *call.target.data.id() => {
                call.target.data = DataSource::Existing(thing.data);
            }
            (Flaw::TrimsValues, _) if call.runs() => {
                let mut spec = (*call.target.spec).clone();
                spec.environment.values_mut().for_each(|value| *value = value.trim().to_owned());
                call.target.spec = Arc::new(spec);
            }
            (Flaw::RefusesLongNames, _) if call.target.id.as_str().len() > 30 => {
                return call.refuse(ErrorKind::InvalidSpec);
            }
            (Flaw::CutCreateLeavesASecond, None) if call.verb == Verb::Create => {
                let second = self.make_a_second(&call.cx, &call.target).await;
                tokio::task::yield_now().await;
                let _ = self.provider.destroy(&call.cx, &second, DataDisposition::Delete).await;
            }
            (Flaw::GivesDataToAnyTenant, _) => {
                let tenant = self.state().tenants.get(call.target.data.id()).cloned();
                call.target.tenant = tenant.unwrap_or_else(|| call.target.tenant.clone());
            }
            _ => {}
        }
        None
    }

    /// Flaws of what puts to sleep and removes.
    async fn before_ending(&self, call: &mut Call) -> Option<Result<Observed>> {
        let thing = self.thing(&call.cx.control_plane, call.target.incarnation);
        let (owner, incarnation) = (call.cx.control_plane.clone(), call.target.incarnation);
        match (self.flaw, thing) {
            (Flaw::SleepWithNewerSpecWakes, Some(thing))
                if call.sleeps() && call.target.generation > thing.generation =>
            {
                call.verb = Verb::Create;
            }
            (Flaw::NoZeroAfterSuspend, Some(thing)) if call.verb == Verb::Zero && thing.phase == Phase::Suspended => {
                return Some(self.provider.observe(&call.cx, &call.target).await);
            }
            (Flaw::SuspendMakes, None) if call.verb == Verb::Suspend => call.verb = Verb::Create,
            (Flaw::WakesWhatWasStopped(verb), Some(thing)) if call.verb == verb && thing.phase == Phase::Zero => {
                call.verb = Verb::Create;
            }
            (Flaw::SleepsNeighboursToo, _) if call.sleeps() => {
                for other in self.provider.things(&owner) {
                    let other = Target { id: other.id, incarnation: other.incarnation, ..call.target.clone() };
                    let _ = self.provider.scale_to_zero(&call.cx, &other).await;
                }
            }
            (Flaw::SleepsInNameOnly, Some(_)) => {
                let phase = match call.verb {
                    Verb::Suspend => Some(Phase::Suspended),
                    Verb::Zero => Some(Phase::Zero),
                    _ => None,
                };
                let mut state = self.state();
                state.asleep_in_name.remove(&incarnation);
                state.asleep_in_name.extend(phase.map(|phase| (incarnation, phase)));
                if phase.is_some() {
                    return Some(Ok(Observed::Unknown { again: Duration::from_millis(1) }));
                }
            }
            (Flaw::DestroyOfAbsentFails, None) if call.verb == Verb::DESTROY => {
                return call.refuse(ErrorKind::NotFound);
            }
            (Flaw::DestroyLies, Some(_)) if call.verb == Verb::DESTROY => {
                self.state().gone_in_name.insert(incarnation);
                return Some(Ok(Observed::Absent));
            }
            (Flaw::RepeatedRetainDeletes, None) if call.verb == Verb::RETAIN => {
                let _ = self.provider.delete_data(&call.cx, call.target.data.id()).await;
            }
            (Flaw::DestroyNeedsASpec, _)
                if matches!(call.verb, Verb::Destroy(_)) && call.target.spec.workload.version == "forgotten" =>
            {
                return call.refuse(ErrorKind::InvalidSpec);
            }
            (Flaw::KeepsDeletedData, _) if matches!(call.verb, Verb::Destroy(_)) => {
                call.verb = Verb::Destroy(DataDisposition::Retain);
            }
            (Flaw::DeletesRetainedData, _) if matches!(call.verb, Verb::Destroy(_)) => call.verb = Verb::DESTROY,
            (Flaw::DestroysEverybodys, _) if matches!(call.verb, Verb::Destroy(_)) => {
                let owners = self.state().owners.clone();
                for owner in owners {
                    let cx = OpContext::new(owner);
                    let _ = call.verb.call(&self.provider, &cx, &call.target).await;
                }
            }
            _ => {}
        }
        None
    }

    /// Flaws of what a call carries, and of calls that cross.
    async fn before_carrying(&self, call: &mut Call) -> Option<Result<Observed>> {
        let thing = self.thing(&call.cx.control_plane, call.target.incarnation);
        let incarnation = call.target.incarnation;
        match (self.flaw, thing) {
            (Flaw::CrossedVerbsGetStuck, Some(_)) => {
                let stuck = {
                    let mut state = self.state();
                    if call.crossing {
                        state.stuck.insert(incarnation);
                    }
                    state.stuck.contains(&incarnation)
                };
                tokio::time::sleep(Duration::from_millis(2)).await;
                if stuck && !matches!(call.verb, Verb::Destroy(_)) {
                    return Some(self.provider.observe(&call.cx, &call.target).await);
                }
            }
            (Flaw::CancelledCallsHang, _) => {
                tokio::task::yield_now().await;
                if call.cx.cancel.is_cancelled() {
                    std::future::pending::<()>().await;
                }
            }
            (Flaw::DeniesItsEffects, _) => {
                tokio::task::yield_now().await;
                if call.cx.cancel.is_cancelled() {
                    let _ = call
                        .verb
                        .call(&self.provider, &OpContext::new(call.cx.control_plane.clone()), &call.target)
                        .await;
                    return call.refuse(ErrorKind::Cancelled);
                }
            }
            (Flaw::IgnoresDeadlines, _) => call.cx.deadline = None,
            (Flaw::CachesSecrets, _) => {
                let cached = self.state().resolver.is_some();
                if cached {
                    call.cx.secrets = Arc::new(Cached);
                } else if call.runs() && !call.target.spec.secrets.is_empty() {
                    self.state().resolver = Some(Arc::clone(&call.cx.secrets));
                }
            }
            (Flaw::WakesWithoutSecrets, _) if call.verb == Verb::Resume => {
                let mut spec = (*call.target.spec).clone();
                spec.secrets.clear();
                call.target.spec = Arc::new(spec);
            }
            (Flaw::StartsWithoutSecrets, _) if call.runs() => {
                let mut spec = (*call.target.spec).clone();
                spec.secrets.clear();
                call.target.spec = Arc::new(spec);
            }
            (Flaw::PrintsSecrets | Flaw::LogsSecrets | Flaw::ResolvesNativeSecrets, _) if call.runs() => {
                for reference in call.target.spec.secrets.values() {
                    let value = call.cx.secrets.resolve(reference).await;
                    let value = value.map(|value| value.expose_secret().to_owned()).unwrap_or_default();
                    match self.flaw {
                        Flaw::PrintsSecrets => self.state().leaked = value,
                        Flaw::LogsSecrets => tracing::info!(%value, "a secret"),
                        _ => {}
                    }
                }
            }
            (Flaw::OneIncarnationIsAnother, _) => {
                let first = self.state().first.get(&call.target.id).copied();
                call.target.incarnation = first.unwrap_or(incarnation);
            }
            _ => {}
        }
        None
    }

    /// What the flaw makes of an answer.
    async fn after(&self, call: &Call, was_there: Option<Thing>, answer: Result<Observed>) -> Result<Observed> {
        let (Call { verb, cx, target, .. }, runs) = (call, call.runs());
        let (owner, data) = (&cx.control_plane, target.data.id());
        if runs && target.spec.environment.keys().any(|name| name.as_str() == NEVER_RUNS) {
            self.provider.fail(owner, &target.id, &Reason::new("exited", "it never runs"));
        }
        let asleep = was_there.as_ref().is_some_and(|thing| thing.phase.is_asleep());
        match (self.flaw, answer) {
            (Flaw::WaitsForReadiness, Ok(_)) if runs => loop {
                let seen = self.provider.observe(&OpContext::new(owner.clone()), target).await?;
                if seen.phase() != Some(Phase::Provisioning) && seen != Observed::Absent {
                    break Ok(seen);
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            },
            (Flaw::AnswersAboutAnotherIncarnation, Ok(Observed::Present(mut present))) => {
                present.incarnation = Incarnation::new(7, 7);
                Ok(present.into())
            }
            (Flaw::OlderGenerationsOverwrite, Err(error)) if error.kind() == ErrorKind::Conflict => {
                self.state().generations.insert(target.incarnation, target.generation);
                self.provider.observe(&OpContext::new(owner.clone()), target).await
            }
            (Flaw::WakesBlank, answer) if runs && asleep => {
                self.provider.write_note(owner, data, "");
                answer
            }
            (Flaw::UpdatesBlank, answer) if runs && was_there.is_some() => {
                self.provider.write_note(owner, data, "");
                answer
            }
            (Flaw::UpdatesWithoutRoom, Err(error)) if asleep && error.kind() == ErrorKind::CapacityExhausted => {
                self.state().generations.insert(target.incarnation, target.generation);
                Err(error)
            }
            (Flaw::SleepsOnWithoutRoom(of), Err(error))
                if *verb == of && asleep && error.kind() == ErrorKind::CapacityExhausted =>
            {
                self.provider.observe(&OpContext::new(owner.clone()), target).await
            }
            (Flaw::SharesDataInUse, Err(error)) if error.kind() == ErrorKind::Conflict => {
                Ok(Observed::Unknown { again: Duration::ZERO })
            }
            (Flaw::StartsBlankOnLostData, Err(error)) if error.kind() == ErrorKind::DataMissing => {
                let fresh = Target { data: DataSource::Fresh(data.clone()), ..target.clone() };
                self.provider.destroy(cx, &fresh, DataDisposition::Retain).await?;
                self.provider.create(cx, &fresh).await
            }
            (Flaw::RetriesByItself, Err(error)) => {
                let mut answer = Err(error);
                for _ in 0..3 {
                    if answer.is_err() {
                        answer = verb.call(&self.provider, cx, target).await;
                    }
                }
                answer
            }
            (_, answer) => answer,
        }
    }
}
