//! 7. Reads: `observe` and `observe_many`.

use std::time::Duration;

use futures::{StreamExt, future::try_join_all};
use provisioner_core::{
    Error,
    types::{DataDisposition, Incarnation, Observed, Owned, OwnedKind, Phase, Target, Usage},
};

use crate::{
    Ability, Refusal, Subject, Verb,
    failure::{During, Outcome, ensure},
    subject::{random, shown},
};

/// Of what never was, of what is gone, and of another incarnation of what is there.
pub(super) async fn observe_of_what_is_not_there_is_absent(subject: Subject) -> Outcome {
    expect_absent(&subject, "never was", &subject.target()).await?;
    let gone = subject.after(&[Verb::Create, Verb::DESTROY]).await?;
    expect_absent(&subject, "is gone", &gone).await?;
    let running = subject.running().await?;
    let other = Target { incarnation: Incarnation::new(2, random()), ..running };
    expect_absent(&subject, "is another making", &other).await
}

async fn expect_absent(subject: &Subject, what: &str, target: &Target) -> Outcome {
    let seen = subject.look(target).await.during(format_args!("observe of what {what}"))?;
    ensure!(seen == Observed::Absent, "what {what} is {}", shown(&seen));
    Ok(())
}

/// The answer to every read of something that is there.
async fn reads(subject: &Subject, target: &Target) -> Vec<(&'static str, Result<Observed, Error>)> {
    let cx = subject.cx_of(target);
    let mut answers = vec![("observe", subject.backend.observe(&cx, target).await)];
    let many = subject.backend.observe_many(&cx, std::slice::from_ref(target)).await;
    answers.extend(many.into_iter().map(|answer| ("observe_many", answer)));
    let listed: Vec<_> = subject.backend.list(&cx).collect().await;
    let listed: Result<Vec<_>, Error> = listed.into_iter().collect();
    let found = listed.map(|listed| listed.into_iter().find(|owned| owned.id == target.id));
    answers.push(("list", found.map(|found| found.map_or(Observed::Absent, |owned| owned.observed))));
    answers
}

/// "May not look" and "could not look" are errors.
pub(super) async fn what_could_not_be_looked_at_is_never_absent(subject: Subject) -> Outcome {
    let after = Duration::from_millis(20);
    let ways = [
        (Ability::Rights, Refusal::Rights),
        (Ability::Throttle, Refusal::Throttled { after }),
        (Ability::Unreachable, Refusal::Unreachable),
    ];
    let target = subject.running().await?;
    subject.settle().await;
    for (_, refusal) in ways.into_iter().filter(|(ability, _)| subject.profile.can(*ability)) {
        subject.outsider().refuse(Some(refusal)).await?;
        let answers = reads(&subject, &target).await;
        let destroyed = subject.call(Verb::DESTROY, &target).await;
        subject.outsider().refuse(None).await?;
        ensure!(answers.len() == 3, "observe_many answers {} times for one target", answers.len() - 2);
        for (read, answer) in answers.into_iter().chain([("destroy", destroyed)]) {
            match answer {
                Ok(Observed::Absent) => {
                    return Err(crate::Failure::new(format!("{refusal:?} refused, and {read} says absent")));
                }
                // Who keeps what was seen may tell it.
                Ok(Observed::Present(_) | Observed::Unknown { .. }) | Err(_) => {}
            }
        }
        let seen = subject.look(&target).await?;
        ensure!(seen.phase() == Some(Phase::Running), "after refused calls it is {}", shown(&seen));
    }
    Ok(())
}

/// Right after a call the reads may be stale: that is said.
pub(super) async fn within_the_settling_time_nothing_is_known(subject: Subject) -> Outcome {
    let settling = subject.profile.capabilities().settling;
    for verb in Verb::ALL {
        let target = subject.ready_for(verb).await?;
        subject.call(verb, &target).await?;
        for since in [Duration::ZERO, settling / 2] {
            let mut cx = subject.cx();
            cx.since_last_call = Some(since);
            let mut answers = vec![subject.backend.observe(&cx, &target).await?];
            for answer in subject.backend.observe_many(&cx, std::slice::from_ref(&target)).await {
                answers.push(answer?);
            }
            for seen in answers {
                let Observed::Unknown { again } = seen else {
                    let text = format!("{since:?} after {verb}, and reads lag by {settling:?}: {}", shown(&seen));
                    return Err(crate::Failure::new(text));
                };
                ensure!(!again.is_zero() && again <= settling, "look again in {again:?}, settled in {settling:?}");
            }
        }
        subject.settle().await;
        let mut cx = subject.cx();
        cx.since_last_call = Some(settling);
        let seen = subject.backend.observe(&cx, &target).await?;
        ensure!(!matches!(seen, Observed::Unknown { .. }), "unknown {settling:?} after {verb}");
        subject.reach(verb, &target).await?;
    }
    Ok(())
}

