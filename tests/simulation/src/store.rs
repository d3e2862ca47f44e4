//! The store as one process sees it: through its gate, under the eyes of the witness.

use std::sync::Arc;

use async_trait::async_trait;
use futures::stream::BoxStream;
use provisioner_core::{
    seams::Random,
    store::{
        CellRow, CellUsage, Change, Claim, Committed, DataRow, Event, IncarnationRow, InstanceFilter, Operation,
        Pruned, Record, Session, Signal, Store, StoreError, Stranger, Submitted, Taken,
    },
    types::{
        CellName, ControlPlaneId, DataId, IdempotencyKey, Incarnation, InstanceId, OperationId, Phase, TenantId,
        Timestamp,
    },
};
use tokio::sync::watch;

use crate::{gate::Gate, witness::Witness};

/// The store as one process sees it.
#[derive(Debug)]
pub struct SeenStore {
    control_plane: ControlPlaneId,
    positions: watch::Receiver<u64>,
    gate: Arc<Gate>,
    witness: Arc<Witness>,
    random: Random,
    /// How many of a thousand commits fail: before or after they are written.
    failures_per_mille: u64,
}

/// A failure that was asked for.
#[derive(Debug)]
struct AsPlanned;

impl std::fmt::Display for AsPlanned {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("as planned")
    }
}

impl std::error::Error for AsPlanned {}

impl SeenStore {
    /// The store behind this gate.
    #[must_use]
    pub fn new(
        store: &Arc<dyn Store>,
        gate: Arc<Gate>,
        witness: Arc<Witness>,
        random: Random,
        failures_per_mille: u64,
    ) -> Arc<Self> {
        let (control_plane, positions) = (store.control_plane().clone(), store.positions());
        Arc::new(Self { control_plane, positions, gate, witness, random, failures_per_mille })
    }

    fn failure(&self) -> Option<bool> {
        let dice = self.random.bits();
        (dice % 1000 < self.failures_per_mille).then_some(dice >> 32 & 1 == 0)
    }
}

/// One read through the gate.
macro_rules! read {
    ($self:ident, $name:literal, $store:ident => $call:expr) => {
        through!($self, concat!("read ", $name), $store => $call)
    };
}

/// One write through the gate that is no commit.
macro_rules! durable {
    ($self:ident, $name:literal, $store:ident => $call:expr) => {
        through!($self, concat!("write ", $name), $store => $call)
    };
}

