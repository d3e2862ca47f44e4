//! The façade that a signup service uses.

mod accept;
mod builder;
mod inbox;
mod operation;
mod origin;
mod request;
mod strangers;
mod view;

use std::{sync::Arc, time::Duration};

use futures::stream::BoxStream;
use tokio::sync::watch;
use tracing::info;

pub use builder::ControlPlaneBuilder;
pub use operation::OperationHandle;
pub use request::{NewInstance, Request};
pub use view::{CellStatus, FleetCounts, Instance, Page, ProvisioningSlo};

use self::{accept::Ask, origin::Origin};
use crate::{
    engine::{DriftReport, Engine, cells::CellHandle, draft::Draft, drift, is_planted, waiters::News},
    error::{Error, ErrorKind, Result, Retry},
    placement::Placement,
    store::{DataRow, DataState, Event, InstanceFilter, Lane, Operation, Record, Store, StoreError, Verb, Worker},
    types::{CellName, DataDisposition, DataId, Hold, InstanceId, InstanceSpec, OperationId, Reason, TenantId},
};

/// How often a request is tried when others change the same row at the same moment.
const TRIES: usize = 256;
/// The longest page.
const PAGE_MAX: usize = 1000;
/// How long a request may lie in the inbox when all is well.
const MOMENT: Duration = Duration::from_millis(200);
/// How many creations the provisioning figures are made of at most: the newest ones.
const SLO_SAMPLES: usize = 10_000;

/// The engine and its store: takes intents, makes them true, keeps them true. A clone is the same control plane.
///
/// Every verb returns once the intent is on disk, and answers with the operation; killing the process at any moment
/// afterwards loses nothing. What it started goes on in the background: [`OperationHandle::wait`] waits for it.
///
/// # Errors
/// All verbs answer [`NotFound`](ErrorKind::NotFound) for an instance that is not there,
/// [`Conflict`](ErrorKind::Conflict) for what contradicts the instance's state or the expected revision,
/// [`InvalidSpec`](ErrorKind::InvalidSpec) naming the field, [`CellMissing`](ErrorKind::CellMissing) when the instance's
/// cell is not configured, and [`StoreFull`](ErrorKind::StoreFull) when the store has no room: then nothing was accepted.
/// [`Unavailable`](ErrorKind::Unavailable) when the store failed or did not answer: with the effect `None` nothing was accepted by this
/// call; with `Unknown` the request may have been accepted all the same, and asking again with the same key tells.
///
/// # Cancellation
/// A verb whose future is dropped was accepted or was not; with an idempotency key, asking again tells.
#[derive(Debug, Clone)]
pub struct ControlPlane {
    engine: Arc<Engine>,
    placement: Arc<dyn Placement>,
}

impl ControlPlane {
    /// A control plane on this store, to be given cells and started.
    pub fn builder(store: Arc<dyn Store>) -> ControlPlaneBuilder {
        ControlPlaneBuilder::new(store)
    }

    // Requests

    /// Asks for a new instance. Without a key, the same id with the same request answers with the operation that exists.
    ///
    /// # Errors
    /// Besides the common ones: `Conflict` when the id or a host name is taken, `QuotaExceeded` when the cell is full.
    pub async fn create(&self, new: NewInstance, request: Request) -> Result<OperationHandle> {
        self.create_as(new, request, Origin::default()).await
    }

