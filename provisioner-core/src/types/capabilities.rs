//! What a backend can do.

use std::time::Duration;

/// What a backend can do. Constant for the life of the backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Capabilities {
    /// How far its reads may lag behind its writes. Zero: never.
    pub settling: Duration,
    /// The longest one call may take to have its effect, even after its answer was lost.
    pub call_max: Duration,
    /// Whether [`watch`](crate::Provisioner::watch) tells of changes; otherwise the engine polls.
    pub watch: bool,
    /// Whether an older generation is refused by a conditional write at the provider, and not only by a check before it.
    pub conditional_writes: bool,
    /// Whether instances go on when the control plane's process ends.
    pub survives_control_plane: bool,
    /// Where secret references are resolved.
    pub secrets: SecretSupport,
    /// The largest size of one instance.
    pub size_max: SizeMax,
}

/// Where secret references are resolved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SecretSupport {
    /// By the backend, per call, through the context.
    Resolved,
    /// By the provider, natively.
    Native,
    /// Not at all: a spec with secrets is refused.
    None,
}

/// The largest size of one instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SizeMax {
    /// Thousandths of a CPU.
    pub cpu_millis: u32,
    /// Mebibytes of memory.
    pub memory_mib: u32,
    /// Mebibytes of data volume.
    pub data_mib: u32,
}

impl Capabilities {
    /// A backend with consistent reads, no watch and no limits, whose calls end within a minute. Change what differs.
    pub const PLAIN: Self = Self {
        settling: Duration::ZERO,
        call_max: Duration::from_secs(60),
        watch: false,
        conditional_writes: false,
        survives_control_plane: true,
        secrets: SecretSupport::None,
        size_max: SizeMax { cpu_millis: u32::MAX, memory_mib: u32::MAX, data_mib: u32::MAX },
    };
}
