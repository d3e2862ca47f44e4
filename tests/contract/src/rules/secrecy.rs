//! 11. Secrets.

use std::sync::Arc;

use futures::StreamExt;
use provisioner_core::{
    Chain, Effect, Error, ErrorKind,
    types::{DataId, DataSource, Observed, Target, VariableName},
};

use crate::{
    Ability, Failure, Subject, Vault, Verb,
    failure::{During, Outcome, ensure},
    logs::Logs,
    subject::{random, shown},
};

const VARIABLE: &str = "CONTRACT_SECRET";

/// A vault that the subject's calls carry from now on.
fn vault(subject: &Subject) -> Arc<Vault> {
    let vault = Arc::new(Vault::default());
    subject.set_secrets(Arc::clone(&vault) as _);
    vault
}

/// An instance whose spec refers to the secret of this name.
fn with_secret(target: &Target, name: &str) -> Target {
    let mut spec = (*target.spec).clone();
    let reference = format!("vault:{name}").parse().expect("a reference");
    spec.secrets.insert(VariableName::new(VARIABLE).expect("a name"), reference);
    Target { spec: Arc::new(spec), ..target.clone() }
}

/// Each start asks the vault again, and rotated values are taken up.
pub(super) async fn a_secret_is_resolved_through_the_context_for_each_start(subject: Subject) -> Outcome {
    let vault = vault(&subject);
    let target = with_secret(&subject.target(), "token");
    for generation in 1..=2 {
        let value = format!("value-{generation}-{:032x}", random());
        vault.put("token", &value);
        let target = with_secret(&subject.at(&target, generation), "token");
        let asked = vault.asked();
        subject.reach(Verb::Create, &target).await?;
        ensure!(vault.asked() > asked, "the start of generation {generation} did not ask the context's resolver");
        expect_value(&subject, &target, &value).await.during(format_args!("generation {generation}"))?;
    }
    let newest = with_secret(&subject.at(&target, 2), "token");
    subject.reach(Verb::Zero, &newest).await?;
    let value = format!("waked-{:032x}", random());
    vault.put("token", &value);
    let asked = vault.asked();
    subject.reach(Verb::Resume, &newest).await?;
    ensure!(vault.asked() > asked, "the wake did not ask the context's resolver");
    expect_value(&subject, &newest, &value).await.during("after a wake")
}

async fn expect_value(subject: &Subject, target: &Target, value: &str) -> Outcome {
    if subject.profile.can(Ability::Secrets) {
        let environment = subject.outsider().environment(&subject.owner, target).await?;
        let has = environment.get(VARIABLE).map(String::as_str);
        ensure!(has == Some(value), "the product does not have the value that the vault had at its start");
    }
    Ok(())
}

/// The error names it, nothing is made, and with the secret in place it goes on.
pub(super) async fn a_missing_secret_is_an_error_that_names_it_and_does_nothing(subject: Subject) -> Outcome {
    let vault = vault(&subject);
    let target = with_secret(&subject.target(), "not-there");
    let Err(error) = subject.call(Verb::Create, &target).await else {
        return Err(Failure::new("create without a secret that it needs succeeds"));
    };
    let text = Chain(&error).to_string();
    ensure!(text.contains(VARIABLE) || text.contains("not-there"), "the error does not name the secret: {text}");
    ensure!(error.effect() == Effect::None, "without a secret it may have acted: {text}");
    ensure!(error.kind() == ErrorKind::NotFound, "a secret that is not there is {text}");
    ensure!(error.instance() == Some(&target.id), "the error does not say which instance: {text}");
    subject.settle().await;
    let seen = subject.look(&target).await?;
    ensure!(seen == Observed::Absent, "made without its secret, it is {}", shown(&seen));
    // Nor does an update without its secret touch what runs.
    let running = subject.running().await?;
    let update = with_secret(&subject.at(&running, 2), "not-there");
    ensure!(subject.call(Verb::Create, &update).await.is_err(), "an update without its secret succeeds");
    let seen = subject.at_rest(&running).await?;
    let generation = seen.present().map(|present| present.generation);
    ensure!(generation == Some(running.generation), "an update without its secret left it {}", shown(&seen));
    // Nor does a wake.
    subject.reach(Verb::Zero, &running).await?;
    let Err(error) = subject.call(Verb::Resume, &update).await else {
        return Err(Failure::new("resume without a secret that it needs succeeds"));
    };
    ensure!(error.effect() == Effect::None, "resumed without a secret it may have acted: {error}");
    let seen = subject.at_rest(&running).await?;
    ensure!(seen.phase() == Verb::Zero.end(), "a wake without its secret left it {}", shown(&seen));
    vault.put("not-there", "here now");
    subject.reach(Verb::Create, &target).await.during("with the secret in place").map(drop)
}

