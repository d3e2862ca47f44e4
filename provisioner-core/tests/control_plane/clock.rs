//! The machine's clock is set forward and back by hours, in the middle of everything and between two control planes.

use std::{sync::Arc, time::Duration};

use provisioner_core::{
    Cell, ControlPlane, ErrorKind, OpContext, Provisioner,
    memory::{Fault, MemoryConfig, MemoryProvisioner},
    seams::{Clock, Random, Seams, SettableClock},
    store::Store,
    types::{DataDisposition, DataSource, Phase, Target, Timestamp},
};
use tempfile::TempDir;
use tokio::time::Instant;

use crate::harness::{by, cell, config, done, hold, id, new, open_store, plane_id, spec, tenant};

const HOURS: Duration = Duration::from_secs(7 * 3600);

/// A control plane whose clock can be set.
struct Clocked {
    plane: ControlPlane,
    provider: MemoryProvisioner,
    store: Arc<dyn Store>,
    clock: Arc<SettableClock>,
    _folder: TempDir,
}

impl Clocked {
    async fn new(provider: MemoryConfig) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = open_store(&folder).await;
        let provider = MemoryProvisioner::new(provider);
        let clock = Arc::new(SettableClock::starting_at(Timestamp::from_unix_ms(1_750_000_000_000)));
        let plane = start(&store, &provider, &clock).await;
        Self { plane, provider, store, clock, _folder: folder }
    }

    /// Another control plane, as after a restart.
    async fn start_again(&mut self) {
        self.plane.shutdown().await.unwrap();
        self.plane = start(&self.store, &self.provider, &self.clock).await;
    }

    fn set(&self, jump: Jump) {
        match jump {
            Jump::Back => self.clock.set_back(HOURS),
            Jump::Forward => self.clock.set_forward(HOURS),
        }
    }
}

async fn start(store: &Arc<dyn Store>, provider: &MemoryProvisioner, clock: &Arc<SettableClock>) -> ControlPlane {
    let clock = Arc::clone(clock) as Arc<dyn Clock>;
    let seams = Seams { clock, random: Random::from_seed(7), ..Seams::default() };
    let cell = Cell::new(cell(), Arc::new(provider.clone()));
    let mut config = config();
    // No drift pass mends what the clock did.
    config.drift_interval = 1000 * HOURS;
    ControlPlane::builder(Arc::clone(store)).cell(cell).seams(seams).config(config).start().await.unwrap()
}

#[derive(Debug, Clone, Copy)]
enum Jump {
    Back,
    Forward,
}

