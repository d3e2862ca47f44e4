//! A machine full of instances: what 200 that run cost the control plane, and 100 that are woken at once.
//!
//! `cargo bench -p benches --bench host`

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use benches::{ByHand, Root, Samples, cpu_time, finish, heading, product, resident_mib, row, spec, until_answered};
use futures::{StreamExt, future::try_join_all, stream};
use provisioner_core::{
    Cell, ControlPlane, Result,
    control_plane::{NewInstance, Request},
    store::{CommitMode, SqliteStore},
    types::{Actor, CellName, ControlPlaneId, DataDisposition, InstanceId, TenantId},
};

/// Instances that run.
const RUNNING: usize = 200;
/// Of them, those that are woken at once.
const WOKEN: usize = 100;
/// How often they are.
const ROUNDS: usize = 5;
/// For how long they are watched doing nothing.
const AT_REST: Duration = Duration::from_secs(20);

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async { measure().await.expect("the benchmark ran") });
}

fn id(number: usize) -> InstanceId {
    InstanceId::new(format!("i-{number}")).expect("a label")
}

fn by() -> Request {
    Request::by(Actor::new("bench").expect("a name"))
}

async fn measure() -> Result<()> {
    let product = product();
    let (each, all) = by_hand(&product);
    let ms = |samples: &Samples| format!("{:.0} ms", samples.percentile(50).as_secs_f64() * 1e3);
    let mut measured = Vec::new();
    for root in Root::with_and_without_users(&product) {
        measured.push((root.as_str(), full_host(&root).await?));
    }
    heading(&["100 at once, from the call to the first answer", "each, p50 / p99", "all of them, median of 5"]);
    row(&["products started by hand (the floor)".into(), each.p50_p99(), ms(&all)]);
    for (users, host) in &measured {
        row(&[format!("`wake`, {users}"), host.each.p50_p99(), ms(&host.all)]);
    }
    println!();
    let names = measured.iter().map(|(users, _)| *users);
    heading(&["200 instances that run"].into_iter().chain(names).collect::<Vec<_>>());
    let figure = |name: String, of: &dyn Fn(&Host) -> String| {
        row(&std::iter::once(name).chain(measured.iter().map(|(_, host)| of(host))).collect::<Vec<_>>());
    };
    figure("made one after the other, 16 at once".into(), &|host| format!("{:.1} s", host.made_in.as_secs_f64()));
    figure("CPU time of the control plane for one wake of 100".into(), &|host| {
        format!("{:.1} ms", host.wake_cpu.as_secs_f64() * 1e3 / (ROUNDS * WOKEN) as f64)
    });
    figure("resident memory of the control plane (before anything)".into(), &|host| {
        format!("{:.0} MiB ({:.0})", host.memory_mib, host.empty_mib)
    });
    figure(format!("its CPU time in {} s at rest", AT_REST.as_secs()), &|host| {
        format!("{} ms", host.rest_cpu.as_millis())
    });
    Ok(())
}

/// Products started at once by hand, and again: from the start of each to its first answer, and to the last one's.
fn by_hand(product: &Path) -> (Samples, Samples) {
    let folder = tempfile::tempdir().expect("a folder");
    let (mut each, mut all) = (Samples::default(), Samples::default());
    for round in 0..ROUNDS {
        let began = Instant::now();
        let start = |number: usize| ByHand::start(product, &folder.path().join(format!("{round}-{number}")));
        let started: Vec<_> = (0..WOKEN).map(start).collect();
        let mut times = Samples::default();
        // Asked side by side, as they are when they are woken.
        std::thread::scope(|scope| {
            let asked: Vec<_> = started.iter().map(|one| scope.spawn(|| one.until_answered())).collect();
            asked.into_iter().for_each(|one| times.push(one.join().expect("it answers")));
        });
        all.push(began.elapsed());
        each.extend(times);
    }
    (each, all)
}

/// What was measured of a host.
struct Host {
    made_in: Duration,
    each: Samples,
    all: Samples,
    wake_cpu: Duration,
    rest_cpu: Duration,
    memory_mib: f64,
    empty_mib: f64,
}

async fn full_host(root: &Root) -> Result<Host> {
    let empty_mib = resident_mib();
    let store =
        SqliteStore::open(root.path().join("store.db"), ControlPlaneId::new("bench")?, CommitMode::Grouped).await;
    let store = store.map_err(|error| error.into_error("open"))?;
    let cell = Cell::new(CellName::new("here")?, Arc::new(root.backend()?)).with_calls_max(WOKEN);
    let plane = ControlPlane::builder(store).cell(cell).start().await?;
    let began = Instant::now();
    stream::iter(0..RUNNING)
        .for_each_concurrent(16, |number| {
            let new = NewInstance::new(id(number), TenantId::new("tenant").expect("a name"), spec(root.product()));
            let plane = &plane;
            async move { finish(plane.create(new, by()).await).await.expect("made") }
        })
        .await;
    let made_in = began.elapsed();

    let (mut each, mut all) = (Samples::default(), Samples::default());
    let mut wake_cpu = Duration::ZERO;
    for _ in 0..ROUNDS {
        try_join_all((0..WOKEN).map(|number| sleep(&plane, number))).await?;
        let (began, cpu) = (Instant::now(), cpu_time());
        let woken = (0..WOKEN).map(|number| wake(&plane, number));
        try_join_all(woken).await?.into_iter().for_each(|time| each.push(time));
        all.push(began.elapsed());
        wake_cpu += cpu_time().saturating_sub(cpu);
    }
    let cpu = cpu_time();
    tokio::time::sleep(AT_REST).await;
    let rest_cpu = cpu_time().saturating_sub(cpu);
    let memory_mib = resident_mib();
    for number in 0..RUNNING {
        finish(plane.destroy(&id(number), DataDisposition::Delete, by()).await).await?;
    }
    plane.shutdown().await?;
    Ok(Host { made_in, each, all, wake_cpu, rest_cpu, memory_mib, empty_mib })
}

async fn sleep(plane: &ControlPlane, number: usize) -> Result<()> {
    finish(plane.sleep(&id(number), by()).await).await
}

async fn wake(plane: &ControlPlane, number: usize) -> Result<Duration> {
    until_answered(plane, &id(number), plane.wake(&id(number), by()).await).await
}
