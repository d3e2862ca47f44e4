//! A replica that is killed while all of them are busy.

use test_replicas::command::Verb;

use crate::{
    customers::{names, was_taken_over},
    world::{Database, World},
};

const SIGN_UPS: usize = 1000;

pub(crate) async fn among_sign_ups() {
    let world = World::with(Database::shared(), &["a", "b", "c"]).await;
    let names = names(SIGN_UPS);
    let victim = world.replica("b");
    let killing = async {
        world.until_accepted(SIGN_UPS / 2).await;
        victim.kill().await;
        world.take_out(&victim);
    };
    let (accepted, ()) = futures::join!(world.sign_up(&names), killing);
    world.all_done(&accepted).await;
    let unanswered = accepted.iter().filter(|accepted| accepted.refusals.contains(&None)).count();
    let left = accepted.iter().filter(|accepted| accepted.by == "b").count();
    println!("{left} accepted by the one that was killed, {unanswered} that it did not answer");
    assert!(left > 0 && was_taken_over(&world.provider, "b"), "nothing was taken over");
    world.exactly(&names).await;
    // Those that are left go on.
    world.ask(Verb::Create, "one-more").await;
}
