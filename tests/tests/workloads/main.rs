//! Products that do not behave, on the process backend: each ends in the way an operator wants, with the reason, nothing
//! left running and nothing tried for ever.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod requests;
mod running;
mod secrets;
mod start_up;

use std::{sync::Arc, time::Duration};

use provisioner_core::{
    control_plane::OperationHandle,
    engine::EngineConfig,
    store::{EventKind, Operation, OperationState, Store},
    types::{DataDisposition, InstanceSpec, Reason, Timestamp},
};
use tests::{
    place::{Place, by, cell, id, set},
    plane::{Options, Plane, done, ended, quick},
};

const PRODUCT: &str = env!("CARGO_BIN_EXE_tests-product");
/// How often a start is tried before it is given up.
const ATTEMPTS: u32 = 3;

/// A place and the control plane on it, which ends first.
struct World {
    plane: Plane,
    place: Place,
}

impl World {
    async fn new() -> Self {
        Self::with(config()).await
    }

    async fn with(config: EngineConfig) -> Self {
        let place = Place::new(PRODUCT);
        let plane = Plane::start(&place, Options { config, ..Options::default() }).await;
        Self { place, plane }
    }

    /// A spec whose product is told these things and has more time to start than it needs, and a second to stop.
    fn spec(&self, version: &str, told: &[(&str, &str)]) -> InstanceSpec {
        let mut spec = self.place.spec(version);
        spec.workload.start_timeout_seconds = 10;
        spec.workload.stop_grace_seconds = 1;
        told.iter().for_each(|(name, value)| set(&mut spec, name, value));
        spec
    }

    /// The same with so many seconds to start, of which each attempt of a product that does not get ready takes all.
    fn unready(&self, version: &str, seconds: u32, told: (&str, &str)) -> InstanceSpec {
        let mut spec = self.spec(version, &[told]);
        spec.workload.start_timeout_seconds = seconds;
        spec
    }

    async fn create(&self, name: &str, spec: InstanceSpec) -> OperationHandle {
        let mut new = self.place.new_instance(name);
        new.spec = spec;
        self.plane.plane.create(new, by()).await.unwrap()
    }

    /// Creates an instance that runs.
    async fn running(&self, name: &str, spec: InstanceSpec) {
        done(&self.create(name, spec).await).await;
    }

    async fn update(&self, name: &str, spec: InstanceSpec) -> OperationHandle {
        self.plane.plane.update(&id(name), spec, by()).await.unwrap()
    }

    async fn sleep(&self, name: &str) {
        done(&self.plane.plane.sleep(&id(name), by()).await.unwrap()).await;
    }

    async fn wake(&self, name: &str) {
        done(&self.plane.plane.wake(&id(name), by()).await.unwrap()).await;
    }

    async fn destroy(&self, name: &str) {
        done(&self.plane.plane.destroy(&id(name), DataDisposition::Delete, by()).await.unwrap()).await;
    }

    /// How often the product of an instance was started.
    async fn starts(&self, name: &str) -> usize {
        let data = self.plane.get(name).await.data;
        self.place.data_file(data.as_str(), "starts").unwrap_or_default().lines().count()
    }

    /// How often the engine tried again.
    async fn retries(&self, name: &str) -> usize {
        self.plane.count(name, |what| matches!(what, EventKind::Retrying { .. })).await
    }

    /// Waits until the instance is given up, and checks that it stays so: nothing is due any more, so nothing will be
    /// tried until somebody asks. Answers with the reason.
    async fn given_up(&self, name: &str) -> Reason {
        let parked = self.plane.until(name, |instance| instance.parked).await;
        assert!(parked.operation.is_none(), "{parked:#?}");
        let row = self.plane.row(name).await;
        assert!(row.parked && row.due_at.is_none() && row.retry_at.is_none(), "{row:#?}");
        assert_eq!(self.plane.store.next_due(&cell(), Timestamp::from_unix_ms(0)).await.unwrap(), None);
        let reason = parked.reason.unwrap();
        let told = |what: &EventKind| matches!(what, EventKind::Parked { failure } if *failure == reason);
        assert_eq!(self.plane.count(name, told).await, 1);
        reason
    }

    /// After all that, nothing is left of it once it is removed.
    async fn end(self, name: &str) {
        Plane::until_nothing_runs(&self.place).await;
        self.destroy(name).await;
        for folder in ["instances", "data", "removed"] {
            assert!(self.place.names(folder).is_empty(), "{folder}: {:?}", self.place.names(folder));
        }
        assert!(self.place.ports().is_empty());
        self.plane.stop().await;
        assert!(self.place.products().is_empty());
    }
}

fn config() -> EngineConfig {
    let mut config = quick();
    config.attempts_max = ATTEMPTS;
    config
}

/// Waits for an operation, which must fail, for the reason that is also told of the instance.
async fn failed(operation: &OperationHandle, reason: &Reason) -> Operation {
    let ended = ended(operation).await;
    assert_eq!((ended.state, ended.failure.as_ref()), (OperationState::Failed, Some(reason)));
    ended
}
