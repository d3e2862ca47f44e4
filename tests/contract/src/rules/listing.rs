//! 8. `list` yields everything of this control plane, and nothing of another.

use std::collections::BTreeSet;

use futures::{StreamExt, TryStreamExt, stream};
use provisioner_core::{
    Error, ErrorKind,
    types::{DataSource, Observed, OwnedKind, Phase, Target},
};

use crate::{
    Failure, Subject, Verb,
    failure::{During, Outcome, ensure},
    subject::shown,
};

/// Running, asleep, suspended: each once, as an instance, with its data and what is seen of it.
pub(super) async fn list_yields_every_instance_as_it_is(subject: Subject) -> Outcome {
    let mut expected = Vec::new();
    for verbs in [&[Verb::Create][..], &[Verb::Create, Verb::Zero], &[Verb::Create, Verb::Suspend]] {
        expected.push((subject.after(verbs).await?, verbs.last().and_then(|verb| verb.end())));
    }
    let listed = subject.list().await?;
    ensure!(listed.len() == expected.len(), "{} things are listed, expected {}", listed.len(), expected.len());
    for (target, phase) in &expected {
        let Some(owned) = listed.iter().find(|owned| owned.id == target.id) else {
            return Err(Failure::new(format!("an instance that is {} is not listed", phase.expect("a phase"))));
        };
        ensure!(owned.kind == OwnedKind::Instance, "an instance is listed as {:?}", owned.kind);
        ensure!(owned.incarnation == target.incarnation, "listed under incarnation {}", owned.incarnation);
        ensure!(owned.observed.phase() == *phase, "listed as {}, expected {phase:?}", shown(&owned.observed));
        let data = owned.data.as_ref();
        ensure!(data.is_none_or(|data| data == target.data.id()), "listed with other data");
    }
    Ok(())
}

/// What the store forgot is listed by its owner mark, and what is listed is enough to remove it.
pub(super) async fn what_list_yields_is_enough_to_remove_what_the_store_forgot(subject: Subject) -> Outcome {
    for verbs in [&[Verb::Create][..], &[Verb::Create, Verb::Suspend]] {
        drop(subject.after(verbs).await?);
    }
    let target = subject.after(&[Verb::Create]).await?;
    subject.reach(Verb::Destroy(provisioner_core::types::DataDisposition::Retain), &target).await?;
    drop(target);
    let listed = subject.list().await?;
    ensure!(listed.len() == 3, "{} of three things that the store forgot are listed", listed.len());
    subject.clean_up().await?;
    let left = subject.list().await?;
    ensure!(left.is_empty(), "removed, and still listed: {left:?}");
    Ok(())
}

/// Two control planes use the same ids and incarnations; neither sees what the other has.
pub(super) async fn two_control_planes_do_not_see_each_other(subject: Subject) -> Outcome {
    let other = subject.neighbour();
    let target = subject.running().await?;
    let retained = subject.after(&[Verb::Create]).await?;
    subject.reach(Verb::Destroy(provisioner_core::types::DataDisposition::Retain), &retained).await?;
    let listed = other.list().await?;
    ensure!(listed.is_empty(), "another control plane's things are listed: {listed:?}");
    let seen = other.look(&target).await?;
    ensure!(seen == Observed::Absent, "another control plane's instance is {}", shown(&seen));
    let many = other.backend.observe_many(&other.cx_of(&target), std::slice::from_ref(&target)).await;
    for seen in many {
        let seen = seen?;
        ensure!(seen == Observed::Absent, "observe_many sees another control plane's instance {}", shown(&seen));
    }
    // The same names, and things of their own.
    let own = Target { data: other.target().data, ..target.clone() };
    other.reach(Verb::Create, &own).await?;
    other.reach(Verb::Zero, &own).await?;
    let seen = subject.look(&target).await?;
    ensure!(seen.phase() == Some(Phase::Running), "after another control plane's zero it is {}", shown(&seen));
    for (plane, count) in [(&subject, 2), (&other, 1)] {
        let listed = plane.list().await?.len();
        ensure!(listed == count, "{listed} things are listed, expected {count}");
    }
    Ok(())
}

