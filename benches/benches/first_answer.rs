//! From `create` to the first answer of the product, and back from zero, beside the product started by hand.
//!
//! `cargo bench -p benches --bench first_answer`

use std::sync::Arc;

use benches::{ByHand, Root, Samples, finish, heading, product, row, spec, until_answered};
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
    let mut by_hand = Samples::default();
    let folder = tempfile::tempdir().expect("a folder");
    for round in 0..ROUNDS {
        by_hand.push(ByHand::start(&product, &folder.path().join(round.to_string())).until_answered());
    }
    let mut measured = Vec::new();
    for root in Root::with_and_without_users(&product) {
        measured.push((root.as_str(), through_the_control_plane(&root).await?));
    }
    heading(&[
        "process backend, from the call to the first answer",
        "p50 / p99",
        "beyond the product's own start, p50",
    ]);
    let beyond = |samples: &Samples| {
        format!("{:.1} ms", (samples.percentile(50).as_secs_f64() - by_hand.percentile(50).as_secs_f64()) * 1e3)
    };
    row(&["the product started by hand (the floor)".into(), by_hand.p50_p99(), "0".into()]);
    for (users, [created, woken]) in &measured {
        row(&[format!("`create`, {users}"), created.p50_p99(), beyond(created)]);
        row(&[format!("`wake`, {users}"), woken.p50_p99(), beyond(woken)]);
    }
    Ok(())
}

/// Makes an instance, puts it to sleep, wakes it and removes it, again and again: how long `create` and `wake` took.
async fn through_the_control_plane(root: &Root) -> Result<[Samples; 2]> {
    let store =
        SqliteStore::open(root.path().join("store.db"), ControlPlaneId::new("bench")?, CommitMode::Grouped).await;
    let store = store.map_err(|error| error.into_error("open"))?;
    let cell = Cell::new(CellName::new("here")?, Arc::new(root.backend()?));
    let plane = ControlPlane::builder(store).cell(cell).start().await?;
    let (mut created, mut woken) = (Samples::default(), Samples::default());
    for round in 0..ROUNDS {
        let id = InstanceId::new(format!("i-{round}"))?;
        let new = NewInstance::new(id.clone(), TenantId::new("tenant")?, spec(root.product()));
        created.push(until_answered(&plane, &id, plane.create(new, by()).await).await?);
        finish(plane.sleep(&id, by()).await).await?;
        woken.push(until_answered(&plane, &id, plane.wake(&id, by()).await).await?);
        finish(plane.destroy(&id, DataDisposition::Delete, by()).await).await?;
    }
    plane.shutdown().await?;
    Ok([created, woken])
}

fn by() -> Request {
    Request::by(Actor::new("bench").expect("a name"))
}
