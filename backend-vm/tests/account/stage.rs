//! A control plane with an account of its own.

use std::{future::Future, sync::Arc, time::Duration};

use backend_vm::{Place, VmBackend, VmConfig};
use futures::StreamExt;
use provisioner_core::{
    Cell, ControlPlane,
    control_plane::{Instance, NewInstance, OperationHandle, Request},
    store::{EventKind, MemoryStore, OperationState},
    types::{Actor, CellName, ControlPlaneId, DataDisposition, InstanceId, InstanceSpec, Phase, TenantId, Workload},
};
use test_ec2::{Ec2, Options, Seen, State};

use crate::clients;

/// Longer than the stand lags.
pub(crate) const SETTLING: Duration = Duration::from_secs(1);
pub(crate) const OWNER: &str = "provisioner:control-plane";

pub(crate) struct Stage {
    pub(crate) stand: Ec2,
    pub(crate) plane: ControlPlane,
    pub(crate) image: String,
}

pub(crate) fn id(n: usize) -> InstanceId {
    InstanceId::new(format!("i{n}")).unwrap()
}

pub(crate) fn plane_id() -> ControlPlaneId {
    ControlPlaneId::new("stage").unwrap()
}

/// What instances are of this image.
pub(crate) fn spec(image: &str) -> InstanceSpec {
    let mut workload = Workload::new("1.0").with_command(["/usr/local/bin/product"]);
    workload.vm_image = Some(image.to_owned());
    workload.port = Some(8080);
    InstanceSpec::new(workload)
}

/// A backend that asks there, and looks often.
pub(crate) fn backend(endpoint: &str, subnets: Vec<(String, String)>, change: impl FnOnce(&mut VmConfig)) -> VmBackend {
    let places = subnets.into_iter().take(2).map(|(subnet, zone)| Place { subnet, zone });
    let mut config = VmConfig::new(test_ec2::REGION, places.collect());
    config.settling = SETTLING;
    config.boot_time = Duration::ZERO;
    config.look_every = Duration::from_millis(300);
    config.watch_every = Duration::from_millis(300);
    config.buckets = clients::unpaced();
    change(&mut config);
    clients::backend(config, endpoint)
}

impl Stage {
    /// Machines that boot nothing: the service's checks say that they are ready.
    pub(crate) async fn new() -> Self {
        Self::with(Options { boots: false, ..Options::default() }, |_| {}).await
    }

    pub(crate) async fn with(options: Options, change: impl FnOnce(&mut VmConfig)) -> Self {
        let stand = Ec2::start(options).await.unwrap();
        let backend = backend(stand.endpoint(), stand.subnets(), change);
        let image = stand.image().await;
        Self { plane: plane(backend).await, stand, image }
    }

    pub(crate) fn spec(&self) -> InstanceSpec {
        spec(&self.image)
    }

    /// An image that is another one.
    pub(crate) async fn other_image(&self) -> String {
        let by_name = [("Filter.1.Name", "name"), ("Filter.1.Value.1", "amzn-ami-hvm-*")];
        let images = self.stand.call("DescribeImages", &by_name).await.unwrap();
        let mut ids = images.split("<imageId>").skip(1).filter_map(|rest| rest.split('<').next());
        ids.find(|id| *id != self.image).expect("there are several").to_owned()
    }

    /// An instance that runs.
    pub(crate) async fn running(&self, n: usize) -> Instance {
        done(create(&self.plane, n, self.spec()).await).await;
        self.plane.get(&id(n)).await.unwrap()
    }

    /// Waits until the instance runs as another making, or as the same one on another machine.
    pub(crate) async fn runs_on_other_than(&self, n: usize, before: &Seen) -> Seen {
        until(&format!("{} has another machine", id(n)), || async {
            let instance = self.plane.get(&id(n)).await.unwrap();
            let machine = self.machines(n).await.pop()?;
            let is_back = instance.settled && instance.phase == Some(Phase::Running) && machine.id != before.id;
            is_back.then_some(machine)
        })
        .await
    }

    /// The machines of an instance that were not ended.
    pub(crate) async fn machines(&self, n: usize) -> Vec<Seen> {
        let mut machines = self.stand.machines(("provisioner:instance", id(n).as_str())).await;
        machines.retain(|machine| machine.state != State::Terminated);
        machines
    }

    /// The one machine of an instance.
    pub(crate) async fn machine(&self, n: usize) -> Seen {
        let machines = self.machines(n).await;
        assert_eq!(machines.len(), 1, "{machines:?}");
        machines.into_iter().next().unwrap()
    }

    /// The codes of the reasons that were told of an instance.
    pub(crate) async fn reasons(&self, n: usize) -> Vec<String> {
        let events = self.plane.events(Some(&id(n)), 0, 1000).await.unwrap().items;
        let reasons = events.into_iter().filter_map(|event| {
            match event.event.what {
                EventKind::PhaseChanged { detail, .. } => detail,
                EventKind::Retrying { failure, .. } | EventKind::Parked { failure } => Some(failure),
                EventKind::Drifted { found } => return Some(found),
                _ => None,
            }
            .map(|reason| reason.code.to_string())
        });
        reasons.collect()
    }

    /// How many makings an instance had.
    pub(crate) async fn makings(&self, n: usize) -> usize {
        let events = self.plane.events(Some(&id(n)), 0, 1000).await.unwrap().items;
        events.iter().filter(|event| matches!(event.event.what, EventKind::IncarnationStarted { .. })).count()
    }
}

pub(crate) async fn plane(backend: VmBackend) -> ControlPlane {
    let cell = Cell::new(CellName::new("account").unwrap(), Arc::new(backend));
    ControlPlane::builder(MemoryStore::new(plane_id())).cell(cell).start().await.unwrap()
}

pub(crate) fn by() -> Request {
    Request::by(Actor::new("test").unwrap())
}

pub(crate) async fn create(plane: &ControlPlane, n: usize, spec: InstanceSpec) -> OperationHandle {
    plane.create(NewInstance::new(id(n), TenantId::new("tenant").unwrap(), spec), by()).await.unwrap()
}

pub(crate) async fn destroy(plane: &ControlPlane, n: usize) -> OperationHandle {
    plane.destroy(&id(n), DataDisposition::Delete, by()).await.unwrap()
}

pub(crate) async fn done(handle: OperationHandle) {
    // Many are waited for at once, each until those before it were launched.
    let Ok(ended) = tokio::time::timeout(Duration::from_secs(120), handle.wait()).await else {
        let told = handle.progress().take_until(tokio::time::sleep(Duration::from_millis(100)));
        let told: Vec<_> = told.filter_map(|event| async { Some(event.ok()?.event.what) }).collect().await;
        panic!("it does not come to its end: {told:#?}");
    };
    let ended = ended.unwrap();
    assert_eq!(ended.state, OperationState::Done, "{ended:?}");
}

/// Waits until something is there to be told, and gives it.
pub(crate) async fn until<T, F: Future<Output = Option<T>>>(what: &str, mut look: impl FnMut() -> F) -> T {
    for _ in 0..600 {
        if let Some(found) = look().await {
            return found;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("not in time: {what}");
}
