//! What things are called at the cluster, and how they are marked.

use provisioner_core::types::{ControlPlaneId, DataId, Incarnation, InstanceId};
use sha2::{Digest, Sha256};

/// The field manager of all that this backend writes.
pub(crate) const FIELD_MANAGER: &str = "provisioner";

/// Whose a thing is: the control plane.
pub(crate) const CONTROL_PLANE: &str = "provisioner.internal/control-plane";
/// Which instance a thing belongs to; of a home, the last one that used it.
pub(crate) const INSTANCE: &str = "provisioner.internal/instance";
/// Which making a thing belongs to; of a home, the last one that used it.
pub(crate) const INCARNATION: &str = "provisioner.internal/incarnation";
/// Which data a thing belongs to.
pub(crate) const DATA: &str = "provisioner.internal/data";
/// Whose data it is: a hash.
pub(crate) const TENANT: &str = "provisioner.internal/tenant";
/// On a home: the making that is done with the data, or is being removed from it.
pub(crate) const RELEASED: &str = "provisioner.internal/released";
/// On a stateful set and what belongs to it: the generation of the spec that it was made for.
pub(crate) const GENERATION: &str = "provisioner.internal/generation";
/// On what is applied: what was, so that a change of it is seen.
pub(crate) const APPLIED: &str = "provisioner.internal/applied";
/// On a stateful set: how often its spec had been changed after our last write, as the cluster counts in its
/// `metadata.generation`. One that was changed more often was changed by somebody else.
pub(crate) const WRITTEN: &str = "provisioner.internal/written";
/// On a stateful set: `running`, `zero` or `suspended`.
pub(crate) const INTENDED: &str = "provisioner.internal/intended";
/// On a stateful set: how many objects of watched kinds belong to it, beside routes.
pub(crate) const PARTS: &str = "provisioner.internal/parts";
/// On a claim: the mebibytes that were asked for.
pub(crate) const SIZE: &str = "provisioner.internal/size-mib";
/// On a stateful set: how many routes lead there when it is not suspended.
pub(crate) const ROUTES: &str = "provisioner.internal/routes";
/// On a stateful set whose pod was refused: when its controller was last asked to try again, in seconds since 1970.
pub(crate) const TRIED: &str = "provisioner.internal/tried";
/// The annotations of a stateful set that change while it stays what it is: verbs write them anew.
pub(crate) const CHANGING: [&str; 3] = [WRITTEN, INTENDED, ROUTES];
/// On a stateful set: where it answers.
pub(crate) const ENDPOINT: &str = "provisioner.internal/endpoint";
/// The version of the product.
pub(crate) const VERSION: &str = "app.kubernetes.io/version";
pub(crate) const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
/// Before the key of a label of the spec.
pub(crate) const LABEL_PREFIX: &str = "label.provisioner.internal/";

/// The home of a data set. A function of control plane and data, as data outlives makings.
pub(crate) fn home(control_plane: &ControlPlaneId, data: &DataId) -> String {
    let mut hash = Sha256::new();
    for part in [control_plane.as_str(), data.as_str()] {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    let (number, _) = hash.finalize().0.split_first_chunk().map(|(number, rest)| (*number, rest)).expect("32 bytes");
    numbered(u128::from_be_bytes(number))
}

/// The home with this number.
pub(crate) fn numbered(number: u128) -> String {
    format!("{HOME}{number:032x}")
}

/// The number in a home's name. `None`: it is none of [`home`].
pub(crate) fn number(home: &str) -> Option<u128> {
    let number = u128::from_str_radix(home.strip_prefix(HOME)?, 16).ok()?;
    (numbered(number) == home).then_some(number)
}

/// The name of everything that belongs to one making. With what Kubernetes adds to a stateful set's name for its pods'
/// labels it stays within a label's 63 characters.
pub(crate) fn making(control_plane: &ControlPlaneId, instance: &InstanceId, incarnation: Incarnation) -> String {
    let token = incarnation.token(control_plane, instance);
    format!("{instance}-{}", &token[..10])
}

/// What the name of a home begins with.
const HOME: &str = "instance-";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_functions_of_what_they_name_and_fit() {
        let plane = ControlPlaneId::new("p".repeat(40)).unwrap();
        let data = DataId::from_random(7);
        assert_eq!(home(&plane, &data), home(&plane, &data));
        assert_ne!(home(&plane, &data), home(&plane, &DataId::from_random(8)));
        assert_ne!(home(&plane, &data), home(&ControlPlaneId::new("other").unwrap(), &data));
        assert!(home(&plane, &data).len() <= 63);
        assert_eq!(numbered(number(&home(&plane, &data)).unwrap()), home(&plane, &data));
        assert!(number("instance-1").is_none() && number("kube-system").is_none());
        let instance = InstanceId::new("i".repeat(40)).unwrap();
        let name = making(&plane, &instance, Incarnation::new(u32::MAX, u128::MAX));
        // The label controller-revision-hash holds the name, a dash and ten characters.
        assert!(name.len() <= 52, "{name}");
        assert_ne!(name, making(&plane, &instance, Incarnation::new(u32::MAX, 1)));
    }
}
