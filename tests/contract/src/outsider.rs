//! Somebody who looks at the provider, and interferes with it, without the backend.

use std::{collections::BTreeMap, time::Duration};

use async_trait::async_trait;
use provisioner_core::types::{ControlPlaneId, DataId, Isolation, Target, VariableName};

/// What an [`Outsider`] can do. Rules that need what it cannot are ignored, with that reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Ability {
    /// [`Outsider::sight`].
    Sight,
    /// [`Outsider::inventory`].
    Inventory,
    /// [`Outsider::write_note`] and [`Outsider::read_note`].
    Notes,
    /// [`Outsider::ask`].
    Ask,
    /// [`Outsider::environment`].
    Environment,
    /// The secrets are in [`Outsider::environment`], too.
    Secrets,
    /// [`Outsider::name`].
    Name,
    /// [`Outsider::search`].
    Search,
    /// [`Outsider::calls`].
    Calls,
    /// [`Outsider::kill`].
    Kill,
    /// [`Outsider::stop`].
    Stop,
    /// [`Outsider::change`].
    Change,
    /// [`Outsider::delete`].
    Delete,
    /// [`Outsider::delete_data`].
    DeleteData,
    /// [`Outsider::block`].
    Block,
    /// [`Outsider::refuse`] with [`Refusal::Throttled`].
    Throttle,
    /// [`Outsider::refuse`] with [`Refusal::Capacity`].
    Capacity,
    /// [`Outsider::refuse`] with [`Refusal::Rights`].
    Rights,
    /// [`Outsider::refuse`] with [`Refusal::Hang`].
    Hang,
    /// [`Outsider::refuse`] with [`Refusal::Unreachable`].
    Unreachable,
    /// The provider's refusals have a code and a request id.
    Codes,
    /// [`Outsider::isolation`].
    Isolation,
}

impl Ability {
    /// What is missing without it, in words.
    pub(crate) const fn missing(self) -> &'static str {
        match self {
            Self::Sight => "count things from outside",
            Self::Inventory => "tell all that is there",
            Self::Notes => "write into an instance's data",
            Self::Ask => "ask an endpoint",
            Self::Environment => "read a product's environment",
            Self::Secrets => "read a product's secrets",
            Self::Name => "tell a thing's name at the provider",
            Self::Search => "search what the provider keeps",
            Self::Calls => "count the provider's calls",
            Self::Kill => "kill an instance",
            Self::Stop => "stop an instance",
            Self::Change => "change what an instance runs with",
            Self::Delete => "delete an instance",
            Self::DeleteData => "delete data",
            Self::Block => "block a removal",
            Self::Throttle => "have the provider throttle",
            Self::Capacity => "have the provider run out of room",
            Self::Rights => "have the provider refuse for rights",
            Self::Hang => "have the provider hang",
            Self::Unreachable => "cut the provider off",
            Self::Codes => "have the provider answer with codes and request ids",
            Self::Isolation => "tell how a running instance is kept from others",
        }
    }
}

/// How the provider refuses every call of this profile's backend until it is told otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// Come back after so long.
    Throttled {
        /// How long.
        after: Duration,
    },
    /// No room for anything that runs, except for sleepers where the provider keeps their place.
    Capacity,
    /// Neither read nor write is allowed.
    Rights,
    /// No answer at all.
    Hang,
    /// It cannot be reached, and that is known at once.
    Unreachable,
}

/// What is to be seen of one incarnation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sight {
    /// How many things of it there are, awake or asleep.
    pub made: usize,
    /// How many of them use compute.
    pub awake: usize,
}

/// What an outsider tells, or why it could not.
pub type Told<T> = Result<T, String>;

