//! Requests that cross each other.

use provisioner_core::{ErrorKind, types::HostName};
use tests::{http, until};

use super::*;

/// Asks for an instance that takes its time, and waits until its process is there.
async fn starting(world: &World) -> OperationHandle {
    let mut spec = world.spec("1.0", &[("READY_AFTER_MS", "20000")]);
    spec.workload.start_timeout_seconds = 60;
    let created = world.create("acme", spec).await;
    until("a process", || async { (world.place.products().len() == 1).then_some(()) }).await;
    created
}

#[tokio::test]
async fn a_removal_during_a_creation_ends_it_and_leaves_nothing() {
    let world = World::new().await;
    let created = starting(&world).await;
    world.destroy("acme").await;
    assert_eq!(ended(&created).await.state, OperationState::Superseded);
    assert!(world.place.products().is_empty());
    assert_eq!(world.plane.plane.get(&id("acme")).await.unwrap_err().kind(), ErrorKind::NotFound);
    // The name is free again.
    world.running("acme", world.spec("1.0", &[])).await;
    assert_eq!(world.starts("acme").await, 1, "and begins with nothing");
    world.sleep("acme").await;
    world.end("acme").await;
}

#[tokio::test]
async fn a_spec_that_changes_during_a_creation_is_the_one_that_runs() {
    let world = World::new().await;
    let created = starting(&world).await;
    done(&world.update("acme", world.spec("2.0", &[])).await).await;
    assert_eq!(ended(&created).await.state, OperationState::Superseded);
    let instance = world.plane.get("acme").await;
    assert_eq!(instance.applied_version.as_deref(), Some("2.0"));
    assert_eq!(instance.incarnation.unwrap().number(), 1, "the same making, updated");
    assert_eq!(http::text(&world.plane.endpoint("acme").await, "/version").await, "2.0");
    assert_eq!(world.place.products().len(), 1);
    assert_eq!(world.retries("acme").await, 0);
    world.sleep("acme").await;
    world.end("acme").await;
}

#[tokio::test]
async fn of_two_instances_that_want_the_same_host_name_at_once_one_gets_it() {
    let world = World::new().await;
    let wanted = |name: &str| {
        let mut new = world.place.new_instance(name);
        new.spec.host_names.insert(HostName::new("acme.example.com").unwrap());
        new
    };
    let (one, other) =
        tokio::join!(world.plane.plane.create(wanted("one"), by()), world.plane.plane.create(wanted("other"), by()));
    let (winner, loser, operation, error) = match (one, other) {
        (Ok(operation), Err(error)) => ("one", "other", operation, error),
        (Err(error), Ok(operation)) => ("other", "one", operation, error),
        both => panic!("{both:?}"),
    };
    assert_eq!((error.kind(), error.field()), (ErrorKind::Conflict, Some("host_names")));
    assert_eq!(error.customer_message(), "acme.example.com is taken");
    done(&operation).await;
    assert_eq!(world.plane.plane.get(&id(loser)).await.unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(world.place.names("instances").len(), 1);
    assert_eq!(world.plane.count(loser, |_| true).await, 0, "nothing is told of what was never accepted");
    // It is free once its owner is gone.
    world.destroy(winner).await;
    done(&world.plane.plane.create(wanted(loser), by()).await.unwrap()).await;
    world.sleep(loser).await;
    world.end(loser).await;
}
