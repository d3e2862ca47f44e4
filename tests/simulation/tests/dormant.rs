//! That dormant means free: counted over a month.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::{sync::Arc, time::Duration};

use provisioner_core::{
    Cell, ControlPlane,
    control_plane::{NewInstance, Request},
    engine::EngineConfig,
    memory::{MemoryConfig, MemoryProvisioner},
    seams::{Random, Seams, TokioClock},
    store::{MemoryStore, Store},
    types::{Actor, CellName, Hold, InstanceId, InstanceSpec, Phase, TenantId, Timestamp, Workload},
};
use simulation::{
    gate::Gate,
    provider::SeenProvisioner,
    store::SeenStore,
    witness::{Counts, Witness},
    world::owner,
};

const INSTANCES: usize = 10_000;
const MONTH: Duration = Duration::from_secs(30 * 24 * 3600);
const HOUR: Duration = Duration::from_secs(3600);

/// A control plane with a dormant fleet.
struct Fleet {
    plane: ControlPlane,
    witness: Arc<Witness>,
}

/// What a stretch of time cost.
#[derive(Debug)]
struct Cost {
    counts: Counts,
    /// How often the one thread of the runtime had anything to do.
    wake_ups: u64,
}

impl Fleet {
    /// Everybody has signed up and gone to sleep, or is suspended.
    async fn asleep(drift_interval: Duration) -> Self {
        let mut config = EngineConfig::default();
        config.drift_interval = drift_interval;
        let name = CellName::new("cell").unwrap();
        let provider = MemoryProvisioner::new(MemoryConfig::default());
        let witness = Witness::new(owner(), [(name.clone(), provider.clone())].into(), 64);
        let store = MemoryStore::new(owner()) as Arc<dyn Store>;
        let gate = Gate::new(1, Arc::clone(&store), 0);
        let seen = SeenStore::new(&store, Arc::clone(&gate), Arc::clone(&witness), Random::from_seed(0), 0);
        let clock = TokioClock::starting_at(Timestamp::from_unix_ms(1_750_000_000_000));
        let cell = SeenProvisioner::new(provider, name.clone(), gate, Arc::clone(&witness));
        let seams = Seams { clock: Arc::new(clock), random: Random::from_seed(0), ..Seams::default() };
        let builder = ControlPlane::builder(seen).cell(Cell::new(name, Arc::new(cell))).config(config).seams(seams);
        let plane = builder.start().await.unwrap();
        let by = || Request::by(Actor::new("customer").unwrap());
        for number in 0..INSTANCES {
            let id = InstanceId::new(format!("i{number}")).unwrap();
            let spec = InstanceSpec::new(Workload::new("1.0"));
            let new = NewInstance::new(id.clone(), TenantId::new("Acme Inc.").unwrap(), spec);
            plane.create(new, by()).await.unwrap().wait().await.unwrap();
            match number % 3 {
                0 => plane.suspend(&id, Hold::new("unpaid").unwrap(), by()).await.unwrap(),
                _ => plane.sleep(&id, by()).await.unwrap(),
            };
        }
        // Whatever came of the last requests is over by then.
        tokio::time::sleep(HOUR).await;
        let fleet = plane.counts().await.unwrap().by_cell;
        let asleep: u64 =
            fleet.values().flatten().filter(|(phase, _)| phase.is_some_and(Phase::is_asleep)).map(|(_, n)| n).sum();
        assert_eq!(asleep, INSTANCES as u64, "{fleet:?}");
        Self { plane, witness }
    }

    /// Lets time go by.
    async fn rest(&self, time: Duration) -> Cost {
        let metrics = tokio::runtime::Handle::current().metrics();
        let (before, parked) = (self.witness.counts(), metrics.worker_park_count(0));
        tokio::time::sleep(time).await;
        let wake_ups = metrics.worker_park_count(0) - parked;
        let after = self.witness.counts();
        let more = after.into_iter().map(|(name, count)| {
            let more = count - before.get(&name).unwrap_or(&0);
            (name, more)
        });
        Cost { counts: more.filter(|(_, more)| *more > 0).collect(), wake_ups }
    }
}

#[tokio::test(start_paused = true)]
async fn ten_thousand_dormant_instances_cost_nothing_for_a_month() {
    // The first drift pass comes after the month.
    let fleet = Fleet::asleep(MONTH * 3).await;
    let cost = fleet.rest(MONTH).await;
    assert_eq!(cost.counts, Counts::new(), "no call, no read, no write");
    // The test's own sleep is the one timer that ends. Tokio's wheel of timers has six levels, and wakes to pass a long one
    // down from level to level.
    assert!(cost.wake_ups <= 12, "{cost:?}");
    fleet.plane.shutdown().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn with_the_drift_pass_they_cost_the_drift_pass_and_nothing_else() {
    // By default it comes each hour; twice a day keeps the test short.
    let fleet = Fleet::asleep(HOUR * 12).await;
    let began = std::time::Instant::now();
    let cost = fleet.rest(MONTH).await;
    let took = began.elapsed();
    let passes = cost.counts["call list"];
    assert!((45..=80).contains(&passes), "one in twelve hours, give or take a quarter: {cost:?}");
    let called: u64 = cost.counts.iter().filter(|(name, _)| name.starts_with("call ")).map(|(_, count)| count).sum();
    let calls: Vec<_> = cost.counts.keys().filter(|name| name.starts_with("call ")).cloned().collect();
    assert_eq!(calls, ["call identity", "call list", "call maintain"]);
    for call in calls {
        assert_eq!(cost.counts[&call], passes, "one {call} in each pass: {cost:?}");
    }
    // What it writes is the removal of what is old: once in each pass, and there is nothing old in the first month.
    let reads: u64 = cost.counts.iter().filter(|(name, _)| name.starts_with("read ")).map(|(_, count)| count).sum();
    assert_eq!(called + reads + passes, cost.counts.values().sum::<u64>(), "nothing else: {cost:?}");
    assert_eq!(cost.counts["write prune"], passes, "{cost:?}");
    // Pages of the listing and of the rows, and a few reads besides.
    assert!(reads <= passes * (2 * INSTANCES as u64 / 256 + 10), "{cost:?}");
    println!(
        "{INSTANCES} dormant instances, a month: {passes} drift passes, each with {:.1} calls, {:.1} reads of the store and a removal of what is old, {:.1} wake-ups, {:.1} ms",
        called as f64 / passes as f64,
        reads as f64 / passes as f64,
        cost.wake_ups as f64 / passes as f64,
        took.as_secs_f64() * 1000.0 / passes as f64,
    );
    // A pass wakes once, and the wheel of timers some times before, to pass a timer of hours down from level to level.
    assert!(cost.wake_ups <= passes * 8, "{cost:?}");
    fleet.plane.shutdown().await.unwrap();
}
