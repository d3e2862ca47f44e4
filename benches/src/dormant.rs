//! A fleet that sleeps, whatever the store is.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{StreamExt, stream};
use provisioner_core::{
    Cell, ControlPlane, Result,
    control_plane::NewInstance,
    memory::MemoryProvisioner,
    types::{CellName, InstanceId, TenantId},
};

use crate::{by, large_spec};

/// Instances.
pub const FLEET: usize = 100_000;
/// For how long the fleet is watched doing nothing.
pub const AT_REST: Duration = Duration::from_secs(20);
/// How many instances a tenant has.
const OF_TENANT: usize = 10;

/// The cell of the fleet.
///
/// # Panics
/// Never: its name is good.
#[must_use]
pub fn fleet_cell(provider: &MemoryProvisioner) -> Cell {
    Cell::new(CellName::new("memory").expect("a name"), Arc::new(provider.clone())).with_calls_max(256)
}

/// One of the fleet.
///
/// # Panics
/// Never: its name is good.
#[must_use]
pub fn fleet_id(number: usize) -> InstanceId {
    InstanceId::new(format!("i-{number}")).expect("a label")
}

/// A tenant of the fleet.
///
/// # Panics
/// Never: its name is good.
#[must_use]
pub fn fleet_tenant(number: usize) -> TenantId {
    TenantId::new(format!("tenant {number}")).expect("a name")
}

/// Signs the whole fleet up and puts it to sleep, and prints how long that took.
///
/// # Panics
/// When something is not accepted.
pub async fn fill(plane: &ControlPlane) {
    let spec = large_spec("1.0");
    let began = Instant::now();
    stream::iter(0..FLEET)
        .for_each_concurrent(256, |number| {
            let (plane, spec) = (plane.clone(), spec.clone());
            async move {
                let id = fleet_id(number);
                let new = NewInstance::new(id.clone(), fleet_tenant(number / OF_TENANT), spec);
                plane.create(new, by()).await.expect("accepted").wait().await.expect("made");
                plane.sleep(&id, by()).await.expect("accepted").wait().await.expect("asleep");
            }
        })
        .await;
    println!("{FLEET} instances signed up and asleep in {:.1} s\n", began.elapsed().as_secs_f64());
}

/// Signs up one more, and waits until it runs.
///
/// # Errors
/// What the control plane answers.
pub async fn one_more(plane: &ControlPlane) -> Result<()> {
    let new = NewInstance::new(InstanceId::new("fresh")?, fleet_tenant(FLEET), large_spec("1.0"));
    plane.create(new, by()).await?.wait().await.map(drop)
}
