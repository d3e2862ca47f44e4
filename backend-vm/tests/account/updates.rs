//! What changes of instances, and how soon that may be said.

use std::{sync::Arc, time::Duration};

use futures::future::join_all;
use provisioner_core::{
    OpContext, Provisioner,
    types::{
        DataDisposition, DataId, DataSource, Generation, Incarnation, LabelValue, Observed, Phase, Target, TenantId,
    },
};
use test_ec2::{Bucket, Buckets, Ec2, Options};
use tokio::time::Instant;

use crate::stage::{Stage, backend, by, create, destroy, done, id, plane_id, spec};

pub(crate) async fn of_each_kind() {
    let stage = Stage::new().await;
    stage.running(1).await;
    let first = stage.machine(1).await;
    let update = async |spec| done(stage.plane.update(&id(1), spec, by()).await.unwrap()).await;

    // Labels and a larger volume: while it runs.
    let mut spec = stage.spec();
    spec.labels.insert("plan".parse().unwrap(), LabelValue::new("gold").unwrap());
    spec.data.size_mib = 3 << 10;
    update(spec.clone()).await;
    let machine = stage.machine(1).await;
    assert_eq!(machine.tags.get("provisioner:label:plan").map(String::as_str), Some("gold"));
    let size = async |gib: u32| {
        let volume = stage.stand.call("DescribeVolumes", &[("VolumeId.1", &machine.volumes[0])]).await.unwrap();
        assert!(volume.contains(&format!("<size>{gib}</size>")), "{volume}");
    };
    size(3).await;
    let calls = stage.stand.calls_by_action();
    assert_eq!(calls.get("StopInstances"), None, "nothing was stopped for that");
    spec.labels.clear();
    update(spec.clone()).await;
    assert_eq!(stage.machine(1).await.tags.get("provisioner:label:plan"), None);

    // Another size: the same machine, stopped for a moment.
    spec.size.memory_mib = 3_000;
    update(spec.clone()).await;
    let resized = stage.machine(1).await;
    assert_eq!((&resized.id, resized.kind.as_str()), (&first.id, "t3.medium"));

    // Another image: another machine with the same data, and more room for it.
    spec.workload.vm_image = Some(stage.other_image().await);
    spec.data.size_mib = 4 << 10;
    update(spec.clone()).await;
    let replaced = stage.machine(1).await;
    assert_ne!(replaced.id, first.id);
    assert_eq!(replaced.volumes, first.volumes);
    size(4).await;

    // What cannot be: refused, and nothing was touched.
    spec.data.size_mib = 1 << 10;
    let error = stage.plane.update(&id(1), spec, by()).await.map(drop).unwrap_err();
    assert_eq!(error.field(), Some("data.size_mib"), "{error}");
    // An image that there is not is noticed before the machine is ended.
    let mut spec = stage.plane.get(&id(1)).await.unwrap().spec;
    spec.workload.vm_image = Some("ami-00000000".into());
    let ended = stage.plane.update(&id(1), spec, by()).await.unwrap().wait().await.unwrap();
    assert!(ended.failure.is_some_and(|failure| failure.message.contains("workload.vm_image")));
    assert_eq!(stage.machine(1).await.id, replaced.id);
}

/// The service shows everything two seconds late, and the backend is asked all the time.
pub(crate) async fn lagging() {
    const LAG: Duration = Duration::from_secs(2);

    let stand = Ec2::start(Options { lag: LAG, boots: false, ..Options::default() }).await.unwrap();
    let image = stand.image().await;
    let backend = backend(stand.endpoint(), stand.subnets(), |config| config.settling = 2 * LAG);
    let target = Target {
        id: id(1),
        tenant: TenantId::new("tenant").unwrap(),
        incarnation: Incarnation::new(1, 7),
        generation: Generation::FIRST,
        spec: Arc::new(spec(&image)),
        data: DataSource::Fresh(DataId::from_random(9)),
    };
    let cx = |since: Duration| {
        let mut cx = OpContext::new(plane_id()).with_timeout(Duration::from_secs(30));
        cx.since_last_call = Some(since);
        cx
    };
    // Each verb, and what may be seen of it, from the first moment on. What was before is never seen.
    let may_be_seen: [(&str, &[Option<Phase>]); 4] = [
        ("create", &[Some(Phase::Provisioning), Some(Phase::Running)]),
        // On its way to sleep it is running, without an endpoint.
        ("zero", &[Some(Phase::Running), Some(Phase::Zero)]),
        ("resume", &[Some(Phase::Provisioning), Some(Phase::Running)]),
        ("destroy", &[Some(Phase::Destroying), None]),
    ];
    for (verb, may_be) in may_be_seen {
        let answer = match verb {
            "create" => backend.create(&cx(Duration::ZERO), &target).await,
            "zero" => backend.scale_to_zero(&cx(Duration::ZERO), &target).await,
            "resume" => backend.resume(&cx(Duration::ZERO), &target).await,
            _ => backend.destroy(&cx(Duration::ZERO), &target, DataDisposition::Delete).await,
        };
        answer.unwrap();
        let called = Instant::now();
        loop {
            let seen = backend.observe(&cx(called.elapsed()), &target).await.unwrap();
            if !matches!(seen, Observed::Unknown { .. }) {
                assert!(may_be.contains(&seen.phase()), "{:?} after {verb}: {seen:?}", called.elapsed());
                let answers = seen.present().is_some_and(|present| present.endpoint.is_some());
                assert!(verb != "zero" || !answers, "it answers after it was put to sleep: {seen:?}");
                // Its end.
                if seen.phase() == *may_be.last().unwrap() && (seen.phase() != Some(Phase::Running) || answers) {
                    break;
                }
            }
            assert!(called.elapsed() < Duration::from_secs(40), "{verb} does not come to its end: {seen:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// The stand counts as the real service is documented to, and so does the backend by default. Of launches the stand
/// takes two more at once: those that leave first may arrive last.
pub(crate) async fn within_buckets() {
    const COUNT: usize = 40;

    let buckets = Buckets { launches: Bucket::new(7.0, 2.0), ..Buckets::default() };
    let options = Options { buckets: Some(buckets), boots: false, ..Options::default() };
    let stage = Stage::with(options, |config| config.buckets = backend_vm::Buckets::default()).await;
    let handles = join_all((0..COUNT).map(|n| create(&stage.plane, n, stage.spec()))).await;
    join_all(handles.into_iter().map(done)).await;
    let handles = join_all((0..COUNT).map(|n| destroy(&stage.plane, n))).await;
    join_all(handles.into_iter().map(done)).await;
    for n in 0..COUNT {
        let reasons = stage.reasons(n).await;
        assert!(!reasons.contains(&"throttled".to_owned()), "{reasons:?}");
    }
}
