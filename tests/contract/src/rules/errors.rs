//! 10. What errors say.

use std::time::Duration;

use provisioner_core::{
    Effect, Error, ErrorKind, Retry,
    types::{DataId, DataSource, Observed, Target},
};
use tokio::time::Instant;

use crate::{
    Failure, Refusal, Subject, Verb,
    failure::{During, Outcome, ensure},
    subject::{random, shown},
};

fn error_of(answer: Result<Observed, Error>, what: impl std::fmt::Display) -> Outcome<Error> {
    answer.err().ok_or_else(|| Failure::new(format!("{what} succeeds")))
}

/// Three errors that any backend can be brought to, by what provokes them.
async fn provoked(subject: &Subject) -> Outcome<Vec<(Verb, Target, Error, ErrorKind)>> {
    let mut errors = Vec::new();
    let data = DataSource::Existing(DataId::from_random(random()));
    let missing = Target { data, ..subject.target() };
    let error = error_of(subject.call(Verb::Create, &missing).await, "create on missing data")?;
    errors.push((Verb::Create, missing, error, ErrorKind::DataMissing));
    let running = subject.running().await?;
    for verb in Verb::WAKE {
        let newer = subject.at(&running, 7);
        subject.reach(Verb::Create, &newer).await?;
        let older = subject.at(&running, 6);
        let error = error_of(subject.call(verb, &older).await, format_args!("{verb} of an older generation"))?;
        errors.push((verb, older, error, ErrorKind::Conflict));
    }
    Ok(errors)
}

/// The operation as a verb, the instance, and whether to try again.
pub(super) async fn errors_say_kind_retry_effect_operation_and_instance(subject: Subject) -> Outcome {
    for (verb, target, error, kind) in provoked(&subject).await? {
        ensure!(error.kind() == kind, "{verb} is refused as {error}, expected {kind}");
        ensure!(error.retry() == Retry::Never, "{error} may be retried, and nothing will have changed");
        ensure!(error.effect() == Effect::None, "{error} may have acted, and was refused");
        ensure!(error.operation() == verb.operation(), "an error of {verb} calls itself {}", error.operation());
        ensure!(error.instance() == Some(&target.id), "an error of {verb} is on {:?}", error.instance());
        let text = error.to_string();
        ensure!(text.contains(target.id.as_str()), "an error does not print its instance: {text}");
    }
    Ok(())
}

/// What customers read tells nothing of ids, places and codes.
pub(super) async fn customer_messages_leak_no_internals(subject: Subject) -> Outcome {
    for (verb, target, error, _) in provoked(&subject).await? {
        let message = error.customer_message();
        ensure!(!message.trim().is_empty(), "{verb} has no words for the customer");
        let internals = [
            target.data.id().to_string(),
            target.incarnation.to_string(),
            target.incarnation.token(&subject.owner, &target.id),
            subject.owner.to_string(),
            target.tenant.digest(),
            subject.backend.to_string(),
            "/".to_owned(),
        ];
        for internal in internals.into_iter().chain(error.code().map(str::to_owned)) {
            ensure!(!message.contains(&internal), "the customer is told {internal:?}: {message}");
        }
    }
    Ok(())
}

/// Refuses every call, makes it, and looks at what came of it; then lets it through.
async fn refuse_each(
    subject: &Subject,
    refusal: Refusal,
    verbs: &[Verb],
    check: impl Fn(Verb, &Error) -> Outcome + Sync,
) -> Outcome {
    for &verb in verbs {
        let target = subject.ready_for(verb).await?;
        let before = subject.at_rest(&target).await?;
        subject.outsider().refuse(Some(refusal)).await?;
        let answer = subject.call(verb, &target).await;
        subject.outsider().refuse(None).await?;
        let error = error_of(answer, format_args!("{verb}, refused"))?;
        check(verb, &error)?;
        let none = error.effect() == Effect::None || refusal == Refusal::Unreachable;
        ensure!(none, "{error} may have acted, and was refused");
        expect_caught_up(subject, verb, &target, &before, &error).await?;
    }
    Ok(())
}

/// Fails unless a refused call says whose it was and changed nothing, and the next one goes through.
async fn expect_caught_up(subject: &Subject, verb: Verb, target: &Target, before: &Observed, error: &Error) -> Outcome {
    ensure!(error.instance() == Some(&target.id), "a refused {verb} is on {:?}", error.instance());
    ensure!(error.operation() == verb.operation(), "a refused {verb} calls itself {}", error.operation());
    subject.settle().await;
    let after = subject.at_rest(target).await?;
    ensure!(after == *before, "a refused {verb} left it {}, before {}", shown(&after), shown(before));
    subject.expect_things(target, usize::from(before.present().is_some())).await.during(verb)?;
    subject.reach(verb, target).await.during(format_args!("{verb} after a refusal"))?;
    subject.expect_end(verb, target).await.during(verb)
}

