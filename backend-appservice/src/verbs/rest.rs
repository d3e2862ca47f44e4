//! Putting an instance to rest: asleep, or suspended.

use provisioner_core::{Result, types::Observed};

use super::Work;
use crate::digest::Intended;

impl Work<'_> {
    pub(crate) async fn rest(&self, intended: Intended) -> Result<Observed> {
        let mut seen = self.look().await?;
        let is_half_made = seen.share.as_ref().is_some_and(|share| share.making == Some(self.incarnation()));
        if seen.site.is_none() && is_half_made {
            // Its site may be on its way: what is not there could not be kept from running when it comes.
            self.make(&mut seen).await?;
        }
        if let Some(site) = &mut seen.site {
            // First what it is meant to be: one that was stopped by nobody knows whom would be started again.
            if site.intended != intended {
                self.intend(site, intended).await?;
            }
            if site.is_running {
                self.tell_site(site, "stop").await?;
            }
        }
        self.answer(&seen).await
    }
}
