use std::{sync::Arc, time::Duration};

use futures::StreamExt;

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

/// A provider whose reads lag and miss a half of what is there.
fn blinking(lag: Duration) -> MemoryProvisioner {
    MemoryProvisioner::new(MemoryConfig { lag, blink_percent: 50, ..MemoryConfig::default() })
}

#[tokio::test(start_paused = true)]
async fn who_looks_twice_a_lag_apart_never_misses_twice_what_is_there() {
    let lag = Duration::from_secs(2);
    let (memory, cx) = (blinking(lag), cx("ours"));
    memory.create(&cx, &target(1)).await.unwrap();
    tokio::time::sleep(lag).await;
    let (mut missed, mut seen) = (0, 0);
    for n in 0_u64..400 {
        match memory.observe(&cx, &target(1)).await.unwrap() {
            crate::types::Observed::Absent => {
                missed += 1;
                // Any number of looks in between changes nothing.
                for _ in 0..n % 3 {
                    tokio::time::sleep(lag / 4).await;
                    assert_eq!(memory.observe(&cx, &target(1)).await.unwrap(), crate::types::Observed::Absent);
                }
                tokio::time::sleep(lag - lag / 4 * u32::try_from(n % 3).unwrap()).await;
                assert!(memory.observe(&cx, &target(1)).await.unwrap().present().is_some(), "look {n}");
            }
            _ => seen += 1,
        }
        tokio::time::sleep(Duration::from_secs(3600)).await;
    }
    assert!(missed > 100 && seen > 100, "{missed} missed, {seen} seen");
    memory.calm();
    for _ in 0..100 {
        assert!(memory.observe(&cx, &target(1)).await.unwrap().present().is_some());
    }
}

#[tokio::test(start_paused = true)]
async fn a_listing_lags_and_misses_like_a_look_and_comes_in_pages_that_can_fail() {
    let lag = Duration::from_secs(2);
    let memory = MemoryProvisioner::new(MemoryConfig { lag, page: 3, ..MemoryConfig::default() });
    let cx = cx("ours");
    let listed =
        async || memory.list(&cx).map(|owned| owned.map(|owned| owned.incarnation.nonce())).collect::<Vec<_>>().await;
    for n in 1..=8 {
        memory.create(&cx, &target(n)).await.unwrap();
    }
    assert!(listed().await.is_empty(), "what was made this moment is not listed yet");
    tokio::time::sleep(lag).await;
    memory.destroy(&cx, &target(8), DataDisposition::Retain).await.unwrap();
    tokio::time::sleep(lag).await;
    let before = memory.calls()["list"];
    let all: Vec<_> = listed().await.into_iter().map(Result::unwrap).collect();
    assert_eq!(all, [1, 2, 3, 4, 5, 6, 7, 8], "seven things, then the data that was kept");
    assert_eq!(memory.calls()["list"] - before, 3, "a call for each page");
    for (calls_before, whole) in [(0, 0), (1, 3), (2, 6)] {
        for _ in 0..calls_before {
            memory.script("list", Fault::Late { after_ms: 1 });
        }
        memory.script("list", Fault::AfterApply);
        let cut = listed().await;
        assert_eq!(cut.len(), whole + 1);
        assert!(cut.last().unwrap().is_err() && cut[..whole].iter().all(Result::is_ok));
    }
}

