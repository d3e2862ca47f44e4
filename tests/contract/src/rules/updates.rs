//! 3. What `create` and `resume` do to what is there already.

use futures::{
    StreamExt,
    future::{join_all, try_join_all},
    stream,
};
use provisioner_core::{
    Effect, ErrorKind, Retry,
    types::{DataId, DataSource, Generation, Phase, Target, VariableName},
};

use crate::{
    Ability, Subject, Verb,
    failure::{During, Outcome, ensure},
    subject::{random, shown},
};

/// Fails unless the instance runs at the target's generation, with the product of its version.
async fn expect_running_at(subject: &Subject, target: &Target) -> Outcome {
    let seen = subject.at_rest(target).await?;
    let generation = seen.present().map(|present| present.generation);
    let runs = seen.phase() == Some(Phase::Running);
    ensure!(runs && generation == Some(target.generation), "it is {}", shown(&seen));
    if subject.profile.can(Ability::Environment) {
        let environment = subject.outsider().environment(&subject.owner, target).await?;
        for (name, value) in &target.spec.environment {
            let has = environment.get(name.as_str());
            ensure!(has == Some(value), "the product that runs has {name}={has:?}, and the spec says {value:?}");
        }
    }
    subject.expect_things(target, 1).await
}

/// A target of the next generation whose environment differs.
fn changed(subject: &Subject, target: &Target, generation: u64) -> Target {
    let mut target = subject.at(target, generation);
    let mut spec = (*target.spec).clone();
    let name = VariableName::new("CONTRACT_GENERATION").expect("a name");
    spec.environment.insert(name, generation.to_string());
    target.spec = std::sync::Arc::new(spec);
    target
}

/// A newer generation is an update of the thing that is there, which then runs.
pub(super) async fn create_on_what_exists_brings_it_to_the_newer_spec(subject: Subject) -> Outcome {
    for asleep in [None, Some(Verb::Zero), Some(Verb::Suspend)] {
        let target = subject.running().await?;
        if let Some(asleep) = asleep {
            subject.reach(asleep, &target).await?;
        }
        let newer = changed(&subject, &target, 2);
        subject.reach(Verb::Create, &newer).await?;
        expect_running_at(&subject, &newer).await.during("after create with generation 2")?;
    }
    Ok(())
}

/// What somebody changed is gone once a verb brought a newer spec, and no verb is kept from its end by it.
pub(super) async fn what_an_outsider_changed_is_undone_by_the_next_spec(subject: Subject) -> Outcome {
    let name = VariableName::new("CONTRACT_OUTSIDER").expect("a name");
    let each = [None, Some(Verb::Zero), Some(Verb::Suspend)].map(|asleep| {
        let (subject, name) = (subject.clone(), name.clone());
        async move {
            for verb in Verb::ALL {
                undoes_a_change(&subject, asleep, verb, &name)
                    .await
                    .during(format_args!("{verb} of what was changed"))?;
            }
            Ok(())
        }
    });
    try_join_all(each).await.map(drop)
}

async fn undoes_a_change(subject: &Subject, asleep: Option<Verb>, verb: Verb, name: &VariableName) -> Outcome {
    let target = subject.running().await?;
    if let Some(asleep) = asleep {
        subject.reach(asleep, &target).await?;
    }
    subject.outsider().change(&subject.owner, &target, name, "changed").await?;
    let newer = changed(subject, &target, 2);
    subject.reach(verb, &newer).await?;
    subject.expect_end(verb, &newer).await?;
    if verb.end().is_none() {
        return Ok(());
    }
    subject.reach(Verb::Resume, &newer).await?;
    expect_running_at(subject, &newer).await?;
    let environment = subject.outsider().environment(&subject.owner, &newer).await?;
    ensure!(!environment.contains_key(name.as_str()), "the product has kept what an outsider changed");
    subject.reach(Verb::DESTROY, &newer).await.map(drop)
}

