//! The database is killed while everybody is busy, and comes back.

use test_peers::postgres::{Durability, Server};
use tokio::task::block_in_place;

use crate::{
    customers::names,
    world::{Database, World},
};

const SIGN_UPS: usize = 300;

pub(crate) async fn killed() {
    let server = block_in_place(|| Server::create(Durability::Durable)).unwrap();
    let world = World::with(Database::of(&server), &["a", "b", "c"]).await;
    let killing = async {
        for accepted in [SIGN_UPS / 3, 2 * SIGN_UPS / 3] {
            world.until_accepted(accepted).await;
            block_in_place(|| server.kill()).unwrap();
            world.until_refused(1).await;
            block_in_place(|| server.start()).unwrap();
        }
    };
    let names = names(SIGN_UPS);
    let (accepted, ()) = futures::join!(world.sign_up(&names), killing);
    let refused = accepted.iter().filter(|accepted| !accepted.refusals.is_empty()).count();
    println!("{refused} sign-ups were told to come back");
    world.all_are_there(&accepted).await;
    // By themselves: nobody was started again.
    for replica in world.replicas() {
        assert!(replica.is_alive(), "{}", replica.name);
        assert!(replica.terminate().await.success(), "{}", replica.last_words());
    }
}
