//! The store as one process sees it: through its gate, under the eyes of the witness.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use futures::{StreamExt, stream::BoxStream};
use provisioner_core::{
    seams::Random,
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

use crate::{
    gate::{Cut, Gate},
    scenario::Sharing,
    witness::Witness,
};

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
    /// How it is shared with others; none where there are none.
    shared: Option<Shared>,
}

/// What several processes at one store share.
#[derive(Debug)]
struct Shared {
    sharing: Sharing,
    positions: Arc<Positions>,
    random: Random,
}

/// The position of the last event, told to each process by a channel of its own: tokio's `watch` wakes those who share one in
/// no order.
#[derive(Debug, Default)]
pub struct Positions(Mutex<Vec<watch::Sender<u64>>>);

impl Positions {
    fn subscribe(&self, now: u64) -> watch::Receiver<u64> {
        let (sender, receiver) = watch::channel(now);
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|sender| sender.receiver_count() > 0);
        all.push(sender);
        receiver
    }

    fn rise(&self, to: u64) {
        for sender in &*self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            sender.send_if_modified(|shown| std::mem::replace(shown, to) != to);
        }
    }
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

fn failed(why: impl std::error::Error + Send + Sync + 'static) -> StoreError {
    StoreError::Failed(Box::new(why))
}

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
        Arc::new(Self { control_plane, positions, gate, witness, random, failures_per_mille, shared: None })
    }

    /// The same, of a store that several processes share.
    #[must_use]
    pub fn of_replica(
        store: &Arc<dyn Store>,
        gate: Arc<Gate>,
        witness: Arc<Witness>,
        random: Random,
        failures_per_mille: u64,
        (sharing, positions): (Sharing, &Arc<Positions>),
    ) -> Arc<Self> {
        let told = positions.subscribe(*store.positions().borrow());
        let shared = Shared { sharing, positions: Arc::clone(positions), random: Random::from_seed(random.bits()) };
        let control_plane = store.control_plane().clone();
        let shared = Some(shared);
        Arc::new(Self { control_plane, positions: told, gate, witness, random, failures_per_mille, shared })
    }

    /// Goes on once a request of this process is at the store.
    async fn arrive(&self) -> Result<Arc<dyn Store>, StoreError> {
        let store = self.gate.enter().await.map_err(failed)?;
        let Some(shared) = &self.shared else { return Ok(store) };
        drop(store);
        self.on_the_way(shared).await?;
        self.gate.enter().await.map_err(failed)
    }

    /// Goes on once the answer is back.
    async fn learn(&self) -> Result<(), StoreError> {
        if let Some(shared) = &self.shared {
            self.on_the_way(shared).await?;
        }
        self.gate.leave().await.map_err(failed)
    }

    /// How long it takes from here to the store or back, if that can be reached.
    async fn on_the_way(&self, shared: &Shared) -> Result<(), StoreError> {
        let latency = shared.random.up_to(shared.sharing.latency_max);
        if latency > Duration::ZERO {
            tokio::time::sleep(latency).await;
        }
        match self.gate.is_cut() {
            None => return Ok(()),
            Some(Cut::Fails) => return Err(failed(AsPlanned)),
            Some(Cut::Hangs) => {}
        }
        self.gate.reachable().await.map_err(failed)?;
        // It arrives late, or never.
        if shared.random.bits() & 1 == 0 { Ok(()) } else { Err(failed(AsPlanned)) }
    }

    fn lost_with<T>(&self, answer: &Result<T, StoreError>) {
        if matches!(answer, Err(StoreError::SessionLost)) {
            self.witness.session_lost(self.gate.process);
        }
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
        let $store = $self.arrive().await?;
        $self.witness.asks_the_store($name);
        let answer = $call.await;
        drop($store);
        $self.learn().await?;
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
            if let Ok(session) = &session {
                self.witness.session_opened(self.gate.process, session.epoch);
            }
            session
        })
    }

    async fn renew_session(&self, epoch: u64) -> Result<Renewal, StoreError> {
        durable!(self, "renew session", store => async {
            let renewed = store.renew_session(epoch).await;
            self.witness.session_renewed(self.gate.process, epoch, &renewed);
            renewed
        })
    }

    async fn close_session(&self, epoch: u64) -> Result<(), StoreError> {
        durable!(self, "close session", store => async {
            let closed = store.close_session(epoch).await;
            self.witness.session_closed(self.gate.process, epoch);
            closed
        })
    }

    async fn commit(&self, change: Change) -> Result<Committed, StoreError> {
        let store = self.arrive().await?;
        let failure = self.failure();
        if failure == Some(false) {
            return Err(failed(AsPlanned));
        }
        let copy = change.clone();
        let committed = store.commit(change).await;
        drop(store);
        self.witness.committed(self.gate.process, &copy, &committed);
        if let (Some(shared), Ok(committed)) = (&self.shared, &committed) {
            shared.positions.rise(committed.position);
        }
        self.learn().await?;
        match failure {
            Some(_) => Err(failed(AsPlanned)),
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
        let claimed = read!(self, "claim", store => async {
            let claimed = store.claim(claim).await;
            for record in claimed.iter().flatten() {
                self.witness.claimed(self.gate.process, claim.epoch, record);
            }
            claimed
        });
        self.lost_with(&claimed);
        claimed
    }

    async fn claim_instance(&self, epoch: u64, id: &InstanceId) -> Result<Taken, StoreError> {
        let claimed = read!(self, "claim instance", store => async {
            let claimed = store.claim_instance(epoch, id).await;
            if let Ok(Taken::Here(record)) = &claimed {
                self.witness.claimed(self.gate.process, epoch, record);
            }
            claimed
        });
        self.lost_with(&claimed);
        claimed
    }

    async fn release(&self, epoch: u64, id: &InstanceId, version: u64) -> Result<bool, StoreError> {
        let released = read!(self, "release", store => async {
            let released = store.release(epoch, id, version).await;
            if let Ok(true) = &released {
                self.witness.released(self.gate.process, epoch, id);
            }
            released
        });
        self.lost_with(&released);
        released
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
        read!(self, "claim incarnations", store => async {
            let claimed = store.claim_incarnations(epoch, cell, now, limit).await;
            for making in claimed.iter().flatten() {
                self.witness.claimed_making(self.gate.process, epoch, making.incarnation);
            }
            claimed
        })
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
        let shared = self.shared.as_ref()?;
        let (gate, dice, lost) = (Arc::clone(&self.gate), shared.random.clone(), shared.sharing.signals_lost_percent);
        let told = self.gate.peek()?.signals()?;
        let heard = told.filter_map(move |signal| {
            let gate = Arc::clone(&gate);
            // Of what is told while it cannot be reached nothing is heard later.
            let heard = gate.is_cut().is_none() && dice.bits() % 100 >= lost;
            async move { (gate.leave().await.is_ok() && heard).then_some(signal) }
        });
        Some(heard.boxed())
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
