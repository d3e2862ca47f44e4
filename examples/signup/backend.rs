//! The one place that knows which backends there are.

use std::{path::Path, sync::Arc};

use anyhow::anyhow;
use backend_process::ProcessConfig;
use provisioner_core::{Chain, Provisioner, Result};

use crate::args::{AccountArgs, Args, BackendKind, CloudArgs, ClusterArgs, GroupArgs};

/// The cell of this kind of backend, by its name, keeping what it needs to keep on this machine under `root`.
pub(crate) fn backend(args: &Args, root: &Path) -> anyhow::Result<(&'static str, Arc<dyn Provisioner>)> {
    let (name, backend) = match args.backend {
        BackendKind::Process => ("this-machine", processes(root)),
        BackendKind::K8s => ("cluster", cluster(&args.cluster)?),
        BackendKind::Vm => ("account", account(&args.cloud, &args.account)?),
        BackendKind::Appservice => ("group", group(&args.cloud, &args.group)?),
    };
    let unusable = |error| anyhow!("the instances' backend cannot be used: {}", Chain(&error));
    Ok((name, backend.map_err(unusable)?))
}

fn processes(root: &Path) -> Result<Arc<dyn Provisioner>> {
    // Without users of their own: the product lies in a build folder, which others than its owner may not enter.
    Ok(Arc::new(ProcessConfig::new(root).without_users().build()?))
}

#[cfg(feature = "k8s")]
fn cluster(args: &ClusterArgs) -> anyhow::Result<Result<Arc<dyn Provisioner>>> {
    use backend_k8s::{Connection, IngressConfig, KubernetesConfig, render::SharedNamespace};

    let connection = match &args.context {
        None => Connection::Inferred,
        context => Connection::Kubeconfig { path: None, context: context.clone() },
    };
    let namespace = ("kubernetes.io/metadata.name".to_owned(), args.ingress_namespace.clone());
    let ingress = args.ingress_class.as_ref().map(|class| IngressConfig {
        class: class.clone(),
        controller_namespace: [namespace].into(),
        tls: false,
        annotations: [].into(),
    });
    let config = KubernetesConfig {
        connection,
        storage_class: args.storage_class.clone(),
        ingress,
        ..KubernetesConfig::default()
    };
    let backend = match &args.shared_namespace {
        None => config.build(),
        Some(namespace) => config.build_with(None, SharedNamespace::new(namespace)),
    };
    Ok(backend.map(|backend| Arc::new(backend) as Arc<dyn Provisioner>))
}

#[cfg(not(feature = "k8s"))]
fn cluster(_args: &ClusterArgs) -> anyhow::Result<Result<Arc<dyn Provisioner>>> {
    Err(built_without("Kubernetes", "k8s"))
}

#[cfg(feature = "vm")]
fn account(cloud: &CloudArgs, args: &AccountArgs) -> anyhow::Result<Result<Arc<dyn Provisioner>>> {
    use backend_vm::{Place, VmConfig};

    let place = |(subnet, zone): &(String, String)| Place { subnet: subnet.clone(), zone: zone.clone() };
    let region = cloud.region.clone().unwrap_or_default();
    let mut config = VmConfig::new(region, args.place.iter().map(place).collect());
    config.endpoint.clone_from(&cloud.endpoint);
    config.security_groups.clone_from(&args.security_group);
    config.probes = args.probes;
    config.root_gib = args.root_gib;
    Ok(config.build().map(|backend| Arc::new(backend) as Arc<dyn Provisioner>))
}

#[cfg(not(feature = "vm"))]
fn account(_cloud: &CloudArgs, _args: &AccountArgs) -> anyhow::Result<Result<Arc<dyn Provisioner>>> {
    Err(built_without("EC2", "vm"))
}

#[cfg(feature = "appservice")]
fn group(cloud: &CloudArgs, args: &GroupArgs) -> anyhow::Result<Result<Arc<dyn Provisioner>>> {
    use anyhow::Context;
    use backend_appservice::{AppServiceConfig, Https, Scope};

    let named = |value: &Option<String>| value.clone().unwrap_or_default();
    let scope = Scope { subscription: named(&args.subscription), resource_group: named(&args.resource_group) };
    let mut config = AppServiceConfig::new(scope, named(&cloud.region), named(&args.storage_account));
    config.endpoint.clone_from(&cloud.endpoint);
    config.plans.sku.clone_from(&args.sku);
    config.plans.sites_max = args.sites_per_plan;
    config.plans.plans_max = args.plans_max;
    let roots = match &args.ca_file {
        None => None,
        Some(path) => Some(std::fs::read_to_string(path).with_context(|| {
            format!("the certificates {} cannot be read: name a file of them with --ca-file", path.display())
        })?),
    };
    let https = || roots.as_deref().map_or_else(Https::new, Https::with_roots);
    let build = || {
        let credential = crate::token::of_environment().map_or_else(provisioner_azure::signed_in, Ok)?;
        Ok(Arc::new(config.build_with(credential, https()?)?) as Arc<dyn Provisioner>)
    };
    Ok(build())
}

#[cfg(not(feature = "appservice"))]
fn group(_cloud: &CloudArgs, _args: &GroupArgs) -> anyhow::Result<Result<Arc<dyn Provisioner>>> {
    Err(built_without("App Service", "appservice"))
}

#[cfg(any(test, not(all(feature = "k8s", feature = "vm", feature = "appservice"))))]
fn built_without(backend: &str, feature: &str) -> anyhow::Error {
    anyhow!(
        "this was built without the {backend} backend: build it with the feature {feature}, as in `cargo run --release \
         --package examples --features {feature} --example signup -- --backend {feature} ...`"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_built_without_a_backend_says_how_to_build_it() {
        let told = built_without("Kubernetes", "k8s").to_string();
        assert!(told.contains("--features k8s --example signup -- --backend k8s"), "{told}");
    }
}
