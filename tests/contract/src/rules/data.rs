//! 6. What becomes of data, and who may have it again. 3. Data that is missing.

use provisioner_core::{
    Effect, Error, ErrorKind, Retry,
    types::{DataDisposition, DataId, DataSource, Observed, Owned, OwnedKind, Phase, Target},
};

use crate::{
    Ability, Failure, Subject, Verb,
    failure::{During, Outcome, ensure},
    subject::{random, shown},
};

const RETAIN: Verb = Verb::Destroy(DataDisposition::Retain);

/// The listed data of this id.
async fn listed_data(subject: &Subject, data: &DataId) -> Outcome<Option<Owned>> {
    let listed = subject.list().await?;
    let found = listed.into_iter().find(|owned| owned.kind == OwnedKind::Data && owned.data.as_ref() == Some(data));
    Ok(found)
}

/// A new instance of the same tenant on the data of another one.
fn heir(subject: &Subject, of: &Target) -> Target {
    let data = DataSource::Existing(of.data.id().clone());
    Target { data, tenant: of.tenant.clone(), ..subject.target() }
}

fn refused(answer: Result<Observed, Error>, kind: ErrorKind, what: &str) -> Outcome {
    match answer {
        Ok(seen) => Err(Failure::new(format!("{what} is accepted: {}", shown(&seen)))),
        Err(error) => {
            ensure!(error.kind() == kind, "{what} is refused as {error}, expected {kind}");
            ensure!(error.retry() == Retry::Never, "{what} is refused, to be retried: {error}");
            ensure!(error.effect() == Effect::None, "{what} is refused, and may have acted: {error}");
            Ok(())
        }
    }
}

/// Deleted data is not listed, and cannot be taken up again.
pub(super) async fn data_is_deleted_when_told(subject: Subject) -> Outcome {
    let target = subject.running().await?;
    subject.reach(Verb::DESTROY, &target).await?;
    let listed = subject.list().await?;
    ensure!(listed.is_empty(), "destroyed with its data, it is still listed: {listed:?}");
    let answer = subject.call(Verb::Create, &heir(&subject, &target)).await;
    refused(answer, ErrorKind::DataMissing, "taking deleted data up")
}

/// Retained data is listed as data, with its id and whose it was.
pub(super) async fn retained_data_is_listed_as_data_with_its_id(subject: Subject) -> Outcome {
    let target = subject.running().await?;
    let data = target.data.id().clone();
    ensure!(listed_data(&subject, &data).await?.is_none(), "data in use is listed as retained");
    subject.reach(RETAIN, &target).await?;
    let Some(owned) = listed_data(&subject, &data).await? else {
        return Err(Failure::new("the retained data is not listed"));
    };
    ensure!(owned.id == target.id, "the retained data is listed under {}, and was {}'s", owned.id, target.id);
    ensure!(owned.incarnation == target.incarnation, "the retained data is listed under another incarnation");
    ensure!(owned.observed.phase() == Some(Phase::Zero), "retained data is {}", shown(&owned.observed));
    let things = subject.list().await?.len();
    ensure!(things == 1, "{things} things are listed, expected the data alone");
    Ok(())
}

/// A later instance of the same tenant gets retained data, with what the customer wrote.
pub(super) async fn retained_data_is_taken_up_by_a_later_instance_of_the_tenant(subject: Subject) -> Outcome {
    let target = subject.running().await?;
    let notes = subject.profile.can(Ability::Notes);
    if notes {
        subject.outsider().write_note(&subject.owner, &target, "for later").await?;
    }
    subject.reach(RETAIN, &target).await?;
    let heir = heir(&subject, &target);
    subject.reach(Verb::Create, &heir).await?;
    if notes {
        let read = subject.outsider().read_note(&subject.owner, &heir).await?;
        ensure!(read.as_deref() == Some("for later"), "on the retained data the note reads {read:?}");
    }
    let retained = listed_data(&subject, target.data.id()).await?;
    ensure!(retained.is_none(), "data that is in use again is listed as retained");
    // The one before has no say any more.
    subject.reach(Verb::DESTROY, &target).await?;
    subject.reach(Verb::Zero, &heir).await?;
    subject.reach(Verb::Resume, &heir).await.during("after a late destroy of the one before")?;
    subject.expect_things(&heir, 1).await
}

