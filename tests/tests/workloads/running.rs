//! Products that were ready once.

use tests::http;
use tokio::time::Instant;

use super::*;

#[tokio::test]
async fn a_product_that_ignores_the_request_to_stop_is_killed_after_its_grace() {
    let world = World::new().await;
    world.running("acme", world.spec("1.0", &[("IGNORE_TERM", "1")])).await;
    let began = Instant::now();
    world.sleep("acme").await;
    let took = began.elapsed();
    assert!(took >= Duration::from_secs(1) && took < Duration::from_secs(20), "{took:?}");
    assert!(world.place.products().is_empty());
    world.wake("acme").await;
    assert_eq!(world.place.products().len(), 1);
    world.sleep("acme").await;
    world.end("acme").await;
}

#[tokio::test]
async fn a_product_that_crashes_again_and_again_after_it_was_ready_is_given_up_with_its_status_and_last_words() {
    let world = World::new().await;
    let spec = world.spec("1.0", &[("CRASH_AFTER_MS", "50"), ("PRINT", "VERSION")]);
    // It is ready for a moment, which is all that was asked for.
    world.running("acme", spec).await;
    let reason = world.given_up("acme").await;
    assert_eq!(reason.code, "exited", "{reason}");
    assert!(reason.message.contains("exited with status 7"), "{reason}");
    assert!(reason.message.contains("it last printed: cannot go on with"), "{reason}");
    let starts = world.starts("acme").await;
    assert!((2..=ATTEMPTS as usize + 1).contains(&starts), "{starts} starts");
    assert!(world.place.products().is_empty());
    world.end("acme").await;
}

/// Updates a running instance with a note to a version that does not get ready.
async fn spoiled(bad: impl FnOnce(&World) -> InstanceSpec) -> (World, Reason) {
    let world = World::new().await;
    world.running("acme", world.spec("1.0", &[])).await;
    http::text(&world.plane.endpoint("acme").await, "/write/minutes").await;
    let updated = world.update("acme", bad(&world)).await;
    let reason = world.given_up("acme").await;
    failed(&updated, &reason).await;
    let instance = world.plane.get("acme").await;
    assert_eq!(instance.spec.workload.version, "2.0", "what was asked for is still told");
    assert_eq!(instance.applied_version.as_deref(), Some("1.0"));
    (world, reason)
}

async fn assert_good(world: &World) {
    let endpoint = world.plane.endpoint("acme").await;
    assert_eq!(http::text(&endpoint, "/version").await, "1.0");
    assert_eq!(http::text(&endpoint, "/note").await, "minutes");
    assert_eq!(world.place.products().len(), 1);
}

#[tokio::test]
async fn after_an_update_that_never_gets_ready_sleep_and_wake_bring_the_last_good_version_back() {
    let (world, reason) = spoiled(|world| world.unready("2.0", 1, ("STATUS", "500"))).await;
    assert_eq!(reason.code, "start-up-timeout", "{reason}");
    Plane::until_nothing_runs(&world.place).await;
    world.sleep("acme").await;
    world.wake("acme").await;
    assert_good(&world).await;
    // A version that works can be had as ever.
    done(&world.update("acme", world.spec("3.0", &[])).await).await;
    assert_eq!(http::text(&world.plane.endpoint("acme").await, "/version").await, "3.0");
    world.sleep("acme").await;
    world.end("acme").await;
}

#[tokio::test]
async fn an_update_to_a_program_that_is_not_there_leaves_the_old_one_running() {
    let missing = |world: &World| {
        let mut spec = world.spec("2.0", &[]);
        spec.workload.command = vec!["/nowhere/product".into()];
        spec
    };
    let (world, reason) = spoiled(missing).await;
    assert_eq!(reason.code, "invalid-spec", "{reason}");
    assert_eq!(world.starts("acme").await, 1, "it was not even restarted");
    assert_good(&world).await;
    world.sleep("acme").await;
    world.wake("acme").await;
    assert_good(&world).await;
    world.sleep("acme").await;
    world.end("acme").await;
}