    async fn create_as(&self, new: NewInstance, request: Request, origin: Origin) -> Result<OperationHandle> {
        let engine = &self.engine;
        let spec = Arc::new(new.spec.clone());
        let fingerprint = creation_fingerprint(&new);
        // A repeated request gets its answer whatever has become of its cell.
        if let Some(used) = self.operation_of(&request, "create", &origin).await? {
            return self.repeated(used, &fingerprint);
        }
        let name = self.placement.choose(&new, &engine.cells.values().map(|cell| &cell.cell).collect::<Vec<_>>())?;
        let cell = &self.cell(&name, "create")?.cell;
        let now = engine.now();
        let id = origin.operation.unwrap_or_else(|| engine.seams.random.operation_id(now));
        let data = new.data.clone().unwrap_or_else(|| engine.seams.random.data_id());
        let mut row = accept::new_row(&new, cell, data, id.clone(), now);
        row.data_made = self.must_exist(new.data.as_ref()).await?;
        let operation =
            accept::operation(Verb::Create, &new.id, row.revision, &request, fingerprint.clone(), (id, now));
        let mut draft = Draft::new(row, Arc::clone(&spec), now);
        draft.reserve(accept::reservation(cell, &spec));
        if let Some(data) = new.data.clone() {
            draft.take_data(data);
            draft.data(DataState::Used);
        }
        draft.open_operation(operation.clone(), None);
        draft.answer(origin.request);
        match self.commit(draft).await {
            Ok(news) => {
                info!(instance = %new.id, operation = %operation.id, "create accepted");
                Ok(self.handle_of_accepted(operation, news))
            }
            Err(StoreError::KeyUsed(used)) => self.repeated(*used, &fingerprint),
            Err(StoreError::Exists) => self.existing(&new, &fingerprint).await,
            Err(error) => Err(accept::refused(error, "create", &new.id)),
        }
    }

    /// Asks for another spec. An instance that sleeps takes it up when it wakes.
    ///
    /// # Errors
    /// The common ones.
    pub async fn update(&self, id: &InstanceId, spec: InstanceSpec, request: Request) -> Result<OperationHandle> {
        self.ask(id, Ask::Update(Arc::new(spec)), request).await
    }

    /// Asks for a restart on the same spec, with secrets read anew.
    ///
    /// # Errors
    /// The common ones.
    pub async fn restart(&self, id: &InstanceId, request: Request) -> Result<OperationHandle> {
        self.ask(id, Ask::Restart, request).await
    }

    /// Asks to go to zero: asleep, data kept.
    ///
    /// # Errors
    /// The common ones.
    pub async fn sleep(&self, id: &InstanceId, request: Request) -> Result<OperationHandle> {
        self.ask(id, Ask::Sleep, request).await
    }

    /// Asks to come back from zero.
    ///
    /// # Errors
    /// The common ones; `Conflict` while it is suspended.
    pub async fn wake(&self, id: &InstanceId, request: Request) -> Result<OperationHandle> {
        self.ask(id, Ask::Wake, request).await
    }

    /// Puts a hold on: it is stopped until the last hold is lifted.
    ///
    /// # Errors
    /// The common ones.
    pub async fn suspend(&self, id: &InstanceId, hold: Hold, request: Request) -> Result<OperationHandle> {
        self.ask(id, Ask::Suspend(hold), request).await
    }

    /// Lifts one hold; the others stay.
    ///
    /// # Errors
    /// The common ones; `Conflict` when it is not held for this.
    pub async fn lift(&self, id: &InstanceId, hold: &Hold, request: Request) -> Result<OperationHandle> {
        self.ask(id, Ask::Lift(hold.clone()), request).await
    }

    /// Asks for its removal. Final.
    ///
    /// # Errors
    /// The common ones.
    pub async fn destroy(&self, id: &InstanceId, data: DataDisposition, request: Request) -> Result<OperationHandle> {
        self.ask(id, Ask::Destroy(data), request).await
    }

    /// Asks to try again what was parked, or an update that failed and gave way to the spec before.
    ///
    /// # Errors
    /// The common ones; `Conflict` when there is neither.
    pub async fn retry(&self, id: &InstanceId, request: Request) -> Result<OperationHandle> {
        self.ask(id, Ask::Retry, request).await
    }

    /// Whether data that is to be taken up must be there: it was seen in use. Whether this is still so, and whether it may be
    /// taken up, is decided in the transaction.
    async fn must_exist(&self, data: Option<&DataId>) -> Result<bool> {
        let Some(id) = data else { return Ok(false) };
        let row = self.engine.store.data_set(id).await.map_err(|error| error.read_error("create"))?;
        Ok(row.is_none_or(|row| row.state != DataState::Unseen))
    }

    async fn ask(&self, id: &InstanceId, ask: Ask, request: Request) -> Result<OperationHandle> {
        self.ask_as(id, ask, request, Origin::default()).await
    }

