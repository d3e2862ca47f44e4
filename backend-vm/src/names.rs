//! What things are called at EC2, and how they are marked.

use provisioner_core::types::{ControlPlaneId, Incarnation, InstanceId};

/// Whose a thing is: the control plane.
pub(crate) const CONTROL_PLANE: &str = "provisioner:control-plane";
/// Which instance a thing belongs to; of a volume, the last one that used it.
pub(crate) const INSTANCE: &str = "provisioner:instance";
/// Which making a thing belongs to; of a volume, the last one that used it.
pub(crate) const INCARNATION: &str = "provisioner:incarnation";
/// Which data a volume holds, and a machine works on.
pub(crate) const DATA: &str = "provisioner:data";
/// Whose data it is: a hash.
pub(crate) const TENANT: &str = "provisioner:tenant";
/// On a machine: the generation of the spec that it was made for or last updated to.
pub(crate) const GENERATION: &str = "provisioner:generation";
/// On a machine: `running`, `updating`, `zero` or `suspended`.
pub(crate) const INTENDED: &str = "provisioner:intended";
/// On a machine: a digest of what it does at its boot. Empty while that is being changed.
pub(crate) const BOOT: &str = "provisioner:boot";
/// On a machine: a digest of the image that its spec names.
pub(crate) const IMAGE: &str = "provisioner:image";
/// On a machine: the size of its spec.
pub(crate) const SIZE: &str = "provisioner:size";
/// On a machine: a digest of its whole spec. The same once more is a restart.
pub(crate) const SPEC: &str = "provisioner:spec";
/// On a machine: where and how soon the product is to answer, for who does not know its spec.
pub(crate) const PRODUCT: &str = "provisioner:product";
/// On a volume: the making that is done with it, and leaves it to others.
pub(crate) const RELEASED: &str = "provisioner:released";
/// On a volume: the making with which it is to go.
pub(crate) const ENDING: &str = "provisioner:ending";
/// On a volume that an operator made of a snapshot: it holds data. Without it, what comes from a snapshot is a machine's own disk.
pub(crate) const RESTORED: &str = "provisioner:restored";
/// Before each label of a spec.
pub(crate) const LABEL: &str = "provisioner:label:";
/// What consoles show.
pub(crate) const NAME: &str = "Name";

/// Where machines have their data volume; see
/// <https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/device_naming.html>.
pub(crate) const DEVICE: &str = "/dev/sdf";

/// How a machine is called in consoles.
pub(crate) fn shown(control_plane: &ControlPlaneId, instance: &InstanceId, incarnation: Incarnation) -> String {
    let token = incarnation.token(control_plane, instance);
    format!("{instance}-{}-{}", incarnation.number(), &token[..8])
}

/// By which the service knows a making again, a function of control plane, instance and incarnation; see
/// <https://docs.aws.amazon.com/ec2/latest/devguide/ec2-api-idempotency.html>. The token of a machine that has ended is used up: who
/// makes the same once more names it. Up to 58 characters, where 64 are allowed.
pub(crate) fn client_token(
    control_plane: &ControlPlaneId,
    instance: &InstanceId,
    incarnation: Incarnation,
    after: Option<&str>,
) -> String {
    let token = incarnation.token(control_plane, instance);
    match after {
        Some(ended) => format!("{token}-{}", ended.trim_start_matches("i-")),
        None => token,
    }
}
