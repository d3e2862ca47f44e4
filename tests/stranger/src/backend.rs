//! The backend.

use std::{
    fmt, io,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;
use futures::{
    StreamExt,
    stream::{self, BoxStream},
};
use provisioner_core::{
    Effect, Error, ErrorKind, OpContext, Provisioner, Result,
    types::{
        Capabilities, DataDisposition, DataId, DataSource, Generation, InstanceId, InstanceSpec, Observed, Owned,
        OwnedKind, Phase, Present, Reason, Target,
    },
};

use crate::folder::{Owner, Plane, Record, name, parse_name};

/// Static sites in one folder. A clone is the same backend.
#[derive(Debug, Clone)]
pub struct Sites {
    root: PathBuf,
    /// All that happens is short, so one thing happens at a time.
    turn: Arc<Mutex<()>>,
}

impl fmt::Display for Sites {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sites")
    }
}

impl Sites {
    /// Sites below this folder.
    #[must_use]
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into(), turn: Arc::default() }
    }

    fn turn(&self) -> MutexGuard<'_, ()> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn plane(&self, cx: &OpContext) -> Plane {
        Plane::new(&self.root, &cx.control_plane)
    }

    /// `create`, and `resume` of what is there.
    fn run(&self, operation: &'static str, cx: &OpContext, target: &Target) -> Result<Observed> {
        let problem = |kind, field: &str, message: String| {
            Error::new(kind, operation).with_instance(&target.id).with_field(field).with_message(message)
        };
        let failed = |error: io::Error| failed(operation, error).with_instance(&target.id);
        target
            .spec
            .check_against(&self.capabilities())
            .map_err(|invalid| Error::from(invalid).with_instance(&target.id))?;
        let _turn = self.turn();
        let (plane, name) = (self.plane(cx), name(&target.id, target.incarnation));
        let record = plane.record(&name).map_err(failed)?;
        if let Some(record) = &record {
            if record.data != *target.data.id() {
                return Err(problem(ErrorKind::Conflict, "data", format!("it has data {}", record.data)));
            }
            if record.generation > target.generation {
                let message = format!("{} is older than {}", target.generation, record.generation);
                return Err(problem(ErrorKind::Conflict, "generation", message));
            }
        }
        let data = target.data.id();
        let tenant = target.tenant.digest();
        let wanted = Owner { tenant, id: target.id.clone(), incarnation: target.incarnation };
        match plane.owner(data).map_err(failed)? {
            Some(owner) if owner == wanted => {}
            Some(owner) if owner.tenant != wanted.tenant => {
                return Err(problem(ErrorKind::Conflict, "data", "it is another tenant's".to_owned()));
            }
            Some(owner) if self.uses(&plane, &owner, data).map_err(failed)? => {
                return Err(problem(ErrorKind::Conflict, "data", format!("{} has it", owner.id)));
            }
            None if record.is_some() || matches!(target.data, DataSource::Existing(_)) => {
                return Err(problem(ErrorKind::DataMissing, "data", format!("{data} is not here")));
            }
            Some(_) | None => plane.write_owner(data, &wanted).map_err(failed)?,
        }
        let version = target.spec.workload.version.clone();
        let record = Record { generation: target.generation, phase: Phase::Running, data: data.clone(), version };
        plane.write_record(&name, &record).map_err(failed)?;
        plane.serve(&name, data).map_err(failed)?;
        self.see(operation, &plane, target)
    }

    fn rest(&self, operation: &'static str, cx: &OpContext, target: &Target, phase: Phase) -> Result<Observed> {
        let failed = |error| failed(operation, error).with_instance(&target.id);
        let _turn = self.turn();
        let (plane, name) = (self.plane(cx), name(&target.id, target.incarnation));
        let Some(record) = plane.record(&name).map_err(failed)? else { return Ok(Observed::Absent) };
        plane.write_record(&name, &Record { phase, ..record }).map_err(failed)?;
        plane.serve_no_more(&name).map_err(failed)?;
        self.see(operation, &plane, target)
    }

    fn see(&self, operation: &'static str, plane: &Plane, target: &Target) -> Result<Observed> {
        let (name, failed) = (name(&target.id, target.incarnation), |error| failed(operation, error));
        let record = plane.record(&name).map_err(|error| failed(error).with_instance(&target.id))?;
        Ok(record.map_or(Observed::Absent, |record| observed(plane, &name, target.incarnation, &record)))
    }

    /// Whether the owner that is written beside the data still has it.
    fn uses(&self, plane: &Plane, owner: &Owner, data: &DataId) -> io::Result<bool> {
        Ok(plane.record(&name(&owner.id, owner.incarnation))?.is_some_and(|record| record.data == *data))
    }

    fn everything(&self, cx: &OpContext) -> io::Result<Vec<Owned>> {
        let _turn = self.turn();
        let plane = self.plane(cx);
        let mut all = Vec::new();
        for name in plane.names("sites")? {
            let (Some((id, incarnation)), Some(record)) = (parse_name(&name), plane.record(&name)?) else { continue };
            let observed = observed(&plane, &name, incarnation, &record);
            all.push(Owned { id, incarnation, kind: OwnedKind::Instance, data: Some(record.data), observed });
        }
        for data in plane.names("data")? {
            let Ok(data) = DataId::new(data) else { continue };
            let Some(owner) = plane.owner(&data)? else { continue };
            if !self.uses(&plane, &owner, &data)? {
                let observed = Present::new(Phase::Zero, Generation(0), owner.incarnation).into();
                let (id, incarnation) = (owner.id, owner.incarnation);
                all.push(Owned { id, incarnation, kind: OwnedKind::Data, data: Some(data), observed });
            }
        }
        Ok(all)
    }
}