/// `resume` takes the same target: what is waked is at its generation.
pub(super) async fn resume_wakes_with_the_spec_of_its_target(subject: Subject) -> Outcome {
    for asleep in Verb::SLEEP {
        let target = subject.after(&[Verb::Create, asleep]).await?;
        subject.reach(Verb::Resume, &target).await?;
        expect_running_at(&subject, &target).await.during("after resume with the same generation")?;
        subject.reach(asleep, &target).await?;
        let newer = changed(&subject, &target, 2);
        subject.reach(Verb::Resume, &newer).await?;
        expect_running_at(&subject, &newer).await.during("after resume with generation 2")?;
    }
    Ok(())
}

/// An older generation is refused, and what is there stays.
pub(super) async fn an_older_generation_is_conflict_and_the_newer_one_stays(subject: Subject) -> Outcome {
    for verb in Verb::WAKE {
        let target = subject.running().await?;
        let newer = changed(&subject, &target, 5);
        subject.reach(Verb::Create, &newer).await?;
        for asleep in [None, Some(Verb::Zero)] {
            if let Some(asleep) = asleep {
                subject.reach(asleep, &newer).await?;
            }
            let before = subject.look(&newer).await?;
            let answer = subject.call(verb, &changed(&subject, &target, 4)).await;
            let Err(error) = answer else {
                return Err(crate::Failure::new(format!("{verb} with generation 4 on 5 is accepted: {answer:?}")));
            };
            ensure!(error.kind() == ErrorKind::Conflict, "{verb} with generation 4 on 5 is refused as {error}");
            ensure!(error.retry() == Retry::Never, "an older generation may be retried: {error}");
            ensure!(error.effect() == Effect::None, "a refused generation may have acted: {error}");
            let after = subject.look(&newer).await?;
            ensure!(after.phase() == before.phase(), "the refused {verb} left it {}", shown(&after));
            let generation = after.present().map(|present| present.generation);
            ensure!(generation == Some(Generation(5)), "the refused {verb} left it {}", shown(&after));
        }
        subject.reach(Verb::Resume, &newer).await?;
        expect_running_at(&subject, &newer).await.during(format_args!("after a refused {verb}"))?;
    }
    Ok(())
}

/// Where writes are conditional, generations that come at once and out of order end with the newest.
pub(super) async fn of_many_generations_at_once_the_newest_stays(subject: Subject) -> Outcome {
    let target = subject.running().await?;
    let generations = [9, 3, 16, 7, 12, 2, 14, 5, 10, 8, 15, 4, 11, 6, 13];
    let calls = generations.map(|generation| {
        let (subject, target) = (subject.clone(), changed(&subject, &target, generation));
        tokio::spawn(async move { subject.call(Verb::Create, &target).await })
    });
    for (answer, generation) in join_all(calls).await.into_iter().zip(generations) {
        let answer = answer.map_err(|panic| crate::Failure::new(format!("create panicked: {panic}")))?;
        match answer {
            Err(error) if generation == 16 && error.retry() == Retry::Never => return Err(error.into()),
            Err(error) if error.retry() == Retry::Never && error.kind() != ErrorKind::Conflict => {
                return Err(error.into());
            }
            _ => {}
        }
    }
    let newest = changed(&subject, &target, 16);
    let seen = subject.at_rest(&newest).await?;
    let generation = seen.present().map(|present| present.generation);
    ensure!(generation == Some(Generation(16)), "of generations 2 to 16 at once it ends with {}", shown(&seen));
    subject.reach(Verb::Create, &newest).await?;
    expect_running_at(&subject, &newest).await
}