macro_rules! through {
    ($self:ident, $name:expr, $store:ident => $call:expr) => {{
        let $store = $self.gate.enter().await;
        $self.witness.asks_the_store($name);
        let answer = $call.await;
        drop($store);
        $self.gate.leave().await;
        answer
    }};
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl Store for SeenStore {
    fn control_plane(&self) -> &ControlPlaneId {
        &self.control_plane
    }

    async fn open_session(&self, holder: &str, now: Timestamp) -> Result<Session, StoreError> {
        durable!(self, "open session", store => async {
            let session = store.open_session(holder, now).await;
            self.witness.session_opened(self.gate.process);
            session
        })
    }

    async fn renew_session(&self, epoch: u64) -> Result<Vec<u64>, StoreError> {
        durable!(self, "renew session", store => store.renew_session(epoch))
    }

    async fn close_session(&self, epoch: u64) -> Result<(), StoreError> {
        durable!(self, "close session", store => store.close_session(epoch))
    }

    async fn commit(&self, change: Change) -> Result<Committed, StoreError> {
        let store = self.gate.enter().await;
        let failure = self.failure();
        if failure == Some(false) {
            return Err(StoreError::Failed(Box::new(AsPlanned)));
        }
        let copy = change.clone();
        let committed = store.commit(change).await;
        drop(store);
        self.witness.committed(self.gate.process, &copy, &committed);
        self.gate.leave().await;
        match failure {
            Some(_) => Err(StoreError::Failed(Box::new(AsPlanned))),
            None => committed,
        }
    }

    async fn instance(&self, id: &InstanceId) -> Result<Option<Record>, StoreError> {
        read!(self, "instance", store => store.instance(id))
    }

    async fn instances(
        &self,
        filter: &InstanceFilter,
        after: Option<&InstanceId>,
        limit: usize,
    ) -> Result<Vec<Record>, StoreError> {
        read!(self, "instances", store => store.instances(filter, after, limit))
    }

    async fn counts(&self) -> Result<Vec<(CellName, Option<Phase>, u64)>, StoreError> {
        read!(self, "counts", store => store.counts())
    }

    async fn claim(&self, claim: &Claim) -> Result<Vec<Record>, StoreError> {
        let claimed = read!(self, "claim", store => store.claim(claim));
        if matches!(claimed, Err(StoreError::SessionLost)) {
            self.witness.session_lost(self.gate.process);
        }
        claimed
    }

    async fn claim_instance(&self, epoch: u64, id: &InstanceId) -> Result<Taken, StoreError> {
        let claimed = read!(self, "claim instance", store => store.claim_instance(epoch, id));
        if matches!(claimed, Err(StoreError::SessionLost)) {
            self.witness.session_lost(self.gate.process);
        }
        claimed
    }

    async fn next_due(&self, cell: &CellName, now: Timestamp) -> Result<Option<Timestamp>, StoreError> {
        read!(self, "next due", store => store.next_due(cell, now))
    }

    async fn due_incarnations(
        &self,
        cell: &CellName,
        now: Timestamp,
        limit: usize,
    ) -> Result<Vec<IncarnationRow>, StoreError> {
        read!(self, "due incarnations", store => store.due_incarnations(cell, now, limit))
    }

    async fn claim_incarnations(
        &self,
        epoch: u64,
        cell: &CellName,
        now: Timestamp,
        limit: usize,
    ) -> Result<Vec<IncarnationRow>, StoreError> {
        read!(self, "claim incarnations", store => store.claim_incarnations(epoch, cell, now, limit))
    }

    async fn incarnations(&self, of: &[Incarnation]) -> Result<Vec<Option<IncarnationRow>>, StoreError> {
        read!(self, "incarnations", store => store.incarnations(of))
    }

    async fn operation(&self, id: &OperationId) -> Result<Option<Operation>, StoreError> {
        read!(self, "operation", store => store.operation(id))
    }

    async fn ended(&self, of: &[OperationId]) -> Result<Vec<OperationId>, StoreError> {
        read!(self, "ended", store => store.ended(of))
    }

    async fn inbox(&self, epoch: u64, limit: usize) -> Result<Vec<Submitted>, StoreError> {
        read!(self, "inbox", store => store.inbox(epoch, limit))
    }

    async fn operation_of_key(&self, key: &IdempotencyKey) -> Result<Option<Operation>, StoreError> {
        read!(self, "operation of key", store => store.operation_of_key(key))
    }

    async fn provisioning_times(&self, since: Timestamp, limit: usize) -> Result<Vec<(u64, bool)>, StoreError> {
        read!(self, "provisioning times", store => store.provisioning_times(since, limit))
    }

    async fn events(&self, instance: Option<&InstanceId>, after: u64, limit: usize) -> Result<Vec<Event>, StoreError> {
        read!(self, "events", store => store.events(instance, after, limit))
    }

    fn signals(&self) -> Option<BoxStream<'static, Signal>> {
        None
    }

    fn positions(&self) -> watch::Receiver<u64> {
        self.positions.clone()
    }

    async fn data(
        &self,
        tenant: Option<&TenantId>,
        after: Option<&DataId>,
        limit: usize,
    ) -> Result<Vec<DataRow>, StoreError> {
        read!(self, "data", store => store.data(tenant, after, limit))
    }

    async fn data_set(&self, id: &DataId) -> Result<Option<DataRow>, StoreError> {
        read!(self, "data set", store => store.data_set(id))
    }

    async fn strangers(&self) -> Result<Vec<Stranger>, StoreError> {
        read!(self, "strangers", store => store.strangers())
    }

    async fn cells(&self) -> Result<Vec<CellRow>, StoreError> {
        read!(self, "cells", store => store.cells())
    }

    async fn usage(&self, cell: &CellName) -> Result<CellUsage, StoreError> {
        read!(self, "usage", store => store.usage(cell))
    }

    async fn cells_in_use(&self) -> Result<Vec<CellName>, StoreError> {
        read!(self, "cells in use", store => store.cells_in_use())
    }

    async fn frozen(&self) -> Result<bool, StoreError> {
        read!(self, "frozen", store => store.frozen())
    }

    async fn prune(&self, before: Timestamp, limit: usize) -> Result<Pruned, StoreError> {
        durable!(self, "prune", store => store.prune(before, limit))
    }
}