/// Somebody who looks at the provider, and interferes with it, without the backend.
///
/// Each method belongs to an [`Ability`]; the others need not be there. All of them wait until what they do is done, but
/// not until the backend has noticed.
#[async_trait]
pub trait Outsider: Send + Sync + 'static {
    /// What this outsider can do.
    fn abilities(&self) -> &[Ability];

    /// What is there of the target's incarnation.
    async fn sight(&self, owner: &ControlPlaneId, target: &Target) -> Told<Sight> {
        let _ = (owner, target);
        cannot()
    }

    /// All that is there of a control plane and costs money or room, one line each: things, data, names, ports.
    async fn inventory(&self, owner: &ControlPlaneId) -> Told<Vec<String>> {
        let _ = owner;
        cannot()
    }

    /// Writes a customer's note into the data of a running instance.
    async fn write_note(&self, owner: &ControlPlaneId, target: &Target, note: &str) -> Told<()> {
        let _ = (owner, target, note);
        cannot()
    }

    /// Reads the note back from the data that a running instance sees. None: there is no note.
    async fn read_note(&self, owner: &ControlPlaneId, target: &Target) -> Told<Option<String>> {
        let _ = (owner, target);
        cannot()
    }

    /// Asks an endpoint, as a customer does. An error when nobody answers.
    async fn ask(&self, endpoint: &str) -> Told<()> {
        let _ = endpoint;
        cannot()
    }

    /// The environment that the running product of this incarnation has.
    async fn environment(&self, owner: &ControlPlaneId, target: &Target) -> Told<BTreeMap<String, String>> {
        let _ = (owner, target);
        cannot()
    }

    /// The name that the incarnation's thing has at the provider.
    async fn name(&self, owner: &ControlPlaneId, target: &Target) -> Told<String> {
        let _ = (owner, target);
        cannot()
    }

    /// Where this text is to be found in what the backend left at the provider: names, labels, records, logs. Not in
    /// the environment of the product and not in the customer's data.
    async fn search(&self, text: &str) -> Told<Vec<String>> {
        let _ = text;
        cannot()
    }

    /// How many calls reached the provider so far, refused ones too.
    async fn calls(&self) -> Told<u64> {
        cannot()
    }

    /// Has a running instance die, as by a crash of the product.
    async fn kill(&self, owner: &ControlPlaneId, target: &Target) -> Told<()> {
        let _ = (owner, target);
        cannot()
    }

    /// Stops a running instance, as somebody does at the provider's console.
    async fn stop(&self, owner: &ControlPlaneId, target: &Target) -> Told<()> {
        let _ = (owner, target);
        cannot()
    }

    /// Sets a variable of the environment that an instance runs with, or will, as somebody does at the provider's console:
    /// the generation that the backend left there stays.
    async fn change(&self, owner: &ControlPlaneId, target: &Target, name: &VariableName, value: &str) -> Told<()> {
        let _ = (owner, target, name, value);
        cannot()
    }

    /// Deletes an instance, but not its data.
    async fn delete(&self, owner: &ControlPlaneId, target: &Target) -> Told<()> {
        let _ = (owner, target);
        cannot()
    }

    /// Deletes data, whoever uses it.
    async fn delete_data(&self, owner: &ControlPlaneId, data: &DataId) -> Told<()> {
        let _ = (owner, data);
        cannot()
    }

    /// Has the next removal of the incarnation get stuck (`true`), or lets it go on (`false`).
    async fn block(&self, owner: &ControlPlaneId, target: &Target, blocked: bool) -> Told<()> {
        let _ = (owner, target, blocked);
        cannot()
    }

    /// How a running instance is kept from others, by what is to be seen of it.
    async fn isolation(&self, owner: &ControlPlaneId, target: &Target) -> Told<Isolation> {
        let _ = (owner, target);
        cannot()
    }

    /// Has the provider refuse like this from now on, or be itself again.
    async fn refuse(&self, refusal: Option<Refusal>) -> Told<()> {
        let _ = refusal;
        cannot()
    }
}

fn cannot<T>() -> Told<T> {
    Err("the outsider claims an ability whose method it does not have".to_owned())
}
