//! A network between replicas and the database that cuts, swallows and refuses.

use std::time::Duration;

use provisioner_core::seams::Random;
use test_replicas::command::{Answer, Ask, Verb};
use tokio::time::sleep;

use crate::{
    PATIENCE,
    customers::Accepted,
    proxy::{Mode, Proxy},
    world::{Database, LAPSES_AFTER, World},
};

const NAMES: [&str; 3] = ["a", "b", "c"];

struct CutOff {
    world: World,
    proxies: Vec<Proxy>,
}

impl CutOff {
    async fn new() -> Self {
        let world = World::new(Database::shared()).await;
        let mut proxies = Vec::new();
        for name in NAMES {
            let proxy = world.database.proxy().await;
            world.start_behind(name, &proxy).await;
            proxies.push(proxy);
        }
        Self { world, proxies }
    }

    fn set_all(&self, mode: Mode) {
        self.proxies.iter().for_each(|proxy| proxy.set(mode));
    }

    /// All is well in the end, by the same processes, and somebody noticed something.
    async fn ends_well(&self, accepted: &[Accepted]) {
        let refused: usize = accepted.iter().map(|accepted| accepted.refusals.len()).sum();
        println!("{} accepted, told {refused} times to come back", accepted.len());
        self.world.all_are_there(accepted).await;
        for replica in self.world.replicas() {
            assert!(replica.is_alive(), "{}", replica.name);
        }
        // Each of them can be asked again.
        for name in NAMES {
            let (of_it, key) = (format!("of-{name}"), format!("Create of-{name}"));
            let ask = Ask::Request { verb: Verb::Create, name: of_it, key };
            match self.world.replica(name).insist(ask).await {
                Answer::Accepted { operation } => self.world.done(&operation).await,
                other => panic!("{name}: {other:?}"),
            }
        }
    }
}

/// Connections are cut, those of one replica after the other's, at any moment.
pub(crate) async fn cut() {
    let at = CutOff::new().await;
    let random = Random::from_os();
    let cutting = async {
        for round in 0..60 {
            at.proxies[round % NAMES.len()].cut();
            sleep(Duration::from_millis(20) + random.up_to(Duration::from_millis(130))).await;
        }
    };
    let accepted = at.world.sign_up_during(cutting).await;
    let made: u64 = at.proxies.iter().map(Proxy::connections).sum();
    println!("{made} connections");
    at.ends_well(&accepted).await;
}

/// First one replica's connections swallow everything, for longer than its session; then all of them.
pub(crate) async fn swallowed() {
    let at = CutOff::new().await;
    let swallowing = async {
        sleep(Duration::from_millis(500)).await;
        at.proxies[0].set(Mode::Swallow);
        sleep(2 * LAPSES_AFTER).await;
        at.proxies[0].set(Mode::Open);
        sleep(LAPSES_AFTER).await;
        at.set_all(Mode::Swallow);
        sleep(2 * LAPSES_AFTER).await;
        at.set_all(Mode::Open);
        sleep(LAPSES_AFTER).await;
    };
    let accepted = at.world.sign_up_during(swallowing).await;
    at.world.replica("a").until_logged("a new session with the store", PATIENCE).await;
    at.ends_well(&accepted).await;
}

/// All connections are cut, and nobody is let in for longer than sessions last.
pub(crate) async fn refused() {
    let at = CutOff::new().await;
    let refusing = async {
        for proxies in [&at.proxies[..1], &at.proxies[..]] {
            sleep(Duration::from_millis(500)).await;
            for proxy in proxies {
                proxy.set(Mode::Refuse);
                proxy.cut();
            }
            sleep(LAPSES_AFTER * 3 / 2).await;
            at.set_all(Mode::Open);
        }
        sleep(LAPSES_AFTER / 2).await;
    };
    let accepted = at.world.sign_up_during(refusing).await;
    at.ends_well(&accepted).await;
}