/// Slow enough that everything is under way for a while.
fn slow() -> MemoryConfig {
    MemoryConfig {
        start: Duration::from_secs(10),
        stop: Duration::from_secs(10),
        lag: Duration::from_secs(2),
        ..MemoryConfig::default()
    }
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_is_set_in_the_middle_of_a_move_neither_delays_nor_parks_it() {
    for jump in [Jump::Back, Jump::Forward] {
        for restarted in [false, true] {
            let mut world = Clocked::new(slow()).await;
            for step in ["create", "sleep", "wake", "update", "suspend", "lift", "restart", "destroy"] {
                // Refused once, so that a retry is under way too.
                let call = match step {
                    "sleep" => "scale to zero",
                    "wake" | "lift" => "resume",
                    "update" | "restart" => "create",
                    step => step,
                };
                world.provider.script(call, Fault::BeforeSend(ErrorKind::Unavailable));
                let (plane, id) = (&world.plane, id("acme"));
                let operation = match step {
                    "create" => plane.create(new("acme"), by()).await,
                    "sleep" => plane.sleep(&id, by()).await,
                    "wake" => plane.wake(&id, by()).await,
                    "update" => plane.update(&id, spec("2.0"), by()).await,
                    "suspend" => plane.suspend(&id, hold("unpaid"), by()).await,
                    "lift" => plane.lift(&id, &hold("unpaid"), by()).await,
                    "restart" => plane.restart(&id, by()).await,
                    _ => plane.destroy(&id, DataDisposition::Delete, by()).await,
                };
                let operation = operation.unwrap().operation().id.clone();
                tokio::time::sleep(Duration::from_millis(100)).await;
                world.set(jump);
                if restarted {
                    world.start_again().await;
                }
                let began = Instant::now();
                done(&world.plane.operation(&operation).await.unwrap()).await;
                assert!(began.elapsed() < Duration::from_secs(60), "{step} {jump:?}: {:?}", began.elapsed());
            }
            assert_eq!(world.provider.things(&plane_id()), []);
            world.plane.shutdown().await.unwrap();
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_absence_is_not_confirmed_by_a_jump_of_the_clock() {
    let world = Clocked::new(slow()).await;
    done(&world.plane.create(new("acme"), by()).await.unwrap()).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    let live = || async {
        let record = world.store.instance(&id("acme")).await.unwrap().unwrap();
        record.row.live.clone()
    };
    let before = live().await.unwrap().incarnation;
    world.provider.vanish(&plane_id(), &id("acme"));
    // By then reads have caught up with the change.
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(world.plane.check_drift(&cell()).await.unwrap().vanished, 1);
    while live().await.unwrap().absent_since.is_none() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    world.set(Jump::Forward);
    world.plane.create(new("other"), by()).await.unwrap(); // Wakes whoever sleeps until something is due.
    let jumped = Instant::now();
    while live().await.is_none_or(|live| live.incarnation == before) {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let took = jumped.elapsed();
    assert!(took >= Duration::from_secs(2) && took < Duration::from_secs(10), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn times_on_record_never_go_back() {
    let mut world = Clocked::new(MemoryConfig::default()).await;
    let mut names = Vec::new();
    for (n, jump) in [Jump::Back, Jump::Forward, Jump::Back, Jump::Back].into_iter().enumerate() {
        let name = format!("i{n}");
        done(&world.plane.create(new(&name), by()).await.unwrap()).await;
        names.push(name);
        world.set(jump);
        if n % 2 == 0 {
            world.start_again().await;
        }
    }
    let events = world.store.events(None, 0, 1000).await.unwrap();
    assert!(events.is_sorted_by_key(|event| event.event.at), "{events:#?}");
    for name in names {
        assert_eq!(world.plane.get(&id(&name)).await.unwrap().phase, Some(Phase::Running));
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_promised_for_a_time_of_day_is_due_when_the_clock_says_so() {
    let world = Clocked::new(MemoryConfig::default()).await;
    let mut trial = new("trial");
    trial.spec.expiry.suspend_after_seconds = Some(3 * 3600);
    done(&world.plane.create(trial, by()).await.unwrap()).await;
    // The machine was asleep: its steady clock stood still meanwhile.
    world.set(Jump::Forward);
    // The loop sleeps for an hour at most before it looks at the clock.
    tokio::time::sleep(Duration::from_secs(3700)).await;
    assert_eq!(world.plane.get(&id("trial")).await.unwrap().phase, Some(Phase::Suspended));
}

#[tokio::test(start_paused = true)]
async fn a_late_call_is_still_looked_for_after_the_longest_call_when_the_clock_jumped() {
    let world = Clocked::new(MemoryConfig::default()).await;
    done(&world.plane.create(new("acme"), by()).await.unwrap()).await;
    let instance = world.plane.get(&id("acme")).await.unwrap();
    done(&world.plane.destroy(&id("acme"), DataDisposition::Delete, by()).await.unwrap()).await;
    // The time at which remnants were to be looked for is over at once.
    world.set(Jump::Forward);
    world.plane.create(new("other"), by()).await.unwrap(); // Wakes whoever sleeps until something is due.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let late = Target {
        id: id("acme"),
        tenant: tenant(),
        incarnation: instance.incarnation.unwrap(),
        generation: instance.generation,
        spec: Arc::new(instance.spec),
        data: DataSource::Fresh(instance.data),
    };
    world.provider.create(&OpContext::new(plane_id()), &late).await.unwrap();
    assert_eq!(world.provider.things(&plane_id()).len(), 2);
    tokio::time::sleep(Duration::from_secs(60)).await;
    let left: Vec<_> = world.provider.things(&plane_id()).into_iter().map(|thing| thing.id).collect();
    assert_eq!(left, [id("other")], "found without a drift pass");
}
