//! 1. Verbs are level-triggered. 14. A backend never acts by itself.

use std::time::Duration;

use provisioner_core::types::{Observed, Phase, Target};
use tokio::time::Instant;

use crate::{
    Ability, Refusal, Subject, Verb,
    failure::{During, Outcome, ensure},
    subject::shown,
};

/// So long nothing may happen by itself.
const WATCHED: Duration = Duration::from_millis(400);
/// So often a verb that comes back late is tried: on a busy machine it may be late now and then, and one that waits is late
/// each time.
const TRIES: u32 = 5;

/// A product that takes long to be ready holds no verb up; what is seen meanwhile is that it is on its way.
pub(super) async fn a_verb_returns_at_once_and_never_waits_for_readiness(subject: Subject) -> Outcome {
    let (spec, slow) = subject.profile.slow.clone().expect("needed");
    let mut target = subject.target_of(spec.clone());
    for verb in [Verb::Create, Verb::Resume] {
        for tries in 1.. {
            if verb == Verb::Resume {
                subject.reach(Verb::Zero, &target).await?;
            }
            let took = call_slow(&subject, verb, &target, slow).await?;
            if took < slow {
                break;
            }
            ensure!(tries < TRIES, "{verb} took {took:?}, as long as the product takes to be ready");
            if verb == Verb::Create {
                target = subject.target_of(spec.clone());
            }
        }
    }
    Ok(())
}

/// Calls a verb on an instance that takes so long to be ready, and follows it until it is. Gives how long the call took.
async fn call_slow(subject: &Subject, verb: Verb, target: &Target, slow: Duration) -> Outcome<Duration> {
    let started = Instant::now();
    let seen = subject.call(verb, target).await?;
    let took = started.elapsed();
    let early = took < slow && seen.phase() == Some(Phase::Running);
    ensure!(!early, "{verb} says that it runs before it can be ready");
    let seen = subject.look(target).await?;
    if started.elapsed() < slow {
        ensure!(seen.phase() == Some(Phase::Provisioning), "on its way it is {}, not provisioning", shown(&seen));
    }
    subject.reach(verb, target).await?;
    let ready = started.elapsed();
    ensure!(ready >= slow, "it was said to run after {ready:?}, and cannot be ready before {slow:?}");
    Ok(took)
}

/// What a verb answers is about the incarnation and generation that it was called with.
pub(super) async fn what_a_verb_answers_tells_incarnation_and_generation(subject: Subject) -> Outcome {
    for verb in Verb::ALL {
        let target = subject.at(&subject.ready_for(verb).await?, 3);
        let answer = subject.call(verb, &target).await.during(verb)?;
        let reached = if verb.end().is_none() { Observed::Absent } else { subject.reach(verb, &target).await? };
        for seen in [answer, reached] {
            let Observed::Present(present) = &seen else { continue };
            let (seen, expected) = (present.incarnation, target.incarnation);
            ensure!(seen == expected, "{verb} answers about incarnation {seen}, called with {expected}");
        }
        if Verb::WAKE.contains(&verb) {
            let seen = subject.look(&target).await?;
            let generation = seen.present().map(|present| present.generation);
            ensure!(generation == Some(target.generation), "after {verb} with generation 3: {}", shown(&seen));
        }
    }
    Ok(())
}

/// `suspend`, `scale_to_zero` and `resume` of what is not there say so, and make nothing.
pub(super) async fn a_verb_on_what_is_absent_is_absent_and_makes_nothing(subject: Subject) -> Outcome {
    for verb in [Verb::Suspend, Verb::Zero, Verb::Resume] {
        let target = subject.target();
        let seen = subject.call(verb, &target).await.during(verb)?;
        let unknown = matches!(seen, Observed::Unknown { .. });
        ensure!(seen == Observed::Absent || unknown, "{verb} of what is absent is {}", shown(&seen));
        let seen = subject.look(&target).await?;
        ensure!(seen == Observed::Absent, "after {verb} of what was absent there is something: {}", shown(&seen));
        subject.expect_things(&target, 0).await.during(verb)?;
    }
    Ok(())
}

