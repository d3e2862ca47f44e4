//! The contract on a real cluster, with real pods.
#![allow(missing_docs)]

mod cluster;
mod gate;
mod outsider;

use std::{collections::BTreeMap, process::ExitCode, sync::Arc, time::Duration};

use backend_k8s::{
    IngressConfig, KubernetesConfig,
    render::{NamespaceEach, SharedNamespace},
};
use provisioner_contract::{Profile, Setup, Suite};
use provisioner_core::types::{InstanceSpec, SizeMax, VariableName};
use tokio::runtime::Runtime;

use crate::{
    cluster::{Cluster, Rights, SHARED, spec},
    gate::Gate,
    outsider::ClusterOutsider,
};

/// How long the slow product takes to be ready.
const SLOW: Duration = Duration::from_secs(15);

fn main() -> ExitCode {
    let runtime = Runtime::new().expect("a runtime");
    match runtime.block_on(Cluster::ready()) {
        Ok(cluster) => {
            runtime.spawn(cluster.clone().make_volumes());
            let runtime = Arc::new(runtime);
            let of = |kind| Kubernetes { kind, cluster: cluster.clone(), runtime: Arc::clone(&runtime) };
            let suite = Suite::new().with(of(Rights::Cluster));
            let suite = match has_all_lives() {
                true => suite.with(of(Rights::Shared)),
                false => suite.with_sections(of(Rights::Shared), &WHERE_IT_LIVES, OTHERS),
            };
            suite.main()
        }
        Err(reason) if test_peers::kubernetes::is_required() => Suite::new().failed("k8s", &reason).main(),
        Err(reason) => KINDS.into_iter().fold(Suite::new(), |suite, kind| suite.without(name(kind), &reason)).main(),
    }
}

/// The sections of which the rules are about where data sets live: that they outlive what runs, are removed and are listed.
const WHERE_IT_LIVES: [u8; 3] = [5, 6, 8];

/// Why the others are ignored.
const OTHERS: &str = "it is the same in any namespace, and tried in this one with CONTRACT_LIVES=all";

/// Each life is one of real pods, and there are hundreds: only then are all of them had.
fn has_all_lives() -> bool {
    std::env::var_os("CONTRACT_LIVES").is_some_and(|lives| lives == "all")
}

/// Each layout is tried with the rights that it needs.
const KINDS: [Rights; 2] = [Rights::Cluster, Rights::Shared];

fn name(kind: Rights) -> &'static str {
    match kind {
        Rights::Cluster => "k8s",
        Rights::Shared => "k8s-shared",
    }
}

struct Kubernetes {
    kind: Rights,
    cluster: Cluster,
    runtime: Arc<Runtime>,
}

impl Setup for Kubernetes {
    fn name(&self) -> String {
        name(self.kind).to_owned()
    }

    fn profile(&self) -> Profile {
        let account = format!("contract-{:016x}", provisioner_contract::random() as u64);
        let (cluster, name) = (self.cluster.clone(), account.clone());
        let client = std::thread::scope(|scope| {
            let account = scope.spawn(|| self.runtime.block_on(cluster.account(&name, self.kind)));
            account.join().expect("nobody panics there")
        });
        let gate = Gate::new();
        let client = gate.around(client.expect("an account"));
        let config = KubernetesConfig {
            storage_class: self.cluster.class.clone(),
            image_pull_policy: Some("Never".into()),
            // Hundreds run on one node at times, and a container that is held to little takes seconds to start.
            cpu_reserved_percent: Some(1),
            // What any node has room for.
            size_max: SizeMax { cpu_millis: 1000, memory_mib: 256, data_mib: 256 },
            // No controller of this class runs here: routes are made, and lead nowhere.
            ingress: Some(IngressConfig {
                class: "none".into(),
                controller_namespace: [("kubernetes.io/metadata.name".to_owned(), "none".to_owned())].into(),
                tls: false,
                annotations: BTreeMap::new(),
            }),
            ..KubernetesConfig::default()
        };
        let kind = self.kind;
        let build = move || {
            let (config, client) = (config.clone(), Some(client.clone()));
            let backend = match kind {
                Rights::Cluster => config.build_with(client, NamespaceEach),
                Rights::Shared => config.build_with(client, SharedNamespace::new(SHARED)),
            };
            Arc::new(backend.expect("a good configuration"))
        };
        let (cluster, name) = (self.cluster.clone(), account.clone());
        let outsider = ClusterOutsider { cluster, gate, account: name, rights: self.kind };
        let mut profile = Profile::new(build(), spec).with_outsider(outsider);
        profile.reopen = Some(Box::new(move || build()));
        // A namespace whose pods end late is looked at again after pauses that grow.
        profile.deadline = Duration::from_secs(300);
        // More than a page of what is listed.
        profile.many = 40;
        if !has_all_lives() {
            (profile.cuts_apart, profile.pairs_apart) = (48, 8);
        }
        profile.slow = Some((with("READY_AFTER_MS", &SLOW.as_millis().to_string()), SLOW));
        profile.broken = Some(with("EXIT_AT_ONCE", "1"));
        profile.keep = Some(Box::new(Account {
            cluster: self.cluster.clone(),
            name: account,
            runtime: Arc::clone(&self.runtime),
        }));
        profile
    }
}

fn with(name: &str, value: &str) -> InstanceSpec {
    let mut spec = spec("1.0");
    spec.environment.insert(VariableName::new(name).expect("a name"), value.to_owned());
    spec
}

/// The account of one rule. When dropped, it is removed.
struct Account {
    cluster: Cluster,
    name: String,
    runtime: Arc<Runtime>,
}

impl Drop for Account {
    fn drop(&mut self) {
        std::thread::scope(|scope| {
            scope.spawn(|| self.runtime.block_on(self.cluster.forget(&self.name)));
        });
    }
}
