//! The database is killed or restarted while everybody is busy, and comes back; or it is gone for good, and a standby takes over.

use test_peers::postgres::{Durability, Programs, Server};
use tokio::task::block_in_place;

use crate::{
    customers::names,
    world::{Database, World},
};

const SIGN_UPS: usize = 300;

pub(crate) async fn killed() {
    goes_and_comes_back(Server::kill).await;
}

pub(crate) async fn restarted() {
    goes_and_comes_back(Server::stop).await;
}

async fn goes_and_comes_back(end: fn(&Server) -> Result<(), String>) {
    let server = block_in_place(|| Server::create(Durability::Durable)).unwrap();
    let world = World::with(Database::of(&server), &["a", "b", "c"]).await;
    let going = async {
        for accepted in [SIGN_UPS / 3, 2 * SIGN_UPS / 3] {
            world.until_accepted(accepted).await;
            block_in_place(|| end(&server)).unwrap();
            world.until_refused(1).await;
            block_in_place(|| server.start()).unwrap();
        }
    };
    costs_time_alone(&world, going).await;
}

/// Why no standby can be made here, if so.
pub(crate) fn no_standby() -> Option<String> {
    Programs::find().and_then(|programs| programs.base_backup()).err()
}

pub(crate) async fn failed_over() {
    let primary = block_in_place(|| Server::create(Durability::Durable)).unwrap();
    let standby = block_in_place(|| primary.standby()).unwrap();
    let world = World::with(Database::of_either(&primary, &standby), &["a", "b", "c"]).await;
    let going = async {
        world.until_accepted(SIGN_UPS / 2).await;
        block_in_place(|| primary.kill()).unwrap();
        world.until_refused(1).await;
        block_in_place(|| standby.promote()).unwrap();
    };
    costs_time_alone(&world, going).await;
}

/// Signs up customers while something befalls the database.
async fn costs_time_alone(world: &World, befalls: impl Future<Output = ()>) {
    let names = names(SIGN_UPS);
    let (accepted, ()) = futures::join!(world.sign_up(&names), befalls);
    let refused = accepted.iter().filter(|accepted| !accepted.refusals.is_empty()).count();
    println!("{refused} sign-ups were told to come back");
    world.all_are_there(&accepted).await;
    // By themselves: nobody was started again.
    for replica in world.replicas() {
        assert!(replica.is_alive(), "{}", replica.name);
        assert!(replica.terminate().await.success(), "{}", replica.last_words());
    }
}
