//! The name of a cluster.

use std::fmt;

use http::Uri;
use serde::{Deserialize, Serialize};

/// A cluster of Azure Kubernetes Service by its name.
///
/// It is reached as its [user](https://learn.microsoft.com/azure/aks/control-kubeconfig-access): with the certificate or token of the
/// kubeconfig that Azure Resource Manager gives for it, or, where the cluster signs people in with
/// [Entra ID](https://learn.microsoft.com/azure/aks/kubelogin-authentication), with tokens of whoever runs this. Those are had without a
/// helper program, and renewed before they expire. Needs the feature `aks`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AksCluster {
    /// The subscription by id.
    pub subscription: String,
    /// The resource group by name.
    pub resource_group: String,
    /// The cluster by name.
    pub name: String,
    /// Where Resource Manager is instead of the public cloud's. Its scheme is https, as tokens are sent there.
    #[serde(default)]
    pub endpoint: Option<String>,
}

impl fmt::Display for AksCluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { subscription, resource_group, name, .. } = self;
        write!(f, "AKS cluster {name} in resource group {resource_group} of subscription {subscription}")
    }
}

impl AksCluster {
    /// The first field that is wrong, and what was expected. What is right fits into a path as it is. The rules are those of
    /// <https://learn.microsoft.com/azure/azure-resource-manager/management/resource-name-rules>.
    pub(crate) fn problem(&self) -> Option<(&'static str, &'static str)> {
        let is_plain = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        if !is_plain(&self.subscription) {
            return Some(("subscription", "expected the id of a subscription"));
        }
        let group = &self.resource_group;
        let is_group = (1..=90).contains(&group.chars().count())
            && group.chars().all(|c| c.is_alphanumeric() || "-_.()".contains(c))
            && !group.ends_with('.');
        if !is_group {
            return Some(("resource_group", "expected the name of a resource group"));
        }
        let name = &self.name;
        let is_name = name.len() <= 63
            && is_plain(&name.replace('_', "-"))
            && [name.bytes().next(), name.bytes().last()].iter().flatten().all(u8::is_ascii_alphanumeric);
        if !is_name {
            return Some(("name", "expected the name of a cluster: 1 to 63 of letters, digits, - and _"));
        }
        let is_https = |uri: Uri| {
            uri.scheme_str() == Some("https")
                && uri.authority().is_some_and(|authority| !authority.as_str().contains('@'))
        };
        match &self.endpoint {
            Some(endpoint) if !endpoint.parse().is_ok_and(is_https) => {
                Some(("endpoint", "expected an https URL, as tokens are sent there"))
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cluster() -> AksCluster {
        AksCluster {
            subscription: "00000000-0000-4000-8000-000000000001".into(),
            resource_group: "prod_(eu).1".into(),
            name: "cell-1".into(),
            endpoint: None,
        }
    }

    #[test]
    fn each_wrong_field_is_named() {
        let problem_with = |change: &dyn Fn(&mut AksCluster)| {
            let mut cluster = cluster();
            change(&mut cluster);
            cluster.problem().map(|(field, _)| field)
        };
        assert_eq!(problem_with(&|_| {}), None);
        for name in ["a", "A_1", &"a".repeat(63)] {
            assert_eq!(problem_with(&|c| c.name = name.into()), None, "{name}");
        }
        for name in ["", "-a", "a_", "a/b", "..", "a?", &"a".repeat(64)] {
            assert_eq!(problem_with(&|c| c.name = name.into()), Some("name"), "{name}");
        }
        for group in ["", "..", "a/b", "a.", "a b", &"a".repeat(91)] {
            assert_eq!(problem_with(&|c| c.resource_group = group.into()), Some("resource_group"), "{group}");
        }
        for subscription in ["", "a/b", "a b"] {
            assert_eq!(problem_with(&|c| c.subscription = subscription.into()), Some("subscription"), "{subscription}");
        }
        for endpoint in ["http://a", "a", "", "https://u:p@a"] {
            assert_eq!(problem_with(&|c| c.endpoint = Some(endpoint.into())), Some("endpoint"), "{endpoint}");
        }
        assert_eq!(problem_with(&|c| c.endpoint = Some("https://127.0.0.1:8443".into())), None);
    }
}
