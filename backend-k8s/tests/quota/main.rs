//! A pod that its cluster wrongly counts against the quota, with a real one: it is made all the same, and soon.
//!
//! A cluster charges for a pod before the pod is made. Where the making then fails, as with a busy database, the charge stays until
//! all is counted again, every five minutes, and the instance's quota has room for no other pod.
#![allow(missing_docs)]

// Everything in it is used by the contract, and a part of it here.
#[allow(dead_code)]
#[path = "../contract/cluster.rs"]
mod cluster;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use backend_k8s::{KubernetesBackend, KubernetesConfig, render::NamespaceEach};
use k8s_openapi::api::core::v1::{Namespace, ResourceQuota};
use kube::{
    Api, Client, ResourceExt,
    api::{ListParams, Patch, PatchParams},
};
use libtest_mimic::{Arguments, Completion, Failed, Trial};
use provisioner_core::{
    OpContext, Provisioner,
    seams::Random,
    types::{
        ControlPlaneId, DataDisposition, DataSource, Generation, InstanceId, Observed, Phase, Present, Target, TenantId,
    },
};
use serde_json::{Value, json};
use test_peers::kubernetes::is_required;
use tokio::runtime::Runtime;

use crate::cluster::{Cluster, Rights, spec};

/// How long each part may take, on a busy machine.
const WITHIN: Duration = Duration::from_secs(300);
/// How long what was refused may take until it runs. The cluster by itself may take five minutes until it counts, and then a
/// quarter of an hour until it tries again.
const MENDED_WITHIN: Duration = Duration::from_secs(120);
/// How often a charge is made up. Now and then the cluster counts before that is noticed.
const CHARGES_MAX: usize = 3;
const PAUSE: Duration = Duration::from_millis(100);
const OWNER: &str = "provisioner.internal/control-plane";

fn main() {
    let name = "a_pod_that_was_charged_for_and_not_made_is_made";
    let trials = vec![Trial::ignorable_test(name, || Runtime::new()?.block_on(charged()))];
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}

async fn charged() -> Result<Completion, Failed> {
    let cluster = match Cluster::ready().await {
        Ok(cluster) => cluster,
        Err(reason) if is_required() => return Err(format!("kubernetes is required: {reason}").into()),
        Err(reason) => return Ok(Completion::ignored_with(reason)),
    };
    tokio::spawn(cluster.clone().make_volumes());
    let random = Random::from_os();
    let account = format!("quota-{:08x}", random.bits() as u32);
    let client = cluster.account(&account, Rights::Cluster).await?;
    let instance = Instance::new(&cluster, client, &account, random)?;
    let lived = instance.live().await;
    // Also where it failed: nothing stays on the cluster.
    let gone = instance.until("gone", Verb::Destroy, |seen| *seen == Observed::Absent).await;
    cluster.forget(&account).await;
    lived.and(gone)?;
    Ok(Completion::Completed)
}

/// One instance, which is looked after as the engine would.
struct Instance {
    backend: KubernetesBackend,
    owner: ControlPlaneId,
    target: Target,
    admin: Client,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verb {
    Create,
    ScaleToZero,
    Resume,
    Destroy,
}

impl Instance {
    fn new(cluster: &Cluster, client: Client, owner: &str, random: Random) -> Result<Self, Failed> {
        let config = KubernetesConfig {
            storage_class: cluster.class.clone(),
            image_pull_policy: Some("Never".into()),
            cpu_reserved_percent: Some(1),
            ..KubernetesConfig::default()
        };
        let target = Target {
            id: InstanceId::new("charged")?,
            tenant: TenantId::new("tenant")?,
            incarnation: random.incarnation(1),
            generation: Generation::FIRST,
            spec: Arc::new(spec("1.0")),
            data: DataSource::Fresh(random.data_id()),
        };
        let (owner, admin) = (ControlPlaneId::new(owner)?, cluster.admin.clone());
        Ok(Self { backend: config.build_with(Some(client), NamespaceEach)?, owner, target, admin })
    }

