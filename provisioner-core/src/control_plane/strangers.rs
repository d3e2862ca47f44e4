//! What operators decide: about strangers, frozen cells, and the whole control plane.

use std::sync::Arc;

use tracing::warn;

use super::{ControlPlane, NewInstance, OperationHandle, Request, accept, origin::Origin};
use crate::{
    context::Priority,
    engine::{draft::Draft, drift, sharing},
    error::{Chain, Error, ErrorKind, Result},
    store::{CellRow, Change, DataState, EventKind, Lane, LiveIncarnation, NewEvent, StoreError, Stranger, Verb},
    types::{CellName, DataSource, Generation, Incarnation, InstanceId, InstanceSpec, Observed, Target, TenantId},
};

impl ControlPlane {
    /// What the drift pass found that the store never knew.
    ///
    /// # Errors
    /// What the store answers.
    pub async fn strangers(&self) -> Result<Vec<Stranger>> {
        self.engine.store.strangers().await.map_err(|error| error.read_error("list strangers"))
    }

    async fn stranger(&self, incarnation: Incarnation, operation: &'static str) -> Result<Stranger> {
        let found = self.strangers().await?.into_iter().find(|stranger| stranger.incarnation == incarnation);
        let missing = || Error::new(ErrorKind::NotFound, operation).with_message(format!("no stranger {incarnation}"));
        found.ok_or_else(missing)
    }

    /// Takes a stranger in as an instance of this tenant and spec. It keeps its data and is brought to the spec. Of one that
    /// is only data any more, an instance is made on that data, which must still be there.
    ///
    /// # Errors
    /// `NotFound` when there is no such stranger, or nothing of it any more; `Conflict` when its id is taken, another id or
    /// cell is asked for, or its data is another instance's or tenant's; what [`create`](Self::create) answers otherwise.
    pub async fn adopt(&self, stranger: Incarnation, new: NewInstance, request: Request) -> Result<OperationHandle> {
        let engine = &self.engine;
        let fingerprint = accept::fingerprint(Verb::Adopt, &new.id, &stranger.to_string());
        // Whoever asks again finds no stranger any more.
        if let Some(used) = self.operation_of(&request, "adopt", &Origin::default()).await? {
            return self.repeated(used, &fingerprint);
        }
        let found = self.stranger(stranger, "adopt").await?;
        if found.instance != new.id || new.cell.as_ref().is_some_and(|cell| *cell != found.cell) {
            let message = format!("the stranger is {} in {}", found.instance, found.cell);
            return Err(Error::new(ErrorKind::Conflict, "adopt").with_instance(&new.id).with_message(message));
        }
        let cell = &self.cell(&found.cell, "adopt")?.cell;
        accept::validate(cell, &new.spec, None).map_err(|error| error.with_instance(&new.id))?;
        let generation = self.generation_of(&found).await?;
        let now = engine.now();
        let id = engine.seams.random.operation_id(now);
        let named = found.data.is_none().then(|| new.data.clone()).flatten();
        let known_data = found.data.clone().or_else(|| named.clone());
        let made = known_data.is_some();
        let data = known_data.unwrap_or_else(|| engine.seams.random.data_id());
        let recorded = engine.store.data_set(&data).await.map_err(|error| error.read_error("adopt"))?;
        let mut row = accept::new_row(&new, cell, data, id.clone(), now);
        // Above what it was made with, so that it is brought to the spec.
        row.wanted = generation.next();
        row.in_force = row.wanted;
        row.data_made = made;
        let operation = accept::operation(Verb::Adopt, &new.id, row.revision, &request, fingerprint.clone(), (id, now));
        let mut draft = Draft::new(row, Arc::new(new.spec.clone()), now);
        draft.reserve(accept::reservation(cell, &new.spec));
        draft.start_incarnation(stranger);
        draft.row.live =
            Some(LiveIncarnation { incarnation: stranger, seen: true, absent_since: None, last_call: None });
        // Data that is on record may have gone to another instance meanwhile: two must never write to it.
        if recorded.is_some() || named.is_some() {
            draft.take_data(draft.row.data.clone());
        }
        draft.data(DataState::Used);
        draft.drop_stranger(stranger);
        draft.event(EventKind::StrangerResolved { incarnation: stranger, decision: "adopt".into() });
        draft.open_operation(operation.clone(), None);
        match self.commit(draft).await {
            Ok(news) => Ok(self.handle_of_accepted(operation, news)),
            Err(StoreError::KeyUsed(used)) => self.repeated(*used, &fingerprint),
            Err(error) => Err(accept::refused(error, "adopt", &new.id)),
        }
    }

