use std::{sync::Arc, time::Duration};

use super::*;
use crate::{
    context::OpContext,
    error::{Effect, Error, ErrorKind},
    provisioner::Provisioner,
    types::{
        ControlPlaneId, DataDisposition, DataId, DataSource, Generation, Incarnation, InstanceId, InstanceSpec, Phase,
        Reason, Target, TenantId, Workload,
    },
};

fn cx(plane: &str) -> OpContext {
    OpContext::new(ControlPlaneId::new(plane).unwrap())
}

fn target(n: u32) -> Target {
    Target {
        id: InstanceId::new(format!("i{n}")).unwrap(),
        tenant: TenantId::new("acme").unwrap(),
        incarnation: Incarnation::new(1, n.into()),
        generation: Generation(1),
        spec: Arc::new(InstanceSpec::new(Workload::new("1.0"))),
        data: DataSource::Fresh(DataId::from_random(u128::from(n))),
    }
}

fn refusal(error: &Error) -> (ErrorKind, Effect) {
    (error.kind(), error.effect())
}

#[tokio::test(start_paused = true)]
async fn an_outsider_meddles_with_one_control_plane_and_not_with_another() {
    let memory = MemoryProvisioner::new(MemoryConfig::default());
    let (ours, theirs, one) = (cx("ours"), cx("theirs"), target(1));
    let phase = async |cx: &OpContext| memory.observe(cx, &one).await.unwrap().phase();
    for cx in [&ours, &theirs] {
        memory.create(cx, &one).await.unwrap();
    }
    memory.fail(&ours.control_plane, &one.id, &Reason::new("exited", "with status 1"));
    assert_eq!((phase(&ours).await, phase(&theirs).await), (Some(Phase::Failed), Some(Phase::Running)));
    memory.stop_behind(&ours.control_plane, &one.id);
    assert_eq!((phase(&ours).await, phase(&theirs).await), (Some(Phase::Zero), Some(Phase::Running)));
    memory.vanish(&ours.control_plane, &one.id);
    assert_eq!((phase(&ours).await, phase(&theirs).await), (None, Some(Phase::Running)));
}

#[tokio::test(start_paused = true)]
async fn quota_and_capacity_refuse_what_is_new_and_leave_what_is_there() {
    let memory = MemoryProvisioner::new(MemoryConfig { quota: 2, ..MemoryConfig::default() });
    let cx = cx("ours");
    for n in 0..2 {
        memory.create(&cx, &target(n)).await.unwrap();
    }
    assert_eq!(refusal(&memory.create(&cx, &target(2)).await.unwrap_err()), (ErrorKind::QuotaExceeded, Effect::None));
    memory.create(&cx, &target(1)).await.expect("it is there already");
    memory.destroy(&cx, &target(1), DataDisposition::Delete).await.unwrap();
    memory.create(&cx, &target(2)).await.expect("there is room again");
    memory.scale_to_zero(&cx, &target(2)).await.unwrap();
    memory.limit_capacity(1);
    let full = memory.resume(&cx, &target(2)).await.unwrap_err();
    assert_eq!(refusal(&full), (ErrorKind::CapacityExhausted, Effect::None));
    memory.limit_capacity(2);
    memory.resume(&cx, &target(2)).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn without_rights_nothing_is_seen_or_done() {
    let memory = MemoryProvisioner::new(MemoryConfig::default());
    let cx = cx("ours");
    memory.deny(Some(ErrorKind::Unauthorized));
    for error in [
        memory.create(&cx, &target(1)).await.unwrap_err(),
        memory.observe(&cx, &target(1)).await.unwrap_err(),
        memory.identity(&cx).await.unwrap_err(),
    ] {
        assert_eq!(refusal(&error), (ErrorKind::Unauthorized, Effect::None));
    }
    memory.deny(None);
    assert!(memory.things(&cx.control_plane).is_empty());
    memory.create(&cx, &target(1)).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_late_effect_comes_after_its_caller_gave_up() {
    let memory = MemoryProvisioner::new(MemoryConfig::default());
    let cx = cx("ours");
    memory.script("create", Fault::LateEffect { after_ms: 2000 });
    let lost = memory.create(&cx.clone().with_timeout(Duration::from_secs(1)), &target(1)).await.unwrap_err();
    assert_eq!(refusal(&lost), (ErrorKind::Timeout, Effect::Unknown));
    assert!(memory.things(&cx.control_plane).is_empty());
    tokio::time::sleep(Duration::from_millis(1001)).await;
    assert_eq!(memory.things(&cx.control_plane).len(), 1);
}
