//! Whatever goes wrong: one thing, no orphan, and an end to every operation.

use std::{collections::BTreeSet, time::Duration};

use provisioner_core::{
    ErrorKind,
    memory::{Fault, MemoryConfig},
    seams::Random,
    store::{DataState, EventKind, OperationState},
    types::{DataDisposition, Generation, Phase, Reason},
};

use crate::harness::{World, by, config, done, ended, id, new, plane_id};

#[tokio::test(start_paused = true)]
async fn a_lost_answer_makes_no_second_thing() {
    let world = World::new().await;
    for verb in ["create", "scale to zero", "resume", "suspend", "destroy"] {
        for fault in [
            Fault::AfterApply,
            Fault::BeforeSend(ErrorKind::Unavailable),
            Fault::Hang,
            Fault::Throttled { after_ms: 3000 },
        ] {
            world.provider.script(verb, fault);
        }
    }
    world.create("acme").await;
    let incarnation = world.get("acme").await.incarnation.unwrap();
    world.sleep("acme").await;
    world.wake("acme").await;
    done(&world.plane.suspend(&id("acme"), crate::harness::hold("unpaid"), by()).await.unwrap()).await;
    assert_eq!(world.things().len(), 1);
    assert_eq!(world.get("acme").await.incarnation, Some(incarnation), "the same making throughout");
    world.destroy("acme").await;
    assert!(world.things().is_empty());
}

#[tokio::test(start_paused = true)]
async fn what_a_cut_call_left_half_done_is_called_for_again() {
    let world = World::new().await;
    for verb in ["create", "scale to zero", "resume", "suspend", "destroy"] {
        world.provider.script(verb, Fault::HalfWay);
    }
    world.create("acme").await;
    world.sleep("acme").await;
    world.wake("acme").await;
    done(&world.plane.suspend(&id("acme"), crate::harness::hold("unpaid"), by()).await.unwrap()).await;
    assert_eq!(world.things().len(), 1);
    world.destroy("acme").await;
    assert!(world.things().is_empty());
}