/// When to come back is handed on.
pub(super) async fn a_throttled_verb_says_when_to_come_back_and_does_nothing(subject: Subject) -> Outcome {
    let after = Duration::from_millis(250);
    refuse_each(&subject, Refusal::Throttled { after }, &Verb::ALL, |verb, error| {
        ensure!(error.kind() == ErrorKind::Throttled, "a throttled {verb} is {error}");
        let Retry::After(told) = error.retry() else {
            return Err(Failure::new(format!("a throttled {verb} is to be retried {:?}", error.retry())));
        };
        ensure!(told >= after && told < after * 20, "told to come back after {after:?}, it says {told:?}");
        Ok(())
    })
    .await
}

fn check_without_room(verb: Verb, error: &Error) -> Outcome {
    let kinds = [ErrorKind::CapacityExhausted, ErrorKind::QuotaExceeded];
    ensure!(kinds.contains(&error.kind()), "{verb} without room is {error}");
    ensure!(error.retry() != Retry::Never, "{verb} without room is never to be retried");
    Ok(())
}

/// No room is told as such; nothing is half made; with room it goes on. A sleeper whose place is kept may wake in it.
pub(super) async fn without_capacity_nothing_is_made_and_it_goes_on_when_there_is_room(subject: Subject) -> Outcome {
    refuse_each(&subject, Refusal::Capacity, &[Verb::Create], check_without_room).await?;
    for asleep in Verb::SLEEP {
        for (wake, generation) in [(Verb::Resume, 1), (Verb::Create, 1), (Verb::Create, 2)] {
            let part = format!("{wake} with generation {generation} after {asleep}");
            wake_without_room(&subject, asleep, wake, generation).await.during(part)?;
        }
    }
    // What releases compute needs no room.
    for verb in [Verb::Suspend, Verb::Zero, Verb::DESTROY] {
        let target = subject.running().await?;
        subject.outsider().refuse(Some(Refusal::Capacity)).await?;
        let reached = subject.reach(verb, &target).await;
        subject.outsider().refuse(None).await?;
        reached.during(format_args!("{verb} where there is no room"))?;
    }
    Ok(())
}

/// Wakes a sleeper where there is no room: it is refused as a create is, or it runs.
async fn wake_without_room(subject: &Subject, asleep: Verb, wake: Verb, generation: u64) -> Outcome {
    let sleeper = subject.after(&[Verb::Create, asleep]).await?;
    let before = subject.at_rest(&sleeper).await?;
    let target = subject.at(&sleeper, generation);
    subject.outsider().refuse(Some(Refusal::Capacity)).await?;
    let answer = subject.call(wake, &target).await;
    let Err(error) = answer else {
        // Its place was kept. That is tried with no room to the end.
        let reached = subject.reach(wake, &target).await;
        subject.outsider().refuse(None).await?;
        reached.during("without room it is accepted")?;
        return subject.expect_things(&target, 1).await;
    };
    subject.outsider().refuse(None).await?;
    check_without_room(wake, &error)?;
    ensure!(error.effect() == Effect::None, "{error} may have acted, and was refused");
    expect_caught_up(subject, wake, &target, &before, &error).await
}

/// Rights that are missing are told as such, and nothing is touched.
pub(super) async fn without_rights_nothing_is_touched(subject: Subject) -> Outcome {
    refuse_each(&subject, Refusal::Rights, &Verb::ALL, |verb, error| {
        ensure!(error.kind() == ErrorKind::Unauthorized, "{verb} without rights is {error}");
        ensure!(error.retry() == Retry::Never, "{verb} without rights is to be retried {:?}", error.retry());
        Ok(())
    })
    .await
}

/// It is no error of the request: trying again helps, and does once the provider is back.
pub(super) async fn a_provider_that_cannot_be_reached_is_told_as_such_and_caught_up_with(subject: Subject) -> Outcome {
    refuse_each(&subject, Refusal::Unreachable, &Verb::ALL, |verb, error| {
        let kinds = [ErrorKind::Unavailable, ErrorKind::Timeout];
        ensure!(kinds.contains(&error.kind()), "{verb} on a provider that cannot be reached is {error}");
        ensure!(error.retry() != Retry::Never, "{verb} on a provider that cannot be reached is never to be retried");
        Ok(())
    })
    .await
}

