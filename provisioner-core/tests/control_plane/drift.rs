//! What nobody told the control plane of.

use std::{sync::Arc, time::Duration};

use provisioner_core::{
    ErrorKind, OpContext, Provisioner,
    memory::{Fault, MemoryConfig},
    store::EventKind,
    types::{DataDisposition, DataSource, Generation, IdempotencyKey, Incarnation, Phase, Reason, Target},
};

use crate::harness::{World, by, cell, config, done, hold, id, new, plane_id, spec, tenant};

fn made_behind_our_back(name: &str, incarnation: Incarnation, world: &World) -> Target {
    Target {
        id: id(name),
        tenant: tenant(),
        incarnation,
        generation: Generation(3),
        spec: Arc::new(spec("0.9")),
        data: DataSource::Fresh(provisioner_core::types::DataId::from_random(
            incarnation.nonce() ^ world.calls() as u128,
        )),
    }
}

#[tokio::test(start_paused = true)]
async fn a_remnant_of_an_ended_making_is_removed() {
    let world = World::new().await;
    let instance = world.create("acme").await;
    world.destroy("acme").await;
    // The call that made it arrives once more, after everybody has stopped waiting.
    let late = Target {
        data: DataSource::Fresh(instance.data),
        ..made_behind_our_back("acme", instance.incarnation.unwrap(), &world)
    };
    world.provider.create(&OpContext::new(plane_id()), &late).await.unwrap();
    assert_eq!(world.things().len(), 1);
    for _ in 0..600 {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(world.things().is_empty(), "found by looking once more, without a drift pass");
    let events = world.plane.events(Some(&id("acme")), 0, 100).await.unwrap().items;
    assert!(events.iter().any(|event| matches!(event.event.what, EventKind::RemnantFound { .. })));
}

#[tokio::test(start_paused = true)]
async fn a_remnant_never_takes_the_data_of_its_successor_along() {
    let world = World::new().await;
    let first = world.create("acme").await;
    world.provider.vanish(&plane_id(), &id("acme"));
    let second = world
        .until("acme", |now| now.incarnation != first.incarnation && now.settled && now.phase == Some(Phase::Running))
        .await;
    let report = world.plane.check_drift(&cell()).await.unwrap();
    assert_eq!((report.listed, report.remnants, report.strangers), (1, 0, 0));
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(world.provider.has_data(&plane_id(), &second.data));
}

/// A look tells of the thing, and parts may be left of it that no look tells of.
#[tokio::test(start_paused = true)]
async fn what_an_outsider_deleted_is_removed_by_its_verb_all_the_same() {
    let destroyed = |world: &World| world.provider.calls().get("destroy").copied().unwrap_or(0);
    for (asleep, data) in [false, true].into_iter().flat_map(|asleep| {
        [None, Some(DataDisposition::Retain), Some(DataDisposition::Delete)].map(|data| (asleep, data))
    }) {
        let world = World::new().await;
        let first = world.create("acme").await;
        if asleep {
            world.sleep("acme").await;
        }
        world.provider.vanish(&plane_id(), &id("acme"));
        match data {
            Some(data) => done(&world.plane.destroy(&id("acme"), data, by()).await.unwrap()).await,
            None => done(&world.plane.wake(&id("acme"), by()).await.unwrap()).await,
        };
        tokio::time::sleep(Duration::from_secs(120)).await;
        assert_eq!(destroyed(&world), 1, "asleep {asleep}, {data:?}");
        assert_eq!(world.provider.has_data(&plane_id(), &first.data), data != Some(DataDisposition::Delete));
        assert_eq!(world.things().len(), usize::from(data.is_none()));
        tokio::time::sleep(Duration::from_secs(1800)).await;
        assert_eq!(destroyed(&world), 1, "once is enough");
    }
}

/// Where a removal takes its time, it is seen to go before it is seen to be gone.
#[tokio::test(start_paused = true)]
async fn what_goes_at_once_without_being_asked_to_counts_as_vanished_too() {
    let mut cautious = config();
    cautious.vanished_max = 3;
    let world = World::with(MemoryConfig { stop: Duration::from_secs(20), ..MemoryConfig::default() }, cautious).await;
    let mut made = Vec::new();
    for n in 0..8 {
        made.push(world.create(&format!("i{n}")).await);
    }
    for (n, before) in made.iter().enumerate() {
        let target = Target {
            data: DataSource::Existing(before.data.clone()),
            generation: before.generation,
            ..made_behind_our_back(&format!("i{n}"), before.incarnation.unwrap(), &world)
        };
        let cx = OpContext::new(plane_id());
        world.provider.destroy(&cx, &target, DataDisposition::Retain).await.unwrap();
    }
    world.plane.check_drift(&cell()).await.unwrap();
    tokio::time::sleep(Duration::from_secs(300)).await;
    let mut made_again = 0;
    for (n, before) in made.iter().enumerate() {
        made_again += usize::from(world.get(&format!("i{n}")).await.incarnation != before.incarnation);
    }
    assert!(made_again <= 3, "{made_again} were made again");
    assert!(world.plane.check_drift(&cell()).await.unwrap().frozen);
}

/// Also where that takes several looks.
#[tokio::test(start_paused = true)]
async fn what_was_removed_by_its_verb_is_not_removed_once_more() {
    for data in [DataDisposition::Retain, DataDisposition::Delete] {
        let world =
            World::with(MemoryConfig { stop: Duration::from_secs(20), ..MemoryConfig::default() }, config()).await;
        world.create("acme").await;
        done(&world.plane.destroy(&id("acme"), data, by()).await.unwrap()).await;
        tokio::time::sleep(Duration::from_secs(600)).await;
        let calls = world.provider.calls();
        let of = |call| calls.get(call).copied().unwrap_or(0);
        assert_eq!((of("destroy"), of("delete data")), (1, 0), "{data:?}: {calls:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_stranger_is_reported_left_alone_and_can_be_adopted_or_forgotten() {
    let world = World::new().await;
    let stranger = Incarnation::new(7, 77);
    let target = made_behind_our_back("lost", stranger, &world);
    world.provider.create(&OpContext::new(plane_id()), &target).await.unwrap();
    let report = world.plane.check_drift(&cell()).await.unwrap();
    assert_eq!(report.strangers, 1);
    assert_eq!(world.plane.check_drift(&cell()).await.unwrap().strangers, 1);
    let strangers = world.plane.strangers().await.unwrap();
    assert_eq!(strangers.len(), 1, "reported once");
    assert_eq!(strangers[0].data.as_ref(), Some(target.data.id()));
    assert_eq!(world.things().len(), 1, "left alone");
    world.plane.forget(stranger, by()).await.unwrap();
    assert!(world.plane.strangers().await.unwrap().is_empty());
    world.plane.check_drift(&cell()).await.unwrap();
    let error = world.plane.adopt(stranger, new("other"), by()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    let keyed = || by().with_key(IdempotencyKey::new("adopt").unwrap());
    let first = done(&world.plane.adopt(stranger, new("lost"), keyed()).await.unwrap()).await;
    let again = world.plane.adopt(stranger, new("lost"), keyed()).await.unwrap();
    assert_eq!(again.operation().id, first.id, "the same key is the same operation");
    let adopted = world.get("lost").await;
    assert_eq!((adopted.incarnation, &adopted.data), (Some(stranger), target.data.id()));
    assert_eq!(adopted.endpoint.unwrap().as_str(), "memory://lost/1.0", "brought to the spec it was adopted with");
    assert!(world.plane.strangers().await.unwrap().is_empty());
    assert_eq!(world.things().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_change_that_no_event_told_is_found_and_mended() {
    let world = World::new().await;
    let before = world.create("acme").await;
    // An outsider stops it by the provider's own means, behind everybody's back.
    let target = Target {
        data: DataSource::Existing(before.data),
        generation: before.generation,
        ..made_behind_our_back("acme", before.incarnation.unwrap(), &world)
    };
    world.provider.suspend(&OpContext::new(plane_id()), &target).await.unwrap();
    assert_eq!(world.plane.check_drift(&cell()).await.unwrap().differing, 1);
    world
        .until("acme", |now| {
            now.settled && now.phase == Some(Phase::Running) && world.provider.calls().contains_key("resume")
        })
        .await;
    assert_eq!(world.plane.check_drift(&cell()).await.unwrap().differing, 0);
}

#[tokio::test(start_paused = true)]
async fn when_too_much_vanishes_at_once_nothing_is_done_until_somebody_confirms() {
    let mut cautious = config();
    cautious.vanished_max = 3;
    let world = World::with(MemoryConfig::default(), cautious).await;
    for n in 0..10 {
        world.create(&format!("i{n}")).await;
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    for n in 0..10 {
        world.provider.vanish(&plane_id(), &id(&format!("i{n}")));
    }
    let report = world.plane.check_drift(&cell()).await.unwrap();
    assert!(report.frozen && report.vanished >= 6, "{report:?}");
    let made_again = world.things().len();
    assert!(made_again <= 3, "at most as many as may vanish were made again: {made_again}");
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!(world.things().len(), made_again);
    // Sign-ups and requests go on meanwhile.
    world.create("new").await;
    assert!(world.store.cells().await.unwrap()[0].drift_frozen.is_some(), "it outlives a restart");
    world.plane.confirm_drift(&cell(), by()).await.unwrap();
    // One word is enough for all of them.
    while world.things().len() < 11 {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    for n in 0..10 {
        world.until_phase(&format!("i{n}"), Phase::Running).await;
    }
    assert!(world.store.cells().await.unwrap()[0].drift_frozen.is_none());
}

#[tokio::test(start_paused = true)]
async fn what_differs_in_a_frozen_cell_is_not_looked_at_until_somebody_confirms() {
    let mut cautious = config();
    cautious.vanished_max = 0;
    cautious.drift_interval = Duration::from_secs(24 * 3600);
    // Slow, so that what is waited for comes due, and with it whatever else the store says is.
    let slow = MemoryConfig { start: Duration::from_secs(30), ..MemoryConfig::default() };
    let world = World::with(slow, cautious).await;
    for name in ["gone", "failed", "awake"] {
        world.create(name).await;
    }
    let looks = || world.provider.calls().get("observe").copied().unwrap_or_default();
    let looks_at_others = async || {
        let before = looks();
        for _ in 0..20 {
            world.sleep("awake").await;
            world.wake("awake").await;
        }
        tokio::time::sleep(Duration::from_secs(3600)).await;
        looks() - before
    };
    let usual = looks_at_others().await;
    world.provider.vanish(&plane_id(), &id("gone"));
    assert!(world.plane.check_drift(&cell()).await.unwrap().frozen);
    tokio::time::sleep(Duration::from_secs(60)).await;
    // A look that fails is due again, and that one finds what it may not mend.
    world.provider.script("observe", Fault::BeforeSend(ErrorKind::Unavailable));
    world.provider.fail(&plane_id(), &id("failed"), &Reason::new("exited", "with status 3"));
    tokio::time::sleep(Duration::from_secs(60)).await;
    let later = looks_at_others().await;
    assert!(later <= usual, "{later} looks, and {usual} before there was anything to be left alone");
    for name in ["gone", "failed"] {
        assert!(world.get(name).await.settled, "{name} waits");
    }
    world.plane.confirm_drift(&cell(), by()).await.unwrap();
    for name in ["gone", "failed"] {
        world.until(name, |now| now.settled && now.endpoint.is_some() && now.incarnation.is_some()).await;
    }
    while world.things().iter().filter(|thing| thing.phase == Phase::Running).count() < 3 {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_only_a_look_sees_in_a_frozen_cell_is_taken_up_when_somebody_confirms() {
    let mut cautious = config();
    cautious.vanished_max = 0;
    let slow = MemoryConfig { stop: Duration::from_secs(3600), ..MemoryConfig::default() };
    let world = World::with(slow, cautious).await;
    let before = world.create("acme").await;
    world.create("gone").await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    world.provider.vanish(&plane_id(), &id("gone"));
    assert!(world.plane.check_drift(&cell()).await.unwrap().frozen);
    // On its way to sleep: a listing tells that it runs, as the store does.
    let target = Target {
        data: DataSource::Existing(before.data),
        generation: before.generation,
        ..made_behind_our_back("acme", before.incarnation.unwrap(), &world)
    };
    world.provider.suspend(&OpContext::new(plane_id()), &target).await.unwrap();
    world.provider.change(&plane_id(), &id("acme"), before.generation, &target.spec);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(world.get("acme").await.settled && !world.provider.calls().contains_key("resume"), "it waits for a word");
    world.plane.confirm_drift(&cell(), by()).await.unwrap();
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(world.provider.calls().contains_key("resume"), "long before the provider has anything new to tell");
    world.until("acme", |now| now.settled && now.endpoint.is_some()).await;
}

#[tokio::test(start_paused = true)]
async fn what_was_rolled_back_behind_our_back_is_brought_up_to_date_if_it_runs() {
    let world = World::with(MemoryConfig { watch: false, ..MemoryConfig::default() }, config()).await;
    for name in ["awake", "asleep"] {
        world.create(name).await;
        done(&world.update(name, "2.0").await).await;
    }
    world.sleep("asleep").await;
    for name in ["awake", "asleep"] {
        world.provider.change(&plane_id(), &id(name), Generation(1), &Arc::new(spec("1.0")));
    }
    assert_eq!(world.plane.check_drift(&cell()).await.unwrap().differing, 1, "what sleeps is brought up to date later");
    let versions = || world.things().into_iter().map(|thing| thing.version).collect::<Vec<_>>();
    while versions() == ["1.0", "1.0"] {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    world.until("awake", |now| now.settled && now.phase == Some(Phase::Running)).await;
    assert_eq!(world.plane.check_drift(&cell()).await.unwrap().differing, 0);
    world.wake("asleep").await;
    assert_eq!(versions(), ["2.0", "2.0"]);
}

#[tokio::test(start_paused = true)]
async fn a_settled_instance_that_nobody_can_look_at_is_looked_at_less_and_less_often() {
    let mut config = config();
    config.drift_interval = Duration::from_secs(24 * 3600);
    let world = World::with(MemoryConfig::default(), config).await;
    let before = world.create("acme").await;
    for _ in 0..1000 {
        world.provider.script("observe", Fault::BeforeSend(ErrorKind::Unavailable));
    }
    let calls = world.calls();
    world.provider.fail(&plane_id(), &id("acme"), &Reason::new("exited", "with status 3"));
    tokio::time::sleep(Duration::from_secs(6 * 3600)).await;
    // Every thirty seconds would be 720.
    let calls = world.calls() - calls;
    assert!((10..100).contains(&calls), "{calls} looks in six hours");
    assert!(world.get("acme").await.settled);
    world.provider.calm();
    tokio::time::sleep(Duration::from_secs(600)).await;
    let record = world.store.instance(&id("acme")).await.unwrap().unwrap();
    let row = &record.row;
    assert!(row.settled && row.phase == Some(Phase::Running), "{row:?}");
    assert_eq!((row.live.as_ref().map(|live| live.incarnation), row.busy, row.due_at), (before.incarnation, 0, None));
}

#[tokio::test(start_paused = true)]
async fn an_absence_from_before_a_freeze_is_no_first_look_later() {
    let lag = Duration::from_secs(2);
    let mut cautious = config();
    cautious.vanished_max = 0;
    let world = World::with(MemoryConfig { lag, blink_percent: 100, ..MemoryConfig::default() }, cautious).await;
    world.create("acme").await;
    world.create("gone").await;
    tokio::time::sleep(Duration::from_secs(2 * 3600)).await;
    world.provider.vanish(&plane_id(), &id("gone"));
    assert!(world.plane.check_drift(&cell()).await.unwrap().frozen);
    // It is missed once, and then seen, failed: that waits for a word.
    world.provider.fail(&plane_id(), &id("acme"), &Reason::new("exited", "with status 3"));
    tokio::time::sleep(Duration::from_secs(60)).await;
    let record = world.store.instance(&id("acme")).await.unwrap().unwrap();
    assert!(record.row.settled && record.row.due_at.is_none(), "{:?}", record.row);
    assert_eq!(record.row.live.as_ref().unwrap().absent_since, None);
}

#[tokio::test(start_paused = true)]
async fn a_remnant_that_cannot_be_removed_is_not_tried_every_moment() {
    let world = World::new().await;
    let instance = world.create("acme").await;
    world.destroy("acme").await;
    // The call that made it arrives once more, after everybody has stopped waiting.
    let target = made_behind_our_back("acme", instance.incarnation.unwrap(), &world);
    world.provider.create(&OpContext::new(plane_id()), &target).await.unwrap();
    for _ in 0..1000 {
        world.provider.script("destroy", Fault::BeforeSend(ErrorKind::Unauthorized));
    }
    assert_eq!(world.plane.check_drift(&cell()).await.unwrap().remnants, 1);
    let before = world.calls();
    tokio::time::sleep(Duration::from_secs(3600)).await;
    let calls = world.calls() - before;
    assert!((2..200).contains(&calls), "{calls} calls in an hour: {:?}", world.provider.calls());
}

#[tokio::test(start_paused = true)]
async fn a_listing_that_hangs_ends_and_does_not_keep_a_shutdown_waiting() {
    let world = World::new().await;
    world.create("acme").await;
    world.provider.script("list", provisioner_core::memory::Fault::Hang);
    let error = world.plane.check_drift(&cell()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout);
    assert_eq!(world.plane.check_drift(&cell()).await.unwrap().listed, 1);
    world.provider.script("list", provisioner_core::memory::Fault::Hang);
    let plane = world.plane.clone();
    let pass = tokio::spawn(async move { plane.check_drift(&cell()).await });
    tokio::task::yield_now().await;
    let began = tokio::time::Instant::now();
    world.plane.shutdown().await.unwrap();
    assert!(began.elapsed() < Duration::from_secs(6), "{:?}", began.elapsed());
    assert!(pass.await.unwrap().is_err());
}

#[tokio::test(start_paused = true)]
async fn a_frozen_control_plane_accepts_and_does_nothing() {
    let mut world = World::new().await;
    world.create("acme").await;
    world.plane.freeze(true, by().because("an incident")).await.unwrap();
    let calls = world.calls();
    let slept = world.plane.sleep(&id("acme"), by()).await.unwrap();
    let created = world.plane.create(new("other"), by()).await.unwrap();
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!(world.calls(), calls);
    world.start_again().await;
    assert!(world.plane.is_frozen(), "also after a restart");
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!(world.calls(), calls + 1, "only the cell's identity is asked for");
    world.plane.freeze(false, by()).await.unwrap();
    for operation in [slept, created] {
        done(&world.plane.operation(&operation.operation().id).await.unwrap()).await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_instance_at_rest_costs_nothing() {
    let mut rare = config();
    rare.drift_interval = Duration::from_secs(400 * 24 * 3600);
    let world = World::with(MemoryConfig::default(), rare).await;
    for n in 0..200 {
        world.create(&format!("i{n}")).await;
        match n % 3 {
            0 => world.sleep(&format!("i{n}")).await,
            1 => drop(done(&world.plane.suspend(&id(&format!("i{n}")), hold("unpaid"), by()).await.unwrap()).await),
            _ => {}
        }
    }
    tokio::time::sleep(Duration::from_secs(60)).await;
    let (calls, position) = (world.calls(), world.plane.position());
    tokio::time::sleep(Duration::from_secs(30 * 24 * 3600)).await;
    assert_eq!(world.calls(), calls, "no provider call in a month");
    assert_eq!(world.plane.position(), position, "and nothing written");
}

#[tokio::test(start_paused = true)]
async fn a_provider_that_becomes_another_one_is_left_alone_until_it_is_itself_again() {
    let world = World::new().await;
    world.create("acme").await;
    world.provider.become_another("another account");
    assert_eq!(world.plane.check_drift(&cell()).await.unwrap_err().kind(), ErrorKind::Conflict);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let mut calls = world.provider.calls();
    let slept = world.plane.sleep(&id("acme"), by()).await.unwrap();
    tokio::time::sleep(Duration::from_secs(600)).await;
    let mut later = world.provider.calls();
    calls.remove("identity");
    later.remove("identity");
    assert_eq!(calls, later, "only who it is, is asked");
    assert_eq!(world.get("acme").await.reason.unwrap().code, "cell-unavailable");
    world.provider.become_another("memory");
    done(&slept).await;
    assert_eq!(world.get("acme").await.phase, Some(Phase::Zero));
}

#[tokio::test(start_paused = true)]
async fn what_is_stuck_is_looked_at_less_and_less_often() {
    let provider = MemoryConfig { watch: false, stop: Duration::from_secs(1), ..MemoryConfig::default() };
    let mut config = config();
    config.move_deadline = Duration::from_secs(500);
    let world = World::with(provider, config).await;
    let before = world.create("acme").await;
    // An outsider's removal stops half-way, and nobody takes it further.
    world.provider.script("destroy", Fault::HalfWay);
    let target = Target {
        data: DataSource::Existing(before.data),
        ..made_behind_our_back("acme", before.incarnation.unwrap(), &world)
    };
    let cut = world.provider.destroy(&OpContext::new(plane_id()), &target, DataDisposition::Retain).await;
    assert!(cut.is_err(), "{cut:?}");
    world.plane.check_drift(&cell()).await.unwrap();
    let calls = world.calls();
    let parked = world.until("acme", |now| now.parked).await;
    assert_eq!(parked.reason.unwrap().code, "deadline");
    let calls = world.calls() - calls;
    // Every two seconds would be 250.
    assert!((20..100).contains(&calls), "{calls}");
}
