//! What a backend's author tells the suite.

use std::{any::Any, fmt, sync::Arc, time::Duration};

use provisioner_core::{
    Provisioner,
    types::{Capabilities, InstanceSpec},
};

use crate::outsider::{Ability, Outsider};

/// Sets a backend up to be tried.
pub trait Setup: Send + Sync + 'static {
    /// What the backend is called in the table: a word.
    fn name(&self) -> String;

    /// A backend, ready to be called. Called once for every rule, inside a runtime; give it a provider of its own
    /// where that is cheap, and the same one where it is not. Only an [`Outsider`] that can
    /// [`refuse`](Outsider::refuse) needs one of its own.
    fn profile(&self) -> Profile;
}

/// A backend, and what the rules have to know of it.
pub struct Profile {
    /// The backend.
    pub backend: Arc<dyn Provisioner>,
    /// A spec of this version that really runs there, and starts and stops quickly.
    pub spec: Box<dyn Fn(&str) -> InstanceSpec + Send + Sync>,
    /// How long a move may take from a verb to its end, on a slow machine.
    pub deadline: Duration,
    /// Makes another backend on the same provider, as another process of the control plane would.
    pub reopen: Option<Box<dyn Fn() -> Arc<dyn Provisioner> + Send + Sync>>,
    /// A spec that runs, but takes at least so long from its start until it is ready.
    pub slow: Option<(InstanceSpec, Duration)>,
    /// A spec that `validate` accepts and that never gets to run.
    pub broken: Option<InstanceSpec>,
    /// How many instances the rule about long listings makes.
    pub many: usize,
    /// How many calls of a verb the rules that cut at each await point cut at the same time. More than one where it is the
    /// provider that takes its time.
    pub cuts_at_once: usize,
    /// How far apart the await points are at which those rules cut, beginning anywhere. More than 1 where a life takes
    /// seconds and there are hundreds: then each run looks at other ones.
    pub cuts_apart: usize,
    /// The same for the pairs of verbs of which one follows the other.
    pub pairs_apart: usize,
    /// Whether what died may run again before anybody can be told, as a product that its machine starts again within seconds: the
    /// rules about watches stop it at the provider instead.
    pub deaths_pass_unseen: bool,
    /// How long a watch takes from its first poll until it tells of all that happens then.
    pub watch_opens_in: Duration,
    /// Somebody who looks at the provider without the backend.
    pub outsider: Option<Arc<dyn Outsider>>,
    /// Kept until the rule has ended: folders, servers.
    pub keep: Option<Box<dyn Any + Send + Sync>>,
}

impl Profile {
    /// A backend and what runs on it, with a deadline of 30 seconds and nothing optional.
    pub fn new(backend: Arc<dyn Provisioner>, spec: impl Fn(&str) -> InstanceSpec + Send + Sync + 'static) -> Self {
        Self {
            backend,
            spec: Box::new(spec),
            deadline: Duration::from_secs(30),
            reopen: None,
            slow: None,
            broken: None,
            many: 200,
            cuts_at_once: 1,
            cuts_apart: 1,
            pairs_apart: 1,
            deaths_pass_unseen: false,
            watch_opens_in: Duration::from_millis(20),
            outsider: None,
            keep: None,
        }
    }

    /// The same with an outsider.
    #[must_use]
    pub fn with_outsider(mut self, outsider: impl Outsider) -> Self {
        self.outsider = Some(Arc::new(outsider));
        self
    }

    /// Whether there is an outsider who can do this.
    #[must_use]
    pub fn can(&self, ability: Ability) -> bool {
        self.outsider.as_ref().is_some_and(|outsider| outsider.abilities().contains(&ability))
    }

    /// Whether there is an outsider who can do all of this; if not, what is missing.
    pub(crate) fn needs(&self, abilities: &[Ability]) -> Result<(), String> {
        match abilities.iter().find(|ability| !self.can(**ability)) {
            None => Ok(()),
            Some(_) if self.outsider.is_none() => Err("there is no outsider to look at the provider".to_owned()),
            Some(ability) => Err(format!("the outsider cannot {}", ability.missing())),
        }
    }

    pub(crate) fn capabilities(&self) -> Capabilities {
        self.backend.capabilities()
    }
}

impl fmt::Debug for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Profile").field("backend", &self.backend).finish_non_exhaustive()
    }
}
