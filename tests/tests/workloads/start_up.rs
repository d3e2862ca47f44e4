//! Products that never become ready.

use super::*;

/// Creates an instance that is given up for a reason of this code, after so many starts.
async fn never_ready(world: &World, spec: InstanceSpec, code: &str, starts: usize) -> String {
    let created = world.create("acme", spec).await;
    let reason = world.given_up("acme").await;
    assert_eq!(reason.code, code, "{reason}");
    failed(&created, &reason).await;
    assert_eq!(world.starts("acme").await, starts);
    assert_eq!(world.retries("acme").await, starts.saturating_sub(1));
    Plane::until_nothing_runs(&world.place).await;
    reason.message
}

#[tokio::test]
async fn a_command_that_does_not_exist_is_named_and_never_tried_again() {
    let world = World::new().await;
    let mut spec = world.spec("1.0", &[]);
    spec.workload.command = vec!["/nowhere/product".into()];
    let message = never_ready(&world, spec, "invalid-spec", 0).await;
    assert!(message.contains("workload.command[0]: \"/nowhere/product\" is not there"), "{message}");
    assert!(world.place.ports().is_empty() && world.place.names("data").is_empty());
    world.end("acme").await;
}

#[tokio::test]
async fn a_command_that_is_not_executable_is_named_and_never_tried_again() {
    let world = World::new().await;
    let mut spec = world.spec("1.0", &[]);
    spec.workload.command = vec![world.place.file("product", "#!/bin/sh\n").to_str().unwrap().into()];
    let message = never_ready(&world, spec, "invalid-spec", 0).await;
    assert!(message.contains("workload.command[0]") && message.contains("may not be executed"), "{message}");
    world.end("acme").await;
}

#[tokio::test]
async fn a_product_that_exits_at_once_is_tried_three_times_and_given_up_with_its_status() {
    let world = World::new().await;
    let spec = world.spec("1.0", &[("EXIT_CODE", "3")]);
    let message = never_ready(&world, spec, "exited", ATTEMPTS as usize).await;
    assert!(message.contains("exited with status 3"), "{message}");
    // Asked to try again it does, as often, and no more.
    world.plane.plane.retry(&id("acme"), by()).await.unwrap();
    world.plane.until("acme", |instance| instance.parked).await;
    assert_eq!(world.starts("acme").await, 2 * ATTEMPTS as usize);
    world.end("acme").await;
}

#[tokio::test]
async fn a_product_that_never_listens_is_stopped_and_given_up() {
    let world = World::new().await;
    let spec = world.unready("1.0", 1, ("LISTEN", "never"));
    let message = never_ready(&world, spec, "start-up-timeout", ATTEMPTS as usize).await;
    assert!(message.contains("not ready after 1 s: connection refused on port"), "{message}");
    world.end("acme").await;
}

#[tokio::test]
async fn a_product_that_listens_on_another_port_is_stopped_and_given_up() {
    let world = World::new().await;
    let other = std::net::TcpListener::bind((world.place.address, 0)).unwrap().local_addr().unwrap().port();
    let spec = world.unready("1.0", 1, ("LISTEN", &other.to_string()));
    let message = never_ready(&world, spec, "start-up-timeout", ATTEMPTS as usize).await;
    let expected = world.place.ports().pop_first().unwrap();
    assert!(message.ends_with(&format!("connection refused on port {expected}")), "{message}");
    world.end("acme").await;
}

#[tokio::test]
async fn a_product_that_answers_500_on_its_health_path_is_stopped_and_given_up() {
    let world = World::new().await;
    // It has to come so far as to answer.
    let spec = world.unready("1.0", 4, ("STATUS", "500"));
    let message = never_ready(&world, spec, "start-up-timeout", ATTEMPTS as usize).await;
    assert!(message.ends_with("status 500 on /healthz"), "{message}");
    world.end("acme").await;
}

#[tokio::test]
async fn a_move_that_takes_too_long_is_given_up_and_what_is_still_starting_is_stopped_in_its_own_time() {
    let mut config = config();
    // Enough for the first probe, and over long before the product's own time is.
    config.move_deadline = Duration::from_secs(3);
    let world = World::with(config).await;
    let spec = world.unready("1.0", 8, ("LISTEN", "never"));
    let created = world.create("acme", spec).await;
    let reason = world.given_up("acme").await;
    assert_eq!(reason.code, "deadline");
    assert!(reason.message.contains("connection refused"), "{reason}");
    failed(&created, &reason).await;
    Plane::until_nothing_runs(&world.place).await;
    assert_eq!(world.starts("acme").await, 1);
    world.end("acme").await;
}
