//! A machine full of instances: what 200 that run cost the control plane, and 100 that are woken at once.
//!
//! `cargo bench -p benches --bench host`

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use backend_process::ProcessConfig;
use benches::{ByHand, Samples, cpu_time, finish, heading, product, resident_mib, row, spec, until_answered};
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
    let empty = resident_mib();
    let product = product();
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder");
    let root = std::path::absolute(folder.path()).expect("an absolute path");
    let (mut each_by_hand, mut all_by_hand) = (Samples::default(), Samples::default());
    for round in 0..ROUNDS {
        let began = Instant::now();
        let start = |number: usize| ByHand::start(&product, &root.join(format!("by-hand-{round}-{number}")));
        let started: Vec<_> = (0..WOKEN).map(start).collect();
        let mut times = Samples::default();
        // Asked side by side, as they are when they are woken.
        std::thread::scope(|scope| {
            let asked: Vec<_> = started.iter().map(|one| scope.spawn(|| one.until_answered())).collect();
            asked.into_iter().for_each(|one| times.push(one.join().expect("it answers")));
        });
        all_by_hand.push(began.elapsed());
        each_by_hand.extend(times);
    }

    let store = SqliteStore::open(root.join("store.db"), ControlPlaneId::new("bench")?, CommitMode::Grouped).await;
    let store = store.map_err(|error| error.into_error("open"))?;
    // The product lies where no other user is let in.
    let backend = ProcessConfig::new(root.join("instances")).without_users().build()?;
    let cell = Cell::new(CellName::new("here")?, Arc::new(backend)).with_calls_max(WOKEN);
    let plane = ControlPlane::builder(store).cell(cell).start().await?;
    let began = Instant::now();
    stream::iter(0..RUNNING)
        .for_each_concurrent(16, |number| {
            let new = NewInstance::new(id(number), TenantId::new("tenant").expect("a name"), spec(&product));
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

    let ms = |samples: &Samples| format!("{:.0} ms", samples.percentile(50).as_secs_f64() * 1e3);
    heading(&["100 at once, from the call to the first answer", "each, p50 / p99", "all of them, median of 5"]);
    row(&["products started by hand (the floor)".into(), each_by_hand.p50_p99(), ms(&all_by_hand)]);
    row(&["`wake`".into(), each.p50_p99(), ms(&all)]);
    println!();
    heading(&["200 instances that run", "figure"]);
    row(&["made one after the other, 16 at once".into(), format!("{:.1} s", made_in.as_secs_f64())]);
    row(&["CPU time of the control plane for one wake of 100".into(), {
        format!("{:.1} ms", wake_cpu.as_secs_f64() * 1e3 / (ROUNDS * WOKEN) as f64)
    }]);
    let memory = format!("{:.0} MiB (before anything: {empty:.0})", resident_mib());
    row(&["resident memory of the control plane".into(), memory]);
    row(&[format!("its CPU time in {} s at rest", AT_REST.as_secs()), format!("{} ms", rest_cpu.as_millis())]);
    for number in 0..RUNNING {
        finish(plane.destroy(&id(number), DataDisposition::Delete, by()).await).await?;
    }
    plane.shutdown().await
}

async fn sleep(plane: &ControlPlane, number: usize) -> Result<()> {
    finish(plane.sleep(&id(number), by()).await).await
}

async fn wake(plane: &ControlPlane, number: usize) -> Result<Duration> {
    until_answered(plane, &id(number), plane.wake(&id(number), by()).await).await
}