#[tokio::test(start_paused = true)]
async fn what_a_control_plane_left_half_done_is_called_for_again_by_the_next() {
    for verb in ["create", "destroy"] {
        let mut world = World::new().await;
        world.provider.script(verb, Fault::HalfWay);
        if verb == "destroy" {
            world.create("acme").await;
            world.plane.destroy(&id("acme"), DataDisposition::Delete, by()).await.unwrap();
        } else {
            world.plane.create(new("acme"), by()).await.unwrap();
        }
        while !world.provider.calls().contains_key(verb) {
            tokio::task::yield_now().await;
        }
        world.start_again().await;
        if verb == "create" {
            world.until_phase("acme", Phase::Running).await;
            assert_eq!(world.things().len(), 1);
        } else {
            for _ in 0..100 {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            assert!(world.things().is_empty());
            assert_eq!(world.plane.get(&id("acme")).await.unwrap_err().kind(), ErrorKind::NotFound);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_fifth_of_all_calls_failing_loses_and_doubles_nothing() {
    for seed in 0..4 {
        let provider = MemoryConfig {
            start: Duration::from_millis(700),
            stop: Duration::from_millis(300),
            lag: Duration::from_millis(200 * (seed % 2)),
            fault_percent: 20,
            random: Random::from_seed(seed),
            ..MemoryConfig::default()
        };
        let mut config = config();
        config.move_deadline = Duration::from_secs(3600);
        config.attempts_max = 20;
        let world = World::with(provider, config).await;
        let names: Vec<_> = (0..40).map(|n| format!("i{n}")).collect();
        let created = futures::future::join_all(names.iter().map(|name| world.plane.create(new(name), by()))).await;
        for operation in created {
            done(&operation.unwrap()).await;
        }
        for (n, name) in names.iter().enumerate() {
            let operation = match n % 4 {
                0 => world.plane.sleep(&id(name), by()).await.unwrap(),
                1 => world.update(name, "2.0").await,
                2 => world.plane.destroy(&id(name), DataDisposition::Delete, by()).await.unwrap(),
                _ => world.plane.restart(&id(name), by()).await.unwrap(),
            };
            done(&operation).await;
        }
        let live: BTreeSet<_> = world.things().iter().map(|thing| thing.id.clone()).collect();
        assert_eq!((world.things().len(), live.len()), (30, 30), "seed {seed}: one thing for each that lives");
    }
}

#[tokio::test(start_paused = true)]
async fn where_a_place_has_no_room_another_incarnation_goes_elsewhere_at_once() {
    let world = World::new().await;
    for _ in 0..2 {
        world.provider.script("create", Fault::NoRoomHere);
    }
    let began = tokio::time::Instant::now();
    let made = world.create("acme").await;
    assert!(began.elapsed() <= config().backoff_min * 2, "{:?}", began.elapsed());
    assert_eq!((made.incarnation.unwrap().number(), world.things().len()), (3, 1));
    // An answer that was lost may have been that it was made: the same is called for again.
    world.provider.script("create", Fault::AfterApply);
    world.provider.script("create", Fault::NoRoomHere);
    let made = world.create("other").await;
    assert_eq!((made.incarnation.unwrap().number(), world.things().len()), (1, 2));
    // What was there before is no reason to make another.
    world.provider.script("create", Fault::NoRoomHere);
    done(&world.update("acme", "2.0").await).await;
    assert_eq!((world.get("acme").await.incarnation.unwrap().number(), world.things().len()), (3, 2));
}

#[tokio::test(start_paused = true)]
async fn what_vanished_is_made_again_on_the_same_data() {
    let world = World::new().await;
    let before = world.create("acme").await;
    world.provider.vanish(&plane_id(), &id("acme"));
    let after = world
        .until("acme", |now| now.incarnation != before.incarnation && now.phase == Some(Phase::Running) && now.settled)
        .await;
    assert_eq!(after.data, before.data);
    assert_eq!(world.things().len(), 1);
    assert_eq!(after.incarnation.unwrap().number(), 2);
}

#[tokio::test(start_paused = true)]
async fn data_that_vanished_parks_and_is_never_started_blank() {
    let world = World::new().await;
    let before = world.create("acme").await;
    world.provider.vanish(&plane_id(), &id("acme"));
    world.provider.vanish_data(&plane_id(), &before.data);
    let parked = world.until("acme", |now| now.parked).await;
    assert_eq!(parked.reason.unwrap().code, "data-missing");
    assert!(world.things().is_empty());
    // Remnants of the making that ended are looked for once.
    tokio::time::sleep(Duration::from_secs(60)).await;
    let calls = world.calls();
    tokio::time::sleep(Duration::from_secs(1800)).await;
    assert_eq!(world.calls(), calls, "what is parked burns no calls");
    world.destroy("acme").await;
}

#[tokio::test(start_paused = true)]
async fn a_crash_is_repaired_and_a_crash_loop_is_parked_with_its_reason() {
    let world = World::new().await;
    world.create("acme").await;
    tokio::time::sleep(Duration::from_secs(3600)).await;
    let reason = Reason::new("exited", "with status 3");
    let calls = world.calls();
    world.provider.fail(&plane_id(), &id("acme"), &reason);
    // A look and a call at least: how many there were before depends on when the drift pass came.
    world.until("acme", |now| now.settled && now.phase == Some(Phase::Running) && world.calls() > calls + 1).await;
    for _ in 0..3 {
        world.until_phase("acme", Phase::Running).await;
        world.provider.fail(&plane_id(), &id("acme"), &reason);
        world.until("acme", |now| now.parked || !now.settled).await;
    }
    let parked = world.until("acme", |now| now.parked).await;
    assert_eq!(parked.reason, Some(reason));
    let retried = world.plane.retry(&id("acme"), by()).await.unwrap();
    done(&retried).await;
    assert_eq!(world.get("acme").await.phase, Some(Phase::Running));
    assert_eq!(world.plane.retry(&id("acme"), by()).await.unwrap_err().kind(), ErrorKind::Conflict, "nothing to retry");
}

#[tokio::test(start_paused = true)]
async fn a_permanent_error_parks_at_once_and_a_newer_request_takes_it_up_again() {
    let world = World::new().await;
    world.provider.script("create", Fault::BeforeSend(ErrorKind::Unauthorized));
    let created = ended(&world.plane.create(new("acme"), by()).await.unwrap()).await;
    assert_eq!(created.state, OperationState::Failed);
    assert_eq!(created.failure.unwrap().code, "unauthorized");
    assert_eq!(world.provider.calls()["create"], 1);
    world.wake("acme").await;
    assert_eq!(world.get("acme").await.phase, Some(Phase::Running));
    assert_eq!(world.things().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn data_that_was_to_be_kept_and_never_came_to_be_can_be_taken_up_all_the_same() {
    let world = World::new().await;
    world.provider.script("create", Fault::BeforeSend(ErrorKind::Unauthorized));
    ended(&world.plane.create(new("acme"), by()).await.unwrap()).await;
    let data = world.get("acme").await.data;
    done(&world.plane.destroy(&id("acme"), DataDisposition::Retain, by()).await.unwrap()).await;
    let kept = world.plane.data(None, None, 10).await.unwrap().items;
    assert_eq!(kept.iter().map(|row| (&row.id, row.state)).collect::<Vec<_>>(), [(&data, DataState::Unseen)]);
    done(&world.plane.create(new("acme").on_data(data.clone()), by()).await.unwrap()).await;
    assert_eq!((world.get("acme").await.data, world.things().len()), (data.clone(), 1));
    // From now on it was seen, and must be there.
    done(&world.plane.destroy(&id("acme"), DataDisposition::Retain, by()).await.unwrap()).await;
    assert_eq!(world.plane.data(None, None, 10).await.unwrap().items[0].state, DataState::Retained);
    world.provider.vanish_data(&plane_id(), &data);
    let blank = ended(&world.plane.create(new("acme").on_data(data), by()).await.unwrap()).await;
    assert_eq!(blank.failure.unwrap().code, "data-missing");
}

#[tokio::test(start_paused = true)]
async fn what_never_gets_ready_is_parked_at_its_deadline() {
    let world =
        World::with(MemoryConfig { start: Duration::from_secs(7200), ..MemoryConfig::default() }, config()).await;
    let began = tokio::time::Instant::now();
    let created = ended(&world.plane.create(new("acme"), by()).await.unwrap()).await;
    assert_eq!(created.failure.unwrap().code, "deadline");
    let took = began.elapsed();
    assert!((60..70).contains(&took.as_secs()), "{took:?}");
    world.destroy("acme").await;
    assert!(world.things().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_failed_update_parks_and_sleep_and_wake_bring_the_last_good_spec_back() {
    let world = World::new().await;
    world.create("acme").await;
    world.provider.script("create", Fault::BeforeSend(ErrorKind::InvalidSpec));
    let updated = ended(&world.update("acme", "2.0-bad").await).await;
    assert_eq!(updated.state, OperationState::Failed);
    let parked = world.get("acme").await;
    assert!(parked.parked);
    assert_eq!((parked.generation, parked.applied), (Generation(2), Some(Generation(1))));
    assert_eq!(parked.spec.workload.version, "2.0-bad", "it is still what the customer wants");
    world.sleep("acme").await;
    world.wake("acme").await;
    let back = world.get("acme").await;
    assert_eq!(back.endpoint.unwrap().as_str(), "memory://acme/1.0");
    assert_eq!(back.applied_version.as_deref(), Some("1.0"));
    // The next update goes above both.
    done(&world.update("acme", "2.1").await).await;
    assert_eq!(world.get("acme").await.endpoint.unwrap().as_str(), "memory://acme/2.1");
}

#[tokio::test(start_paused = true)]
async fn a_retry_after_a_failed_update_tries_the_wanted_spec_again() {
    let world = World::new().await;
    world.create("acme").await;
    world.provider.script("create", Fault::BeforeSend(ErrorKind::InvalidSpec));
    ended(&world.update("acme", "2.0").await).await;
    done(&world.plane.retry(&id("acme"), by()).await.unwrap()).await;
    assert_eq!(world.get("acme").await.endpoint.unwrap().as_str(), "memory://acme/2.0");
}

#[tokio::test(start_paused = true)]
async fn a_throttled_provider_is_not_asked_before_its_time() {
    let throttled = MemoryConfig { calls_per_second: Some(5), ..MemoryConfig::default() };
    let mut config = config();
    config.move_deadline = Duration::from_secs(3600);
    let world = World::with(throttled, config).await;
    let operations = futures::future::join_all((0..50).map(|n| world.plane.create(new(&format!("i{n}")), by()))).await;
    for operation in operations {
        done(&operation.unwrap()).await;
    }
    assert_eq!(world.things().len(), 50);
}

#[tokio::test(start_paused = true)]
async fn retries_are_told_and_get_slower() {
    let world = World::new().await;
    for _ in 0..2 {
        world.provider.script("create", Fault::BeforeSend(ErrorKind::Internal));
    }
    world.create("acme").await;
    let events = world.plane.events(Some(&id("acme")), 0, 100).await.unwrap().items;
    let attempts: Vec<_> = events
        .iter()
        .filter_map(|event| match &event.event.what {
            EventKind::Retrying { attempts, .. } => Some(*attempts),
            _ => None,
        })
        .collect();
    assert_eq!(attempts, [1, 2]);
}

#[tokio::test(start_paused = true)]
async fn a_sick_cell_does_not_slow_the_others() {
    use std::sync::Arc;

    use provisioner_core::{Cell, memory::MemoryProvisioner, types::CellName};

    use crate::harness::open_store;

    let folder = tempfile::tempdir().unwrap();
    let store = open_store(&folder).await;
    let [sick, well] = ["sick", "well"].map(|name| CellName::new(name).unwrap());
    let sick_provider = MemoryProvisioner::new(MemoryConfig::default());
    let well_provider = MemoryProvisioner::new(MemoryConfig::default());
    for _ in 0..500 {
        sick_provider.script("create", Fault::Hang);
    }
    let plane = provisioner_core::ControlPlane::builder(store)
        .cell(Cell::new(sick.clone(), Arc::new(sick_provider)))
        .cell(Cell::new(well.clone(), Arc::new(well_provider)))
        .config(config())
        .start()
        .await
        .unwrap();
    for n in 0..200 {
        plane.create(new(&format!("sick{n}")).in_cell(sick.clone()), by()).await.unwrap();
    }
    let began = tokio::time::Instant::now();
    for n in 0..200 {
        done(&plane.create(new(&format!("well{n}")).in_cell(well.clone()), by()).await.unwrap()).await;
    }
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn an_update_that_fails_gives_way_to_the_last_good_spec_before_it_is_parked() {
    let world = World::new().await;
    world.create("acme").await;
    world.provider.script("create", Fault::BeforeSend(ErrorKind::Internal));
    let updated = world.update("acme", "2.0-bad").await;
    while world.provider.calls()["create"] < 2 {
        tokio::task::yield_now().await;
    }
    tokio::time::sleep(Duration::from_millis(1)).await;
    world.sleep("acme").await;
    assert_eq!(ended(&updated).await.state, OperationState::Superseded);
    world.wake("acme").await;
    let back = world.get("acme").await;
    assert_eq!(back.endpoint.unwrap().as_str(), "memory://acme/1.0");
    assert_eq!(back.spec.workload.version, "2.0-bad", "it is still what the customer wants");
    // A restart does not bring the bad one back either.
    done(&world.plane.restart(&id("acme"), by()).await.unwrap()).await;
    assert_eq!(world.get("acme").await.endpoint.unwrap().as_str(), "memory://acme/1.0");
    // The wanted one is tried again when somebody says so.
    done(&world.plane.retry(&id("acme"), by()).await.unwrap()).await;
    assert_eq!(world.get("acme").await.endpoint.unwrap().as_str(), "memory://acme/2.0-bad");
}

#[tokio::test(start_paused = true)]
async fn an_update_that_was_not_tried_yet_stays_whatever_failed_before_it() {
    let world = World::new().await;
    world.create("acme").await;
    world.plane.freeze(true, by()).await.unwrap();
    world.provider.fail(&plane_id(), &id("acme"), &Reason::new("exited", "with status 3"));
    world.plane.freeze(false, by()).await.unwrap();
    world.until("acme", |now| now.phase == Some(Phase::Failed)).await;
    world.plane.freeze(true, by()).await.unwrap();
    world.update("acme", "2.0-mended").await;
    let slept = world.plane.sleep(&id("acme"), by()).await.unwrap();
    world.plane.freeze(false, by()).await.unwrap();
    done(&slept).await;
    world.wake("acme").await;
    assert_eq!(world.get("acme").await.endpoint.unwrap().as_str(), "memory://acme/2.0-mended");
}

#[tokio::test(start_paused = true)]
async fn a_request_during_a_call_does_not_make_a_lagging_read_believed() {
    for destroyed in [false, true] {
        let lagging = MemoryConfig { lag: Duration::from_secs(3), ..MemoryConfig::default() };
        let world = World::with(lagging, config()).await;
        tokio::time::sleep(Duration::from_secs(100)).await;
        // The thing is made, the answer takes a moment, and meanwhile somebody asks for something else.
        world.provider.script("create", Fault::Late { after_ms: 200 });
        world.plane.create(new("acme"), by()).await.unwrap();
        while world.things().is_empty() {
            tokio::task::yield_now().await;
        }
        if destroyed {
            world.destroy("acme").await;
            assert!(world.things().is_empty());
        } else {
            world.sleep("acme").await;
            assert_eq!(world.things()[0].phase, Phase::Zero);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_look_whose_answer_comes_late_is_no_second_look() {
    let lag = Duration::from_secs(2);
    let misses = MemoryConfig { lag, blink_percent: 100, ..MemoryConfig::default() };
    let world = World::with(misses, config()).await;
    let made = world.create("acme").await;
    // Long enough for the provider to miss it once more.
    tokio::time::sleep(Duration::from_secs(3600)).await;
    world.plane.sleep(&id("acme"), by()).await.unwrap();
    let missed = async || {
        let record = world.store.instance(&id("acme")).await.unwrap().unwrap();
        record.row.live.as_ref().is_some_and(|live| live.absent_since.is_some())
    };
    while !missed().await {
        tokio::task::yield_now().await;
    }
    // The next one is sent at once, and answered when the first is two seconds ago.
    world.provider.script("observe", Fault::Late { after_ms: 3000 });
    world.wake("acme").await;
    assert_eq!(world.get("acme").await.incarnation, made.incarnation, "it was there all the time");
    assert_eq!(world.things().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_busy_provider_counts_against_nobody() {
    let world = World::new().await;
    for kind in [ErrorKind::Unavailable, ErrorKind::Unavailable, ErrorKind::Throttled, ErrorKind::Internal] {
        world.provider.script("create", Fault::BeforeSend(kind));
    }
    world.create("acme").await;
}

#[tokio::test(start_paused = true)]
async fn asking_again_does_not_defeat_the_back_off() {
    let world = World::new().await;
    world.provider.script("create", Fault::Throttled { after_ms: 30_000 });
    world.plane.create(new("acme"), by()).await.unwrap();
    for _ in 0..200 {
        world.plane.wake(&id("acme"), by()).await.unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(world.provider.calls()["create"], 1);
    world.until_phase("acme", Phase::Running).await;
}

#[tokio::test(start_paused = true)]
async fn nothing_is_made_after_its_deadline() {
    let world = World::new().await;
    world.provider.script("create", Fault::Throttled { after_ms: 120_000 });
    let created = ended(&world.plane.create(new("acme"), by()).await.unwrap()).await;
    assert_eq!(created.failure.unwrap().code, "deadline");
    assert_eq!(world.provider.calls()["create"], 1);
    assert!(world.things().is_empty());
}

#[tokio::test(start_paused = true)]
async fn what_becomes_of_data_is_as_told_also_for_what_never_ran() {
    let world =
        World::with(MemoryConfig { start: Duration::from_secs(3600), ..MemoryConfig::default() }, config()).await;
    world.plane.create(new("acme"), by()).await.unwrap();
    while world.things().is_empty() {
        tokio::task::yield_now().await;
    }
    let data = world.get("acme").await.data;
    done(&world.plane.destroy(&id("acme"), DataDisposition::Retain, by()).await.unwrap()).await;
    assert!(world.provider.has_data(&plane_id(), &data));
    assert_eq!(world.plane.data(None, None, 10).await.unwrap().items.len(), 1, "what is kept is listed");
    // Taken up by an instance that is deleted before anything is made of it.
    world.plane.freeze(true, by()).await.unwrap();
    world.plane.create(new("later").on_data(data.clone()), by()).await.unwrap();
    let destroyed = world.plane.destroy(&id("later"), DataDisposition::Delete, by()).await.unwrap();
    world.plane.freeze(false, by()).await.unwrap();
    done(&destroyed).await;
    assert!(!world.provider.has_data(&plane_id(), &data), "what is to be deleted is deleted");
    assert!(world.plane.data(None, None, 10).await.unwrap().items.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_who_goes_away_leaves_no_request_that_nobody_works_on() {
    use std::sync::Arc;

    use provisioner_core::{
        Cell, ControlPlane,
        memory::MemoryProvisioner,
        store::{CommitMode, InstanceFilter, SqliteStore},
    };

    use crate::harness::cell;

    let folder = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(folder.path().join("store.db"), plane_id(), CommitMode::Grouped).await.unwrap();
    let provider = MemoryProvisioner::new(MemoryConfig::default());
    let plane = ControlPlane::builder(store).cell(Cell::new(cell(), Arc::new(provider))).start().await.unwrap();
    for n in 0..200 {
        // Polled until the commit is on its way, and dropped there.
        let mut create = Box::pin(plane.create(new(&format!("i{n}")), by()));
        let _ = futures::poll!(&mut create);
        drop(create);
    }
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    loop {
        let page = plane.list(&InstanceFilter::default(), None, 1000).await.unwrap();
        if page.items.len() == 200 && page.items.iter().all(|instance| instance.settled) {
            break;
        }
        assert!(std::time::Instant::now() < deadline, "{} accepted, not all settled", page.items.len());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    plane.shutdown().await.unwrap();
}
