//! Putting an instance to rest: asleep, or suspended.

use provisioner_core::{Result, types::Observed};

use super::Work;
use crate::digest::Intended;

impl Work<'_> {
    pub(crate) async fn rest(&self, intended: Intended) -> Result<Observed> {
        let mut seen = self.look().await?;
        if let Some(site) = &mut seen.site {
            // First what it is meant to be: one that was stopped by nobody knows whom would be started again.
            if site.intended != intended {
                self.intend(site, intended).await?;
            }
            if site.is_running {
                self.tell_site(site, "stop").await?;
            }
        } else if let Some(share) = &mut seen.share
            && share.making == Some(self.incarnation())
        {
            // One that never came up is not waited for. It is made when it wakes, on this share.
            self.note(share, |share| share.making = None).await?;
        }
        self.answer(&seen).await
    }
}
