//! Removing an instance, and data that nobody uses.

use provisioner_account::{During, Failure, until};
use provisioner_core::{
    Effect, ErrorKind, OpContext, Result, Retry,
    types::{DataDisposition, DataId, Observed},
};
use tokio::time::Instant;

use super::{SHOWN_AGAIN, Work};
use crate::{
    backend::Shared,
    digest::{Share, Site},
    names, plans,
    seen::Seen,
    writes::Write,
};

impl Work<'_> {
    pub(crate) async fn destroy(&self, data: DataDisposition) -> Result<Observed> {
        // Another making may take the share up while this one waits for its turn.
        let _data = self.data_turn().await?;
        let mut seen = self.look_wholly().await?;
        // Of somebody else's, this making has no say.
        let mut share = seen.share.take().filter(|share| share.owner.incarnation == self.incarnation());
        // First what is to become of the data: when the site is gone nothing else would tell.
        if let Some(share) = &mut share {
            self.mark(share, data).await?;
        }
        seen.share.clone_from(&share);
        if let Some(site) = seen.site.clone() {
            self.delete_site(&mut seen, &site).await?;
        } else {
            self.clear_plan(&self.site_name(), None).await;
        }
        if let Some(share) = share.filter(|share| share.ending.is_some()) {
            self.delete_share(&mut seen, &share).await?;
        }
        self.answer(&seen).await
    }

    /// A share that is there is whole, also where its removal was cut: who wants it retained by now has it.
    async fn mark(&self, share: &mut Share, data: DataDisposition) -> Result<()> {
        let own = Some(self.incarnation());
        match data {
            DataDisposition::Delete if share.ending == own => Ok(()),
            DataDisposition::Delete => self.note(share, |share| share.ending = own).await,
            DataDisposition::Retain if share.released == own && share.making.is_none() && share.ending.is_none() => {
                Ok(())
            }
            DataDisposition::Retain => {
                self.note(share, |share| (share.released, share.making, share.ending) = (own, None, None)).await
            }
        }
    }

    /// Deletes a site, and its plan if that is empty then.
    pub(super) async fn delete_site(&self, seen: &mut Seen, site: &Site) -> Result<()> {
        let shared = self.shared;
        {
            let _turn = self.turn_at(site).await?;
            shared.group.delete_site(self.cx, &site.name).await.map_err(|failure| self.writing(failure))?;
            self.wrote();
            self.writing.note(Write::SiteGone);
        }
        shared.prober.begin_again(&site.name);
        seen.site = None;
        self.clear_plan(&site.name, plans::name_of(&site.plan)).await;
        Ok(())
    }

    /// A site is not in its plan any more, or was not made.
    pub(super) async fn clear_plan(&self, site: &str, plan: Option<&str>) {
        let Shared { plans, group, config, .. } = &**self.shared;
        plans.clear(self.cx, group, config, site, plan).await;
    }

    pub(super) async fn delete_share(&self, seen: &mut Seen, share: &Share) -> Result<()> {
        self.shared.group.delete_share(self.cx, &share.name).await.map_err(|failure| self.writing(failure))?;
        self.wrote();
        self.writing.note(Write::ShareGone);
        seen.share = None;
        Ok(())
    }
}

/// Deletes retained data.
pub(crate) async fn delete_data(shared: &Shared, cx: &OpContext, data: &DataId) -> Result<()> {
    let during = During { operation: "delete data", instance: None };
    let reading = |failure: Failure| failure.during(during, false);
    let name = names::share(&cx.control_plane, data);
    let turn = shared.data.take(data.clone(), cx).await;
    let _turn = turn.map_err(|why| reading(Failure::not_sent(why, "a share")))?;
    let Some(share) = shared.group.share(cx, &name).await.map_err(reading)? else { return Ok(()) };
    let user = &share.owner;
    let site = names::site(&cx.control_plane, &user.instance, user.incarnation);
    let is_used = shared.group.site_now(cx, &site).await.map_err(reading)?.is_some();
    if is_used || share.making.is_some() {
        // One that is being taken up may be let go again.
        let retry = if is_used { Retry::Never } else { Retry::Backoff };
        let error = during.error(ErrorKind::Conflict).with_field("data").with_retry(retry);
        return Err(error.with_message(format!("the site {site} uses it")));
    }
    shared.group.delete_share(cx, &name).await.map_err(|failure| failure.during(during, true))?;
    // It is said to be gone when it is seen to be.
    let shown_by = Instant::now() + shared.config.settling;
    while shared.group.share(cx, &name).await.map_err(|failure| failure.during(during, true))?.is_some() {
        if Instant::now() >= shown_by || cx.deadline.is_some_and(|deadline| deadline <= Instant::now()) {
            let error = during.error(ErrorKind::Timeout).with_effect(Effect::Unknown);
            return Err(error.with_message("its share is shown still"));
        }
        tokio::select! {
            () = tokio::time::sleep(SHOWN_AGAIN) => {}
            () = until(cx.deadline) => {}
            () = cx.cancel.cancelled() => return Err(during.error(ErrorKind::Cancelled).with_effect(Effect::Unknown)),
        }
    }
    Ok(())
}