/// An instance that died stays as it is, with a reason, until a verb is called; then it runs again, on its data.
pub(super) async fn an_instance_that_died_stays_down_until_a_verb_is_called(subject: Subject) -> Outcome {
    for verb in Verb::WAKE {
        let target = subject.running().await?;
        subject.outsider().kill(&subject.owner, &target).await.during("killing it")?;
        let noticed = || async { Ok(subject.look(&target).await?.phase() != Some(Phase::Running)) };
        subject.until("its death is noticed", noticed).await?;
        let watched = Instant::now();
        while watched.elapsed() < WATCHED {
            let seen = subject.look(&target).await?;
            let down = seen == Observed::Absent || seen.phase() == Some(Phase::Failed);
            ensure!(down, "it came back by itself: {}", shown(&seen));
            if let Observed::Present(present) = &seen {
                ensure!(present.reason.is_some(), "it failed without a reason");
                ensure!(present.endpoint.is_none(), "it failed and has an endpoint");
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        if let Some(sight) = subject.sight(&target).await? {
            ensure!(sight.awake == 0, "{} of its things run, though nobody called a verb", sight.awake);
        }
        subject
            .reach(if subject.look(&target).await? == Observed::Absent { Verb::Create } else { verb }, &target)
            .await?;
        subject.expect_things(&target, 1).await?;
    }
    Ok(())
}

/// Where the provider starts what died, that is not hidden meanwhile; it is then what it was, on its data, and what was put to
/// sleep stays asleep.
pub(super) async fn what_the_provider_starts_again_is_as_it_was(subject: Subject) -> Outcome {
    let target = subject.running().await?;
    let before = subject.at_rest(&target).await?;
    let notes = subject.profile.can(Ability::Notes);
    if notes {
        subject.outsider().write_note(&subject.owner, &target, "before it died").await?;
    }
    die(&subject, &target).await?;
    let runs = || async { Ok(subject.look(&target).await?.phase() == Some(Phase::Running)) };
    subject.until("it is started again by itself", runs).await?;
    let after = subject.look(&target).await?;
    ensure!(after == before, "started again it is {}, before {}", shown(&after), shown(&before));
    subject.expect_things(&target, 1).await?;
    if notes {
        let read = subject.outsider().read_note(&subject.owner, &target).await?;
        ensure!(read.as_deref() == Some("before it died"), "started again, it reads the note {read:?}");
    }
    die(&subject, &target).await?;
    subject.reach(Verb::Zero, &target).await.during("of what died")?;
    let watched = Instant::now();
    while watched.elapsed() < WATCHED {
        let seen = subject.look(&target).await?;
        ensure!(seen.phase() == Some(Phase::Zero), "put to sleep when it had died, it is {}", shown(&seen));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    subject.expect_things(&target, 1).await
}

/// Has it die, and waits until that is told.
async fn die(subject: &Subject, target: &Target) -> Outcome {
    subject.outsider().kill(&subject.owner, target).await.during("killing it")?;
    let noticed = || async {
        let seen = subject.look(target).await?;
        let runs = seen.phase() == Some(Phase::Running);
        let endpoint = seen.present().and_then(|present| present.endpoint.as_ref());
        ensure!(runs || endpoint.is_none(), "it died and has an endpoint: {}", shown(&seen));
        Ok(!runs)
    };
    subject.until("its death is noticed", noticed).await
}

/// A product that cannot start fails with a reason, and is not started again and again.
pub(super) async fn a_start_that_fails_is_told_with_a_reason(subject: Subject) -> Outcome {
    let target = subject.target_of(subject.profile.broken.clone().expect("needed"));
    let answer = subject.call(Verb::Create, &target).await;
    if let Err(error) = answer {
        ensure!(error.instance() == Some(&target.id), "the error does not say which instance: {error}");
        return Ok(());
    }
    let failed = || async { Ok(subject.look(&target).await?.phase() == Some(Phase::Failed)) };
    subject.until("the start that cannot succeed is seen as failed", failed).await?;
    let watched = Instant::now();
    while watched.elapsed() < WATCHED {
        let seen = subject.look(&target).await?;
        ensure!(seen.phase() == Some(Phase::Failed), "it was tried again by itself: {}", shown(&seen));
        ensure!(seen.present().is_some_and(|present| present.reason.is_some()), "it failed without a reason");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

/// A refused call is passed on at once: whether and when to call again is the engine's to decide.
pub(super) async fn a_refused_call_is_not_retried_by_the_backend(subject: Subject) -> Outcome {
    for verb in Verb::ALL {
        let target = subject.ready_for(verb).await?;
        let normal = subject.outsider().calls().await?;
        subject.call(verb, &target).await?;
        let normal = subject.outsider().calls().await? - normal;
        let target = subject.ready_for(verb).await?;
        let after = Duration::from_millis(5);
        subject.outsider().refuse(Some(Refusal::Throttled { after })).await?;
        let before = subject.outsider().calls().await?;
        let answer = subject.call(verb, &target).await;
        tokio::time::sleep(after * 20).await;
        let calls = subject.outsider().calls().await? - before;
        subject.outsider().refuse(None).await?;
        ensure!(answer.is_err(), "{verb} was throttled and answered {answer:?}");
        ensure!(calls <= normal, "{verb} was refused and made {calls} calls; when it succeeds it makes {normal}");
    }
    Ok(())
}
