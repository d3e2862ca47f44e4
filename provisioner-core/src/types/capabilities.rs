//! What a backend can do.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What a backend can do. Constant for the life of the backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Capabilities {
    /// How far its reads may lag behind its writes. Zero: never, or the backend itself knows what an answer does not show yet: it
    /// says `Unknown` until what it wrote is shown, and confirms absences by itself.
    pub settling: Duration,
    /// The longest one call may take to have its effect, even after its answer was lost.
    pub call_max: Duration,
    /// Whether [`watch`](crate::Provisioner::watch) tells of changes; otherwise the engine polls.
    pub watch: bool,
    /// Whether an older generation is refused by a conditional write at the provider, and not only by a check before it.
    pub conditional_writes: bool,
    /// Whether instances go on when the control plane's process ends.
    pub survives_control_plane: bool,
    /// Whether the provider starts by itself what died, as Kubernetes does. The backend starts nothing, and tells meanwhile
    /// that it does not run.
    pub restarts: bool,
    /// Where secret references are resolved.
    pub secrets: SecretSupport,
    /// The largest size of one instance.
    pub size_max: SizeMax,
    /// Whether it holds instances to what they may reach ([`Egress`](super::Egress)).
    pub egress: bool,
    /// What keeps one instance from another.
    pub isolation: Isolation,
}

/// What keeps one instance from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Isolation {
    /// Whether each runs as a user, or in a system, of its own: it cannot read the files of another one, nor signal it.
    pub users: bool,
    /// How its memory is held to its size.
    pub memory: Bound,
    /// How its CPU time is held to its size.
    pub cpu: Bound,
    /// How the number of its processes is bounded.
    pub processes: Bound,
}

impl Isolation {
    /// None at all.
    pub const NONE: Self = Self { users: false, memory: Bound::None, cpu: Bound::None, processes: Bound::None };
    /// As in a machine or container of its own.
    pub const FULL: Self =
        Self { users: true, memory: Bound::Instance, cpu: Bound::Instance, processes: Bound::Instance };
}

/// What a bound is counted over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bound {
    /// There is none.
    None,
    /// Each process by itself: two of them may use twice as much.
    Process,
    /// All of the instance together.
    Instance,
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SizeMax {
    /// Thousandths of a CPU.
    pub cpu_millis: u32,
    /// Mebibytes of memory.
    pub memory_mib: u32,
    /// Mebibytes of data volume.
    pub data_mib: u32,
}

impl SizeMax {
    /// No limit.
    pub const NONE: Self = Self { cpu_millis: u32::MAX, memory_mib: u32::MAX, data_mib: u32::MAX };
}

impl Default for SizeMax {
    /// No limit.
    fn default() -> Self {
        Self::NONE
    }
}

impl Capabilities {
    /// A backend with consistent reads, no watch, no limits and no isolation, whose calls end within a minute. Change what
    /// differs.
    pub const PLAIN: Self = Self {
        settling: Duration::ZERO,
        call_max: Duration::from_secs(60),
        watch: false,
        conditional_writes: false,
        survives_control_plane: true,
        restarts: false,
        secrets: SecretSupport::None,
        size_max: SizeMax::NONE,
        egress: false,
        isolation: Isolation::NONE,
    };
}