    async fn ask_as(&self, id: &InstanceId, ask: Ask, request: Request, origin: Origin) -> Result<OperationHandle> {
        let verb = ask.verb().as_str();
        let engine = &self.engine;
        let read = |error: StoreError| error.read_error(verb).with_instance(id);
        for _ in 0..TRIES {
            if let Some(used) = self.operation_of(&request, verb, &origin).await? {
                return self.repeated(used, &ask.fingerprint(id));
            }
            let record = engine.store.instance(id).await.map_err(read)?.ok_or_else(|| not_found(verb, id))?;
            let cell = self.cell(&record.row.cell, verb)?;
            let now = engine.now();
            let mut draft = Draft::of(&record, now);
            if is_planted!(engine, RevivesGone) {
                draft.row.intent.gone = None;
            }
            let name = origin.operation.clone().unwrap_or_else(|| engine.seams.random.operation_id(now));
            accept::accept(&mut draft, cell, &ask, &request, (name, now))?;
            draft.answer(origin.request);
            let operation = draft.opened().clone();
            match self.commit(draft).await {
                Ok(news) => {
                    info!(instance = %id, verb, operation = %operation.id, "accepted");
                    return Ok(self.handle_of_accepted(operation, news));
                }
                Err(StoreError::Stale) => {}
                Err(StoreError::KeyUsed(used)) => return self.repeated(*used, &ask.fingerprint(id)),
                Err(error) => return Err(accept::refused(error, verb, id)),
            }
        }
        let error = Error::new(ErrorKind::Unavailable, verb).with_instance(id);
        Err(error.with_message("too many others change it at this moment"))
    }

    /// Commits a draft that opens an operation and hands the row over to the engine. Answers with where news of its end come.
    ///
    /// In a task of its own: a caller who stops waiting in the middle must not leave a row behind that is accepted and
    /// that nobody looks at.
    async fn commit(&self, draft: Draft) -> Result<watch::Receiver<News>, StoreError> {
        let engine = Arc::clone(&self.engine);
        let operation = draft.opened().id.clone();
        // Before anybody can end it.
        let news = engine.waiters.subscribe(&operation);
        let task = self.engine.tasks.spawn(async move {
            let (change, row) =
                draft.to_change(engine.epoch_of_writes(engine.tenure.epoch()), engine.claiming(&draft.row.cell));
            let epoch = change.epoch.unwrap_or_default();
            match engine.commit(change).await {
                Ok(committed) => {
                    match committed.worker {
                        Worker::Here => {
                            engine.waiters.worked_on(&operation, epoch);
                            engine.offer(epoch, draft.to_record(row, committed.version), Lane::Interactive);
                        }
                        Worker::TakenOver => {
                            if let Some(cell) = engine.cells.get(&row.cell) {
                                cell.offer(row.id.clone(), Lane::Interactive, None);
                            }
                        }
                        // They were told.
                        Worker::Elsewhere | Worker::Nobody => {}
                    }
                    Ok(())
                }
                Err(StoreError::SessionLost) if engine.tenure.lapses_after().is_some() => {
                    Err(StoreError::NotWritten("there is no session with the store yet".into()))
                }
                Err(error) => {
                    // It may be there all the same.
                    if let (StoreError::Failed(_), Some(cell)) = (&error, engine.cells.get(&row.cell)) {
                        cell.rescan();
                    }
                    Err(error)
                }
            }
        });
        task.await.unwrap_or_else(|lost| Err(StoreError::Failed(Box::new(lost)))).map(|()| news)
    }

    fn cell(&self, name: &CellName, operation: &'static str) -> Result<&Arc<CellHandle>> {
        self.engine.cells.get(name).ok_or_else(|| {
            Error::new(ErrorKind::CellMissing, operation).with_message(format!("cell {name} is not configured"))
        })
    }

    fn handle(&self, operation: Operation) -> OperationHandle {
        OperationHandle::new(Arc::clone(&self.engine), operation)
    }

