//! 0. What the trait says beside its numbered rules: `capabilities`, `validate`, `maintain`.

use std::collections::BTreeSet;

use provisioner_core::{
    ErrorKind,
    types::{Egress, InstanceSpec},
};

use crate::{
    Ability, Failure, Refusal, Subject, Verb,
    failure::{During, Outcome, ensure},
    subject::shown,
};

/// The same for the life of the backend.
pub(super) async fn capabilities_are_constant(subject: Subject) -> Outcome {
    let first = subject.backend.capabilities();
    ensure!(!first.call_max.is_zero(), "no call can have an effect within call_max of zero");
    let target = subject.running().await?;
    ensure!(subject.backend.capabilities() == first, "after a create the capabilities differ");
    subject.reach(Verb::DESTROY, &target).await?;
    ensure!(subject.backend.capabilities() == first, "after a destroy the capabilities differ");
    if let Some(reopen) = &subject.profile.reopen {
        ensure!(reopen().capabilities() == first, "another backend on the same provider has other capabilities");
    }
    Ok(())
}

/// Whoever trusts a bound relies on it.
pub(super) async fn instances_are_kept_apart_as_capabilities_tell(subject: Subject) -> Outcome {
    let told = subject.backend.capabilities().isolation;
    for verbs in [&[Verb::Create][..], &[Verb::Create, Verb::Zero, Verb::Resume]] {
        let target = subject.after(verbs).await?;
        let seen = subject.outsider().isolation(&subject.owner, &target).await?;
        ensure!(seen == told, "capabilities tell {told:?}, and it has {seen:?}");
    }
    Ok(())
}

/// Changes to a good spec that are wrong everywhere, and the field that each of them spoils.
fn spoiled(subject: &Subject) -> Vec<(&'static str, InstanceSpec)> {
    type Spoil = fn(&mut InstanceSpec);
    let always: [(&str, Spoil); 6] = [
        ("size.memory_mib", |spec| spec.size.memory_mib = 0),
        ("size.cpu_millis", |spec| spec.size.cpu_millis = 0),
        ("data.size_mib", |spec| spec.data.size_mib = 0),
        ("workload.version", |spec| spec.workload.version = String::new()),
        ("workload.health_path", |spec| spec.workload.health_path = "relative".into()),
        ("workload.start_timeout_seconds", |spec| spec.workload.start_timeout_seconds = 0),
    ];
    let mut spoiled = Vec::new();
    for (field, spoil) in always {
        let mut spec = (subject.profile.spec)("1.0");
        spoil(&mut spec);
        spoiled.push((field, spec));
    }
    if !subject.backend.capabilities().egress {
        let mut spec = (subject.profile.spec)("1.0");
        spec.egress = Egress::Only(BTreeSet::new());
        spoiled.push(("egress", spec));
    }
    let max = subject.backend.capabilities().size_max;
    for (field, max) in
        [("size.memory_mib", max.memory_mib), ("size.cpu_millis", max.cpu_millis), ("data.size_mib", max.data_mib)]
    {
        let Some(beyond) = max.checked_add(1) else { continue };
        let mut spec = (subject.profile.spec)("1.0");
        match field {
            "size.memory_mib" => spec.size.memory_mib = beyond,
            "size.cpu_millis" => spec.size.cpu_millis = beyond,
            _ => spec.data.size_mib = beyond,
        }
        spoiled.push((field, spec));
    }
    spoiled
}

/// Wrong values are refused by name, good ones are not, and the customer may read why.
pub(super) async fn validate_names_the_field(subject: Subject) -> Outcome {
    let good = (subject.profile.spec)("1.0");
    subject.backend.validate(&good, None).during("a good spec")?;
    let changed = (subject.profile.spec)("2.0");
    subject.backend.validate(&changed, Some(&good)).during("a new version")?;
    for (field, spec) in spoiled(&subject) {
        let Err(error) = subject.backend.validate(&spec, None) else {
            return Err(Failure::new(format!("a wrong {field} is accepted")));
        };
        ensure!(error.kind() == ErrorKind::InvalidSpec, "a wrong {field} is refused as {error}");
        ensure!(error.field() == Some(field), "a wrong {field} is told as {:?}: {error}", error.field());
    }
    Ok(())
}

/// It answers the same whether the provider can be reached or not, and calls nothing.
pub(super) async fn validate_and_capabilities_ask_nobody(subject: Subject) -> Outcome {
    let good = (subject.profile.spec)("1.0");
    let ways = [
        (Ability::Hang, Refusal::Hang),
        (Ability::Rights, Refusal::Rights),
        (Ability::Unreachable, Refusal::Unreachable),
        (Ability::Throttle, Refusal::Throttled { after: std::time::Duration::from_secs(1) }),
    ];
    let calls = subject.profile.can(Ability::Calls);
    let before = if calls { subject.outsider().calls().await? } else { 0 };
    let capabilities = subject.backend.capabilities();
    for (_, refusal) in ways.into_iter().filter(|(ability, _)| subject.profile.can(*ability)) {
        subject.outsider().refuse(Some(refusal)).await?;
        let same = subject.backend.capabilities() == capabilities;
        let answer = subject.backend.validate(&good, Some(&good));
        let refused = spoiled(&subject).into_iter().all(|(_, spec)| subject.backend.validate(&spec, None).is_err());
        subject.outsider().refuse(None).await?;
        answer.during(format_args!("validate, {refusal:?}"))?;
        ensure!(same && refused, "with {refusal:?} validate and capabilities answer otherwise");
    }
    if calls {
        let made = subject.outsider().calls().await? - before;
        ensure!(made == 0, "validate and capabilities made {made} calls");
    }
    Ok(())
}

/// Upkeep that is asked for its plan only changes nothing, and in earnest it hurts nothing that is in use.
pub(super) async fn maintain_plans_without_acting_and_hurts_nothing(subject: Subject) -> Outcome {
    let running = subject.running().await?;
    let asleep = subject.after(&[Verb::Create, Verb::Zero]).await?;
    for plan_only in [true, true, false] {
        let inventory = subject.profile.can(Ability::Inventory);
        let before = if inventory { subject.outsider().inventory(&subject.owner).await? } else { Vec::new() };
        subject.backend.maintain(&subject.cx(), plan_only).await?;
        if inventory && plan_only {
            let after = subject.outsider().inventory(&subject.owner).await?;
            ensure!(after == before, "asked for its plan only, it left {after:?} of {before:?}");
        }
        for (target, verb) in [(&running, Verb::Create), (&asleep, Verb::Zero)] {
            let seen = subject.at_rest(target).await?;
            ensure!(verb.is_reached(target, &seen), "after upkeep (plan only: {plan_only}) it is {}", shown(&seen));
            subject.expect_things(target, 1).await?;
        }
    }
    Ok(())
}
