//! What is seen of a making, and what follows from it. Pure.

use std::time::Duration;

use provisioner_core::types::{Generation, Incarnation, Observed, Phase, Present, Reason};

use crate::digest::{Intended, Share, Site};

/// What is there of one making.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) site: Option<Site>,
    pub(crate) share: Option<Share>,
    /// Whether the share was asked for: where there is a site, reads do without it.
    pub(crate) share_was_read: bool,
}

/// How a site that runs does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Health {
    Answers,
    /// It has time left.
    Starting(Reason),
    /// It does not answer, and has had its time.
    Silent(Reason),
}

impl Seen {
    /// A site that runs, so that its health counts.
    pub(crate) fn to_check(&self) -> Option<&Site> {
        self.site.as_ref().filter(|site| site.is_running)
    }

    /// What is seen of the making. `health` is that of [`to_check`](Self::to_check), `again` when what moves is looked at.
    pub(crate) fn observed(&self, incarnation: Incarnation, health: Option<Health>, again: Duration) -> Observed {
        let Some(site) = &self.site else { return self.without_site(incarnation, again) };
        let present = |phase| Present::new(phase, generation(site), incarnation);
        let present = match (site.is_running, site.intended, health) {
            (false, Intended::Zero, _) => present(Phase::Zero),
            (false, Intended::Suspended, _) => present(Phase::Suspended),
            (false, Intended::Running, _) => present(Phase::Failed).with_reason(stopped(site)),
            // Also one that was to sleep and is not stopped yet: nothing but another call stops it.
            (true, _, Some(Health::Answers)) => match &site.host {
                Some(host) => present(Phase::Running).with_endpoint(format!("https://{host}")),
                None => present(Phase::Provisioning).look_again(again),
            },
            (true, _, Some(Health::Starting(why))) => present(Phase::Provisioning).with_reason(why).look_again(again),
            (true, _, Some(Health::Silent(why))) => present(Phase::Failed).with_reason(why),
            (true, _, None) => present(Phase::Provisioning).look_again(again),
        };
        present.into()
    }

    fn without_site(&self, incarnation: Incarnation, again: Duration) -> Observed {
        let Some(share) = self.share.as_ref().filter(|share| share.owner.incarnation == incarnation) else {
            return Observed::Absent;
        };
        let present = |phase| Present::new(phase, Generation(0), incarnation).look_again(again);
        if share.ending == Some(incarnation) {
            let reason = Reason::new("share-left", format!("its share {} is to go yet", share.name));
            return present(Phase::Destroying).with_reason(reason).into();
        }
        if share.making == Some(incarnation) {
            return present(Phase::Provisioning).into();
        }
        Observed::Absent
    }
}

/// What is half done is of no generation: whoever called for it calls again.
fn generation(site: &Site) -> Generation {
    if site.has_its_host_names() { site.generation } else { Generation(0) }
}

fn stopped(site: &Site) -> Reason {
    match site.is_over_quota {
        true => Reason::new("quota-exceeded", "the service has stopped it, as it is over a quota of its plan"),
        false => Reason::new("stopped", "somebody has stopped its site"),
    }
}

#[cfg(test)]
mod tests {
    use provisioner_core::types::DataId;

    use super::*;
    use crate::digest::Owner;

    const AGAIN: Duration = Duration::from_secs(1);

    fn owner(incarnation: Incarnation) -> Owner {
        Owner {
            control_plane: "p".parse().unwrap(),
            instance: "a".parse().unwrap(),
            incarnation,
            data: DataId::from_random(1),
            tenant: "t".into(),
        }
    }

    fn site(intended: Intended, is_running: bool) -> Seen {
        let site = Site {
            name: "a-1".into(),
            owner: owner(Incarnation::new(1, 1)),
            generation: Generation(3),
            intended,
            product: None,
            written: "w".into(),
            host_names_wanted: "".into(),
            host_names: Vec::new(),
            is_running,
            is_over_quota: false,
            plan: "/plan".into(),
            host: Some("a.example.com".into()),
            tags: std::collections::BTreeMap::default(),
            location: "r".into(),
            kind: None,
        };
        Seen { site: Some(site), ..Seen::default() }
    }

    #[test]
    fn each_state_of_a_site_is_a_phase() {
        let (making, why) = (Incarnation::new(1, 1), || Reason::new("not-answering", "x"));
        let healths = [None, Some(Health::Answers), Some(Health::Starting(why())), Some(Health::Silent(why()))];
        let phases = |intended, is_running| {
            healths.clone().map(|health| site(intended, is_running).observed(making, health, AGAIN).phase().unwrap())
        };
        let up = [Phase::Provisioning, Phase::Running, Phase::Provisioning, Phase::Failed];
        for intended in [Intended::Running, Intended::Zero, Intended::Suspended] {
            assert_eq!(phases(intended, true), up, "{intended:?}: nothing but another call stops it");
        }
        assert_eq!(phases(Intended::Running, false), [Phase::Failed; 4]);
        let mut over = site(Intended::Running, false);
        over.site.as_mut().unwrap().is_over_quota = true;
        let why = |seen: &Seen| seen.observed(making, None, AGAIN).present().unwrap().reason.clone().unwrap().code;
        assert_eq!((why(&over), why(&site(Intended::Running, false))), ("quota-exceeded".into(), "stopped".into()));
        assert_eq!(phases(Intended::Zero, false), [Phase::Zero; 4]);
        assert_eq!(phases(Intended::Suspended, false), [Phase::Suspended; 4]);
    }

    #[test]
    fn a_share_without_a_site_is_a_beginning_an_end_or_nothing_of_it() {
        let (own, other) = (Incarnation::new(2, 2), Incarnation::new(1, 1));
        let phase = |user, making, ending| {
            let share = Share {
                name: "s".into(),
                owner: owner(user),
                size_gib: 1,
                making,
                released: None,
                ending,
                written: "w".into(),
            };
            Seen { share: Some(share), share_was_read: true, ..Seen::default() }.observed(own, None, AGAIN).phase()
        };
        assert_eq!(phase(own, Some(own), None), Some(Phase::Provisioning));
        assert_eq!(phase(own, Some(own), Some(own)), Some(Phase::Destroying));
        assert_eq!(phase(own, None, None), None, "somebody has deleted its site");
        assert_eq!(phase(other, Some(other), None), None);
    }

    #[test]
    fn a_site_without_all_its_host_names_is_of_no_generation() {
        let mut seen = site(Intended::Running, true);
        seen.site.as_mut().unwrap().host_names_wanted = "digest".into();
        let observed = seen.observed(Incarnation::new(1, 1), Some(Health::Answers), AGAIN);
        assert_eq!(observed.present().unwrap().generation, Generation(0));
    }
}
