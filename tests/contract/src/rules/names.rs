//! 12. Names are a function of control plane and incarnation. 13. The provider's identity.

use provisioner_core::types::{DataDisposition, DataId, DataSource, Incarnation, Observed, Phase, Target};

use crate::{
    Subject, Verb,
    failure::{During, Outcome, ensure},
    subject::{random, shown},
};

/// The same incarnation has the same name, whatever its spec, after a sleep and when it is made once more; another
/// incarnation, instance or control plane has another.
pub(super) async fn names_are_a_function_of_control_plane_and_incarnation(subject: Subject) -> Outcome {
    let outsider = subject.outsider();
    let target = subject.running().await?;
    let name = outsider.name(&subject.owner, &target).await?;
    ensure!(!name.is_empty(), "its thing has no name");
    let newer = subject.at(&target, 2);
    for verbs in [&[Verb::Create][..], &[Verb::Zero, Verb::Resume], &[Verb::DESTROY, Verb::Create]] {
        for verb in verbs {
            subject.reach(*verb, &newer).await?;
        }
        let now = outsider.name(&subject.owner, &newer).await?;
        ensure!(now == name, "after {verbs:?} the same incarnation is called {now}, before {name}");
        subject.expect_things(&newer, 1).await?;
    }
    let other = subject.neighbour();
    let data = || DataSource::Fresh(DataId::from_random(random()));
    let making = Target { incarnation: Incarnation::new(2, random()), data: data(), ..target.clone() };
    let namesake = Target { data: data(), ..target.clone() };
    for (what, plane, target) in
        [("another incarnation", &subject, making), ("another control plane", &other, namesake)]
    {
        plane.reach(Verb::Create, &target).await?;
        let its = outsider.name(&plane.owner, &target).await?;
        ensure!(its != name, "{what} is called {its} too");
    }
    Ok(())
}

/// What is done to one incarnation is not done to another of the same instance.
pub(super) async fn another_incarnation_is_another_thing(subject: Subject) -> Outcome {
    let first = subject.running().await?;
    let data = DataSource::Fresh(DataId::from_random(random()));
    let second = Target { incarnation: Incarnation::new(2, random()), data, ..first.clone() };
    let seen = subject.call(Verb::Zero, &second).await?;
    let nothing = matches!(seen, Observed::Absent | Observed::Unknown { .. });
    ensure!(nothing, "an incarnation that was never made is {}", shown(&seen));
    subject.reach(Verb::DESTROY, &second).await.during("of an incarnation that was never made")?;
    ensure!(subject.look(&first).await?.phase() == Some(Phase::Running), "the first one was touched");
    subject.reach(Verb::Create, &second).await?;
    for target in [&first, &second] {
        subject.expect_things(target, 1).await?;
    }
    subject.reach(Verb::Destroy(DataDisposition::Delete), &first).await?;
    let seen = subject.look(&second).await?;
    ensure!(seen.phase() == Some(Phase::Running), "with the first one destroyed, the second is {}", shown(&seen));
    subject.expect_things(&second, 1).await?;
    subject.expect_things(&first, 0).await
}

/// The same at every time, for every control plane and through every backend on the same provider.
pub(super) async fn identity_is_stable_and_not_empty(subject: Subject) -> Outcome {
    let first = subject.backend.identity(&subject.cx()).await?;
    ensure!(!first.trim().is_empty(), "the provider's identity is empty");
    let target = subject.running().await?;
    subject.reach(Verb::DESTROY, &target).await?;
    let other = subject.neighbour();
    let mut asked = vec![("later", subject.backend.identity(&subject.cx()).await?)];
    asked.push(("another control plane", other.backend.identity(&other.cx()).await?));
    if let Some(reopen) = &subject.profile.reopen {
        asked.push(("another backend on the same provider", reopen().identity(&subject.cx()).await?));
    }
    for (who, identity) in asked {
        ensure!(identity == first, "{who} is told {identity:?}, before it was {first:?}");
    }
    Ok(())
}