/// No verb of one control plane reaches what another has.
pub(super) async fn two_control_planes_do_not_touch_each_other(subject: Subject) -> Outcome {
    let other = subject.neighbour();
    let target = subject.running().await?;
    let retained = subject.running().await?;
    subject.reach(Verb::Destroy(provisioner_core::types::DataDisposition::Retain), &retained).await?;
    for verb in [Verb::Suspend, Verb::Zero, Verb::Resume, Verb::DESTROY] {
        let seen = other.call(verb, &target).await.during(verb)?;
        let nothing = matches!(seen, Observed::Absent | Observed::Unknown { .. });
        ensure!(nothing, "{verb} of another control plane's instance is {}", shown(&seen));
    }
    // Asleep, no use of it is in the way.
    for data in [target.data.id(), retained.data.id()] {
        match other.backend.delete_data(&other.cx(), data).await {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::Conflict => {}
            Err(error) => return Err(error.into()),
        }
    }
    let data = DataSource::Existing(retained.data.id().clone());
    let thief = Target { data, tenant: retained.tenant.clone(), ..other.target() };
    match other.call(Verb::Create, &thief).await {
        Err(error) if matches!(error.kind(), ErrorKind::DataMissing | ErrorKind::Conflict) => {}
        answer => return Err(Failure::new(format!("another control plane's data is given away: {answer:?}"))),
    }
    let seen = subject.look(&target).await?;
    ensure!(seen.phase() == Some(Phase::Running), "after another control plane's verbs it is {}", shown(&seen));
    let listed = subject.list().await?;
    ensure!(listed.len() == 2, "after another control plane's verbs {} of two things are listed", listed.len());
    subject.reach(Verb::Zero, &target).await?;
    subject.reach(Verb::Resume, &target).await.during("after another control plane's verbs")?;
    Ok(())
}

/// Those that stay are listed once each, while others come and go between the pages.
pub(super) async fn two_hundred_are_listed_in_pages_while_others_come_and_go(subject: Subject) -> Outcome {
    let many = subject.profile.many;
    let made = (0..many).map(|_| subject.after(&[Verb::Create, Verb::Zero]));
    let stay: Vec<Target> = stream::iter(made.collect::<Vec<_>>()).buffer_unordered(16).try_collect().await?;
    let go = subject.running().await?;
    subject.settle().await;
    let mut listing = subject.backend.list(&subject.cx());
    let mut listed = Vec::new();
    let mut came = Vec::new();
    while let Some(owned) = listing.next().await {
        listed.push(owned?);
        match listed.len() {
            3 => came.push(subject.running().await?),
            5 => drop(subject.reach(Verb::DESTROY, &go).await?),
            7 => drop(subject.reach(Verb::DESTROY, &came[0]).await?),
            9 => came.push(subject.running().await?),
            _ => {}
        }
    }
    let ids: BTreeSet<_> = listed.iter().map(|owned| (&owned.id, owned.incarnation)).collect();
    let missing = stay.iter().filter(|target| !ids.contains(&(&target.id, target.incarnation))).count();
    ensure!(missing == 0, "{missing} of {many} that were there all the time are not listed");
    ensure!(ids.len() == listed.len(), "{} are listed twice", listed.len() - ids.len());
    ensure!(listed.len() <= many + 3, "{} are listed of {}", listed.len(), many + 3);
    let again: Result<Vec<_>, Error> =
        subject.backend.list(&subject.cx()).collect::<Vec<_>>().await.into_iter().collect();
    let again = again?.len();
    ensure!(again == many + 1, "afterwards {again} are listed, expected {}", many + 1);
    Ok(())
}
