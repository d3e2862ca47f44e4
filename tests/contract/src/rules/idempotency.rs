//! 2. Verbs are idempotent.

use futures::future::{join_all, try_join_all};
use provisioner_core::{Error, ErrorKind, types::Observed};

use crate::{
    Failure, Subject, Verb,
    failure::{During, Outcome, ensure},
    subject::shown,
};

/// How many of a verb at once.
const AT_ONCE: usize = 16;

async fn ends_as_one(subject: &Subject, verb: Verb, target: &provisioner_core::types::Target) -> Outcome {
    let seen = subject.reach(verb, target).await?;
    ensure!(seen.phase() == verb.end(), "it ends {}", shown(&seen));
    subject.expect_end(verb, target).await
}

/// Each verb several times in a row.
pub(super) async fn any_verb_repeated_ends_in_the_same_state_with_one_thing(subject: Subject) -> Outcome {
    let each = Verb::ALL.map(|verb| {
        let subject = subject.clone();
        async move {
            let target = subject.ready_for(verb).await.during(verb)?;
            for _ in 0..3 {
                subject.call(verb, &target).await.during(verb)?;
            }
            ends_as_one(&subject, verb, &target).await.during(format_args!("{verb}, three times"))?;
            subject.call(verb, &target).await.during(verb)?;
            ends_as_one(&subject, verb, &target).await.during(format_args!("{verb}, once more at its end"))
        }
    });
    try_join_all(each).await.map(drop)
}

/// Each verb many times at once.
pub(super) async fn sixteen_of_a_verb_at_once_end_with_one_thing(subject: Subject) -> Outcome {
    let each = Verb::ALL.map(|verb| {
        let subject = subject.clone();
        async move {
            let target = subject.ready_for(verb).await.during(verb)?;
            let calls = (0..AT_ONCE).map(|_| {
                let (subject, target) = (subject.clone(), target.clone());
                tokio::spawn(async move { subject.call(verb, &target).await })
            });
            for answer in join_all(calls).await {
                // Somebody else at the same thing may be in the way, for a moment.
                let answer = answer.map_err(|panic| Failure::new(format!("{verb} panicked: {panic}")))?;
                answer.or_else(|error| forgive(verb, error)).during(format_args!("{verb}, at once"))?;
            }
            ends_as_one(&subject, verb, &target).await.during(format_args!("{verb}, sixteen at once"))
        }
    });
    try_join_all(each).await.map(drop)
}

fn forgive(_verb: Verb, error: Error) -> Result<Observed, Error> {
    let busy = error.retry() != provisioner_core::Retry::Never;
    if busy { Ok(Observed::Unknown { again: std::time::Duration::ZERO }) } else { Err(error) }
}

/// All verbs at once, then one of them alone: that one wins, and there is one thing.
pub(super) async fn whatever_ran_at_once_the_verb_that_comes_last_wins(subject: Subject) -> Outcome {
    let each = Verb::ALL.map(|last| {
        let subject = subject.clone();
        async move {
            let target = subject.running().await?;
            let calls = Verb::ALL.into_iter().cycle().take(10).map(|verb| {
                let (subject, target) = (subject.clone(), target.clone());
                tokio::spawn(async move { subject.call(verb, &target).await })
            });
            for answer in join_all(calls).await {
                match answer.map_err(|panic| Failure::new(format!("a verb panicked: {panic}")))? {
                    Err(error) if error.kind() == ErrorKind::Internal => return Err(error.into()),
                    _ => {}
                }
            }
            let part = format!("{last} after all verbs at once");
            let seen = subject.at_rest(&target).await.during(&part)?;
            // Destroy may have won.
            if seen == Observed::Absent && last.end().is_some() {
                subject.reach(Verb::Create, &target).await.during(&part)?;
            }
            let seen = subject.reach(last, &target).await.during(&part)?;
            ensure!(seen.phase() == last.end(), "{part}: it ends {}", shown(&seen));
            // The data may have been removed by another one.
            subject.expect_things(&target, usize::from(last.end().is_some())).await.during(part)
        }
    });
    try_join_all(each).await.map(drop)
}
