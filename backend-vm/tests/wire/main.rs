//! What is asked of the service, and what is made of answers that a healthy service does not give.
#![allow(missing_docs, clippy::unwrap_used, reason = "a test may panic")]

mod answers;
mod batches;
#[path = "../shared/clients.rs"]
mod clients;
mod launches;
mod lives;
mod server;
mod things;

use std::{sync::Arc, time::Duration};

use backend_vm::{Place, VmBackend, VmConfig};
use provisioner_core::{
    Effect, ErrorKind, OpContext, Provisioner, Retry,
    types::{
        ControlPlaneId, DataDisposition, DataId, DataSource, Generation, Incarnation, InstanceId, InstanceSpec,
        Observed, Phase, Target, TenantId, Workload,
    },
};

use crate::{
    server::{Asked, Server, empty, machine, ok, refusal},
    things::{Thing, machines, volumes},
};

const SETTLING: Duration = Duration::from_millis(400);

fn config() -> VmConfig {
    let place = |n: &str| Place { subnet: format!("subnet-{n}"), zone: format!("us-east-1{n}") };
    let mut config = VmConfig::new("us-east-1", vec![place("a"), place("b")]);
    config.types.truncate(2);
    config.settling = SETTLING;
    config
}

fn target(n: u128) -> Target {
    let mut workload = Workload::new("1.0").with_command(["/usr/local/bin/product"]);
    workload.vm_image = Some("ami-1".into());
    workload.port = Some(8080);
    Target {
        id: InstanceId::new(format!("acme-{n}")).unwrap(),
        tenant: TenantId::new("Acme").unwrap(),
        incarnation: Incarnation::new(1, n),
        generation: Generation::FIRST,
        spec: Arc::new(InstanceSpec::new(workload)),
        data: DataSource::Fresh(DataId::from_random(n)),
    }
}

fn cx() -> OpContext {
    OpContext::new(ControlPlaneId::new("plane").unwrap()).with_timeout(Duration::from_secs(10))
}

fn after_a_call() -> OpContext {
    let mut cx = cx();
    cx.since_last_call = Some(Duration::ZERO);
    cx
}

fn actions(asked: &[Asked], action: &str) -> usize {
    asked.iter().filter(|asked| asked.action == action).count()
}

/// An account where machines are made, and which then shows nothing of them.
fn forgetful(asked: &Asked) -> server::Answer {
    match asked.action.as_str() {
        "RunInstances" => ok(asked, &machine(asked, "i-1", "pending")),
        _ => empty(asked),
    }
}

async fn start() -> (Server, VmBackend) {
    let server = Server::start(forgetful).await;
    let backend = server.backend(config());
    (server, backend)
}

/// Three machines that run.
fn fleet(asked: &Asked) -> server::Answer {
    match asked.action.as_str() {
        "DescribeInstances" => {
            let all: Vec<_> = (1..=3).map(|n| Thing::machine(&target(n), "running")).collect();
            machines(asked, &all)
        }
        "StopInstances" if asked.parameters.values().any(|value| value == "i-2") => {
            refusal(400, "IncorrectInstanceState")
        }
        _ => empty(asked),
    }
}