    fn handle_of_accepted(&self, operation: Operation, news: watch::Receiver<News>) -> OperationHandle {
        OperationHandle::of_accepted(Arc::clone(&self.engine), operation, news)
    }

    /// The operation that a request's key belongs to, while it is kept. The request of the inbox that is being judged has its own.
    async fn operation_of(&self, request: &Request, verb: &'static str, origin: &Origin) -> Result<Option<Operation>> {
        let Some(key) = &request.key else { return Ok(None) };
        let used = self.engine.store.operation_of_key(key).await.map_err(|error| error.read_error(verb))?;
        let now = self.engine.now();
        let of_another = |used: &Operation| Some(&used.id) != origin.operation.as_ref();
        Ok(used.filter(|used| of_another(used) && now.since(used.accepted_at) < crate::store::KEY_KEPT))
    }

    /// The answer to a key that was used already.
    fn repeated(&self, used: Operation, fingerprint: &str) -> Result<OperationHandle> {
        if used.fingerprint == fingerprint {
            return Ok(self.handle(used));
        }
        let verb = used.verb.as_str();
        if used.waits_in_inbox() {
            // Whether it is the same request is known once it has been judged.
            let error =
                Error::new(ErrorKind::Unavailable, verb).with_instance(&used.instance).with_retry(Retry::After(MOMENT));
            return Err(error.with_message("a request of this key is being taken in at this moment: ask again"));
        }
        Err(accept::refused(StoreError::KeyUsed(Box::new(used.clone())), verb, &used.instance))
    }

    /// The answer to the creation of what exists: the operation that made it, if it was asked for in the same words.
    async fn existing(&self, new: &NewInstance, fingerprint: &str) -> Result<OperationHandle> {
        let read = |error: StoreError| error.read_error("create").with_instance(&new.id);
        let taken = || accept::refused(StoreError::Exists, "create", &new.id);
        let record = self.engine.store.instance(&new.id).await.map_err(read)?.ok_or_else(taken)?;
        if record.row.intent.gone.is_some() {
            return Err(taken());
        }
        let made_by = self.engine.store.operation(&record.row.created_by).await.map_err(read)?.ok_or_else(taken)?;
        if made_by.fingerprint == fingerprint { Ok(self.handle(made_by)) } else { Err(taken()) }
    }

    // Reads

    /// One instance.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound) when there is none, or no more.
    pub async fn get(&self, id: &InstanceId) -> Result<Instance> {
        let record = self.engine.store.instance(id).await.map_err(|error| error.read_error("get"))?;
        record.map(|record| self.view(&record)).ok_or_else(|| not_found("get", id))
    }

    /// What is recorded, and why nothing is done about it where the cell is to blame.
    fn view(&self, record: &Record) -> Instance {
        let mut instance = Instance::from(record);
        if !instance.settled && !instance.parked {
            let why = self
                .engine
                .cells
                .get(&instance.cell)
                .map_or_else(|| Some("the cell is not configured".to_owned()), |cell| cell.unavailable());
            if let Some(why) = why {
                instance.reason = Some(Reason::new("cell-unavailable", why));
            }
        }
        instance
    }

    /// The cells as they are now, in the order of their names.
    ///
    /// # Errors
    /// What the store answers.
    pub async fn cells(&self) -> Result<Vec<CellStatus>> {
        let read = |error: StoreError| error.read_error("list cells");
        let mut all = Vec::new();
        for (name, handle) in &self.engine.cells {
            all.push(CellStatus {
                name: name.clone(),
                state: handle.cell.state,
                unavailable: handle.unavailable(),
                drift_frozen: handle.guard.is_frozen(),
                usage: self.engine.store.usage(name).await.map_err(read)?,
            });
        }
        Ok(all)
    }

    /// Instances in the order of their ids, after the given one; up to 1,000 at a time.
    ///
    /// # Errors
    /// What the store answers.
    pub async fn list(
        &self,
        filter: &InstanceFilter,
        after: Option<&InstanceId>,
        limit: usize,
    ) -> Result<Page<Instance>> {
        let limit = limit.clamp(1, PAGE_MAX);
        let records =
            self.engine.store.instances(filter, after, limit + 1).await.map_err(|error| error.read_error("list"))?;
        Ok(Page::cut(records.iter().map(|record| self.view(record)).collect(), limit))
    }

