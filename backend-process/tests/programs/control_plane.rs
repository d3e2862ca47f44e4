//! A control plane that does one verb after the other on one instance until somebody kills it.
//!
//! Arguments: the root, the first port, the last port, the product, a seed. With the root alone it tells what it is capable
//! of, and ends.

use std::{env, sync::Arc};

use backend_process::ProcessConfig;
use provisioner_core::{
    OpContext, Provisioner,
    seams::Random,
    types::{
        ControlPlaneId, DataId, DataSource, Generation, Incarnation, InstanceId, InstanceSpec, Target, TenantId,
        Workload,
    },
};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    if let [root] = arguments.as_slice() {
        let capabilities = ProcessConfig::new(root).build()?.capabilities();
        println!("survives: {}", capabilities.survives_control_plane);
        println!("users: {}", capabilities.isolation.users);
        return Ok(());
    }
    let [root, first, last, product, seed] = arguments.as_slice() else {
        return Err("expected five arguments".into());
    };
    let backend = ProcessConfig::new(root).with_ports(first.parse()?..=last.parse()?).build()?;
    let mut workload = Workload::new("1").with_command([product]);
    workload.stop_grace_seconds = 1;
    let mut target = Target {
        id: InstanceId::new("acme")?,
        tenant: TenantId::new("tenant")?,
        incarnation: Incarnation::new(1, 1),
        generation: Generation(1),
        spec: Arc::new(InstanceSpec::new(workload)),
        data: DataSource::Fresh(DataId::from_random(1)),
    };
    let cx = OpContext::new(ControlPlaneId::new("plane")?);
    let random = Random::from_seed(seed.parse()?);
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?.block_on(async {
        loop {
            let seen = match random.bits() % 5 {
                0 => backend.scale_to_zero(&cx, &target).await,
                1 => {
                    target.generation = Generation(target.generation.0 + random.bits() % 2);
                    backend.create(&cx, &target).await
                }
                2 => backend.observe(&cx, &target).await,
                _ => backend.create(&cx, &target).await,
            };
            // An earlier control plane may have been further: then follow it.
            if seen.is_err() {
                target.generation = target.generation.next();
            }
            tokio::time::sleep(random.up_to(std::time::Duration::from_millis(4))).await;
        }
    })
}
