//! From configuration to a control plane at work.

use std::{collections::BTreeSet, sync::Arc};

use tokio::time::Instant;

use super::{ControlPlane, inbox};
use crate::{
    engine::{Engine, EngineConfig, EngineParts, cells::CellHandle, session::Tenure, time::Time},
    error::{Error, ErrorKind, Result},
    placement::{Cell, NamedOrOnly, Placement},
    seams::Seams,
    secret::{LocalSecrets, SecretResolver},
    store::{Store, StoreError},
    types::Timestamp,
};

/// A control plane to be: its store, its cells, and how it goes about its work.
#[derive(Debug)]
#[must_use]
pub struct ControlPlaneBuilder {
    store: Arc<dyn Store>,
    cells: Vec<Cell>,
    secrets: Arc<dyn SecretResolver>,
    config: EngineConfig,
    placement: Arc<dyn Placement>,
    seams: Seams,
    holder: String,
}

impl ControlPlaneBuilder {
    pub(super) fn new(store: Arc<dyn Store>) -> Self {
        Self {
            store,
            cells: Vec::new(),
            secrets: Arc::new(LocalSecrets::none()),
            config: EngineConfig::default(),
            placement: Arc::new(NamedOrOnly),
            seams: Seams::default(),
            holder: format!("process {}", std::process::id()),
        }
    }

    /// With this cell too.
    pub fn cell(mut self, cell: Cell) -> Self {
        self.cells.push(cell);
        self
    }

    /// With this resolver of secrets. Without one, every reference is refused.
    pub fn secrets(mut self, secrets: Arc<dyn SecretResolver>) -> Self {
        self.secrets = secrets;
        self
    }

    /// With this configuration.
    pub fn config(mut self, config: EngineConfig) -> Self {
        self.config = config;
        self
    }

    /// With this way of choosing cells. By default, the cell that is named, or the only one.
    pub fn placement(mut self, placement: Arc<dyn Placement>) -> Self {
        self.placement = placement;
        self
    }

    /// With these seams.
    pub fn seams(mut self, seams: Seams) -> Self {
        self.seams = seams;
        self
    }

    /// Under this name in the store's record of sessions, for people. By default the process id.
    pub fn holder(mut self, holder: impl Into<String>) -> Self {
        self.holder = holder.into();
        self
    }

    /// Opens a session with the store and starts the engine: whatever is unsettled is looked at and taken up.
    ///
    /// Does not wait for the cells: one that cannot be reached is tried again and again, and its instances wait.
    ///
    /// # Errors
    /// [`InvalidSpec`](ErrorKind::InvalidSpec) when there is no cell, two share a name, or the configuration contradicts
    /// itself; what the store answers otherwise.
    pub async fn start(self) -> Result<ControlPlane> {
        self.config.check()?;
        let mut names = BTreeSet::new();
        if let Some(twice) = self.cells.iter().find(|cell| !names.insert(cell.name.clone())) {
            let error = Error::new(ErrorKind::InvalidSpec, "start").with_field("cell");
            return Err(error.with_message(format!("two cells are called {}", twice.name)));
        }
        if self.cells.is_empty() {
            let error = Error::new(ErrorKind::InvalidSpec, "start").with_field("cell");
            return Err(error.with_message("expected one cell at least"));
        }
        let store_error = |error: StoreError| error.into_error("start");
        let on_record = latest_on_record(&*self.store).await.map_err(store_error)?;
        let time = Time::starting(Arc::clone(&self.seams.clock), on_record);
        let opening = self.store.open_session(&self.holder, time.now());
        let asked_at = Instant::now();
        let session = self.seams.durably(opening).await.map_err(store_error)?;
        let tenure = Tenure::new(session, asked_at);
        tenure.join(&*self.store).await.map_err(store_error)?;
        // Who shares a store goes by its clock, and not by the machine's.
        let time = tenure.clock().map_or(time, |clock| Time::starting(clock, on_record));
        let frozen = self.store.frozen().await.map_err(store_error)?;
        let known = self.store.cells().await.map_err(store_error)?;
        let is_frozen = |cell: &Cell| known.iter().any(|row| row.name == cell.name && row.drift_frozen.is_some());
        let cells = self.cells.into_iter().map(|cell| {
            let frozen = is_frozen(&cell);
            CellHandle::new(cell, frozen, session.lapses_after.is_some())
        });
        let engine = Engine::start(EngineParts {
            cells: cells.collect(),
            store: self.store,
            config: self.config,
            seams: self.seams,
            time,
            secrets: self.secrets,
            tenure,
            holder: self.holder,
            frozen,
        });
        let plane = ControlPlane { engine, placement: self.placement };
        plane.engine.tasks.spawn(inbox::serve(plane.clone()));
        Ok(plane)
    }
}

/// The time of the last event in the store, if it was not pruned: time goes on from there, whatever the clock says.
async fn latest_on_record(store: &dyn Store) -> Result<Option<Timestamp>, StoreError> {
    let position = *store.positions().borrow();
    let last = store.events(None, position.saturating_sub(1), 1).await?;
    Ok(last.first().map(|event| event.event.at))
}