fn observed(plane: &Plane, name: &str, incarnation: provisioner_core::types::Incarnation, record: &Record) -> Observed {
    let present = Present::new(record.phase, record.generation, incarnation);
    match (record.phase, plane.is_served(name)) {
        (Phase::Running, true) => present.with_endpoint(format!("file://{}/", plane.link(name).display())).into(),
        (Phase::Running, false) => {
            let reason = Reason::new("not-served", "somebody took its link away");
            Present::new(Phase::Failed, record.generation, incarnation).with_reason(reason).into()
        }
        _ => present.into(),
    }
}

fn failed(operation: &'static str, error: io::Error) -> Error {
    let kind = match error.kind() {
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => ErrorKind::Unauthorized,
        io::ErrorKind::StorageFull => ErrorKind::CapacityExhausted,
        _ => ErrorKind::Unavailable,
    };
    Error::new(kind, operation).with_effect(Effect::Unknown).with_source(error)
}

#[async_trait]
impl Provisioner for Sites {
    fn capabilities(&self) -> Capabilities {
        let mut capabilities = Capabilities::PLAIN;
        capabilities.conditional_writes = true;
        capabilities
    }

    fn validate(&self, wanted: &InstanceSpec, _applied: Option<&InstanceSpec>) -> Result<()> {
        Ok(wanted.check_against(&self.capabilities())?)
    }

    async fn identity(&self, _cx: &OpContext) -> Result<String> {
        Ok(self.root.display().to_string())
    }

    async fn create(&self, cx: &OpContext, target: &Target) -> Result<Observed> {
        self.run("create", cx, target)
    }

    async fn suspend(&self, cx: &OpContext, target: &Target) -> Result<Observed> {
        self.rest("suspend", cx, target, Phase::Suspended)
    }

    async fn scale_to_zero(&self, cx: &OpContext, target: &Target) -> Result<Observed> {
        self.rest("scale to zero", cx, target, Phase::Zero)
    }

    async fn resume(&self, cx: &OpContext, target: &Target) -> Result<Observed> {
        let there = {
            let _turn = self.turn();
            self.see("resume", &self.plane(cx), target)?
        };
        if there == Observed::Absent { Ok(there) } else { self.run("resume", cx, target) }
    }

    async fn destroy(&self, cx: &OpContext, target: &Target, data: DataDisposition) -> Result<Observed> {
        let failed = |error| failed("destroy", error).with_instance(&target.id);
        let _turn = self.turn();
        let (plane, name) = (self.plane(cx), name(&target.id, target.incarnation));
        plane.serve_no_more(&name).map_err(failed)?;
        if data == DataDisposition::Delete {
            let owner = plane.owner(target.data.id()).map_err(failed)?;
            if owner.is_some_and(|owner| (&owner.id, owner.incarnation) == (&target.id, target.incarnation)) {
                plane.remove(&plane.data(target.data.id())).map_err(failed)?;
            }
        }
        // Last: as long as it is there, the rest can be found again.
        plane.remove(&plane.site(&name)).map_err(failed)?;
        self.see("destroy", &plane, target)
    }

    async fn observe(&self, cx: &OpContext, target: &Target) -> Result<Observed> {
        let _turn = self.turn();
        self.see("observe", &self.plane(cx), target)
    }

    async fn observe_many(&self, cx: &OpContext, targets: &[Target]) -> Vec<Result<Observed>> {
        let _turn = self.turn();
        targets.iter().map(|target| self.see("observe many", &self.plane(cx), target)).collect()
    }

    fn list(&self, cx: &OpContext) -> BoxStream<'static, Result<Owned>> {
        let all = match self.everything(cx) {
            Ok(all) => all.into_iter().map(Ok).collect(),
            Err(error) => vec![Err(failed("list", error))],
        };
        stream::iter(all).boxed()
    }

    fn watch(&self, _cx: &OpContext) -> BoxStream<'static, InstanceId> {
        stream::empty().boxed()
    }

    async fn delete_data(&self, cx: &OpContext, data: &DataId) -> Result<()> {
        let failed = |error| failed("delete data", error);
        let _turn = self.turn();
        let plane = self.plane(cx);
        match plane.owner(data).map_err(failed)? {
            Some(owner) if self.uses(&plane, &owner, data).map_err(failed)? => {
                Err(Error::new(ErrorKind::Conflict, "delete data").with_message(format!("{} has it", owner.id)))
            }
            _ => plane.remove(&plane.data(data)).map_err(failed),
        }
    }

    async fn maintain(&self, _cx: &OpContext, _plan_only: bool) -> Result<Vec<String>> {
        Ok(Vec::new())
    }
}
