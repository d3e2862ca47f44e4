//! The contract on an EC2 API server that nobody here wrote, behind a proxy that adds what real EC2 does and it lacks, with
//! machines that boot for real.
#![allow(missing_docs)]

#[path = "../shared/clients.rs"]
mod clients;
mod outsider;

use std::{collections::BTreeSet, path::Path, process::ExitCode, sync::Arc, time::Duration};

use backend_vm::{Place, VmConfig};
use provisioner_contract::{Profile, Setup, Suite};
use provisioner_core::types::{InstanceSpec, SizeMax, VariableName, Workload};
use serde_json::Value;
use test_ec2::{Ec2, Options};
use tokio::runtime::Runtime;

use crate::outsider::Ec2Outsider;

/// How long the slow product takes to be ready.
const SLOW: Duration = Duration::from_secs(10);
/// Longer than the stand lags, and than a request is under way on a busy machine.
const SETTLING: Duration = Duration::from_secs(4);
const POLICY: &str = include_str!("../../policies/control-plane.json");
const LAG: Duration = Duration::from_millis(50);

fn main() -> ExitCode {
    let runtime = Runtime::new().expect("a runtime");
    match test_ec2::missing() {
        Ok(None) => {
            let product = benches::product();
            Suite::new().with(Machines { runtime, product: product.display().to_string() }).main()
        }
        Ok(Some(reason)) => Suite::new().without("vm", &reason).main(),
        Err(reason) => Suite::new().failed("vm", &reason).main(),
    }
}

struct Machines {
    runtime: Runtime,
    product: String,
}

impl Setup for Machines {
    fn name(&self) -> String {
        "vm".to_owned()
    }

    fn profile(&self) -> Profile {
        let options = Options { lag: LAG, actions: Some(policy()), ..Options::default() };
        let ready = async {
            let stand = Ec2::start(options).await?;
            let (places, image) = (stand.subnets(), stand.image().await);
            Ok::<_, String>((stand, places, image))
        };
        let (stand, places, image) = std::thread::scope(|scope| {
            let ready = scope.spawn(|| self.runtime.block_on(ready));
            ready.join().expect("nobody panics there").expect("a stand")
        });
        let place = |(subnet, zone): (String, String)| Place { subnet, zone };
        let mut config = VmConfig::new(test_ec2::REGION, places.into_iter().take(2).map(place).collect());
        config.probes = true;
        // These take none.
        config.boot_time = Duration::ZERO;
        config.settling = SETTLING;
        config.look_every = Duration::from_millis(500);
        config.watch_every = Duration::from_secs(1);
        config.size_max = SizeMax { cpu_millis: 2_000, memory_mib: 4_096, data_mib: 10 << 10 };
        // What is tried here is not how fast an account may call.
        config.buckets = clients::unpaced();
        let endpoint = stand.endpoint().to_owned();
        let build = move || Arc::new(clients::backend(config.clone(), &endpoint));
        let product = self.product.clone();
        let spec_of = move |version: &str| spec(&image, &product, version);
        let with = |name: &str, value: &str| {
            let mut spec = spec_of("1.0");
            spec.environment.insert(VariableName::new(name).expect("a name"), value.to_owned());
            spec
        };
        let (mut slow, broken) = (with("READY_AFTER_SECONDS", &SLOW.as_secs().to_string()), with("EXIT_AT_ONCE", "1"));
        slow.workload.start_timeout_seconds = 60;
        let mut profile = Profile::new(build(), spec_of).with_outsider(Ec2Outsider { stand: stand.clone() });
        profile.reopen = Some(Box::new(move || build()));
        // On a machine that is busy with something else, the lives of the rules that cut take minutes.
        profile.deadline = Duration::from_secs(120);
        profile.many = 30;
        // The unit of a product starts it again.
        profile.deaths_pass_unseen = true;
        // It compares with what it saw at first, and asks for that when it is polled.
        profile.watch_opens_in = Duration::from_secs(3);
        // Each life is one of machines that boot, there are hundreds, and the server gets slower with each machine that ever was.
        if std::env::var_os("CONTRACT_LIVES").is_none_or(|lives| lives != "all") {
            (profile.cuts_apart, profile.pairs_apart) = (36, 5);
        }
        profile.slow = Some((slow, SLOW));
        profile.broken = Some(broken);
        profile.keep = Some(Box::new(stand));
        profile
    }
}

/// The actions that the policy in the crate allows: the rules have no more.
fn policy() -> BTreeSet<String> {
    let policy: Value = serde_json::from_str(POLICY).expect("the policy is JSON");
    let statements = policy["Statement"].as_array().expect("statements").iter();
    let actions = statements.flat_map(|statement| match &statement["Action"] {
        Value::Array(actions) => actions.clone(),
        action => vec![action.clone()],
    });
    actions.filter_map(|action| Some(action.as_str()?.strip_prefix("ec2:")?.to_owned())).collect()
}

fn spec(image: &str, product: &str, version: &str) -> InstanceSpec {
    let mut workload = Workload::new(version);
    workload.vm_image = Some(image.to_owned());
    workload.boot_script = Some(format!(
        r#"if [ -n "${{EXIT_AT_ONCE:-}}" ]; then exit 3; fi
sleep "${{READY_AFTER_SECONDS:-0}}"
export TENANT=contract PRODUCT_VERSION=1
# The machine's root is a folder here.
export DATA_PATH="$PROVISIONER_ROOT$DATA_PATH"
exec {}
"#,
        Path::new(product).display()
    ));
    workload.port = Some(8080);
    workload.health_path = "/healthz".into();
    workload.start_timeout_seconds = 8;
    workload.stop_grace_seconds = 1;
    let mut spec = InstanceSpec::new(workload);
    spec.data.size_mib = 1024;
    spec
}
