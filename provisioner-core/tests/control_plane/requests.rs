//! What is accepted, what is refused, and in which words.

use std::{sync::Arc, time::Duration};

use provisioner_core::{
    Cell, ErrorKind,
    control_plane::{NewInstance, Request},
    memory::{MemoryConfig, MemoryProvisioner},
    store::{Capacity, InstanceFilter},
    types::{CellName, DataDisposition, HostName, IdempotencyKey, Revision, SizeMax, TenantId},
};

use crate::harness::{World, by, config, done, id, new, spec};

fn keyed(key: &str) -> Request {
    by().with_key(IdempotencyKey::new(key).unwrap())
}

#[tokio::test(start_paused = true)]
async fn a_key_makes_a_request_repeatable_for_a_day() {
    let world = World::new().await;
    let first = world.plane.create(new("acme"), keyed("k1")).await.unwrap();
    let again = world.plane.create(new("acme"), keyed("k1")).await.unwrap();
    assert_eq!(first.operation().id, again.operation().id);
    let error = world.plane.create(new("other"), keyed("k1")).await.unwrap_err();
    assert_eq!((error.kind(), error.field()), (ErrorKind::Conflict, Some("key")));
    done(&first).await;
    let slept = world.plane.sleep(&id("acme"), keyed("k2")).await.unwrap();
    done(&slept).await;
    world.wake("acme").await;
    let again = world.plane.sleep(&id("acme"), keyed("k2")).await.unwrap();
    assert_eq!(slept.operation().id, again.operation().id, "a late repetition does not put it to sleep again");
    assert_eq!(world.get("acme").await.phase, Some(provisioner_core::types::Phase::Running));
    tokio::time::sleep(Duration::from_secs(24 * 3600 + 1)).await;
    let anew = world.plane.sleep(&id("acme"), keyed("k2")).await.unwrap();
    assert_ne!(slept.operation().id, anew.operation().id);
}

#[tokio::test(start_paused = true)]
async fn without_a_key_the_same_creation_is_the_same_operation_and_another_is_a_conflict() {
    let world = World::new().await;
    let first = world.plane.create(new("acme"), by()).await.unwrap();
    let again = world.plane.create(new("acme"), by()).await.unwrap();
    assert_eq!(first.operation().id, again.operation().id);
    let other_spec = NewInstance { spec: spec("2.0"), ..new("acme") };
    let other_tenant = NewInstance { tenant: TenantId::new("Other").unwrap(), ..new("acme") };
    for other in [other_spec, other_tenant] {
        let error = world.plane.create(other, by()).await.unwrap_err();
        assert_eq!((error.kind(), error.field()), (ErrorKind::Conflict, Some("id")));
        assert_eq!(error.customer_message(), "acme is taken");
    }
}

