//! What the tests of the layers share.

use std::sync::Arc;

use crate::{
    context::OpContext,
    error::Result,
    memory::{MemoryConfig, MemoryProvisioner},
    provisioner::Provisioner,
    types::{
        ControlPlaneId, DataDisposition, DataId, DataSource, Generation, Incarnation, InstanceId, InstanceSpec,
        Observed, Target, TenantId, Workload,
    },
};

pub(super) fn plane() -> ControlPlaneId {
    ControlPlaneId::new("test").unwrap()
}

pub(super) fn cx() -> OpContext {
    OpContext::new(plane())
}

pub(super) fn target(n: u32) -> Target {
    Target {
        id: InstanceId::new(format!("i{n}")).unwrap(),
        tenant: TenantId::new("acme").unwrap(),
        incarnation: Incarnation::new(1, n.into()),
        generation: Generation(1),
        spec: Arc::new(InstanceSpec::new(Workload::new("1.0"))),
        data: DataSource::Fresh(DataId::from_random(u128::from(n))),
    }
}

pub(super) fn memory() -> MemoryProvisioner {
    MemoryProvisioner::new(MemoryConfig::default())
}

pub(super) const VERBS: [&str; 6] = ["create", "suspend", "scale to zero", "resume", "destroy", "observe"];

/// One of [`VERBS`].
pub(super) async fn verb(
    backend: &dyn Provisioner,
    operation: &str,
    cx: &OpContext,
    target: &Target,
) -> Result<Observed> {
    match operation {
        "create" => backend.create(cx, target).await,
        "suspend" => backend.suspend(cx, target).await,
        "scale to zero" => backend.scale_to_zero(cx, target).await,
        "resume" => backend.resume(cx, target).await,
        "destroy" => backend.destroy(cx, target, DataDisposition::Delete).await,
        _ => backend.observe(cx, target).await,
    }
}
