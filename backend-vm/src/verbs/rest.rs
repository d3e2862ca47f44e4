//! Putting an instance to rest: asleep, or suspended.

use provisioner_core::{Result, types::Observed};

use super::Work;
use crate::digest::{Intended, State};

impl Work<'_> {
    pub(crate) async fn rest(&self, intended: Intended) -> Result<Observed> {
        let mut seen = self.look().await?;
        if let Some(machine) = seen.living().cloned() {
            for extra in seen.clone().beside(&machine) {
                self.end(&mut seen, extra).await?;
            }
            // First what it is meant to be: a machine that was stopped by nobody knows whom would be started again.
            self.intend(&mut seen, &machine, intended).await?;
            // One that is about to start cannot be stopped yet.
            if machine.state == State::Running {
                self.stop(&mut seen, &machine).await?;
            }
        } else {
            // One that never came up is not waited for.
            self.shared.removes(self.incarnation());
            seen.is_removed = true;
        }
        self.answer(&seen).await
    }
}
