//! From `create` to the first answer of the product, and back from zero, beside the product started by hand.
//!
//! `cargo bench -p benches --bench first_answer`

use std::sync::Arc;

use backend_process::ProcessConfig;
use benches::{ByHand, Samples, finish, heading, product, row, spec, until_answered};
use provisioner_core::{
    Cell, ControlPlane, Result,
    control_plane::{NewInstance, Request},
    store::{CommitMode, SqliteStore},
    types::{Actor, CellName, ControlPlaneId, DataDisposition, InstanceId, TenantId},
};

/// How often each is done.
const ROUNDS: usize = 60;

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async { measure().await.expect("the benchmark ran") });
}

async fn measure() -> Result<()> {
    let product = product();
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder");
    let root = std::path::absolute(folder.path()).expect("an absolute path");
    let mut by_hand = Samples::default();
    for round in 0..ROUNDS {
        by_hand.push(ByHand::start(&product, &root.join(format!("by-hand-{round}"))).until_answered());
    }
    let plane_id = ControlPlaneId::new("bench")?;
    let store = SqliteStore::open(root.join("store.db"), plane_id, CommitMode::Grouped).await;
    let store = store.map_err(|error| error.into_error("open"))?;
    let backend = ProcessConfig::new(root.join("instances")).without_users().build()?;
    let cell = Cell::new(CellName::new("here")?, Arc::new(backend));
    let plane = ControlPlane::builder(store).cell(cell).start().await?;
    let (mut created, mut woken) = (Samples::default(), Samples::default());
    for round in 0..ROUNDS {
        let id = InstanceId::new(format!("i-{round}"))?;
        let new = NewInstance::new(id.clone(), TenantId::new("tenant")?, spec(&product));
        created.push(until_answered(&plane, &id, plane.create(new, by()).await).await?);
        finish(plane.sleep(&id, by()).await).await?;
        woken.push(until_answered(&plane, &id, plane.wake(&id, by()).await).await?);
        finish(plane.destroy(&id, DataDisposition::Delete, by()).await).await?;
    }
    plane.shutdown().await?;
    heading(&[
        "process backend, from the call to the first answer",
        "p50 / p99",
        "beyond the product's own start, p50",
    ]);
    let beyond = |samples: &Samples| {
        format!("{:.1} ms", (samples.percentile(50).as_secs_f64() - by_hand.percentile(50).as_secs_f64()) * 1e3)
    };
    row(&["the product started by hand (the floor)".into(), by_hand.p50_p99(), "0".into()]);
    row(&["`create`".into(), created.p50_p99(), beyond(&created)]);
    row(&["`wake`".into(), woken.p50_p99(), beyond(&woken)]);
    Ok(())
}

fn by() -> Request {
    Request::by(Actor::new("bench").expect("a name"))
}
