//! The contract on a stand-in for Azure, whose sites run for real.
#![allow(missing_docs)]

mod outsider;
#[path = "../shared/stand.rs"]
mod stand;

use std::{collections::BTreeSet, process::ExitCode, sync::Arc, time::Duration};

use provisioner_contract::{Profile, Setup, Suite};
use provisioner_core::types::{SizeMax, VariableName};
use serde_json::Value;
use test_azure::{Azure, Options};
use tokio::runtime::Runtime;

use crate::outsider::AzureOutsider;

/// How long the slow product takes to be ready.
const SLOW: Duration = Duration::from_secs(3);
const LAG: Duration = Duration::from_millis(50);
/// Longer than the stand lags, and than a request is under way on a busy machine.
const SETTLING: Duration = Duration::from_secs(4);
const ROLE: &str = include_str!("../../policies/role.json");

fn main() -> ExitCode {
    let runtime = Runtime::new().expect("a runtime");
    let product = benches::product();
    Suite::new().with(Sites { runtime, product: product.display().to_string() }).main()
}

struct Sites {
    runtime: Runtime,
    product: String,
}

impl Setup for Sites {
    fn name(&self) -> String {
        "appservice".to_owned()
    }

    fn profile(&self) -> Profile {
        let options = Options { lag: LAG, actions: Some(role()), ..Options::default() };
        let stand = std::thread::scope(|scope| {
            let ready = scope.spawn(|| self.runtime.block_on(Azure::start(options)));
            ready.join().expect("nobody panics there").expect("a stand")
        });
        let mut config = stand::config(&stand);
        config.settling = SETTLING;
        config.size_max = SizeMax { cpu_millis: 2_000, memory_mib: 4_096, data_mib: 10 << 10 };
        // Where a plan has room, there is room, whatever befalls the provider.
        config.plans.sites_max = 1;
        let build = {
            let stand = stand.clone();
            move || Arc::new(stand::backend(&stand, config.clone()))
        };
        let product = self.product.clone();
        let spec_of = move |version: &str| stand::spec(&product, version);
        let with = |name: &str, value: &str| {
            let mut spec = spec_of("1.0");
            spec.environment.insert(VariableName::new(name).expect("a name"), value.to_owned());
            spec
        };
        let (slow, broken) = (with("READY_AFTER_SECONDS", &SLOW.as_secs().to_string()), with("EXIT_AT_ONCE", "1"));
        let outsider = AzureOutsider { stand: stand.clone(), client: stand.client() };
        let mut profile = Profile::new(build(), spec_of).with_outsider(outsider);
        profile.reopen = Some(Box::new(move || build()));
        profile.deadline = Duration::from_secs(60);
        profile.many = 60;
        // The service starts it again.
        profile.deaths_pass_unseen = true;
        if std::env::var_os("CONTRACT_LIVES").is_none_or(|lives| lives != "all") {
            (profile.cuts_apart, profile.pairs_apart) = (12, 5);
        }
        profile.slow = Some((slow, SLOW));
        profile.broken = Some(broken);
        profile.keep = Some(Box::new(stand));
        profile
    }
}

/// The actions that the role in the crate allows: the rules have no more.
fn role() -> BTreeSet<String> {
    let role: Value = serde_json::from_str(ROLE).expect("the role is JSON");
    let actions = role["Actions"].as_array().expect("actions").iter();
    actions.map(|action| action.as_str().expect("a text").to_owned()).collect()
}
