//! Which image a spec means: by id, the newest of a pattern, or a launch template's.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use provisioner_account::{Batches, Many};
use provisioner_core::{
    ErrorKind, OpContext,
    types::{InstanceSpec, InvalidSpec},
};
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use crate::{
    calls::{Account, Calls},
    error::Failure,
    fleet,
};

/// How long the newest image of a pattern is taken for the newest.
const NEWEST_FOR: Duration = Duration::from_secs(300);
/// How many images are asked for by one who asks for many.
const NAMES_MAX: usize = 100;
const FIELD: &str = "workload.vm_image";

/// What a machine is made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Image {
    Ami { id: String, root_device: String },
    Template { id: String, version: Option<String> },
}

/// What a spec says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Named<'a> {
    Ami(&'a str),
    Newest { owner: &'a str, pattern: &'a str },
    Template { id: &'a str, version: Option<&'a str> },
}

impl<'a> Named<'a> {
    fn parse(text: &'a str) -> Result<Self, InvalidSpec> {
        if text.starts_with("ami-") {
            return Ok(Self::Ami(text));
        }
        if text.starts_with("lt-") {
            let (id, version) = text.split_once(':').map_or((text, None), |(id, version)| (id, Some(version)));
            return Ok(Self::Template { id, version });
        }
        match text.split_once('/') {
            Some((owner, pattern)) if !owner.is_empty() && !pattern.is_empty() => Ok(Self::Newest { owner, pattern }),
            _ => {
                let problem =
                    "expected ami-..., OWNER/PATTERN such as 099720109477/ubuntu-*-24.04-*, or lt-... with :VERSION";
                Err(InvalidSpec::new(FIELD, problem))
            }
        }
    }
}

/// Whether a spec names an image, without asking for it.
pub(crate) fn check(spec: &InstanceSpec) -> Result<(), InvalidSpec> {
    let named = spec.workload.vm_image.as_deref();
    let named = named.ok_or_else(|| InvalidSpec::new(FIELD, "absent: expected a machine image"))?;
    Named::parse(named).map(drop)
}

/// Images that were asked for before, and what asks for more of them: many who want the same at once ask once.
#[derive(Debug)]
pub(crate) struct Images {
    known: Arc<Known>,
    asked: Batches<String, Image, Failure>,
}

type Known = Mutex<BTreeMap<String, (Image, Option<Instant>)>>;

impl Images {
    pub(crate) fn new(account: &Arc<Account>, tasks: &TaskTracker) -> Self {
        let (account, known) = (Arc::clone(account), Arc::new(Known::default()));
        let kept = Arc::clone(&known);
        let asked = Batches::new(NAMES_MAX, tasks, move |names: BTreeSet<String>, many: Many| {
            let (account, kept) = (Arc::clone(&account), Arc::clone(&kept));
            async move {
                let cx = many.context(fleet::READ_MAX);
                let mut answers = BTreeMap::new();
                for name in names {
                    let image = match known_image(&kept, &name) {
                        Some(image) => Ok(image),
                        None => ask(account.during(&cx), &kept, &name).await,
                    };
                    answers.insert(name, image);
                }
                answers
            }
        });
        Self { known, asked }
    }

    /// Whether it is there now, whatever was known of it before.
    pub(crate) async fn expect(&self, cx: &OpContext, calls: Calls<'_>, text: &str) -> Result<(), Failure> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).remove(text);
        match self.resolve(cx, text).await? {
            Image::Template { id, version } => calls.expect_template(&id, version.as_deref()).await,
            Image::Ami { .. } => Ok(()),
        }
    }

    pub(crate) async fn resolve(&self, cx: &OpContext, text: &str) -> Result<Image, Failure> {
        match known_image(&self.known, text) {
            Some(image) => Ok(image),
            None => self.asked.get(text.to_owned(), cx).await,
        }
    }
}

fn known_image(known: &Known, text: &str) -> Option<Image> {
    let known = known.lock().unwrap_or_else(PoisonError::into_inner);
    let (image, until) = known.get(text)?;
    until.is_none_or(|until| until > Instant::now()).then(|| image.clone())
}

async fn ask(calls: Calls<'_>, known: &Known, text: &str) -> Result<Image, Failure> {
    let none = |what| Failure::new(ErrorKind::InvalidSpec, what).about(FIELD);
    let named = Named::parse(text).map_err(|invalid| none(invalid.problem().to_owned()))?;
    let (found, until) = match named {
        Named::Template { id, version } => {
            return Ok(Image::Template { id: id.to_owned(), version: version.map(str::to_owned) });
        }
        Named::Ami(id) => (calls.images(vec![id.to_owned()], Vec::new(), None).await?, None),
        Named::Newest { owner, pattern } => {
            let found = calls.images(Vec::new(), vec![owner.to_owned()], Some(pattern.to_owned())).await?;
            (found, Some(Instant::now() + NEWEST_FOR))
        }
    };
    let newest = found.into_iter().max_by(|one, other| one.creation_date().cmp(&other.creation_date()));
    let newest = newest.ok_or_else(|| none(format!("there is no image {text}, or it is not available yet")))?;
    let image = Image::Ami {
        id: newest.image_id.unwrap_or_default(),
        root_device: newest.root_device_name.unwrap_or_else(|| "/dev/xvda".to_owned()),
    };
    let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
    known.insert(text.to_owned(), (image.clone(), until));
    Ok(image)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_named_in_one_of_three_ways() {
        assert_eq!(Named::parse("ami-1"), Ok(Named::Ami("ami-1")));
        assert_eq!(Named::parse("self/app-*"), Ok(Named::Newest { owner: "self", pattern: "app-*" }));
        assert_eq!(Named::parse("099/a/b-*"), Ok(Named::Newest { owner: "099", pattern: "a/b-*" }));
        assert_eq!(Named::parse("lt-1"), Ok(Named::Template { id: "lt-1", version: None }));
        assert_eq!(Named::parse("lt-1:3"), Ok(Named::Template { id: "lt-1", version: Some("3") }));
        for bad in ["debian", "/x", "x/"] {
            assert_eq!(Named::parse(bad).unwrap_err().field(), FIELD);
        }
    }
}
