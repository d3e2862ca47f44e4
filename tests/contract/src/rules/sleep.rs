//! 5. Sleeping releases compute and keeps data.

use provisioner_core::types::Phase;

use crate::{
    Subject, Verb,
    failure::{During, Outcome, ensure},
    subject::shown,
};

/// Nothing of it uses compute once it is said to sleep.
pub(super) async fn what_sleeps_uses_no_compute(subject: Subject) -> Outcome {
    for asleep in Verb::SLEEP {
        let target = subject.running().await?;
        let sight = subject.outsider().sight(&subject.owner, &target).await?;
        ensure!(sight.awake == 1, "{} of its things run while it runs", sight.awake);
        subject.reach(asleep, &target).await?;
        let sight = subject.outsider().sight(&subject.owner, &target).await?;
        ensure!(sight.awake == 0, "it is said to sleep after {asleep}, and {} of its things run", sight.awake);
        ensure!(sight.made == 1, "after {asleep} there are {} things of it", sight.made);
    }
    Ok(())
}

/// What the customer wrote is there after any sleep.
pub(super) async fn data_outlives_sleep(subject: Subject) -> Outcome {
    for asleep in Verb::SLEEP {
        for wake in Verb::WAKE {
            let target = subject.running().await?;
            let note = format!("written before {asleep}");
            subject.outsider().write_note(&subject.owner, &target, &note).await?;
            subject.reach(asleep, &target).await?;
            subject.reach(wake, &target).await?;
            let read = subject.outsider().read_note(&subject.owner, &target).await?;
            ensure!(read.as_ref() == Some(&note), "after {asleep} and {wake} the note {note:?} reads {read:?}");
        }
    }
    Ok(())
}

/// Updates and repeated verbs leave the data as it is.
pub(super) async fn data_outlives_updates_and_repeated_verbs(subject: Subject) -> Outcome {
    let target = subject.running().await?;
    subject.outsider().write_note(&subject.owner, &target, "kept").await?;
    for generation in 1..=3 {
        let newer = subject.at(&target, generation);
        subject.reach(Verb::Create, &newer).await?;
        subject.call(Verb::Create, &newer).await?;
        subject.reach(Verb::Create, &newer).await?;
        let read = subject.outsider().read_note(&subject.owner, &newer).await?;
        ensure!(read.as_deref() == Some("kept"), "at generation {generation} the note reads {read:?}");
    }
    Ok(())
}

/// It answers where it is said to answer, also after a sleep.
pub(super) async fn what_runs_answers_at_its_endpoint(subject: Subject) -> Outcome {
    let target = subject.running().await?;
    let sleeps = Verb::SLEEP.into_iter().flat_map(|asleep| Verb::WAKE.map(|wake| Some((asleep, wake))));
    for slept in [None].into_iter().chain(sleeps) {
        let mut part = "before any sleep".to_owned();
        if let Some((asleep, wake)) = slept {
            part = format!("after {asleep} and {wake}");
            subject.reach(asleep, &target).await?;
            subject.reach(wake, &target).await?;
        }
        let seen = subject.look(&target).await?;
        let endpoint = seen.present().and_then(|present| present.endpoint.clone());
        let Some(endpoint) = endpoint else {
            return Err(crate::Failure::new(format!("{part} it runs and has no endpoint: {}", shown(&seen))));
        };
        subject.outsider().ask(endpoint.as_str()).await.during(format_args!("{endpoint}, {part}"))?;
    }
    Ok(())
}

/// An endpoint belongs to what runs, and to nothing else.
pub(super) async fn only_what_runs_has_an_endpoint(subject: Subject) -> Outcome {
    let target = subject.running().await?;
    for verb in [Verb::Create, Verb::Zero, Verb::Resume, Verb::Suspend] {
        subject.call(verb, &target).await?;
        loop {
            let seen = subject.look(&target).await?;
            let present = seen.present().ok_or_else(|| crate::Failure::new(format!("absent after {verb}")))?;
            let runs = present.phase == Phase::Running;
            ensure!(runs || present.endpoint.is_none(), "it has an endpoint and is {}", shown(&seen));
            if verb.is_reached(&target, &seen) {
                ensure!(!runs || present.endpoint.is_some(), "it runs and has no endpoint");
                break;
            }
            subject.reach(verb, &target).await?;
        }
    }
    Ok(())
}