#[tokio::test(start_paused = true)]
async fn an_expected_revision_that_has_passed_is_a_conflict() {
    let world = World::new().await;
    let instance = world.create("acme").await;
    assert_eq!(instance.revision, Revision(1));
    done(&world.plane.sleep(&id("acme"), by().expecting(Revision(1))).await.unwrap()).await;
    let error = world.plane.wake(&id("acme"), by().expecting(Revision(1))).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert!(error.to_string().contains("revision 1 was expected, and it is at 2"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_host_name_belongs_to_one_instance() {
    let world = World::new().await;
    let host = HostName::new("acme.example.com").unwrap();
    let with_host = |name: &str| {
        let mut new = new(name);
        new.spec.host_names.insert(host.clone());
        new
    };
    done(&world.plane.create(with_host("acme"), by()).await.unwrap()).await;
    let error = world.plane.create(with_host("other"), by()).await.unwrap_err();
    assert_eq!((error.kind(), error.field()), (ErrorKind::Conflict, Some("host_names")));
    assert!(error.customer_message().contains("acme.example.com is taken"));
    assert_eq!(world.plane.get(&id("other")).await.unwrap_err().kind(), ErrorKind::NotFound, "nothing of it is left");
    world.create("other").await;
    let mut wants = spec("1.0");
    wants.host_names.insert(host.clone());
    let error = world.plane.update(&id("other"), wants, by()).await.unwrap_err();
    assert_eq!((error.kind(), error.field()), (ErrorKind::Conflict, Some("host_names")));
    world.destroy("acme").await;
    done(&world.plane.create(with_host("later"), by()).await.unwrap()).await;
}

#[tokio::test(start_paused = true)]
async fn a_spec_beyond_the_cell_is_refused_before_anything_is_written() {
    let size_max = SizeMax { cpu_millis: 1000, memory_mib: 512, data_mib: 4096 };
    let world = World::with(MemoryConfig { size_max, ..MemoryConfig::default() }, config()).await;
    for (cpu_millis, memory_mib, field, message) in [
        (0, 1, "size.cpu_millis", "0: expected 1 or more"),
        (1, 0, "size.memory_mib", "0: expected 1 or more"),
        (1001, 1, "size.cpu_millis", "1001: expected 1 to 1000"),
        (1, 513, "size.memory_mib", "513: expected 1 to 512"),
    ] {
        let mut new = new("acme");
        new.spec.size = provisioner_core::types::Size { cpu_millis, memory_mib };
        let error = world.plane.create(new, by()).await.unwrap_err();
        assert_eq!((error.kind(), error.field()), (ErrorKind::InvalidSpec, Some(field)));
        assert!(error.customer_message().contains(message), "{}", error.customer_message());
    }
    assert_eq!(world.plane.position(), 0, "nothing was written");
    assert!(world.provider.calls().keys().all(|call| *call == "identity"), "nobody was asked for anything");
}

#[tokio::test(start_paused = true)]
async fn a_full_cell_refuses_until_there_is_room_again() {
    let world = World::new().await;
    let name = CellName::new("memory").unwrap();
    let capacity = Capacity { instances: 2, ..Capacity::UNBOUNDED };
    world.plane.shutdown().await.unwrap();
    let cell = Cell::new(name, Arc::new(world.provider.clone())).with_capacity(capacity);
    let plane = provisioner_core::ControlPlane::builder(Arc::clone(&world.store)).cell(cell).start().await.unwrap();
    let asked = futures::future::join_all((0..8).map(|n| plane.create(new(&format!("i{n}")), by()))).await;
    let (accepted, refused): (Vec<_>, Vec<_>) = asked.into_iter().partition(Result::is_ok);
    assert_eq!(accepted.len(), 2);
    for error in refused.into_iter().map(Result::unwrap_err) {
        assert_eq!((error.kind(), error.field()), (ErrorKind::QuotaExceeded, Some("cell")));
    }
    let gone = accepted[0].as_ref().unwrap().operation().instance.clone();
    done(&plane.destroy(&gone, DataDisposition::Delete, by()).await.unwrap()).await;
    plane.create(new("later"), by()).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn placement_explains_itself() {
    let world = World::new().await;
    let nowhere = new("acme").in_cell(CellName::new("mars").unwrap());
    let error = world.plane.create(nowhere, by()).await.unwrap_err();
    assert_eq!((error.kind(), error.field()), (ErrorKind::InvalidSpec, Some("cell")));
    assert!(error.to_string().contains("no cell mars: expected one of memory"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_control_plane_without_cells_or_with_twins_does_not_start() {
    let world = World::new().await;
    let provider = || Arc::new(MemoryProvisioner::new(MemoryConfig::default()));
    let builder = || provisioner_core::ControlPlane::builder(Arc::clone(&world.store));
    let name = || CellName::new("twin").unwrap();
    let none = builder().start().await.unwrap_err();
    assert_eq!((none.kind(), none.field()), (ErrorKind::InvalidSpec, Some("cell")));
    let twins = builder().cell(Cell::new(name(), provider())).cell(Cell::new(name(), provider())).start().await;
    assert!(twins.unwrap_err().to_string().contains("two cells are called twin"));
    let mut wrong = config();
    wrong.attempts_max = 0;
    let error = builder().cell(Cell::new(name(), provider())).config(wrong).start().await.unwrap_err();
    assert_eq!(error.field(), Some("attempts_max"));
}

#[tokio::test(start_paused = true)]
async fn what_is_not_there_is_not_found() {
    let world = World::new().await;
    let ghost = id("ghost");
    for error in [
        world.plane.get(&ghost).await.map(drop),
        world.plane.sleep(&ghost, by()).await.map(drop),
        world.plane.update(&ghost, spec("2.0"), by()).await.map(drop),
        world.plane.destroy(&ghost, DataDisposition::Delete, by()).await.map(drop),
    ] {
        let error = error.unwrap_err();
        assert_eq!((error.kind(), error.instance()), (ErrorKind::NotFound, Some(&ghost)));
    }
}

#[tokio::test(start_paused = true)]
async fn listings_are_paged_and_filtered() {
    let world = World::new().await;
    for name in ["a", "b", "c", "d", "e"] {
        world.create(name).await;
    }
    world.sleep("c").await;
    let all = InstanceFilter::default();
    let page = world.plane.list(&all, None, 2).await.unwrap();
    assert_eq!((page.items.len(), page.more), (2, true));
    let rest = world.plane.list(&all, Some(&page.items[1].id), 3).await.unwrap();
    assert_eq!((rest.items.len(), rest.more), (3, false));
    let asleep = InstanceFilter { phase: Some(provisioner_core::types::Phase::Zero), ..all };
    let page = world.plane.list(&asleep, None, 10).await.unwrap();
    assert_eq!(page.items.iter().map(|item| item.id.as_str()).collect::<Vec<_>>(), ["c"]);
    let counts = world.plane.counts().await.unwrap();
    let counts = &counts.by_cell[&CellName::new("memory").unwrap()];
    assert_eq!(counts[&Some(provisioner_core::types::Phase::Running)], 4);
    let slo = world.plane.slo(Duration::from_secs(3600)).await.unwrap();
    assert_eq!((slo.succeeded, slo.failed), (5, 0));
}
