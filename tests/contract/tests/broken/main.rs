//! The suite can fail: for each rule there is a backend that is wrong in one way, and the rule catches it.
#![allow(missing_docs)]

#[path = "../support/memory.rs"]
mod memory;

mod cases;
mod flaw;
mod verbs;

use std::{process::ExitCode, sync::Arc, time::Duration};

use cases::{CASES, Case, On};
use flaw::{Broken, Flaw, NEVER_RUNS};
use libtest_mimic::{Arguments, Failed, Trial};
use memory::{Memory, MemoryOutsider};
use provisioner_contract::{Profile, RULES, Rule, Verdict, check};
use provisioner_core::{memory::MemoryProvisioner, types::VariableName};

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(8);
    let mut trials: Vec<_> =
        RULES.iter().map(|rule| Trial::test(format!("catches::{}", rule.name), || caught(rule))).collect();
    trials.push(Trial::test("every_rule_has_a_flaw_and_every_flaw_a_rule", complete));
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// Runs a rule on a sound backend, which passes, and on its broken one, which fails for its flaw.
fn caught(rule: &'static Rule) -> Result<(), Failed> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    for Case(_, on, flaw, words) in CASES.iter().filter(|case| case.0 == rule.name) {
        let verdict = |flaw| runtime.block_on(async { check(rule, Arc::new(profile(on, flaw))).await });
        match verdict(Flaw::Sound) {
            Verdict::Passed => {}
            other => return Err(format!("without a flaw: {other:?}").into()),
        }
        match verdict(*flaw) {
            Verdict::Failed(text) if text.contains(words) => {}
            Verdict::Failed(text) => {
                return Err(format!("{flaw:?} is caught for something else than {words:?}: {text}").into());
            }
            other => return Err(format!("{flaw:?} is not caught: {other:?}").into()),
        }
    }
    Ok(())
}

fn profile(on: &On, flaw: Flaw) -> Profile {
    let memory = if *on == On::Slow { Memory::slow() } else { Memory::instant() };
    let provider = MemoryProvisioner::new(memory.config());
    let outsider = MemoryOutsider {
        provider: provider.clone(),
        is_slow: *on == On::Slow,
        names_by_version: flaw == Flaw::NamesByVersion,
    };
    let broken = Broken::new(provider, flaw, *on);
    let again = broken.clone();
    let mut profile = Profile::new(Arc::new(broken), memory::spec).with_outsider(outsider);
    // What is wrong stays wrong, however long one waits.
    profile.deadline = Duration::from_secs(if flaw == Flaw::Sound { 10 } else { 2 });
    profile.reopen = Some(Box::new(move || Arc::new(again.reopened())));
    profile.slow = (*on == On::Slow).then(|| (memory::spec("1.0"), memory::PACE));
    let mut never = memory::spec("1.0");
    never.environment.insert(VariableName::new(NEVER_RUNS).expect("a name"), "1".to_owned());
    profile.broken = Some(never);
    profile
}

fn complete() -> Result<(), Failed> {
    for rule in RULES {
        if !CASES.iter().any(|case| case.0 == rule.name) {
            return Err(format!("{} has no flaw that it catches", rule.name).into());
        }
    }
    match CASES.iter().find(|case| !RULES.iter().any(|rule| rule.name == case.0)) {
        Some(case) => Err(format!("{} is no rule", case.0).into()),
        None => Ok(()),
    }
}
