//! The contract on the process backend, with real processes: this program is also the product that they run.
#![allow(missing_docs)]

mod support;

use std::process::ExitCode;

use support::{process::Processes, product};

fn main() -> ExitCode {
    if product::is_asked_for() {
        product::run();
    }
    provisioner_contract::Suite::new().with_layers(Processes).main()
}