/// Asleep, a newer spec wakes nothing; it is applied at the wake.
pub(super) async fn a_spec_changed_while_asleep_is_applied_at_wake_and_wakes_nothing(subject: Subject) -> Outcome {
    for asleep in Verb::SLEEP {
        let target = subject.after(&[Verb::Create, asleep]).await?;
        let newer = changed(&subject, &target, 2);
        for _ in 0..3 {
            subject.call(asleep, &newer).await?;
            let seen = subject.at_rest(&newer).await?;
            ensure!(seen.phase() == asleep.end(), "{asleep} with a newer spec makes it {}", shown(&seen));
            if let Some(sight) = subject.sight(&newer).await? {
                ensure!(sight.awake == 0, "{asleep} with a newer spec woke it");
            }
        }
        subject.reach(Verb::Resume, &newer).await?;
        expect_running_at(&subject, &newer).await.during("after resume")?;
    }
    Ok(())
}

/// Every pair of verbs, or some of them, the second before and after the first has reached its end.
pub(super) async fn any_verb_may_follow_any_other(subject: Subject) -> Outcome {
    let pairs = Verb::ALL.into_iter().flat_map(|first| Verb::ALL.map(|second| (first, second)));
    let pairs = pairs.flat_map(|(first, second)| [(first, second, true), (first, second, false)]);
    let apart = subject.profile.pairs_apart;
    let each = pairs.skip(random() as usize % apart).step_by(apart).map(|(first, second, waits)| {
        let subject = subject.clone();
        async move { follow(&subject, first, second, waits).await.during(format_args!("{second} after {first}")) }
    });
    let done: Vec<_> = stream::iter(each.collect::<Vec<_>>()).buffered(8).collect().await;
    done.into_iter().collect()
}

async fn follow(subject: &Subject, first: Verb, second: Verb, waits: bool) -> Outcome {
    let target = subject.running().await?;
    if waits {
        subject.reach(first, &target).await?;
    } else {
        subject.call(first, &target).await?;
    }
    if first.end().is_none() && !matches!(second, Verb::Create | Verb::Destroy(_)) {
        // What is on its way out stays so, and what is out is absent.
        subject.call(second, &target).await?;
        subject.reach(first, &target).await?;
        return subject.expect_end(first, &target).await;
    }
    let seen = subject.reach(second, &target).await?;
    ensure!(seen.phase() == second.end(), "it is {}", shown(&seen));
    subject.expect_things(&target, usize::from(second.end().is_some())).await
}

/// Other data cannot be put under what exists: refused, naming the field, and nothing is touched.
pub(super) async fn what_cannot_be_changed_in_place_is_conflict_naming_the_field(subject: Subject) -> Outcome {
    for verb in Verb::WAKE {
        let target = subject.running().await?;
        let mut other = changed(&subject, &target, 2);
        other.data = DataSource::Fresh(DataId::from_random(random()));
        let answer = subject.call(verb, &other).await;
        let Err(error) = answer else {
            return Err(crate::Failure::new(format!("{verb} on other data is accepted: {answer:?}")));
        };
        ensure!(error.kind() == ErrorKind::Conflict, "{verb} on other data is refused as {error}");
        ensure!(error.field() == Some("data"), "{verb} on other data does not name the field: {error}");
        ensure!(error.effect() == Effect::None, "{verb} on other data may have acted: {error}");
        expect_running_at(&subject, &target).await.during(format_args!("after the refused {verb}"))?;
        let made = subject.list().await?.into_iter().any(|owned| owned.data.as_ref() == Some(other.data.id()));
        ensure!(!made, "the refused {verb} made the other data");
    }
    Ok(())
}

/// Instances that run beside each other keep to themselves.
pub(super) async fn a_verb_on_one_instance_leaves_the_others_alone(subject: Subject) -> Outcome {
    let beside = try_join_all([subject.running(), subject.running()]).await?;
    for verb in Verb::ALL {
        let target = subject.ready_for(verb).await?;
        subject.reach(verb, &target).await?;
        for other in &beside {
            expect_running_at(&subject, other).await.during(format_args!("after {verb} on another instance"))?;
        }
    }
    Ok(())
}
