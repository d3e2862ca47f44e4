//! The words of the project, as types.

mod capabilities;
mod id;
mod incarnation;
mod intent;
mod observed;
mod spec;
mod spec_format;
mod target;
mod time;

pub use capabilities::{Bound, Capabilities, Isolation, SecretSupport, SizeMax};
pub use id::{
    Actor, CellName, ControlPlaneId, DataId, Hold, HostName, IdempotencyKey, InstanceId, InvalidName, LabelKey,
    LabelValue, Network, OperationId, TenantId, VariableName,
};
pub(crate) use incarnation::hex_digest;
pub use incarnation::{Incarnation, InvalidIncarnation};
pub use intent::{DataDisposition, Generation, Intent, Power, Revision, TargetState};
pub use observed::{Endpoint, Observed, Phase, Present, Reason, Usage};
pub use spec::{DataVolume, Egress, ExpiryPolicy, IdlePolicy, InstanceSpec, InvalidSpec, Package, Size, Workload};
pub use spec_format::SpecFormat;
pub use target::{DataSource, Owned, OwnedKind, Target};
pub use time::Timestamp;
