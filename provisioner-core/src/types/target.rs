//! What a verb is called with, and what a listing yields.

use std::sync::Arc;

use super::{
    id::{DataId, InstanceId, TenantId},
    incarnation::Incarnation,
    intent::Generation,
    observed::Observed,
    spec::InstanceSpec,
};

/// Which data an incarnation runs on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DataSource {
    /// Data that may not exist yet: it is made empty under this id, or taken up if an earlier call already made it.
    Fresh(DataId),
    /// Data that must exist. When it cannot be found the answer is [`DataMissing`](crate::ErrorKind::DataMissing),
    /// never an empty start.
    Existing(DataId),
}

impl DataSource {
    /// The id, whichever it is.
    #[must_use]
    pub fn id(&self) -> &DataId {
        match self {
            Self::Fresh(id) | Self::Existing(id) => id,
        }
    }
}

/// What a verb is called with.
#[derive(Debug, Clone)]
pub struct Target {
    /// Which instance.
    pub id: InstanceId,
    /// Whose it is. Goes to the provider only as [a hash](TenantId::digest).
    pub tenant: TenantId,
    /// Which making of it.
    pub incarnation: Incarnation,
    /// Which version of the spec.
    pub generation: Generation,
    /// The spec. `observe` and `destroy` do without it: for a remnant, whose spec is forgotten, it is empty.
    pub spec: Arc<InstanceSpec>,
    /// The data it runs on.
    pub data: DataSource,
}

/// One thing of ours found at the provider.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owned {
    /// The instance it belongs to.
    pub id: InstanceId,
    /// The making it belongs to; of retained data, the last one that used it.
    pub incarnation: Incarnation,
    /// What it is.
    pub kind: OwnedKind,
    /// The data it runs on or is, as far as the provider tells.
    pub data: Option<DataId>,
    /// What was seen of it; retained data is in phase [`Zero`](super::Phase::Zero).
    pub observed: Observed,
}

/// What a thing of ours is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OwnedKind {
    /// An instance: compute, route and all that goes with it.
    Instance,
    /// Retained data.
    Data,
}
