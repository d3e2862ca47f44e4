//! A rolling upgrade: one replica after the other ends gently, and another one has taken its place before.

use std::{sync::atomic::Ordering, time::Duration};

use test_replicas::command::Verb;

use crate::world::{Database, World};

/// No session lapses here, on a machine that is busy with others: each is ended.
const LAPSES_AFTER: Duration = Duration::from_secs(15);

pub(crate) async fn rolling() {
    let world = World::new(Database::shared()).await.with_timings(LAPSES_AFTER, LAPSES_AFTER);
    world.start_all(&["old-a", "old-b", "old-c"]).await;
    let upgrade = async {
        for old in world.replicas() {
            let accepted = world.accepted.load(Ordering::SeqCst);
            world.until_accepted(accepted + 50).await;
            world.start(&old.name.replace("old", "new")).await;
            // Whoever spreads requests notices a moment later.
            let ended = old.terminate().await;
            world.take_out(&old);
            assert!(ended.success(), "{}", old.last_words());
        }
        let accepted = world.accepted.load(Ordering::SeqCst);
        world.until_accepted(accepted + 50).await;
    };
    let accepted = world.sign_up_during(upgrade).await;
    // A request may meet those that are going down, and then one that is not.
    let worst = accepted.iter().map(|accepted| accepted.refusals.len()).max().unwrap_or(0);
    println!("{} accepted, each after {worst} refusals at most", accepted.len());
    assert!(worst <= 2, "refused again and again");
    // What each had claimed is somebody else's at once, and not after a session or a look round.
    let done = tokio::time::timeout(LAPSES_AFTER, world.all_done(&accepted)).await;
    done.expect("what one left is not taken over");
    world.all_are_there(&accepted).await;
    for (number, one) in accepted.iter().take(12).enumerate() {
        for verb in [Verb::Sleep, Verb::Wake, Verb::Destroy] {
            let asked = world.insist(verb, &one.name, number).await;
            world.done(&asked.operation).await;
        }
        assert!(world.provider.thing(&one.name).is_none());
    }
}