/// A value that is searched for everywhere.
pub(super) async fn secret_values_appear_nowhere(subject: Subject) -> Outcome {
    let (vault, logs) = (vault(&subject), Logs::listen());
    let canary = format!("canary-{:032x}", random());
    vault.put("token", &canary);
    let target = with_secret(&subject.target(), "token");
    let mut texts: Vec<(String, String)> = Vec::new();
    let mut note = |what: &str, text: String| texts.push((what.to_owned(), text));
    let answer = subject.call(Verb::Create, &target).await;
    note("what create answers", format!("{answer:?}"));
    note("what runs", format!("{:?}", subject.reach(Verb::Create, &target).await?));
    note("the target", format!("{target:?}"));
    note("the context", format!("{:?}", subject.cx_of(&target)));
    for (what, error) in provoked(&subject, &target).await {
        note(&what, format!("{error} {error:?} {} {}", Chain(&error), error.customer_message()));
        note(&what, format!("{:?}", error.to_reason()));
    }
    note("validate", format!("{:?}", subject.backend.validate(&target.spec, Some(&target.spec))));
    note("maintain", format!("{:?}", subject.backend.maintain(&subject.cx(), true).await));
    for verb in [Verb::Zero, Verb::Resume, Verb::Suspend, Verb::Resume] {
        note(verb.operation(), format!("{:?}", subject.reach(verb, &target).await?));
        let listed: Vec<_> = subject.backend.list(&subject.cx()).collect().await;
        note("list", format!("{listed:?}"));
        note("the backend", format!("{} {:?}", subject.backend, subject.backend));
        search(&subject, &canary, verb.operation()).await?;
    }
    if subject.profile.can(Ability::Kill) {
        subject.outsider().kill(&subject.owner, &target).await?;
        let noticed = || async { Ok(!Verb::Create.is_reached(&target, &subject.look(&target).await?)) };
        subject.until("its death is noticed", noticed).await?;
        note("what died", format!("{:?}", subject.look(&target).await?));
    }
    if subject.profile.can(Ability::Inventory) {
        note("the inventory", format!("{:?}", subject.outsider().inventory(&subject.owner).await?));
    }
    search(&subject, &canary, "the end").await?;
    for (what, text) in texts {
        ensure!(!text.contains(&canary), "the secret's value appears in {what}");
    }
    if let Some(line) = logs.find(&canary) {
        return Err(Failure::new(format!("the secret's value is logged: {}", line.replace(&canary, "[SECRET]"))));
    }
    Ok(())
}

async fn search(subject: &Subject, canary: &str, when: &str) -> Outcome {
    if subject.profile.can(Ability::Search) {
        let found = subject.outsider().search(canary).await?;
        ensure!(found.is_empty(), "after {when} the secret's value is to be found in {}", found.join(", "));
    }
    Ok(())
}

/// Errors of calls that carried the secret.
async fn provoked(subject: &Subject, target: &Target) -> Vec<(String, Error)> {
    let older = Target { generation: provisioner_core::types::Generation(0), ..target.clone() };
    let data = DataSource::Existing(DataId::from_random(random()));
    let missing = Target { data: data.clone(), ..with_secret(&subject.target(), "token") };
    let other = Target { data, ..target.clone() };
    let mut errors = Vec::new();
    for (what, target) in [("an older generation", older), ("missing data", missing), ("other data", other)] {
        for verb in Verb::WAKE {
            if let Err(error) = subject.call(verb, &target).await {
                errors.push((format!("the error of {verb} with {what}"), error));
            }
        }
    }
    errors
}

/// Who cannot take secrets says so before anything is accepted, and names the field.
pub(super) async fn secrets_are_refused_where_they_are_not_taken(subject: Subject) -> Outcome {
    let target = with_secret(&subject.target(), "token");
    let field = format!("secrets.{VARIABLE}");
    let validated = subject.backend.validate(&target.spec, None);
    let created = subject.call(Verb::Create, &target).await.map(drop);
    for (what, answer) in [("validate", validated), ("create", created)] {
        let Err(error) = answer else {
            return Err(Failure::new(format!("{what} takes a secret, and the capabilities say none")));
        };
        ensure!(error.kind() == ErrorKind::InvalidSpec, "{what} refuses a secret as {error}");
        ensure!(error.field() == Some(&*field), "{what} names {:?}, expected {field}", error.field());
    }
    let seen = subject.look(&target).await?;
    ensure!(seen == Observed::Absent, "refused, it is {}", shown(&seen));
    Ok(())
}

/// Where the provider resolves secrets itself, their values never come through the context.
pub(super) async fn native_secrets_do_not_pass_through_the_context(subject: Subject) -> Outcome {
    let vault = vault(&subject);
    vault.put("token", "never asked for");
    let target = with_secret(&subject.target(), "token");
    if let Err(error) = subject.backend.validate(&target.spec, None) {
        let field = format!("secrets.{VARIABLE}");
        ensure!(error.kind() == ErrorKind::InvalidSpec, "a reference that is not native is refused as {error}");
        ensure!(error.field() == Some(&*field), "a refused reference is told as {:?}", error.field());
    }
    // The provider may not know it.
    let _ = subject.call(Verb::Create, &target).await;
    let _ = subject.call(Verb::Resume, &target).await;
    ensure!(vault.asked() == 0, "the context's resolver was asked {} times, and secrets are native", vault.asked());
    Ok(())
}
