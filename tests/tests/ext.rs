//! The convenience for those who use a backend without the engine.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::{sync::Arc, time::Duration};

use backend_process::ProcessBackend;
use provisioner_core::{
    Effect, Error, ErrorKind, OpContext, Provisioner, ProvisionerExt,
    seams::Random,
    types::{DataDisposition, DataSource, Generation, InstanceSpec, Observed, Phase, Target},
};
use tests::{
    PATIENCE, http,
    place::{Place, control_plane, id, set, tenant},
    until,
};
use tokio::time::Instant;

const PRODUCT: &str = env!("CARGO_BIN_EXE_tests-product");

struct World {
    place: Place,
    backend: ProcessBackend,
    cx: OpContext,
}

impl World {
    fn new() -> Self {
        let place = Place::new(PRODUCT);
        let backend = place.backend().build().unwrap();
        Self { place, backend, cx: OpContext::new(control_plane()) }
    }

    fn target(&self, told: &[(&str, &str)]) -> Target {
        let mut spec: InstanceSpec = self.place.spec("1.0");
        told.iter().for_each(|(name, value)| set(&mut spec, name, value));
        let random = Random::from_os();
        Target {
            id: id("acme"),
            tenant: tenant(),
            incarnation: random.incarnation(1),
            generation: Generation::FIRST,
            spec: Arc::new(spec),
            data: DataSource::Fresh(random.data_id()),
        }
    }

    async fn create(&self, target: &Target, timeout: Duration) -> Result<Observed, Error> {
        self.backend.create_and_wait(&self.cx, target, timeout).await
    }

    /// Removes it, whatever state it is in.
    async fn remove(self, target: &Target) {
        self.backend.destroy(&self.cx, target, DataDisposition::Delete).await.unwrap();
        until("absent", || async {
            let observed = self.backend.observe(&self.cx, target).await.unwrap();
            (observed == Observed::Absent).then_some(())
        })
        .await;
        assert!(self.place.products().is_empty());
        assert!(self.place.names("instances").is_empty() && self.place.names("data").is_empty());
    }
}

#[tokio::test]
async fn waits_until_it_answers() {
    let world = World::new();
    let target = world.target(&[("READY_AFTER_MS", "200")]);
    let began = Instant::now();
    let observed = world.create(&target, PATIENCE).await.unwrap();
    assert!(began.elapsed() >= Duration::from_millis(200));
    let present = observed.present().unwrap();
    assert_eq!((present.phase, present.generation), (Phase::Running, Generation::FIRST));
    assert_eq!(http::text(present.endpoint.as_ref().unwrap().as_str(), "/version").await, "1.0");
    // Again it answers at once, with the same process.
    let products = world.place.products();
    let again = world.create(&target, PATIENCE).await.unwrap();
    assert_eq!(again.present().unwrap().endpoint, present.endpoint);
    assert_eq!(world.place.products(), products);
    world.remove(&target).await;
}

#[tokio::test]
async fn tells_why_it_failed() {
    let world = World::new();
    let target = world.target(&[("EXIT_CODE", "3")]);
    let error = world.create(&target, PATIENCE).await.unwrap_err();
    assert_eq!((error.kind(), error.effect()), (ErrorKind::Unavailable, Effect::Unknown));
    assert_eq!(error.instance(), Some(&target.id));
    assert!(error.to_string().contains("exited with status 3"), "{error}");
    assert!(!error.customer_message().contains("status"), "{}", error.customer_message());
    world.remove(&target).await;
}

#[tokio::test]
async fn tells_what_it_was_waiting_for_when_time_is_over() {
    let world = World::new();
    let target = world.target(&[("LISTEN", "never")]);
    let began = Instant::now();
    // Enough for the first probe, and far less than the product has to start.
    let error = world.create(&target, Duration::from_secs(3)).await.unwrap_err();
    assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
    assert_eq!((error.kind(), error.effect()), (ErrorKind::Timeout, Effect::Unknown));
    assert!(error.to_string().contains("not ready yet: connection refused on port"), "{error}");
    assert_eq!(world.place.products().len(), 1, "it is left as it is");
    world.remove(&target).await;
}
