//! What things are called at Azure, and how they are marked: sites and plans by tags, shares by their metadata.

use std::collections::BTreeSet;

use provisioner_core::types::{ControlPlaneId, DataId, Incarnation, InstanceId};
use sha2::{Digest, Sha256};

/// Whose a thing is: the control plane.
pub(crate) const CONTROL_PLANE: &str = "provisioner-control-plane";
/// Which instance a thing belongs to; of a share, the last one that used it.
pub(crate) const INSTANCE: &str = "provisioner-instance";
/// Which making a thing belongs to; of a share, the last one that used it.
pub(crate) const INCARNATION: &str = "provisioner-incarnation";
/// Which data a share holds, and a site works on.
pub(crate) const DATA: &str = "provisioner-data";
/// Whose data it is: a hash.
pub(crate) const TENANT: &str = "provisioner-tenant";
/// On a site: the generation of the spec that it was made for or last updated to.
pub(crate) const GENERATION: &str = "provisioner-generation";
/// On a site: `running`, `zero` or `suspended`.
pub(crate) const INTENDED: &str = "provisioner-intended";
/// On a site: how the product says that it is ready, for who does not know its spec.
pub(crate) const PRODUCT: &str = "provisioner-product";
/// On a site: a digest of the host names of its own that it is to have.
pub(crate) const HOST_NAMES: &str = "provisioner-host-names";
/// On what was written: a random word, so that an answer that is older than that is known.
pub(crate) const WRITTEN: &str = "provisioner-written";
/// On a share: the making that is taking it up, and has no site yet.
pub(crate) const MAKING: &str = "provisioner-making";
/// On a share: the making that is done with it, and leaves it to others.
pub(crate) const RELEASED: &str = "provisioner-released";
/// On a share: the making with which it is to go.
pub(crate) const ENDING: &str = "provisioner-ending";
/// Before each label of a spec.
pub(crate) const LABEL: &str = "provisioner-label-";

/// The mount of the data.
pub(crate) const MOUNT: &str = "data";

/// In the metadata of shares names are those of variables.
pub(crate) fn in_metadata(tag: &str) -> String {
    tag.replace('-', "_")
}

/// The site of a making. Up to 51 of the 60 characters that are allowed; see
/// <https://learn.microsoft.com/azure/azure-resource-manager/management/resource-name-rules#microsoftweb>. Names are global, and so
/// it is a function of control plane, instance and incarnation that nobody else comes to by chance. Some words are the service's own:
/// <https://learn.microsoft.com/azure/azure-resource-manager/troubleshooting/error-reserved-resource-name>.
pub(crate) fn site(control_plane: &ControlPlaneId, instance: &InstanceId, incarnation: Incarnation) -> String {
    let (token, name) = (incarnation.token(control_plane, instance), instance.as_str());
    match name.starts_with("login") || name.contains("microsoft") || name.contains("windows") {
        true => format!("site-{}", &token[..20]),
        false => format!("{instance}-{}", &token[..10]),
    }
}

/// The share of a data set, which outlives makings.
pub(crate) fn share(control_plane: &ControlPlaneId, data: &DataId) -> String {
    format!("{SHARES}{}", hash(&[control_plane.as_str(), data.as_str()], 32))
}

/// What the names of shares begin with.
pub(crate) const SHARES: &str = "data-";

/// What the names of a control plane's plans in a region begin with: a group may have cells in several.
pub(crate) fn plans(control_plane: &ControlPlaneId, region: &str) -> String {
    format!("plan-{}-", hash(&[control_plane.as_str(), region], 10))
}

/// Whether something is in a region. The service calls it by its name or as people do: `westeurope`, `West Europe`.
pub(crate) fn is_in(location: &str, region: &str) -> bool {
    location.replace(' ', "").eq_ignore_ascii_case(region)
}

/// A digest of host names, in any order. Empty, where there are none.
pub(crate) fn hosts<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    let names: BTreeSet<_> = names.into_iter().collect();
    let names: Vec<_> = names.into_iter().collect();
    if names.is_empty() { String::new() } else { hash(&names, 16) }
}

fn hash(parts: &[&str], digits: usize) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    let hash: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    hash[..digits].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_functions_of_what_they_name_and_fit() {
        let (plane, other) = (ControlPlaneId::new("p").unwrap(), ControlPlaneId::new("q").unwrap());
        let instance = InstanceId::new("i".repeat(40)).unwrap();
        let making = |nonce| site(&plane, &instance, Incarnation::new(1, nonce));
        assert_eq!(making(1), making(1));
        assert_ne!(making(1), making(2));
        assert_ne!(making(1), site(&other, &instance, Incarnation::new(1, 1)));
        assert!(making(1).len() <= 60);
        let reserved = InstanceId::new("windows-repair").unwrap();
        assert!(site(&plane, &reserved, Incarnation::new(1, 1)).starts_with("site-"));
        let data = DataId::from_random(7);
        assert_ne!(share(&plane, &data), share(&other, &data));
        assert!(share(&plane, &data).len() <= 63);
        assert_ne!(plans(&plane, "westeurope"), plans(&other, "westeurope"));
        assert_ne!(plans(&plane, "westeurope"), plans(&plane, "northeurope"));
        assert!(is_in("West Europe", "westeurope") && !is_in("North Europe", "westeurope"));
    }
}
