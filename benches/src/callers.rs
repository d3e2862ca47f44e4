//! Many callers at once, and what each does: the work of the engine's benchmarks, whatever the store is.

use std::time::Instant;

use provisioner_core::{
    ControlPlane, Result,
    control_plane::{NewInstance, Request},
    store::OperationState,
    types::{Actor, DataDisposition, InstanceId, InstanceSpec, TenantId, VariableName, Workload},
};

use crate::Samples;

/// Callers at once, of all control planes together.
pub const CALLERS: usize = 256;
/// Instances that each caller takes through their life.
const LIVES: usize = 12;
/// Sign-ups that each caller makes.
const SIGN_UPS: usize = 80;

/// A spec of some 0.9 KB.
///
/// # Panics
/// Never: its names are good.
#[must_use]
pub fn large_spec(version: &str) -> InstanceSpec {
    let mut spec = InstanceSpec::new(Workload::new(version).with_command(["/usr/bin/product", "--serve"]));
    let name = VariableName::new("CONFIGURATION").expect("a name");
    spec.environment.insert(name, "x".repeat(600));
    spec
}

/// A request of a benchmark.
///
/// # Panics
/// Never: its name is good.
#[must_use]
pub fn by() -> Request {
    Request::by(Actor::new("bench").expect("a name"))
}

fn id(caller: usize, number: usize) -> InstanceId {
    InstanceId::new(format!("i-{caller}-{number}")).expect("a label")
}

fn new(caller: usize, number: usize) -> NewInstance {
    let tenant = TenantId::new(format!("tenant {caller}")).expect("a name");
    NewInstance::new(id(caller, number), tenant, large_spec("1.0"))
}

/// Has every caller take its instances through whole lives, each step waited for: create, sleep, wake, update, destroy.
///
/// # Errors
/// Of the first request that is not accepted.
///
/// # Panics
/// When something accepted is not done, or there is no control plane.
pub async fn live_all(planes: &[ControlPlane]) -> Result<Samples> {
    all_callers(planes, |plane, caller| async move {
        let mut samples = Samples::default();
        for number in 0..LIVES {
            live(&plane, caller, number, &mut samples).await?;
        }
        Ok(samples)
    })
    .await
}

/// Has every caller sign up, and wait for nothing more.
///
/// # Errors
/// Of the first request that is not accepted.
///
/// # Panics
/// When there is no control plane.
pub async fn sign_up_all(planes: &[ControlPlane]) -> Result<Samples> {
    all_callers(planes, |plane, caller| async move {
        let mut samples = Samples::default();
        for number in 0..SIGN_UPS {
            let began = Instant::now();
            plane.create(new(caller, number), by()).await?;
            samples.push(began.elapsed());
        }
        Ok(samples)
    })
    .await
}

/// Runs what one caller does for all of them at once, each at the control plane whose turn it is, and puts the times together.
async fn all_callers<F>(planes: &[ControlPlane], one: impl Fn(ControlPlane, usize) -> F) -> Result<Samples>
where
    F: Future<Output = Result<Samples>> + Send + 'static,
{
    let callers: Vec<_> =
        (0..CALLERS).map(|caller| tokio::spawn(one(planes[caller % planes.len()].clone(), caller))).collect();
    let mut samples = Samples::default();
    for caller in callers {
        samples.extend(caller.await.expect("a caller does not panic")?);
    }
    Ok(samples)
}

async fn live(plane: &ControlPlane, caller: usize, number: usize, samples: &mut Samples) -> Result<()> {
    let id = id(caller, number);
    for verb in 0..5 {
        let began = Instant::now();
        let operation = match verb {
            0 => plane.create(new(caller, number), by()).await?,
            1 => plane.sleep(&id, by()).await?,
            2 => plane.wake(&id, by()).await?,
            3 => plane.update(&id, large_spec("2.0"), by()).await?,
            _ => plane.destroy(&id, DataDisposition::Delete, by()).await?,
        };
        assert_eq!(operation.wait().await?.state, OperationState::Done);
        samples.push(began.elapsed());
    }
    Ok(())
}
