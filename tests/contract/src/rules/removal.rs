//! 6. `destroy` removes everything, and is done only when absence was observed.

use provisioner_core::{
    Error, ErrorKind,
    types::{DataDisposition, Observed, Phase},
};

use crate::{
    Ability, Subject, Verb,
    failure::{During, Outcome, ensure},
    subject::shown,
};

/// With either disposition, of what never was and of what is gone.
pub(super) async fn destroy_of_absent_succeeds(subject: Subject) -> Outcome {
    for data in [DataDisposition::Delete, DataDisposition::Retain] {
        let verb = Verb::Destroy(data);
        let target = subject.target();
        subject.call(verb, &target).await.during("of what never was")?;
        subject.reach(verb, &target).await.during("of what never was")?;
        subject.expect_things(&target, 0).await?;
        let target = subject.after(&[Verb::Create, Verb::DESTROY]).await?;
        subject.call(verb, &target).await.during("of what is gone")?;
        subject.reach(verb, &target).await.during("of what is gone")?;
        subject.expect_things(&target, 0).await?;
    }
    Ok(())
}

/// From being made, running, updated, asleep, suspended, on its way out; and died, where somebody can kill it.
pub(super) async fn destroy_from_any_state_leaves_nothing(subject: Subject) -> Outcome {
    let ways: [(&str, &[Verb]); 7] = [
        ("being made", &[]),
        ("running", &[Verb::Create]),
        ("asleep", &[Verb::Create, Verb::Zero]),
        ("suspended", &[Verb::Create, Verb::Suspend]),
        ("being waked", &[Verb::Create, Verb::Suspend]),
        ("on its way out", &[Verb::Create]),
        ("dead", &[Verb::Create]),
    ];
    for (state, verbs) in ways {
        let target = subject.after(verbs).await.during(state)?;
        match state {
            "being made" => drop(subject.call(Verb::Create, &target).await?),
            "being waked" => drop(subject.call(Verb::Resume, &target).await?),
            "on its way out" => drop(subject.call(Verb::DESTROY, &target).await?),
            "dead" if subject.profile.can(Ability::Kill) => {
                subject.outsider().kill(&subject.owner, &target).await.during(state)?;
            }
            _ => {}
        }
        subject.reach(Verb::DESTROY, &target).await.during(state)?;
        let seen = subject.look(&target).await?;
        ensure!(seen == Observed::Absent, "destroyed while {state}, it is {}", shown(&seen));
        subject.expect_things(&target, 0).await.during(state)?;
        let listed = subject.list().await?;
        ensure!(listed.is_empty(), "destroyed while {state}, it is still listed: {:?}", listed[0]);
    }
    if subject.profile.can(Ability::Inventory) {
        let left = subject.outsider().inventory(&subject.owner).await?;
        ensure!(left.is_empty(), "destroyed, and still there: {}", left.join("; "));
    }
    Ok(())
}

/// Whenever `destroy` or `observe` says absent, nothing is there.
pub(super) async fn absent_is_said_only_when_nothing_is_there(subject: Subject) -> Outcome {
    for verbs in [&[Verb::Create][..], &[Verb::Create, Verb::Zero]] {
        let target = subject.after(verbs).await?;
        let mut answer = subject.call(Verb::DESTROY, &target).await?;
        loop {
            let sight = subject.outsider().sight(&subject.owner, &target).await?;
            if answer == Observed::Absent {
                ensure!(sight.made == 0 && sight.awake == 0, "it is said to be absent, and there is {sight:?}");
                break;
            }
            if let Observed::Present(present) = &answer {
                ensure!(present.phase == Phase::Destroying, "on its way out it is {}", shown(&answer));
            }
            subject.settle().await;
            answer = subject.look(&target).await?;
        }
    }
    Ok(())
}

/// A removal that gets stuck says why, and goes on when what blocked it is gone.
pub(super) async fn what_blocks_a_removal_is_named(subject: Subject) -> Outcome {
    let target = subject.running().await?;
    subject.outsider().block(&subject.owner, &target, true).await?;
    let answer = subject.call(Verb::DESTROY, &target).await;
    let told = answer.as_ref().is_err_and(|error| error.kind() != ErrorKind::Timeout && says_why(error));
    let named = || async {
        let seen = subject.look(&target).await?;
        ensure!(seen != Observed::Absent, "what is blocked is said to be absent");
        Ok(told || seen.present().is_some_and(|present| present.reason.is_some()))
    };
    let named = subject.until("what blocks the removal is named", named).await;
    subject.outsider().block(&subject.owner, &target, false).await?;
    named?;
    subject.reach(Verb::DESTROY, &target).await?;
    subject.expect_things(&target, 0).await
}

/// Id, incarnation and data are enough: the store may have forgotten the rest.
pub(super) async fn destroy_works_from_id_incarnation_and_data_alone(subject: Subject) -> Outcome {
    for verbs in [&[Verb::Create][..], &[Verb::Create, Verb::Suspend]] {
        let target = subject.after(verbs).await?;
        let data = Some(target.data.id().clone());
        let forgotten = subject.forgotten(target.id.clone(), target.incarnation, data);
        subject.reach(Verb::DESTROY, &forgotten).await?;
        subject.expect_things(&target, 0).await?;
        let listed = subject.list().await?;
        ensure!(listed.is_empty(), "its data is still there: {listed:?}");
    }
    Ok(())
}

/// Whether an error says more than its operation, instance and kind.
fn says_why(error: &Error) -> bool {
    let text = error.to_string();
    text.split_once(error.kind().as_str()).is_some_and(|(_, why)| !why.is_empty())
}
