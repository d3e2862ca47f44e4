//! The façade that a signup service uses.

mod request;
mod view;

use std::{sync::Arc, time::Duration};

use futures::stream::BoxStream;

pub use request::{NewInstance, Request};
pub use view::{FleetCounts, Instance, Page, ProvisioningSlo};

use crate::{
    engine::EngineConfig,
    error::Result,
    placement::Cell,
    seams::Seams,
    secret::SecretResolver,
    store::{DataRow, Event, InstanceFilter, Operation, Store, Stranger},
    types::{CellName, DataDisposition, DataId, Hold, Incarnation, InstanceId, InstanceSpec, OperationId, TenantId},
};

/// The engine and its store. A clone is the same control plane.
#[derive(Debug, Clone)]
pub struct ControlPlane {}

/// A control plane to be.
#[derive(Debug)]
pub struct ControlPlaneBuilder {}

impl ControlPlaneBuilder {
    /// With this cell too.
    #[must_use]
    pub fn cell(self, _cell: Cell) -> Self {
        unimplemented!()
    }
    /// With this resolver of secrets. Without one, every reference is refused.
    #[must_use]
    pub fn secrets(self, _secrets: Arc<dyn SecretResolver>) -> Self {
        unimplemented!()
    }
    /// With this configuration.
    #[must_use]
    pub fn config(self, _config: EngineConfig) -> Self {
        unimplemented!()
    }
    /// With these seams.
    #[must_use]
    pub fn seams(self, _seams: Seams) -> Self {
        unimplemented!()
    }
    /// Opens a session with the store and starts the engine.
    pub async fn start(self) -> Result<ControlPlane> {
        unimplemented!()
    }
}

impl ControlPlane {
    pub fn builder(_store: Arc<dyn Store>) -> ControlPlaneBuilder {
        unimplemented!()
    }
    pub async fn create(&self, _new: NewInstance, _request: Request) -> Result<OperationHandle> {
        unimplemented!()
    }
    pub async fn update(&self, _id: &InstanceId, _spec: InstanceSpec, _request: Request) -> Result<OperationHandle> {
        unimplemented!()
    }
    pub async fn restart(&self, _id: &InstanceId, _request: Request) -> Result<OperationHandle> {
        unimplemented!()
    }
    pub async fn sleep(&self, _id: &InstanceId, _request: Request) -> Result<OperationHandle> {
        unimplemented!()
    }
    pub async fn wake(&self, _id: &InstanceId, _request: Request) -> Result<OperationHandle> {
        unimplemented!()
    }
    pub async fn suspend(&self, _id: &InstanceId, _hold: Hold, _request: Request) -> Result<OperationHandle> {
        unimplemented!()
    }
    pub async fn lift(&self, _id: &InstanceId, _hold: &Hold, _request: Request) -> Result<OperationHandle> {
        unimplemented!()
    }
    pub async fn destroy(
        &self,
        _id: &InstanceId,
        _data: DataDisposition,
        _request: Request,
    ) -> Result<OperationHandle> {
        unimplemented!()
    }
    pub async fn retry(&self, _id: &InstanceId, _request: Request) -> Result<OperationHandle> {
        unimplemented!()
    }
    /// NotFound when there is none, or no more.
    pub async fn get(&self, _id: &InstanceId) -> Result<Instance> {
        unimplemented!()
    }
    pub async fn list(
        &self,
        _filter: &InstanceFilter,
        _after: Option<&InstanceId>,
        _limit: usize,
    ) -> Result<Page<Instance>> {
        unimplemented!()
    }
    pub async fn events(&self, _instance: Option<&InstanceId>, _after: u64, _limit: usize) -> Result<Page<Event>> {
        unimplemented!()
    }
    /// Events after a position as they come: first those that are there, then live. Never ends by itself but at shutdown.
    pub fn follow(&self, _instance: Option<InstanceId>, _after: u64) -> BoxStream<'static, Result<Event>> {
        unimplemented!()
    }
    /// The position of the last event so far.
    pub fn position(&self) -> u64 {
        unimplemented!()
    }
    pub async fn operation(&self, _id: &OperationId) -> Result<OperationHandle> {
        unimplemented!()
    }
    pub async fn data(
        &self,
        _tenant: Option<&TenantId>,
        _after: Option<&DataId>,
        _limit: usize,
    ) -> Result<Page<DataRow>> {
        unimplemented!()
    }
    pub async fn strangers(&self) -> Result<Vec<Stranger>> {
        unimplemented!()
    }
    pub async fn adopt(&self, _stranger: Incarnation, _new: NewInstance, _request: Request) -> Result<OperationHandle> {
        unimplemented!()
    }
    pub async fn forget(&self, _stranger: Incarnation, _request: Request) -> Result<()> {
        unimplemented!()
    }
    pub async fn freeze(&self, _frozen: bool, _request: Request) -> Result<()> {
        unimplemented!()
    }
    pub async fn confirm_drift(&self, _cell: &CellName, _request: Request) -> Result<()> {
        unimplemented!()
    }
    pub async fn counts(&self) -> Result<FleetCounts> {
        unimplemented!()
    }
    pub async fn slo(&self, _window: Duration) -> Result<ProvisioningSlo> {
        unimplemented!()
    }
    /// Stops new work, waits for calls in flight and their records, closes the session.
    pub async fn shutdown(&self) -> Result<()> {
        unimplemented!()
    }
}

/// An accepted request: can be waited for and followed.
#[derive(Debug, Clone)]
pub struct OperationHandle {}

impl OperationHandle {
    /// The operation as it was when the handle was made.
    pub fn operation(&self) -> &Operation {
        unimplemented!()
    }
    /// Waits until it ended (done, failed or superseded) and answers with how.
    pub async fn wait(&self) -> Result<Operation> {
        unimplemented!()
    }
    /// The events of its instance from its acceptance on, until it ended.
    pub fn progress(&self) -> BoxStream<'static, Result<Event>> {
        unimplemented!()
    }
}
