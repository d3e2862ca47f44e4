//! What is to be seen of our writes, which the service may not show yet. Each leaves a random word on what it wrote.

use crate::seen::Seen;

/// What a write of ours will look like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Write {
    /// The site shows this word.
    Site(Box<str>),
    /// The site was started or stopped.
    SiteRuns(bool),
    SiteGone,
    /// The share shows this word.
    Share(Box<str>),
    ShareGone,
}

impl provisioner_account::Write for Write {
    type Seen = Seen;

    fn is_told(&self, seen: &Seen) -> bool {
        match self {
            Self::Site(word) => seen.site.as_ref().is_some_and(|site| site.written == *word),
            Self::SiteRuns(runs) => seen.site.as_ref().is_none_or(|site| site.is_running == *runs),
            Self::SiteGone => seen.site.is_none(),
            Self::Share(word) => match &seen.share {
                Some(share) => share.written == *word,
                // A site that is there tells enough: nobody has asked for its share.
                None => seen.site.is_some() && !seen.share_was_read,
            },
            Self::ShareGone => seen.share.is_none(),
        }
    }

    fn is_replaced_by(&self, later: &Self) -> bool {
        match self {
            Self::Site(_) | Self::SiteGone => matches!(later, Self::Site(_) | Self::SiteGone),
            Self::SiteRuns(_) => matches!(later, Self::SiteRuns(_) | Self::SiteGone),
            Self::Share(_) | Self::ShareGone => matches!(later, Self::Share(_) | Self::ShareGone),
        }
    }
}

#[cfg(test)]
mod tests {
    use provisioner_account::Write as _;

    use super::*;

    #[test]
    fn a_later_write_about_the_same_thing_takes_the_place_of_an_earlier_one() {
        let (site, share) = (Write::Site("one".into()), Write::Share("one".into()));
        assert!(site.is_replaced_by(&Write::SiteGone) && Write::SiteRuns(true).is_replaced_by(&Write::SiteGone));
        assert!(!Write::SiteRuns(true).is_replaced_by(&site) && !site.is_replaced_by(&share));
        assert!(share.is_replaced_by(&Write::ShareGone));
    }

    #[test]
    fn what_is_gone_is_told_by_its_absence_and_a_word_by_what_has_it() {
        let nothing = Seen { share_was_read: true, ..Seen::default() };
        assert!(Write::SiteGone.is_told(&nothing) && Write::ShareGone.is_told(&nothing));
        assert!(!Write::Site("one".into()).is_told(&nothing) && !Write::Share("one".into()).is_told(&nothing));
    }
}
