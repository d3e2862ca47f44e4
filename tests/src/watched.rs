//! A store and a backend that are watched: every durable write and every provider call is counted, and the store's disk
//! can be full for a while.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use async_trait::async_trait;
use futures::{StreamExt, stream::BoxStream};
use provisioner_core::{
    OpContext, Provisioner, Result,
    store::{
        CellRow, CellUsage, Change, Claim, Committed, DataRow, Event, IncarnationRow, InstanceFilter, Operation,
        Pruned, Record, Renewal, Session, Signal, Store, StoreError, Stranger, Submitted, Taken,
    },
    types::{
        Capabilities, CellName, ControlPlaneId, DataDisposition, DataId, IdempotencyKey, Incarnation, InstanceId,
        InstanceSpec, Observed, OperationId, Owned, Phase, Target, TenantId, Timestamp,
    },
};
use tokio::sync::watch;

/// Whoever wants to know of every commit.
pub trait Witness: fmt::Debug + Send + Sync + 'static {
    /// This is about to be written.
    fn before(&self, change: &Change);

    /// This came of it.
    fn after(&self, instance: Option<&InstanceId>, committed: &Result<Committed, StoreError>);
}

/// What is seen of a store and a backend.
#[derive(Debug, Default)]
pub struct Watch {
    writes: AtomicU64,
    calls: AtomicU64,
    refused: AtomicU64,
    full_at: u64,
    full_for: u64,
    witness: Option<Arc<dyn Witness>>,
}

impl Watch {
    /// One that tells of every commit.
    #[must_use]
    pub fn with_witness(witness: Arc<dyn Witness>) -> Self {
        Self { witness: Some(witness), ..Self::default() }
    }

    /// One that finds the disk full at the `at`-th durable write, counted from 1, and at as many as `times` in a row.
    #[must_use]
    pub fn full_at(at: u64, times: u64) -> Self {
        Self { full_at: at, full_for: times, ..Self::default() }
    }

    /// How many durable writes were begun so far.
    #[must_use]
    pub fn writes(&self) -> u64 {
        self.writes.load(Ordering::SeqCst)
    }

    /// How many provider calls were begun so far.
    #[must_use]
    pub fn calls(&self) -> u64 {
        self.calls.load(Ordering::SeqCst)
    }

    /// How many writes found no room.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::SeqCst)
    }

    fn write(&self) -> Result<(), StoreError> {
        let number = self.writes.fetch_add(1, Ordering::SeqCst) + 1;
        if self.full_at == 0 || !(self.full_at..self.full_at + self.full_for).contains(&number) {
            return Ok(());
        }
        self.refused.fetch_add(1, Ordering::SeqCst);
        Err(StoreError::Full("no room, as asked".into()))
    }

    fn call(&self) {
        self.calls.fetch_add(1, Ordering::SeqCst);
    }
}

/// A store whose durable writes are counted, and fail when there is no room.
#[derive(Debug)]
pub struct WatchedStore {
    inner: Arc<dyn Store>,
    watch: Arc<Watch>,
}

impl WatchedStore {
    /// Around this store.
    #[must_use]
    pub fn new(inner: Arc<dyn Store>, watch: Arc<Watch>) -> Self {
        Self { inner, watch }
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl Store for WatchedStore {
    fn control_plane(&self) -> &ControlPlaneId {
        self.inner.control_plane()
    }

    async fn open_session(&self, holder: &str, now: Timestamp) -> Result<Session, StoreError> {
        self.watch.write()?;
        self.inner.open_session(holder, now).await
    }

    async fn renew_session(&self, epoch: u64) -> Result<Renewal, StoreError> {
        self.inner.renew_session(epoch).await
    }

    async fn close_session(&self, epoch: u64) -> Result<(), StoreError> {
        self.watch.write()?;
        self.inner.close_session(epoch).await
    }

    async fn commit(&self, change: Change) -> Result<Committed, StoreError> {
        self.watch.write()?;
        let Some(witness) = &self.watch.witness else { return self.inner.commit(change).await };
        let instance = change.instance.as_ref().map(|write| write.id().clone());
        witness.before(&change);
        let committed = self.inner.commit(change).await;
        witness.after(instance.as_ref(), &committed);
        committed
    }

    fn signals(&self) -> Option<BoxStream<'static, Signal>> {
        self.inner.signals()
    }

    async fn prune(&self, before: Timestamp, limit: usize) -> Result<Pruned, StoreError> {
        self.watch.write()?;
        self.inner.prune(before, limit).await
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
}

/// A backend whose calls are counted. A listing counts as one: all that tests list fits on one page of the engine's.
#[derive(Debug)]
pub struct WatchedBackend {
    inner: Arc<dyn Provisioner>,
    watch: Arc<Watch>,
}

impl WatchedBackend {
    /// Around this backend.
    #[must_use]
    pub fn new(inner: Arc<dyn Provisioner>, watch: Arc<Watch>) -> Self {
        Self { inner, watch }
    }
}

impl fmt::Display for WatchedBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl Provisioner for WatchedBackend {
    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    fn validate(&self, wanted: &InstanceSpec, applied: Option<&InstanceSpec>) -> Result<()> {
        self.inner.validate(wanted, applied)
    }

    async fn identity(&self, cx: &OpContext) -> Result<String> {
        self.watch.call();
        self.inner.identity(cx).await
    }

    async fn create(&self, cx: &OpContext, target: &Target) -> Result<Observed> {
        self.watch.call();
        self.inner.create(cx, target).await
    }

    async fn suspend(&self, cx: &OpContext, target: &Target) -> Result<Observed> {
        self.watch.call();
        self.inner.suspend(cx, target).await
    }

    async fn scale_to_zero(&self, cx: &OpContext, target: &Target) -> Result<Observed> {
        self.watch.call();
        self.inner.scale_to_zero(cx, target).await
    }

    async fn resume(&self, cx: &OpContext, target: &Target) -> Result<Observed> {
        self.watch.call();
        self.inner.resume(cx, target).await
    }

    async fn destroy(&self, cx: &OpContext, target: &Target, data: DataDisposition) -> Result<Observed> {
        self.watch.call();
        self.inner.destroy(cx, target, data).await
    }

    async fn observe(&self, cx: &OpContext, target: &Target) -> Result<Observed> {
        self.watch.call();
        self.inner.observe(cx, target).await
    }

    async fn observe_many(&self, cx: &OpContext, targets: &[Target]) -> Vec<Result<Observed>> {
        self.watch.call();
        self.inner.observe_many(cx, targets).await
    }

    fn list(&self, cx: &OpContext) -> BoxStream<'static, Result<Owned>> {
        let (inner, watch) = (self.inner.list(cx), Arc::clone(&self.watch));
        // Nothing is asked before somebody wants to hear it.
        futures::stream::once(async move {
            watch.call();
            inner
        })
        .flatten()
        .boxed()
    }

    fn watch(&self, cx: &OpContext) -> BoxStream<'static, InstanceId> {
        self.watch.call();
        self.inner.watch(cx)
    }

    async fn delete_data(&self, cx: &OpContext, data: &DataId) -> Result<()> {
        self.watch.call();
        self.inner.delete_data(cx, data).await
    }

    async fn maintain(&self, cx: &OpContext, plan_only: bool) -> Result<Vec<String>> {
        self.watch.call();
        self.inner.maintain(cx, plan_only).await
    }
}
