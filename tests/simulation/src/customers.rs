//! The customers: each asks for something until the control plane has said yes or no, however often it dies meanwhile.

pub mod inbox;

use std::{sync::Arc, time::Duration};

use provisioner_core::{
    ControlPlane, ErrorKind, Result,
    control_plane::{NewInstance, OperationHandle, Request},
    store::{DataRow, DataState, Operation},
    types::{
        Actor, CellName, DataDisposition, DataId, Hold, IdempotencyKey, InstanceId, InstanceSpec, OperationId, Power,
        TenantId, Workload,
    },
};

use crate::{
    ledger::{Ask, Ledger},
    world::World,
};

/// How long a customer waits before asking again.
const ASK_AGAIN: Duration = Duration::from_secs(2);
/// Where several control planes share a store, one of so many requests is put into its inbox, and one of so many customers waits
/// until it is over.
const INBOX_OF: u64 = 4;
const WAIT_OF: u64 = 8;

/// The name of the n-th customer's instance.
#[must_use]
pub fn id(number: usize) -> InstanceId {
    InstanceId::new(format!("i{number}")).expect("a DNS label")
}

/// Which customer's instance this is.
///
/// # Panics
/// When it is nobody's.
#[must_use]
pub fn number_of(id: &InstanceId) -> usize {
    id.as_str().strip_prefix('i').and_then(|number| number.parse().ok()).expect("the name of a customer's instance")
}

/// The cell of the n-th customer, who stays there: retained data is there.
#[must_use]
pub fn cell_of(world: &World, number: usize) -> CellName {
    let cells: Vec<_> = world.providers.keys().collect();
    cells[number % cells.len()].clone()
}

/// The n-th customer.
#[must_use]
pub fn tenant(number: usize) -> TenantId {
    TenantId::new(format!("Tenant {number}")).expect("a name")
}

/// What an instance of this version should be.
#[must_use]
pub fn spec(version: &str) -> InstanceSpec {
    InstanceSpec::new(Workload::new(version))
}

/// What the customer asks for next, by what they have.
pub async fn wish(world: &World, number: usize, count: usize) -> Ask {
    let random = &world.random;
    let dice = random.bits();
    let version = format!("{count}.0");
    // Some ask also for things that they have given away for ever.
    let stubborn = dice >> 42 & 3 == 0;
    let row = world.witness.row(&id(number)).filter(|row| row.intent.gone.is_none() || stubborn);
    let Some(row) = row else {
        return Ask::Create(version, retained(world, number, dice).await);
    };
    let hold = Hold::new(["unpaid", "abuse"][usize::from(dice >> 40 & 1 == 1)]).expect("a DNS label");
    match dice % 16 {
        0..=2 => Ask::Update(version),
        3 => Ask::Restart,
        4..=6 if row.intent.power == Power::Running => Ask::Sleep,
        4..=9 => Ask::Wake,
        10 => Ask::Suspend(hold),
        11 | 12 => row.intent.holds.first().map_or(Ask::Suspend(hold), |hold| Ask::Lift(hold.clone())),
        13 => Ask::Destroy(DataDisposition::Delete),
        14 => Ask::Destroy(DataDisposition::Retain),
        _ => Ask::Retry,
    }
}

/// Retained data of this customer, half of the times when there is some.
async fn retained(world: &World, number: usize, dice: u64) -> Option<DataId> {
    if dice >> 41 & 1 == 0 {
        return None;
    }
    let process = world.somebody()?;
    let tenant = tenant(number);
    let data = tokio::select! {
        biased;
        data = process.plane.data(Some(&tenant), None, 8) => data.ok()?,
        () = process.gate.died() => return None,
    };
    let retained = |row: &&DataRow| row.state == DataState::Retained;
    data.items.iter().find(retained).map(|row| row.id.clone())
}

/// Asks under this key until the answer is yes or no.
pub async fn ask(world: Arc<World>, ledger: Arc<Ledger>, number: usize, key: String, ask: Ask) {
    if world.is_shared() && !matches!(ask, Ask::Adopt(..)) && world.random.bits().is_multiple_of(INBOX_OF) {
        return inbox::ask(&world, &ledger, number, &key, ask).await;
    }
    let key = IdempotencyKey::new(key).expect("visible");
    let actor = if matches!(ask, Ask::Adopt(..)) { "operator" } else { "customer" };
    loop {
        let process = world.process().await;
        let request = Request::by(Actor::new(actor).expect("a name")).with_key(key.clone());
        let answer = tokio::select! {
            biased;
            answer = send(&process.plane, number, &ask, request, &world) => answer,
            // The answer never comes.
            () = process.gate.died() => continue,
        };
        match answer {
            Ok(operation) => {
                world.witness.note(&format!("{number} is told of {} for {ask:?}", operation.operation().id));
                return is_accepted(&world, &ledger, operation.operation(), ask);
            }
            Err(error) if is_final(error.kind()) => {
                return world.witness.note(&format!("{number} is refused {ask:?}: {error}"));
            }
            Err(_) => tokio::time::sleep(ASK_AGAIN).await,
        }
    }
}

/// A customer is told that this is accepted. Of several control planes, some have one tell them when it is over.
fn is_accepted(world: &Arc<World>, ledger: &Ledger, operation: &Operation, ask: Ask) {
    let commit = world.witness.accepted_with(&operation.id);
    ledger.accepted(operation, commit, ask);
    if world.is_shared() && world.random.bits().is_multiple_of(WAIT_OF) {
        world.spawn(wait(Arc::clone(world), operation.id.clone()));
    }
}

/// Waits at any control plane until an operation is over, however often one dies meanwhile.
async fn wait(world: Arc<World>, operation: OperationId) {
    loop {
        let process = world.process().await;
        let waited = async { process.plane.operation(&operation).await?.wait().await };
        let waited = tokio::select! {
            biased;
            waited = waited => waited,
            () = process.gate.died() => continue,
        };
        match waited {
            Ok(ended) if ended.state.is_ended() => return world.witness.note(&format!("{operation} is over")),
            Ok(ended) => return world.witness.violated(format!("somebody waited, and it is not over: {ended:?}")),
            Err(_) => tokio::time::sleep(ASK_AGAIN).await,
        }
    }
}

/// Whether asking again would not help.
fn is_final(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::Conflict
            | ErrorKind::NotFound
            | ErrorKind::InvalidSpec
            | ErrorKind::QuotaExceeded
            | ErrorKind::DataMissing
    )
}

async fn send(
    plane: &ControlPlane,
    number: usize,
    ask: &Ask,
    request: Request,
    world: &World,
) -> Result<OperationHandle> {
    let id = id(number);
    match ask {
        Ask::Create(version, data) => {
            let mut new = NewInstance::new(id, tenant(number), spec(version)).in_cell(cell_of(world, number));
            new.data.clone_from(data);
            plane.create(new, request).await
        }
        Ask::Adopt(stranger, version) => {
            plane.adopt(*stranger, NewInstance::new(id, tenant(number), spec(version)), request).await
        }
        Ask::Update(version) => plane.update(&id, spec(version), request).await,
        Ask::Restart => plane.restart(&id, request).await,
        Ask::Sleep => plane.sleep(&id, request).await,
        Ask::Wake => plane.wake(&id, request).await,
        Ask::Suspend(hold) => plane.suspend(&id, hold.clone(), request).await,
        Ask::Lift(hold) => plane.lift(&id, hold, request).await,
        Ask::Destroy(data) => plane.destroy(&id, *data, request).await,
        Ask::Retry => plane.retry(&id, request).await,
    }
}