/// Id and incarnation are enough.
pub(super) async fn observe_works_from_id_and_incarnation_alone(subject: Subject) -> Outcome {
    for verbs in [&[Verb::Create][..], &[Verb::Create, Verb::Zero]] {
        let target = subject.after(verbs).await?;
        let forgotten = subject.forgotten(target.id.clone(), target.incarnation, None);
        let (known, seen) = (subject.at_rest(&target).await?, subject.at_rest(&forgotten).await?);
        ensure!(seen == known, "with its spec it is {}, without {}", shown(&known), shown(&seen));
    }
    Ok(())
}

/// One answer per target, in their order, whatever is there.
pub(super) async fn observe_many_answers_in_the_order_of_its_targets(subject: Subject) -> Outcome {
    let running = try_join_all([subject.running(), subject.running()]).await?;
    let asleep = subject.after(&[Verb::Create, Verb::Zero]).await?;
    let suspended = subject.after(&[Verb::Create, Verb::Suspend]).await?;
    let (absent, also) = (subject.target(), subject.target());
    let targets =
        [absent.clone(), running[1].clone(), asleep, also, running[0].clone(), suspended, running[1].clone(), absent];
    subject.settle().await;
    let answers = subject.backend.observe_many(&subject.cx(), &targets).await;
    ensure!(answers.len() == targets.len(), "{} answers for {} targets", answers.len(), targets.len());
    let expected = [None, Some(Phase::Running), Some(Phase::Zero), None, Some(Phase::Running), Some(Phase::Suspended)];
    let expected = expected.into_iter().chain([Some(Phase::Running), None]);
    for (at, ((answer, expected), target)) in answers.into_iter().zip(expected).zip(&targets).enumerate() {
        let seen = answer.during(format_args!("answer {at}"))?;
        ensure!(seen.phase() == expected, "answer {at} is {}, expected {expected:?}", shown(&seen));
        let incarnation = seen.present().map(|present| present.incarnation);
        ensure!(expected.is_none() || incarnation == Some(target.incarnation), "answer {at} is about another instance");
    }
    let none = subject.backend.observe_many(&subject.cx(), &[]).await;
    ensure!(none.is_empty(), "{} answers for no target", none.len());
    Ok(())
}

/// The states that somebody may delete something in.
const THERE: [&[Verb]; 3] = [&[Verb::Create], &[Verb::Create, Verb::Zero], &[Verb::Create, Verb::Suspend]];

/// What somebody deleted is absent, is not made by what only moves, is made again by `create`, on its data, and leaves
/// nothing when destroyed.
pub(super) async fn what_an_outsider_deleted_is_absent_and_can_be_made_again(subject: Subject) -> Outcome {
    for verbs in THERE {
        let target = subject.after(verbs).await?;
        subject.outsider().delete(&subject.owner, &target).await?;
        let absent = || async { Ok(subject.look(&target).await? == Observed::Absent) };
        subject.until("what was deleted is seen as absent", absent).await?;
        for verb in [Verb::Suspend, Verb::Zero, Verb::Resume] {
            let seen = subject.call(verb, &target).await.during(verb)?;
            let absent = seen == Observed::Absent || matches!(seen, Observed::Unknown { .. });
            ensure!(absent, "{verb} of what was deleted is {}", shown(&seen));
            subject.expect_things(&target, 0).await.during(format_args!("{verb} of what was deleted"))?;
        }
        subject.reach(Verb::Create, &target).await?;
        subject.expect_things(&target, 1).await?;
        subject.reach(Verb::DESTROY, &target).await?;
        for data in [DataDisposition::Delete, DataDisposition::Retain] {
            let target = subject.after(verbs).await?;
            subject.outsider().delete(&subject.owner, &target).await?;
            // Nobody has looked: who destroys need not know.
            destroy_the_deleted(&subject, &target, data).await.during("destroy of what was deleted")?;
        }
    }
    Ok(())
}

