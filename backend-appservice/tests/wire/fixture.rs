//! A stand-in, a backend on it, and instances.

use std::{sync::Arc, time::Duration};

use backend_appservice::{AppServiceBackend, AppServiceConfig};
use provisioner_core::{
    OpContext, Provisioner, Result,
    types::{
        ControlPlaneId, DataDisposition, DataId, DataSource, Generation, HostName, Incarnation, InstanceId,
        InstanceSpec, Observed, Phase, Target, TenantId,
    },
};
use test_azure::{Azure, Options, Seen};
use tokio::time::Instant;

use crate::stand;

const OWNER: &str = "p";
/// On a machine that is busy with something else.
const PATIENCE: Duration = Duration::from_secs(120);
pub(crate) const TAG: (&str, &str) = ("provisioner-control-plane", OWNER);

pub(crate) struct Fixture {
    pub(crate) stand: Azure,
    pub(crate) backend: AppServiceBackend,
}

/// Sites that run nothing: what is tried is what is asked for.
pub(crate) fn idle() -> Options {
    Options { boots: false, work: Duration::from_millis(20), ..Options::default() }
}

impl Fixture {
    pub(crate) async fn start(options: Options) -> Self {
        Self::with(options, |_| {}).await
    }

    pub(crate) async fn with(options: Options, change: impl FnOnce(&mut AppServiceConfig)) -> Self {
        let stand = Azure::start(options).await.unwrap();
        let mut config = stand::config(&stand);
        config.settling = Duration::from_millis(500);
        change(&mut config);
        Self { backend: stand::backend(&stand, config), stand }
    }

    /// What another process of the control plane would have.
    pub(crate) fn another(&self) -> AppServiceBackend {
        stand::backend(&self.stand, stand::config(&self.stand))
    }

    pub(crate) async fn create(&self, target: &Target) -> Result<Observed> {
        self.backend.create(&cx(), target).await
    }

    pub(crate) async fn destroy(&self, target: &Target) -> Result<Observed> {
        self.backend.destroy(&cx(), target, DataDisposition::Delete).await
    }

    pub(crate) async fn sites(&self) -> Vec<Seen> {
        self.stand.sites(TAG).await
    }

    /// The names of all plans, and how many sites each has.
    pub(crate) async fn plans(&self) -> Vec<usize> {
        let mut sites: Vec<_> = self.stand.plans().await.into_iter().map(|(_, _, sites)| sites).collect();
        sites.sort_unstable();
        sites
    }

    pub(crate) async fn left(&self) -> Vec<String> {
        self.stand.left(TAG).await
    }

    /// Looks until it is in this phase.
    pub(crate) async fn until(&self, target: &Target, phase: Option<Phase>) -> Observed {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let seen = self.backend.observe(&cx(), target).await.unwrap();
            if seen.phase() == phase && !matches!(seen, Observed::Unknown { .. }) {
                return seen;
            }
            assert!(Instant::now() < deadline, "{seen:?}, expected {phase:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

pub(crate) fn cx() -> OpContext {
    OpContext::new(ControlPlaneId::new(OWNER).unwrap()).with_timeout(PATIENCE)
}

/// An instance, of which nothing is made yet.
pub(crate) fn target(name: &str) -> Target {
    let number = name.bytes().fold(7_u128, |hash, byte| hash.wrapping_mul(257) + u128::from(byte));
    Target {
        id: InstanceId::new(name).unwrap(),
        tenant: TenantId::new("tenant").unwrap(),
        incarnation: Incarnation::new(1, number),
        generation: Generation(1),
        spec: Arc::new(stand::spec("/bin/true", "1.0")),
        data: DataSource::Fresh(DataId::from_random(number)),
    }
}

/// The same at a later generation, changed.
pub(crate) fn changed(target: &Target, change: impl FnOnce(&mut InstanceSpec)) -> Target {
    let mut spec = (*target.spec).clone();
    change(&mut spec);
    let data = DataSource::Existing(target.data.id().clone());
    Target { spec: spec.into(), generation: Generation(target.generation.0 + 1), data, ..target.clone() }
}

/// The same as another making, on its data.
pub(crate) fn anew(target: &Target) -> Target {
    let incarnation = Incarnation::new(target.incarnation.number() + 1, target.incarnation.nonce() + 1);
    Target { incarnation, data: DataSource::Existing(target.data.id().clone()), ..target.clone() }
}

pub(crate) fn host(name: &str) -> HostName {
    HostName::new(name).unwrap()
}