/// Nobody gets another tenant's data.
pub(super) async fn retained_data_is_refused_to_another_tenant(subject: Subject) -> Outcome {
    let target = subject.running().await?;
    subject.reach(RETAIN, &target).await?;
    for fresh in [false, true] {
        let id = target.data.id().clone();
        let data = if fresh { DataSource::Fresh(id) } else { DataSource::Existing(id) };
        let thief = Target { data, ..subject.target() };
        refused(subject.call(Verb::Create, &thief).await, ErrorKind::Conflict, "taking another tenant's data up")?;
        subject.expect_things(&thief, 0).await?;
    }
    ensure!(listed_data(&subject, target.data.id()).await?.is_some(), "the data is gone after it was refused");
    Ok(())
}

/// Data that is in use, awake or asleep, is given to nobody, and cannot be deleted.
pub(super) async fn data_in_use_is_given_to_nobody_and_not_deleted(subject: Subject) -> Outcome {
    for asleep in [None, Some(Verb::Zero)] {
        let target = subject.running().await?;
        if let Some(asleep) = asleep {
            subject.reach(asleep, &target).await?;
        }
        let second = heir(&subject, &target);
        refused(subject.call(Verb::Create, &second).await, ErrorKind::Conflict, "taking up data in use")?;
        subject.expect_things(&second, 0).await?;
        let answer = subject.backend.delete_data(&subject.cx(), target.data.id()).await;
        refused(answer.map(|()| Observed::Absent), ErrorKind::Conflict, "deleting data in use")?;
        // Nor does the destroy of one who never had it take it away.
        subject.reach(Verb::DESTROY, &second).await?;
        subject.reach(Verb::Zero, &target).await?;
        subject.reach(Verb::Resume, &target).await.during("on data that others were refused")?;
    }
    Ok(())
}

/// Existing data that is not there is `DataMissing`; nothing is made, least of all empty data.
pub(super) async fn create_on_missing_data_is_refused_and_makes_nothing(subject: Subject) -> Outcome {
    let data = DataSource::Existing(DataId::from_random(random()));
    let target = Target { data, ..subject.target() };
    for _ in 0..2 {
        let answer = subject.call(Verb::Create, &target).await;
        refused(answer, ErrorKind::DataMissing, "starting on data that is not there")?;
        let seen = subject.look(&target).await?;
        ensure!(seen == Observed::Absent, "refused, it is {}", shown(&seen));
        let listed = subject.list().await?;
        ensure!(listed.is_empty(), "refused, and there is something: {listed:?}");
    }
    Ok(())
}

/// Data that somebody deleted is missed by `create` and `resume`, and never replaced by an empty start.
pub(super) async fn data_deleted_behind_our_back_is_missed_and_never_blank(subject: Subject) -> Outcome {
    let states = Verb::SLEEP.into_iter().flat_map(|asleep| [1, 2].map(|generation| (asleep, generation)));
    let wakes = [(Verb::Create, false), (Verb::Resume, false), (Verb::Resume, true)];
    for ((asleep, generation), (wake, fresh)) in states.flat_map(|state| wakes.map(|wake| (state, wake))) {
        let target = subject.after(&[Verb::Create, asleep]).await?;
        subject.outsider().delete_data(&subject.owner, target.data.id()).await?;
        // It was made before, so it has to be there, however it is called.
        let id = target.data.id().clone();
        let data = if fresh { DataSource::Fresh(id) } else { DataSource::Existing(id) };
        let existing = Target { data, ..subject.at(&target, generation) };
        for _ in 0..2 {
            let answer = subject.call(wake, &existing).await;
            let what = format!("{wake} with generation {generation} after {asleep}, without its data");
            refused(answer, ErrorKind::DataMissing, &what)?;
            let seen = subject.look(&existing).await?;
            ensure!(seen.phase() != Some(Phase::Running), "without its data it runs");
        }
        subject.reach(Verb::DESTROY, &existing).await?;
    }
    Ok(())
}

/// `delete_data` removes retained data, and what is absent too.
pub(super) async fn delete_data_removes_and_of_absent_succeeds(subject: Subject) -> Outcome {
    let target = subject.running().await?;
    let data = target.data.id().clone();
    subject.reach(RETAIN, &target).await?;
    for _ in 0..2 {
        subject.backend.delete_data(&subject.cx(), &data).await?;
        subject.touch(&target);
        ensure!(listed_data(&subject, &data).await?.is_none(), "deleted data is listed");
    }
    let never = DataId::from_random(random());
    subject.backend.delete_data(&subject.cx(), &never).await.during("of what never was")?;
    refused(
        subject.call(Verb::Create, &heir(&subject, &target)).await,
        ErrorKind::DataMissing,
        "taking deleted data up",
    )
}
