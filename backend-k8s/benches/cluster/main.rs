//! A real cluster full of instances: how long it takes, what it asks of the cluster, and what the caches hold.
//!
//! `cargo bench -p backend-k8s --bench cluster`, on the cluster that `cargo xtask peers` has prepared. Parts of it can be had
//! by name, `-- pods idle writes`; all of it takes half an hour.
//!
//! - `pods`: 50 real pods at once, from `create` to ready, to zero and back.
//! - `idle`: what is asked of the cluster in five minutes in which nothing changes.
//! - `writes`: 500 instances without pods, beside the same writes sent bare and beside `kubectl`; and what the caches hold.

// Everything in it is used by the contract, and a part of it here.
#[allow(dead_code)]
#[path = "../../tests/contract/cluster.rs"]
mod cluster;
mod meter;
mod pods;
mod writes;

use std::{sync::Arc, time::Duration};

use backend_k8s::{KubernetesBackend, KubernetesConfig, render::NamespaceEach};
use futures::{StreamExt, stream};
use provisioner_core::{
    OpContext,
    seams::Random,
    types::{ControlPlaneId, DataSource, Generation, InstanceId, InstanceSpec, Target, TenantId, Workload},
};

use crate::{
    cluster::{Cluster, IMAGE},
    meter::Meter,
};

/// What counts every byte that is allocated.
#[global_allocator]
static ALLOCATOR: cap::Cap<std::alloc::System> = cap::Cap::new(std::alloc::System, usize::MAX);

/// How many calls are on their way at once.
const AT_ONCE: usize = 16;
/// How long any one call may take.
const PATIENCE: Duration = Duration::from_secs(300);

fn main() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let cluster = match Cluster::ready().await {
            Ok(cluster) => cluster,
            Err(reason) => {
                println!("Not measured: {reason}.");
                return;
            }
        };
        tokio::spawn(cluster.clone().make_volumes());
        let parts: Vec<String> = std::env::args().skip(1).filter(|part| !part.starts_with('-')).collect();
        let wanted = |part: &str| parts.is_empty() || parts.iter().any(|wanted| wanted == part);
        if wanted("pods") || wanted("idle") {
            pods::measure(&cluster, wanted("idle")).await;
        }
        if wanted("writes") {
            writes::measure(&cluster).await;
        }
    });
}

/// One control plane on the cluster, of whose requests nothing is missed.
struct Side {
    backend: KubernetesBackend,
    cx: OpContext,
    meter: Meter,
    random: Random,
}

impl Side {
    fn new(cluster: &Cluster, name: &str, change: impl FnOnce(&mut KubernetesConfig)) -> Self {
        let mut config = KubernetesConfig {
            storage_class: cluster.class.clone(),
            image_pull_policy: Some("Never".into()),
            ..KubernetesConfig::default()
        };
        change(&mut config);
        let meter = Meter::default();
        let backend = config.build_with(Some(meter.around(cluster.admin.clone())), NamespaceEach);
        let random = Random::from_os();
        // Of its own in each run: what an earlier one left is none of it.
        let id = ControlPlaneId::new(format!("{name}-{:08x}", random.bits() as u32)).expect("a label");
        Self { backend: backend.expect("a good configuration"), cx: OpContext::new(id), meter, random }
    }

    fn targets(&self, number: usize) -> Vec<Arc<Target>> {
        (0..number).map(|number| self.target(number)).collect()
    }

    fn target(&self, number: usize) -> Arc<Target> {
        Arc::new(Target {
            id: InstanceId::new(format!("i-{number}")).expect("a label"),
            tenant: TenantId::new("tenant").expect("a name"),
            incarnation: self.random.incarnation(1),
            generation: Generation::FIRST,
            spec: Arc::new(spec()),
            data: DataSource::Fresh(self.random.data_id()),
        })
    }

    fn control_plane(&self) -> &ControlPlaneId {
        &self.cx.control_plane
    }
}

fn spec() -> InstanceSpec {
    let mut workload = Workload::new("1.0");
    workload.image = Some(IMAGE.into());
    workload.port = Some(8080);
    workload.health_path = "/healthz".into();
    workload.start_timeout_seconds = 300;
    workload.stop_grace_seconds = 1;
    let mut spec = InstanceSpec::new(workload);
    (spec.size.cpu_millis, spec.size.memory_mib, spec.data.size_mib) = (10, 16, 16);
    spec
}

/// Does this for each, so many at a time.
async fn each<T, F: Future<Output = ()>>(of: impl IntoIterator<Item = T>, at_once: usize, what: impl Fn(T) -> F) {
    stream::iter(of).for_each_concurrent(at_once, what).await;
}
