//! One rule on one backend.

use std::{any::Any, panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures::FutureExt;

use crate::{Ability, profile::Profile, rules::Rule, subject::Subject};

/// Longer than every deadline within a rule: a rule that takes so long has hung.
const RULE_MAX: u32 = 8;

/// What came of a rule on a backend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The backend keeps it.
    Passed,
    /// The backend breaks it; what was seen.
    Failed(String),
    /// It cannot be tried on this backend, or does not concern it; why.
    Ignored(String),
}

/// Tries a rule on a backend, and cleans up behind it. Needs a tokio runtime with I/O and time.
pub async fn check(rule: &Rule, profile: Arc<Profile>) -> Verdict {
    if let Err(reason) = (rule.needs)(&profile) {
        return Verdict::Ignored(reason);
    }
    let subject = Subject::new(Arc::clone(&profile));
    let kept = limited(&profile, (rule.run)(subject.clone())).await;
    if profile.outsider.is_some() && REFUSALS.iter().any(|ability| profile.can(*ability)) {
        // A rule that failed may have left the provider refusing.
        let _ = subject.outsider().refuse(None).await;
    }
    let cleaned = limited(&profile, subject.clean_up().boxed()).await;
    match (kept, cleaned) {
        (Ok(()), Ok(())) => Verdict::Passed,
        (Err(failure), _) | (Ok(()), Err(failure)) => Verdict::Failed(failure),
    }
}

const REFUSALS: [Ability; 5] =
    [Ability::Throttle, Ability::Capacity, Ability::Rights, Ability::Hang, Ability::Unreachable];

async fn limited(profile: &Profile, run: futures::future::BoxFuture<'_, crate::Outcome>) -> Result<(), String> {
    let limit: Duration = profile.deadline * RULE_MAX;
    match tokio::time::timeout(limit, AssertUnwindSafe(run).catch_unwind()).await {
        Ok(Ok(Ok(()))) => Ok(()),
        Ok(Ok(Err(failure))) => Err(failure.to_string()),
        Ok(Err(panic)) => Err(format!("panicked: {}", text(&*panic))),
        Err(_) => Err(format!("not at its end after {limit:?}: a call hangs")),
    }
}

fn text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("without a text")
}
