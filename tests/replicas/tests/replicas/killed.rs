//! A replica that is killed while all of them are busy.

use test_replicas::command::Verb;

use crate::{
    customers::{names, taken_over},
    world::{Database, World},
};

const SIGN_UPS: usize = 1000;
/// Those that the second replica is asked for when half of all are accepted.
const UNDER_WAY: [usize; 5] = [481, 484, 487, 490, 493];

pub(crate) async fn among_sign_ups() {
    let world = World::with(Database::shared(), &["a", "b", "c"]).await;
    let names = names(SIGN_UPS);
    let victim = world.replica("b");
    // Calls of it that are under way when it is killed, and arrive when all is done.
    let mut held: Vec<_> = UNDER_WAY.map(|number| world.provider.hold("create", &format!("i-{number}"))).into();
    let killing = async {
        world.until_accepted(SIGN_UPS / 2).await;
        for call in &mut held {
            call.arrived().await;
        }
        victim.kill().await;
        world.take_out(&victim);
    };
    let (accepted, ()) = futures::join!(world.sign_up(&names), killing);
    world.all_done(&accepted).await;
    let unanswered = accepted.iter().filter(|accepted| accepted.refusals.contains(&None)).count();
    let left = accepted.iter().filter(|accepted| accepted.by == "b").count();
    let taken_over = taken_over(&world.provider, "b");
    println!("{left} accepted by the one that was killed, {unanswered} not answered, {taken_over} calls made again");
    assert!(left > 0 && taken_over > 0, "nothing was taken over");
    drop(held);
    world.exactly(&names).await;
    // Those that are left go on.
    world.ask(Verb::Create, "one-more").await;
}
