//! Many at once.

use std::collections::BTreeSet;

use futures::{StreamExt, stream};
use provisioner_core::{
    Cell, ControlPlane, ErrorKind,
    control_plane::NewInstance,
    memory::MemoryConfig,
    store::{CommitMode, InstanceFilter, SqliteStore},
    types::{HostName, TenantId},
};

use crate::harness::{World, by, cell, done, new, plane_id};

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_sign_ups_at_once_are_all_served() {
    let folder = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(folder.path().join("store.db"), plane_id(), CommitMode::Grouped).await.unwrap();
    let provider = provisioner_core::memory::MemoryProvisioner::new(MemoryConfig::default());
    let builder = ControlPlane::builder(store).cell(Cell::new(cell(), std::sync::Arc::new(provider.clone())));
    let plane = builder.start().await.unwrap();
    let operations: Vec<_> = stream::iter(0..1000)
        .map(|n| {
            let plane = plane.clone();
            async move {
                tokio::spawn(async move { plane.create(new(&format!("i{n}")), by()).await }).await.unwrap().unwrap()
            }
        })
        .buffer_unordered(1000)
        .collect()
        .await;
    for operation in &operations {
        done(operation).await;
    }
    let things = provider.things(&plane_id());
    let ids: BTreeSet<_> = things.iter().map(|thing| thing.id.clone()).collect();
    assert_eq!((things.len(), ids.len()), (1000, 1000));
    // Events in order and without gaps, whoever wrote them.
    let events: Vec<_> = plane.follow(None, 0).take(usize::try_from(plane.position()).unwrap()).collect().await;
    let positions: Vec<_> = events.into_iter().map(|event| event.unwrap().position).collect();
    assert!(positions.iter().copied().eq(1..=plane.position()));
    plane.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_who_ask_for_the_same_id_or_host_name_at_once_one_wins() {
    let folder = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(folder.path().join("store.db"), plane_id(), CommitMode::Grouped).await.unwrap();
    let provider = provisioner_core::memory::MemoryProvisioner::new(MemoryConfig::default());
    let builder = ControlPlane::builder(store).cell(Cell::new(cell(), std::sync::Arc::new(provider.clone())));
    let plane = builder.start().await.unwrap();
    let same_id = (0..32).map(|n| NewInstance { tenant: TenantId::new(format!("Tenant {n}")).unwrap(), ..new("acme") });
    let same_host = (0..32).map(|n| {
        let mut new = new(&format!("host{n}"));
        new.spec.host_names.insert(HostName::new("acme.example.com").unwrap());
        new
    });
    for contenders in [same_id.collect::<Vec<_>>(), same_host.collect()] {
        let asked = contenders.into_iter().map(|new| {
            let plane = plane.clone();
            tokio::spawn(async move { plane.create(new, by()).await })
        });
        let answers = futures::future::join_all(asked).await;
        let answers: Vec<_> = answers.into_iter().map(Result::unwrap).collect();
        assert_eq!(answers.iter().filter(|answer| answer.is_ok()).count(), 1);
        for answer in answers {
            match answer {
                Ok(operation) => drop(done(&operation).await),
                Err(error) => assert_eq!(error.kind(), ErrorKind::Conflict),
            }
        }
    }
    assert_eq!(provider.things(&plane_id()).len(), 2);
}

#[tokio::test(start_paused = true)]
async fn more_than_fits_the_window_is_worked_off() {
    let world = World::new().await;
    world.plane.freeze(true, by()).await.unwrap();
    for n in 0..3000 {
        world.plane.create(new(&format!("i{n}")), by()).await.unwrap();
    }
    world.plane.freeze(false, by()).await.unwrap();
    world.until("i2999", |now| now.settled).await;
    let mut after = None;
    loop {
        let page = world.plane.list(&InstanceFilter::default(), after.as_ref(), 1000).await.unwrap();
        for instance in &page.items {
            world.until(instance.id.as_str(), |now| now.settled).await;
        }
        after = page.items.last().map(|instance| instance.id.clone());
        if !page.more {
            break;
        }
    }
    assert_eq!(world.things().len(), 3000);
}