    /// The generation that a stranger is at now: somebody may have gone on with it since it was found.
    async fn generation_of(&self, stranger: &Stranger) -> Result<Generation> {
        let data = stranger.data.clone().unwrap_or_else(|| self.engine.seams.random.data_id());
        let target = Target {
            id: stranger.instance.clone(),
            tenant: TenantId::new("unknown").expect("a name"),
            incarnation: stranger.incarnation,
            generation: stranger.generation,
            spec: Arc::new(InstanceSpec::forgotten()),
            data: DataSource::Existing(data),
        };
        let cell = self.cell(&stranger.cell, "adopt")?;
        let cx = self.engine.context(Priority::Interactive);
        let observe = self.engine.call(cell, cx, "adopt", &stranger.instance, move |cx, provisioner| {
            Box::pin(async move { provisioner.observe(&cx, &target).await })
        });
        match observe.await? {
            Observed::Present(present) => Ok(present.generation.max(stranger.generation)),
            Observed::Unknown { .. } => Ok(stranger.generation),
            // The engine makes sure that it is absent before it makes anything on the data.
            Observed::Absent if stranger.data.is_some() => Ok(stranger.generation),
            Observed::Absent => {
                let error = Error::new(ErrorKind::NotFound, "adopt").with_instance(&stranger.instance);
                Err(error.with_message("the stranger is not there any more"))
            }
        }
    }

    /// Drops a stranger from the list. If it is still there at the next drift pass, it is reported anew.
    ///
    /// # Errors
    /// `NotFound` when there is no such stranger; what the store answers.
    pub async fn forget(&self, stranger: Incarnation, request: Request) -> Result<()> {
        let found = self.stranger(stranger, "forget").await?;
        let what = EventKind::StrangerResolved { incarnation: stranger, decision: "forget".into() };
        let change = Change { drop_strangers: vec![stranger], ..self.decision(Some(found.instance), &request, what) };
        self.decide(change, "forget").await
    }

    /// Stops all work at all providers, or lets it go on. Requests are accepted meanwhile.
    ///
    /// # Errors
    /// What the store answers.
    pub async fn freeze(&self, frozen: bool, request: Request) -> Result<()> {
        let what = EventKind::Freeze { frozen };
        let change = Change { frozen: Some(frozen), ..self.decision(None, &request, what) };
        self.decide(change, "freeze").await?;
        self.engine.set_frozen(frozen);
        // Somebody may have decided otherwise at the same moment: what the store says counts.
        sharing::take_decisions_up(&self.engine).await;
        Ok(())
    }

    /// Whether all work at all providers is stopped.
    #[must_use]
    pub fn is_frozen(&self) -> bool {
        self.engine.is_frozen()
    }

    /// Confirms that what vanished from a cell is really gone: its drift actions go on.
    ///
    /// # Errors
    /// `CellMissing` when there is no such cell; what the store answers.
    pub async fn confirm_drift(&self, cell: &CellName, request: Request) -> Result<()> {
        let handle = self.cell(cell, "confirm drift")?;
        let turn = handle.guard.turn().await;
        let rows = self.engine.store.cells().await.map_err(|error| error.read_error("confirm drift"))?;
        let what = EventKind::DriftConfirmed { cell: cell.clone() };
        let thawed = rows.into_iter().filter(|row| row.name == *cell);
        let cells = thawed.map(|row| CellRow { drift_frozen: None, ..row }).collect();
        let change = Change { cells, ..self.decision(None, &request, what) };
        self.decide(change, "confirm drift").await?;
        let left = handle.guard.confirm();
        drop(turn);
        handle.rescan();
        left.into_iter().for_each(|id| handle.offer(id, Lane::Background, None));
        // What differs is at rest in the store, so somebody has to look for it.
        let (engine, cell) = (Arc::clone(&self.engine), Arc::clone(handle));
        self.engine.tasks.spawn(async move {
            if let Err(error) = drift::pass(&engine, &cell).await {
                warn!(cell = %cell.name, error = %Chain(&error), "could not be compared with the store");
            }
        });
        Ok(())
    }

    fn decision(&self, instance: Option<InstanceId>, request: &Request, what: EventKind) -> Change {
        let event = NewEvent {
            instance,
            at: self.engine.now(),
            revision: None,
            actor: Some(request.actor.clone()),
            reason: request.reason.clone(),
            what,
        };
        Change { epoch: Some(self.engine.tenure.epoch()), events: vec![event], ..Change::default() }
    }

    async fn decide(&self, change: Change, operation: &'static str) -> Result<()> {
        self.engine.commit(change).await.map(drop).map_err(|error| error.into_error(operation))
    }
}