    async fn live(&self) -> Result<(), Failed> {
        let is_running = |seen: &Observed| phase_of(seen) == Some(Phase::Running);
        self.until("running", Verb::Create, is_running).await?;
        for _ in 0..CHARGES_MAX {
            self.until("asleep", Verb::ScaleToZero, |seen| phase_of(seen) == Some(Phase::Zero)).await?;
            self.charge().await?;
            let woken = self.until("running or refused", Verb::Resume, |seen| is_running(seen) || is_refused(seen));
            if is_refused(&woken.await?) {
                let mended = self.until("running", Verb::Resume, is_running);
                tokio::time::timeout(MENDED_WITHIN, mended).await.map_err(|_| "it is refused for good")??;
                return self.expect_its_quota_as_it_was().await;
            }
        }
        Err("the cluster counted again before each pod was refused".into())
    }

    /// Calls a verb once, and looks until it is so. What has failed is made again.
    async fn until(&self, what: &str, verb: Verb, is_so: impl Fn(&Observed) -> bool) -> Result<Observed, Failed> {
        let deadline = Instant::now() + WITHIN;
        let mut seen = self.call(verb).await?;
        while !is_so(&seen) {
            if Instant::now() > deadline {
                return Err(format!("not {what} within {WITHIN:?}: {seen:?}").into());
            }
            tokio::time::sleep(PAUSE).await;
            seen = match phase_of(&seen) {
                Some(Phase::Failed) if verb != Verb::Destroy => self.call(Verb::Create).await?,
                _ => self.backend.observe(&self.cx(), &self.target).await?,
            };
        }
        Ok(seen)
    }

    async fn call(&self, verb: Verb) -> provisioner_core::Result<Observed> {
        let (cx, target) = (self.cx(), &self.target);
        match verb {
            Verb::Create => self.backend.create(&cx, target).await,
            Verb::ScaleToZero => self.backend.scale_to_zero(&cx, target).await,
            Verb::Resume => self.backend.resume(&cx, target).await,
            Verb::Destroy => self.backend.destroy(&cx, target, DataDisposition::Delete).await,
        }
    }

    fn cx(&self) -> OpContext {
        OpContext::new(self.owner.clone()).with_timeout(Duration::from_secs(30))
    }

    async fn quota(&self) -> Result<(Api<ResourceQuota>, ResourceQuota), Failed> {
        let ours = ListParams::default().labels(&format!("{OWNER}={}", self.owner));
        let homes = Api::<Namespace>::all(self.admin.clone()).list(&ours).await?;
        let home = homes.items.first().ok_or("the instance has no namespace")?;
        let quotas = Api::<ResourceQuota>::namespaced(self.admin.clone(), &home.name_any());
        let quota = quotas.list(&ListParams::default()).await?.items.pop().ok_or("its namespace has no quota")?;
        Ok((quotas, quota))
    }

    /// Has the cluster think that all which its quota allows is used.
    async fn charge(&self) -> Result<(), Failed> {
        let (quotas, quota) = self.quota().await?;
        let used = json!({"status": {"used": quota.spec.clone().unwrap_or_default().hard}});
        quotas.patch_status(&quota.name_any(), &PatchParams::default(), &Patch::Merge(used)).await?;
        Ok(())
    }

    /// What was done for it to be counted leaves no trace.
    async fn expect_its_quota_as_it_was(&self) -> Result<(), Failed> {
        let (_, quota) = self.quota().await?;
        let noted: Value = serde_json::from_str(&quota.annotations()["provisioner.internal/applied"])?;
        let hard = serde_json::to_value(quota.spec.unwrap_or_default().hard)?;
        if hard != noted["spec"]["hard"] {
            return Err(format!("it allows {hard}, expected {noted}").into());
        }
        Ok(())
    }
}

fn phase_of(seen: &Observed) -> Option<Phase> {
    seen.present().map(|present| present.phase)
}

fn is_refused(seen: &Observed) -> bool {
    matches!(seen, Observed::Present(Present { reason: Some(reason), .. }) if reason.code == "quota")
}
