//! Ended and started again, gently or not.

use std::{sync::Arc, time::Duration};

use provisioner_core::{
    Cell, ControlPlane, ErrorKind, OpContext, Provisioner,
    memory::{Fault, MemoryConfig, MemoryProvisioner},
    store::OperationState,
    types::{CellName, DataDisposition, DataSource, Phase, Target},
};

use crate::harness::{World, by, cell, config, done, ended, id, new, plane_id};

fn slow() -> MemoryConfig {
    MemoryConfig { start: Duration::from_secs(10), stop: Duration::from_secs(5), ..MemoryConfig::default() }
}

#[tokio::test(start_paused = true)]
async fn what_was_accepted_goes_on_after_a_restart() {
    let mut world = World::with(slow(), config()).await;
    world.create("sleeper").await;
    world.create("goner").await;
    let created = world.plane.create(new("acme"), by()).await.unwrap();
    let slept = world.plane.sleep(&id("sleeper"), by()).await.unwrap();
    world.plane.destroy(&id("goner"), DataDisposition::Delete, by()).await.unwrap();
    // No shutdown: the old one is fenced off in the middle of it.
    world.start_again().await;
    for operation in [created, slept] {
        let operation = world.plane.operation(&operation.operation().id).await.unwrap();
        done(&operation).await;
    }
    assert_eq!(world.get("acme").await.phase, Some(Phase::Running));
    assert_eq!(world.get("sleeper").await.phase, Some(Phase::Zero));
    for _ in 0..1000 {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(world.plane.get(&id("goner")).await.unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(world.things().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_start_looks_before_it_acts() {
    let mut world = World::new().await;
    // The thing is made, the answer is lost, and the control plane with it.
    world.provider.script("create", Fault::AfterApply);
    world.plane.create(new("acme"), by()).await.unwrap();
    while world.things().is_empty() {
        tokio::task::yield_now().await;
    }
    let made = world.things();
    world.start_again().await;
    world.until_phase("acme", Phase::Running).await;
    assert_eq!(world.things(), made, "it was found, not made again");
    assert_eq!(world.provider.calls()["create"], 1);
}

#[tokio::test(start_paused = true)]
async fn an_older_session_can_neither_write_nor_accept() {
    let mut world = World::new().await;
    world.create("acme").await;
    let old = world.plane.clone();
    world.start_again().await;
    let error = old.create(new("other"), by()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::SessionLost);
    let error = old.sleep(&id("acme"), by()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::SessionLost);
    world.sleep("acme").await;
    assert_eq!(world.plane.get(&id("other")).await.unwrap_err().kind(), ErrorKind::NotFound);
}

#[tokio::test(start_paused = true)]
async fn shutdown_waits_for_calls_in_flight_and_loses_nothing() {
    let mut world = World::with(slow(), config()).await;
    let operations = futures::future::join_all((0..30).map(|n| world.plane.create(new(&format!("i{n}")), by()))).await;
    world.plane.shutdown().await.unwrap();
    let calls = world.calls();
    tokio::time::sleep(Duration::from_secs(100)).await;
    assert_eq!(world.calls(), calls, "nothing goes on after it");
    let waited = operations[0].as_ref().unwrap().wait().await;
    assert!(waited.is_ok() || waited.unwrap_err().kind() == ErrorKind::Cancelled);
    world.start_again().await;
    for n in 0..30 {
        world.until_phase(&format!("i{n}"), Phase::Running).await;
    }
    assert_eq!(world.things().len(), 30);
}

#[tokio::test(start_paused = true)]
async fn a_start_leaves_what_is_at_rest_alone() {
    let mut world = World::new().await;
    for n in 0..100 {
        world.create(&format!("i{n}")).await;
    }
    world.plane.shutdown().await.unwrap();
    let calls = world.calls();
    world.start_again().await;
    tokio::time::sleep(Duration::from_secs(1200)).await;
    assert_eq!(world.calls(), calls + 1, "only the cell's identity is asked for");
}

#[tokio::test(start_paused = true)]
async fn instances_of_a_cell_that_is_not_configured_park_and_go_on_when_it_is_back() {
    let world = World::with(slow(), config()).await;
    let created = world.plane.create(new("acme"), by()).await.unwrap();
    world.plane.shutdown().await.unwrap();
    let other = Cell::new(CellName::new("other").unwrap(), Arc::new(MemoryProvisioner::new(MemoryConfig::default())));
    let plane = ControlPlane::builder(Arc::clone(&world.store)).cell(other.clone()).start().await.unwrap();
    let operation = plane.operation(&created.operation().id).await.unwrap();
    let parked = ended(&operation).await;
    assert_eq!(parked.state, OperationState::Failed);
    assert_eq!(parked.failure.unwrap().code, "cell-missing");
    assert_eq!(plane.wake(&id("acme"), by()).await.unwrap_err().kind(), ErrorKind::CellMissing);
    plane.shutdown().await.unwrap();
    let both = World::builder(&world.store, &world.provider, world.clock).cell(other).start().await.unwrap();
    let world = World { plane: both, ..world };
    world.until_phase("acme", Phase::Running).await;
    assert_eq!(world.things().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_provider_that_became_another_one_is_unavailable_not_empty() {
    let world = World::new().await;
    world.create("acme").await;
    world.plane.shutdown().await.unwrap();
    let impostor =
        MemoryProvisioner::new(MemoryConfig { identity: "another account".into(), ..MemoryConfig::default() });
    let builder = World::builder(&world.store, &impostor, world.clock).config(config());
    let plane = builder.start().await.unwrap();
    plane.sleep(&id("acme"), by()).await.unwrap();
    assert!(plane.check_drift(&cell()).await.unwrap_err().to_string().contains("another account"));
    tokio::time::sleep(Duration::from_secs(600)).await;
    let acme = plane.get(&id("acme")).await.unwrap();
    assert!(!acme.parked && !acme.settled, "it waits");
    assert_eq!(acme.reason.unwrap().code, "cell-unavailable", "and says why");
    assert!(plane.cells().await.unwrap()[0].unavailable.as_ref().unwrap().contains("another account"));
    assert_eq!(impostor.calls().keys().copied().collect::<Vec<_>>(), ["identity"]);
    assert!(impostor.things(&plane_id()).is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_remnant_whose_time_came_while_nobody_worked_is_found_at_the_start() {
    let mut world = World::new().await;
    let acme = world.create("acme").await;
    world.destroy("acme").await;
    world.plane.shutdown().await.unwrap();
    // A call of the old process arrives only now.
    let late = Target {
        id: id("acme"),
        tenant: acme.tenant,
        incarnation: acme.incarnation.unwrap(),
        generation: acme.generation,
        spec: Arc::new(acme.spec),
        data: DataSource::Fresh(acme.data),
    };
    world.provider.create(&OpContext::new(plane_id()), &late).await.unwrap();
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert_eq!(world.things().len(), 1);
    world.start_again().await;
    for _ in 0..300 {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(world.things().is_empty());
}