#[tokio::test(start_paused = true)]
async fn what_runs_dies_by_itself_and_what_sleeps_does_not() {
    let lifetime = Some(Duration::from_secs(3600));
    let memory = MemoryProvisioner::new(MemoryConfig { lifetime, ..MemoryConfig::default() });
    let cx = cx("ours");
    for n in 0..100 {
        memory.create(&cx, &target(n)).await.unwrap();
    }
    for n in 50..100 {
        memory.scale_to_zero(&cx, &target(n)).await.unwrap();
    }
    let dead = || memory.things(&cx.control_plane).iter().filter(|thing| thing.phase == Phase::Failed).count();
    tokio::time::sleep(Duration::from_secs(3600)).await;
    memory.observe(&cx, &target(0)).await.unwrap();
    assert!((10..40).contains(&dead()), "about a half of those that ran: {}", dead());
    tokio::time::sleep(Duration::from_secs(3600)).await;
    memory.observe(&cx, &target(0)).await.unwrap();
    assert_eq!(dead(), 50, "nobody lives for more than twice as long");
    memory.create(&cx, &target(0)).await.unwrap();
    memory.calm();
    tokio::time::sleep(Duration::from_secs(24 * 3600)).await;
    memory.observe(&cx, &target(0)).await.unwrap();
    assert_eq!(dead(), 49);
}

#[test]
fn the_model_has_no_timers() {
    // A runtime without a clock: whoever sleeps here panics.
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let memory = MemoryProvisioner::new(MemoryConfig {
            start: Duration::from_millis(1),
            stop: Duration::from_millis(1),
            lag: Duration::from_millis(1),
            lifetime: Some(Duration::from_millis(1)),
            blink_percent: 50,
            calls_per_second: Some(1_000_000),
            ..MemoryConfig::default()
        });
        let cx = cx("ours");
        for n in 0..100 {
            memory.create(&cx, &target(n)).await.unwrap();
            memory.scale_to_zero(&cx, &target(n)).await.unwrap();
            memory.resume(&cx, &target(n)).await.unwrap();
            memory.observe(&cx, &target(n)).await.unwrap();
        }
        memory.destroy(&cx, &target(0), DataDisposition::Delete).await.unwrap();
    });
}

#[tokio::test(start_paused = true)]
async fn a_call_that_is_cut_half_way_and_changed_nothing_stalls_nothing() {
    let (lag, stop) = (Duration::from_secs(60), Duration::from_secs(1));
    let memory = MemoryProvisioner::new(MemoryConfig { lag, stop, ..MemoryConfig::default() });
    let cx = cx("ours");
    memory.create(&cx, &target(1)).await.unwrap();
    memory.script("suspend", Fault::HalfWay);
    memory.suspend(&cx, &target(2)).await.unwrap_err();
    assert_eq!(memory.thing(&cx.control_plane, target(1).incarnation).unwrap().phase, Phase::Running);
    tokio::time::sleep(Duration::from_secs(61)).await;
    assert_eq!(memory.observe(&cx, &target(1)).await.unwrap().phase(), Some(Phase::Running));
    memory.script("destroy", Fault::HalfWay);
    memory.destroy(&cx, &target(1), DataDisposition::Delete).await.unwrap_err();
    tokio::time::sleep(Duration::from_secs(61)).await;
    assert_eq!(memory.observe(&cx, &target(1)).await.unwrap().phase(), Some(Phase::Destroying), "it got stuck");
    memory.destroy(&cx, &target(1), DataDisposition::Delete).await.unwrap();
    tokio::time::sleep(stop).await;
    memory.observe(&cx, &target(1)).await.unwrap();
    assert!(memory.things(&cx.control_plane).is_empty());
}

#[tokio::test(start_paused = true)]
async fn looking_at_many_is_one_call_that_fails_for_all() {
    let (memory, cx) = (MemoryProvisioner::new(MemoryConfig::default()), cx("ours"));
    memory.create(&cx, &target(1)).await.unwrap();
    let targets = [target(0), target(1)];
    let phases = async || {
        let many = memory.observe_many(&cx, &targets).await;
        many.into_iter().map(|one| one.map(|one| one.phase()).map_err(|error| error.kind())).collect::<Vec<_>>()
    };
    assert_eq!(phases().await, [Ok(None), Ok(Some(Phase::Running))]);
    assert_eq!(memory.calls().get("observe"), None);
    memory.script("observe many", Fault::BeforeSend(ErrorKind::Unavailable));
    assert_eq!(phases().await, [Err(ErrorKind::Unavailable), Err(ErrorKind::Unavailable)]);
}
