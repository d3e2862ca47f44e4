//! One trial per rule and backend.

use std::{
    process::ExitCode,
    sync::{Arc, OnceLock},
};

use libtest_mimic::{Arguments, Completion, Trial};
use tokio::runtime::Runtime;

use crate::{
    check::{Verdict, check},
    layers::LAYERS,
    profile::{Profile, Setup},
    rules::{RULES, Rule},
};

/// Rules wait more than they compute.
const RULES_AT_ONCE: usize = 8;

/// Tries every rule on a backend: the whole `main` of a test target with `harness = false`.
///
/// # Panics
/// When no runtime can be made.
pub fn main(setup: impl Setup) -> ExitCode {
    Suite::new().with(setup).main()
}

/// Backends to be tried, each of them with every rule.
#[derive(Default)]
pub struct Suite {
    trials: Vec<Trial>,
}

impl std::fmt::Debug for Suite {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Suite").field("trials", &self.trials.len()).finish()
    }
}

impl Suite {
    /// No backend yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The same and this backend.
    #[must_use]
    pub fn with(self, setup: impl Setup) -> Self {
        let setup = Arc::new(setup);
        let name = setup.name();
        self.rules(&name, RULES, move || setup.profile())
    }

    /// The same and this backend, of which the rules of these sections alone are tried: the others are ignored, for this reason.
    #[must_use]
    pub fn with_sections(self, setup: impl Setup, sections: &[u8], reason: &str) -> Self {
        let setup = Arc::new(setup);
        let name = setup.name();
        let (tried, left): (Vec<_>, Vec<_>) = RULES.iter().partition(|rule| sections.contains(&rule.section));
        self.ignored(&name, left, reason).rules(&name, tried, move || setup.profile())
    }

    /// The same and a backend of this name that cannot be tried: each rule is ignored, for this reason.
    #[must_use]
    pub fn without(self, name: &str, reason: &str) -> Self {
        self.ignored(name, RULES, reason)
    }

    fn ignored(mut self, name: &str, rules: impl IntoIterator<Item = &'static Rule>, reason: &str) -> Self {
        self.trials.extend(rules.into_iter().map(|rule| {
            let reason = reason.to_owned();
            Trial::ignorable_test(trial_name(name, rule), move || Ok(Completion::ignored_with(reason)))
        }));
        self
    }

    /// The same and a backend of this name that could not be tried and has to be: that fails, for this reason.
    #[must_use]
    pub fn failed(mut self, name: &str, reason: &str) -> Self {
        let reason = reason.to_owned();
        self.trials
            .push(Trial::test(format!("{name}::00::there_is_a_provider_to_try_it_on"), move || Err(reason.into())));
        self
    }

    /// The same and this backend, by itself and behind every wrapper of [`LAYERS`].
    #[must_use]
    pub fn with_layers(self, setup: impl Setup) -> Self {
        let setup = Arc::new(setup);
        let name = setup.name();
        let own = Arc::clone(&setup);
        let plain = self.rules(&name, RULES, move || own.profile());
        LAYERS.iter().fold(plain, |suite, (layer, wrap)| {
            let setup = Arc::clone(&setup);
            suite.rules(&format!("{name}-{layer}"), RULES, move || {
                let mut profile = setup.profile();
                profile.backend = wrap(profile.backend);
                if let Some(reopen) = profile.reopen.take() {
                    profile.reopen = Some(Box::new(move || wrap(reopen())));
                }
                profile
            })
        })
    }

    fn rules(
        mut self,
        name: &str,
        rules: impl IntoIterator<Item = &'static Rule>,
        profile: impl Fn() -> Profile + Send + Sync + 'static,
    ) -> Self {
        let profile = Arc::new(profile);
        self.trials.extend(rules.into_iter().map(|rule| {
            let (profile, failed) = (Arc::clone(&profile), name.to_owned());
            Trial::ignorable_test(trial_name(name, rule), move || {
                // Dropped here, where what the profile keeps may block.
                let guard = runtime().enter();
                let profile = Arc::new(profile());
                let verdict = runtime().block_on(check(rule, Arc::clone(&profile)));
                drop(profile);
                drop(guard);
                match verdict {
                    Verdict::Passed => Ok(Completion::Completed),
                    Verdict::Failed(text) => {
                        // Also now: the list of all failures comes when the last rule has ended.
                        eprintln!("{}: {text}", trial_name(&failed, rule));
                        Err(text.into())
                    }
                    Verdict::Ignored(reason) => Ok(Completion::ignored_with(reason)),
                }
            })
        }));
        self
    }

    /// Runs the trials that the command line chooses.
    ///
    /// # Panics
    /// When no runtime can be made.
    #[must_use]
    pub fn main(self) -> ExitCode {
        let mut arguments = Arguments::from_args();
        arguments.test_threads.get_or_insert(RULES_AT_ONCE);
        libtest_mimic::run(&arguments, self.trials).exit_code()
    }
}

/// `BACKEND::SECTION::RULE`.
fn trial_name(backend: &str, rule: &Rule) -> String {
    format!("{backend}::{:02}::{}", rule.section, rule.name)
}

fn runtime() -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(4).enable_all().build();
        runtime.expect("a runtime")
    })
}
