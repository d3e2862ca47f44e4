//! A store that remembers what was written, so that the same can be written bare.

use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use futures::stream::BoxStream;
use provisioner_core::{
    store::{
        CellRow, CellUsage, Change, Claim, Committed, DataRow, Event, IncarnationRow, InstanceFilter, Operation,
        Pruned, Record, Renewal, Session, Signal, Store, StoreError, Stranger, Submitted, Taken,
    },
    types::{
        CellName, ControlPlaneId, DataId, IdempotencyKey, Incarnation, InstanceId, OperationId, Phase, TenantId,
        Timestamp,
    },
};
use tokio::sync::watch;

/// A store that remembers what was written.
#[derive(Debug)]
pub struct RecordingStore<S> {
    inner: Arc<S>,
    changes: Mutex<Vec<Change>>,
}

impl<S: Store> RecordingStore<S> {
    /// Remembers what is written to this store.
    #[must_use]
    pub fn new(inner: Arc<S>) -> Arc<Self> {
        Arc::new(Self { inner, changes: Mutex::default() })
    }

    /// What was written so far, in order; forgotten by this.
    #[must_use]
    pub fn take(&self) -> Vec<Change> {
        std::mem::take(&mut self.changes.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl<S: Store> Store for RecordingStore<S> {
    fn control_plane(&self) -> &ControlPlaneId {
        self.inner.control_plane()
    }
    async fn open_session(&self, holder: &str, now: Timestamp) -> Result<Session, StoreError> {
        self.inner.open_session(holder, now).await
    }
    async fn renew_session(&self, epoch: u64) -> Result<Renewal, StoreError> {
        self.inner.renew_session(epoch).await
    }
    async fn close_session(&self, epoch: u64) -> Result<(), StoreError> {
        self.inner.close_session(epoch).await
    }
    async fn commit(&self, change: Change) -> Result<Committed, StoreError> {
        let copy = change.clone();
        let committed = self.inner.commit(change).await?;
        self.changes.lock().unwrap_or_else(PoisonError::into_inner).push(copy);
        Ok(committed)
    }
    async fn instance(&self, id: &InstanceId) -> Result<Option<Record>, StoreError> {
        self.inner.instance(id).await
    }
    async fn instances(
        &self,
        filter: &InstanceFilter,
        after: Option<&InstanceId>,
        limit: usize,
    ) -> Result<Vec<Record>, StoreError> {
        self.inner.instances(filter, after, limit).await
    }
    async fn counts(&self) -> Result<Vec<(CellName, Option<Phase>, u64)>, StoreError> {
        self.inner.counts().await
    }
    async fn claim(&self, claim: &Claim) -> Result<Vec<Record>, StoreError> {
        self.inner.claim(claim).await
    }
    async fn claim_instance(&self, epoch: u64, id: &InstanceId) -> Result<Taken, StoreError> {
        self.inner.claim_instance(epoch, id).await
    }
    async fn release(&self, epoch: u64, id: &InstanceId, version: u64) -> Result<bool, StoreError> {
        self.inner.release(epoch, id, version).await
    }
    async fn next_due(&self, cell: &CellName, now: Timestamp) -> Result<Option<Timestamp>, StoreError> {
        self.inner.next_due(cell, now).await
    }
    async fn due_incarnations(
        &self,
        cell: &CellName,
        now: Timestamp,
        limit: usize,
    ) -> Result<Vec<IncarnationRow>, StoreError> {
        self.inner.due_incarnations(cell, now, limit).await
    }
    async fn claim_incarnations(
        &self,
        epoch: u64,
        cell: &CellName,
        now: Timestamp,
        limit: usize,
    ) -> Result<Vec<IncarnationRow>, StoreError> {
        self.inner.claim_incarnations(epoch, cell, now, limit).await
    }
    async fn incarnations(&self, of: &[Incarnation]) -> Result<Vec<Option<IncarnationRow>>, StoreError> {
        self.inner.incarnations(of).await
    }
    async fn operation(&self, id: &OperationId) -> Result<Option<Operation>, StoreError> {
        self.inner.operation(id).await
    }
    async fn ended(&self, of: &[OperationId]) -> Result<Vec<OperationId>, StoreError> {
        self.inner.ended(of).await
    }
    async fn inbox(&self, epoch: u64, limit: usize) -> Result<Vec<Submitted>, StoreError> {
        self.inner.inbox(epoch, limit).await
    }
    async fn operation_of_key(&self, key: &IdempotencyKey) -> Result<Option<Operation>, StoreError> {
        self.inner.operation_of_key(key).await
    }
    async fn provisioning_times(&self, since: Timestamp, limit: usize) -> Result<Vec<(u64, bool)>, StoreError> {
        self.inner.provisioning_times(since, limit).await
    }
    async fn events(&self, instance: Option<&InstanceId>, after: u64, limit: usize) -> Result<Vec<Event>, StoreError> {
        self.inner.events(instance, after, limit).await
    }
    fn signals(&self) -> Option<BoxStream<'static, Signal>> {
        self.inner.signals()
    }
    fn positions(&self) -> watch::Receiver<u64> {
        self.inner.positions()
    }
    async fn data(
        &self,
        tenant: Option<&TenantId>,
        after: Option<&DataId>,
        limit: usize,
    ) -> Result<Vec<DataRow>, StoreError> {
        self.inner.data(tenant, after, limit).await
    }
    async fn data_set(&self, id: &DataId) -> Result<Option<DataRow>, StoreError> {
        self.inner.data_set(id).await
    }
    async fn strangers(&self) -> Result<Vec<Stranger>, StoreError> {
        self.inner.strangers().await
    }
    async fn cells(&self) -> Result<Vec<CellRow>, StoreError> {
        self.inner.cells().await
    }
    async fn usage(&self, cell: &CellName) -> Result<CellUsage, StoreError> {
        self.inner.usage(cell).await
    }
    async fn cells_in_use(&self) -> Result<Vec<CellName>, StoreError> {
        self.inner.cells_in_use().await
    }
    async fn frozen(&self) -> Result<bool, StoreError> {
        self.inner.frozen().await
    }
    async fn prune(&self, before: Timestamp, limit: usize) -> Result<Pruned, StoreError> {
        self.inner.prune(before, limit).await
    }
}