    /// Events after a position, of one instance or of all, in order; up to 1,000 at a time.
    ///
    /// # Errors
    /// What the store answers.
    pub async fn events(&self, instance: Option<&InstanceId>, after: u64, limit: usize) -> Result<Page<Event>> {
        let limit = limit.clamp(1, PAGE_MAX);
        let events = self
            .engine
            .store
            .events(instance, after, limit + 1)
            .await
            .map_err(|error| error.read_error("list events"))?;
        Ok(Page::cut(events, limit))
    }

    /// Events after a position as they come: first those that are there, then live, in order and without gaps. Ends when
    /// the control plane shuts down.
    #[must_use]
    pub fn follow(&self, instance: Option<InstanceId>, after: u64) -> BoxStream<'static, Result<Event>> {
        operation::follow(Arc::clone(&self.engine), instance, after)
    }

    /// The position of the last event so far.
    #[must_use]
    pub fn position(&self) -> u64 {
        *self.engine.store.positions().borrow()
    }

    /// An operation that was accepted before. Kept 30 days after its end.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound) when there is none, or no more.
    pub async fn operation(&self, id: &OperationId) -> Result<OperationHandle> {
        let operation = self.engine.store.operation(id).await.map_err(|error| error.read_error("get operation"))?;
        let missing = || Error::new(ErrorKind::NotFound, "get operation").with_message(format!("no operation {id}"));
        operation.map(|operation| self.handle(operation)).ok_or_else(missing)
    }

    /// Durable data sets in the order of their ids, after the given one: of a tenant or of all.
    ///
    /// # Errors
    /// What the store answers.
    pub async fn data(&self, tenant: Option<&TenantId>, after: Option<&DataId>, limit: usize) -> Result<Page<DataRow>> {
        let limit = limit.clamp(1, PAGE_MAX);
        let rows =
            self.engine.store.data(tenant, after, limit + 1).await.map_err(|error| error.read_error("list data"))?;
        Ok(Page::cut(rows, limit))
    }

    /// The fleet in numbers.
    ///
    /// # Errors
    /// What the store answers.
    pub async fn counts(&self) -> Result<FleetCounts> {
        let counts = self.engine.store.counts().await.map_err(|error| error.read_error("count"))?;
        let mut fleet = FleetCounts::default();
        for (cell, phase, count) in counts {
            *fleet.by_cell.entry(cell).or_default().entry(phase).or_default() += count;
        }
        Ok(fleet)
    }

    /// How provisioning went in this window of time up to now: the newest 10,000 creations of it.
    ///
    /// # Errors
    /// What the store answers.
    pub async fn slo(&self, window: Duration) -> Result<ProvisioningSlo> {
        let since = self.engine.now().before(window);
        let times = self.engine.store.provisioning_times(since, SLO_SAMPLES).await;
        Ok(ProvisioningSlo::of(times.map_err(|error| error.read_error("measure"))?))
    }

    /// Stops new work, waits for calls in flight and their records, closes the session. What is not done yet goes on at
    /// the next start.
    ///
    /// # Errors
    /// What the store answers to the end of the session.
    pub async fn shutdown(&self) -> Result<()> {
        self.engine.shutdown().await.map_err(|error| error.into_error("shut down"))
    }

    /// Compares a cell with the store now, instead of when its turn comes.
    ///
    /// # Errors
    /// When the provider cannot be listed or is not the one that the store knows.
    pub async fn check_drift(&self, cell: &CellName) -> Result<DriftReport> {
        drift::pass(&self.engine, self.cell(cell, "check drift")?).await
    }
}

fn not_found(operation: &'static str, id: &InstanceId) -> Error {
    Error::new(ErrorKind::NotFound, operation).with_instance(id)
}

fn creation_fingerprint(new: &NewInstance) -> String {
    let parts = serde_json::json!([new.tenant, new.spec, new.cell, new.data]);
    accept::fingerprint(Verb::Create, &new.id, &parts.to_string())
}