/// Succeeds, and leaves nothing but the data that is to be retained.
async fn destroy_the_deleted(subject: &Subject, target: &Target, data: DataDisposition) -> Outcome {
    subject.call(Verb::Destroy(data), target).await?;
    subject.reach(Verb::Destroy(data), target).await?;
    subject.expect_things(target, 0).await?;
    let listed = subject.list().await?;
    let retained = |owned: &Owned| owned.kind == OwnedKind::Data && owned.data.as_ref() == Some(target.data.id());
    match data {
        DataDisposition::Delete => ensure!(listed.is_empty(), "it is still listed: {:?}", listed[0]),
        DataDisposition::Retain => {
            let alone = listed.len() == 1 && listed.iter().all(retained);
            ensure!(alone, "listed is {listed:?}, expected the retained data alone");
            subject.backend.delete_data(&subject.cx(), target.data.id()).await?;
        }
    }
    if subject.profile.can(Ability::Inventory) {
        let left = subject.outsider().inventory(&subject.owner).await?;
        ensure!(left.is_empty(), "left behind: {}", left.join("; "));
    }
    Ok(())
}

/// What somebody stopped is not said to run, and every verb takes it to its end: it stays down unless it is waked.
pub(super) async fn what_an_outsider_stopped_does_not_run(subject: Subject) -> Outcome {
    for verb in Verb::ALL {
        let target = subject.running().await?;
        subject.outsider().stop(&subject.owner, &target).await?;
        let noticed = || async { Ok(subject.look(&target).await?.phase() != Some(Phase::Running)) };
        subject.until("that it was stopped is seen", noticed).await?;
        let part = format!("{verb} of what was stopped");
        if verb.end() != Some(Phase::Running) {
            // Once only: the next call would put down again what this one started.
            subject.call(verb, &target).await.during(&part)?;
            let seen = subject.at_rest(&target).await.during(&part)?;
            ensure!(seen.phase() != Some(Phase::Running), "{part} starts it");
        }
        subject.reach(verb, &target).await.during(&part)?;
        subject.expect_end(verb, &target).await.during(&part)?;
        if let Some(sight) = subject.sight(&target).await? {
            let awake = usize::from(verb.end() == Some(Phase::Running));
            ensure!(sight.awake == awake, "{part}: {} things of the instance run, expected {awake}", sight.awake);
        }
    }
    Ok(())
}

/// Reads have no effect.
pub(super) async fn reads_change_nothing(subject: Subject) -> Outcome {
    for verbs in [&[Verb::Create][..], &[Verb::Create, Verb::Suspend]] {
        let target = subject.after(verbs).await?;
        let before = subject.at_rest(&target).await?;
        for _ in 0..5 {
            for (read, answer) in reads(&subject, &target).await {
                let seen = answer.during(read)?;
                ensure!(seen.phase() == before.phase(), "{read} says {}, before {}", shown(&seen), shown(&before));
            }
        }
        let after = subject.at_rest(&target).await?;
        ensure!(after == before, "after reads it is {}, before {}", shown(&after), shown(&before));
        subject.expect_things(&target, 1).await?;
    }
    Ok(())
}

/// CPU time only rises while it runs; what does not run uses none, and no memory.
pub(super) async fn what_is_used_is_told_of_what_runs_alone_and_rises(subject: Subject) -> Outcome {
    let target = subject.running().await?;
    let mut before = None;
    for _ in 0..10 {
        let now = used(&subject, &target).await?;
        ensure!(before.is_none() || now.is_some(), "it runs, and what it uses is told at times only");
        let fell = now.zip(before).is_some_and(|(now, before): (Usage, Usage)| now.cpu < before.cpu);
        ensure!(!fell, "the CPU time of what runs falls from {before:?} to {now:?}");
        before = now;
    }
    for verb in [Verb::Zero, Verb::Suspend] {
        subject.reach(verb, &target).await?;
        let asleep = used(&subject, &target).await?;
        ensure!(asleep.is_none(), "after {verb} it uses {asleep:?}");
    }
    Ok(())
}

async fn used(subject: &Subject, target: &Target) -> Outcome<Option<Usage>> {
    subject.settle().await;
    let seen = subject.backend.observe(&subject.cx_of(target), target).await?;
    Ok(seen.present().and_then(|present| present.usage))
}
