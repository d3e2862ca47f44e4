//! One write at a time on a plan and on its sites: another one is refused.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use crate::{answer::Refusal, stand::locked, words};

/// The plans on which a write is under way.
#[derive(Debug)]
pub(crate) struct Locks {
    is_on: bool,
    busy: Mutex<BTreeSet<String>>,
    refused: AtomicU64,
}

impl Locks {
    pub(crate) fn new(is_on: bool) -> Arc<Self> {
        Arc::new(Self { is_on, busy: Mutex::default(), refused: AtomicU64::new(0) })
    }

    /// Locks these plans until what this gives is dropped.
    ///
    /// # Errors
    /// When one of them is locked. Then none is.
    pub(crate) fn take(self: &Arc<Self>, plans: &[&str]) -> Result<Guard, Refusal> {
        let mut guard = Guard { locks: Arc::clone(self), plans: Vec::new() };
        if !self.is_on {
            return Ok(guard);
        }
        let mut busy = locked(&self.busy);
        let wanted: BTreeSet<_> = plans.iter().map(|plan| plan.to_lowercase()).collect();
        if let Some(plan) = wanted.iter().find(|plan| busy.contains(*plan)) {
            return Err(self.refusal(plan));
        }
        busy.extend(wanted.iter().cloned());
        guard.plans = wanted.into_iter().collect();
        Ok(guard)
    }

    /// The real service says it in either way.
    fn refusal(&self, plan: &str) -> Refusal {
        if self.refused.fetch_add(1, Ordering::SeqCst) % 2 == 1 {
            let message = format!(
                "Cannot modify this web hosting plan because another operation is in progress. Details: Id: {}, OperationName: Update, EntityType: 9",
                words::unique()
            );
            return Refusal::conflict("59205", message);
        }
        let message = format!(
            "Cannot acquire exclusive lock to create, update or delete the App Service Plan '{plan}'. Retry the request later."
        );
        // The code is no word. <https://github.com/Azure/azure-functions-host/issues/6244>
        Refusal::new(429, "429", message).capitalised("51025").with_header("retry-after", "1".to_owned())
    }
}

/// Keeps plans locked.
#[derive(Debug)]
pub(crate) struct Guard {
    locks: Arc<Locks>,
    plans: Vec<String>,
}

impl Drop for Guard {
    fn drop(&mut self) {
        let mut busy = locked(&self.locks.busy);
        for plan in &self.plans {
            busy.remove(plan);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_locked_plan_is_refused_in_either_way_until_it_is_free() {
        let locks = Locks::new(true);
        let guard = locks.take(&["A", "b"]).unwrap();
        let refusals = [locks.take(&["a"]), locks.take(&["c", "B"])].map(|it| it.unwrap_err().status);
        assert_eq!(refusals, [429, 409]);
        locks.take(&["c"]).unwrap();
        drop(guard);
        locks.take(&["a", "A"]).unwrap();
    }
}
