//! Prints the identity of the cluster that it runs in, or why it cannot be had.
#![allow(missing_docs)]

use std::{process::ExitCode, time::Duration};

use backend_k8s::{Connection, KubernetesConfig};
use provisioner_core::{Chain, OpContext, Provisioner, Result, types::ControlPlaneId};

fn main() -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    match runtime.block_on(identity()) {
        Ok(identity) => {
            println!("{identity}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            println!("{}", Chain(&error));
            ExitCode::FAILURE
        }
    }
}

async fn identity() -> Result<String> {
    let config = KubernetesConfig { connection: Connection::InCluster, ..KubernetesConfig::default() };
    let owner = ControlPlaneId::new("connect").expect("a label");
    config.build()?.identity(&OpContext::new(owner).with_timeout(Duration::from_secs(30))).await
}
