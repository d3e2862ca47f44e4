//! Real pods, and rest.

use std::time::{Duration, Instant};

use benches::{Samples, heading, row};
use provisioner_core::{
    Provisioner,
    types::{DataDisposition, Observed, Phase, Target},
};

use crate::{PATIENCE, Side, cluster::Cluster, each};

/// Pods that are made at once.
const PODS: usize = 50;
const CREATE: &str = "`create` to ready";
const ZERO: &str = "`scale_to_zero` to nothing running";
const RESUME: &str = "`resume` to ready";
/// For how long nothing is done.
const IDLE: Duration = Duration::from_secs(300);

pub(crate) async fn measure(cluster: &Cluster, idle: bool) {
    let side = Side::new(cluster, "pods", |_| {});
    let targets = side.targets(PODS);
    let times = |what: &'static str| {
        let (side, targets) = (&side, &targets);
        async move {
            let began = Instant::now();
            let each = futures::future::join_all(targets.iter().map(|target| one(side, target, what))).await;
            let mut samples = Samples::default();
            each.into_iter().for_each(|time| samples.push(time));
            (samples, began.elapsed())
        }
    };
    heading(&["50 real pods at once, one node", "each, p50 / p99", "all of them"]);
    for what in [CREATE, ZERO, RESUME] {
        let (each, all) = times(what).await;
        row(&[what.into(), each.p50_p99(), format!("{:.1} s", all.as_secs_f64())]);
    }
    println!();
    if idle {
        side.meter.take_counts();
        tokio::time::sleep(IDLE).await;
        let counts = side.meter.take_counts();
        heading(&["five minutes in which nothing changes, 50 instances that run", "requests"]);
        for (name, count) in &counts {
            row(&[name.clone(), count.to_string()]);
        }
        row(&["all".into(), counts.values().sum::<u64>().to_string()]);
        println!();
    }
    each(&targets, PODS, |target| async { remove(&side, target).await }).await;
}

async fn remove(side: &Side, target: &Target) {
    side.backend.destroy(&side.cx, target, DataDisposition::Delete).await.expect("removed");
    until(side, target, None).await;
}

async fn one(side: &Side, target: &Target, what: &str) -> Duration {
    let began = Instant::now();
    let (backend, cx) = (&side.backend, &side.cx);
    let (done, phase) = match what {
        CREATE => (backend.create(cx, target).await, Phase::Running),
        ZERO => (backend.scale_to_zero(cx, target).await, Phase::Zero),
        _ => (backend.resume(cx, target).await, Phase::Running),
    };
    done.expect("done");
    until(side, target, Some(phase)).await;
    began.elapsed()
}

/// Looks again, which asks nothing of the cluster, until it is in this phase.
async fn until(side: &Side, target: &Target, phase: Option<Phase>) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let seen = side.backend.observe(&side.cx, target).await.expect("seen");
        if !matches!(seen, Observed::Unknown { .. }) && seen.phase() == phase {
            return;
        }
        assert!(Instant::now() < deadline, "{}: still {seen:?}", target.id);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