/// The provider's code and request id come with its refusals.
pub(super) async fn errors_carry_the_providers_code_and_request_id(subject: Subject) -> Outcome {
    let mut ids = std::collections::BTreeSet::new();
    refuse_each(&subject, Refusal::Rights, &Verb::ALL, |verb, error| {
        ensure!(error.code().is_some_and(|code| !code.is_empty()), "a refused {verb} has no code: {error}");
        let id = error.request_id().unwrap_or_default();
        ensure!(!id.is_empty(), "a refused {verb} has no request id: {error}");
        let printed = error.to_string();
        ensure!(printed.contains(id), "a refused {verb} does not print its request id: {printed}");
        Ok(())
    })
    .await?;
    for _ in 0..2 {
        let target = subject.target();
        subject.outsider().refuse(Some(Refusal::Rights)).await?;
        let answer = subject.call(Verb::Create, &target).await;
        subject.outsider().refuse(None).await?;
        let error = error_of(answer, "a refused create")?;
        let id = error.request_id().unwrap_or_default().to_owned();
        ensure!(ids.insert(id.clone()), "two requests have the id {id}");
    }
    Ok(())
}

/// A provider that does not answer holds nobody up beyond the deadline, and is caught up with.
pub(super) async fn a_verb_on_a_provider_that_hangs_returns_by_its_deadline(subject: Subject) -> Outcome {
    for verb in Verb::ALL {
        let target = subject.ready_for(verb).await?;
        let was = subject.at_rest(&target).await?;
        subject.outsider().refuse(Some(Refusal::Hang)).await?;
        let answer = by_a_deadline(&subject, Some(verb), &target).await;
        subject.outsider().refuse(None).await?;
        let answer = answer.ok_or_else(|| too_late(&subject, verb))?;
        match answer {
            Err(error) => {
                ensure!(error.kind() == ErrorKind::Timeout, "{verb} on a provider that hangs is {error}");
                ensure!(error.retry() != Retry::Never, "{verb} on a provider that hangs is never to be retried");
                ensure!(error.instance() == Some(&target.id), "a timeout of {verb} is on {:?}", error.instance());
                subject.expect_no_effect(&error, &target, &was).await.during(verb)?;
            }
            Ok(Observed::Absent) if was != Observed::Absent => {
                let made = subject.sight(&target).await?.map_or(1, |sight| sight.made);
                ensure!(made == 0, "{verb} on a provider that hangs says absent, and {made} things are there");
            }
            Ok(_) => {}
        }
        looked_at_and_dropped(&subject, verb, &target).await?;
        subject.reach(verb, &target).await.during(format_args!("{verb} after the provider hung"))?;
        subject.expect_end(verb, &target).await.during(verb)?;
    }
    Ok(())
}

/// How long callers of a provider that hangs wait, and how long after that they may have to at most.
const PATIENCE: Duration = Duration::from_millis(100);
const SLACK_MAX: Duration = Duration::from_secs(10);

/// How late a call may come back on a busy machine: still sooner than one that has no other end than the longest call.
fn slack(subject: &Subject) -> Duration {
    SLACK_MAX.min(subject.call_max() / 2)
}

fn too_late(subject: &Subject, what: impl std::fmt::Display) -> Failure {
    Failure::new(format!("{what} is not back {:?} after its deadline", slack(subject)))
}

/// Calls a verb, or looks, with a deadline that is soon. None: it was not heeded.
async fn by_a_deadline(subject: &Subject, verb: Option<Verb>, target: &Target) -> Option<Result<Observed, Error>> {
    let mut cx = subject.cx_of(target);
    cx.deadline = Some(Instant::now() + PATIENCE);
    let call = async {
        match verb {
            Some(verb) => subject.call_with(verb, &cx, target).await,
            None => subject.backend.observe(&cx, target).await,
        }
    };
    tokio::time::timeout(PATIENCE + slack(subject), call).await.ok()
}

/// Looks at a thing of a provider that hangs, and calls a verb whose caller does not wait for its answer.
async fn looked_at_and_dropped(subject: &Subject, verb: Verb, target: &Target) -> Outcome {
    let is_there = subject.at_rest(target).await? != Observed::Absent;
    subject.outsider().refuse(Some(Refusal::Hang)).await?;
    let observed = by_a_deadline(subject, None, target).await;
    // Dropped by its caller.
    let dropped = tokio::time::timeout(PATIENCE, subject.call(verb, target)).await;
    subject.outsider().refuse(None).await?;
    drop(dropped);
    let observed = observed.ok_or_else(|| too_late(subject, "observe"))?;
    let absent = observed.as_ref().is_ok_and(|seen| *seen == Observed::Absent);
    ensure!(!(absent && is_there), "observe of a provider that hangs says absent");
    Ok(())
}
