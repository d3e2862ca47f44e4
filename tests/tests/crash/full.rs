//! The disk is full at each durable write of every verb, and there is room again soon after.

use std::sync::Arc;

use futures::StreamExt;
use provisioner_core::{ErrorKind, control_plane::OperationHandle, store::Store, types::IdempotencyKey};
use tests::{
    plane::{Options, Plane, done},
    verb::Verb,
    watched::Watch,
};

use crate::{AT_ONCE, LIVES_MAX, Round, check, life::Life};

/// How many writes in a row find no room.
const FULL_FOR: u64 = 2;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_is_full_at_any_write_of_any_verb_costs_time_and_nothing_else() {
    let mut rounds = Vec::new();
    for verb in Verb::ALL {
        // The fewest of several: a life that was held up writes more often, and others never come to its last writes.
        let mut writes = live(verb, Arc::default()).await.writes();
        for _ in 0..2 {
            writes = writes.min(live(verb, Arc::default()).await.writes());
        }
        assert!(writes >= 4, "{verb:?} writes only {writes} times");
        println!("{verb:?}: {writes} durable writes");
        rounds.extend((1..=writes).map(|at| (verb, at)));
    }
    let lives = rounds.into_iter().map(|(verb, at)| async move {
        let lives = tokio::spawn(until_full(verb, at)).await.unwrap();
        lives.unwrap_or_else(|| panic!("{verb:?} never came to write {at} again"))
    });
    // They wait more than they work.
    let lived: Vec<u64> = futures::stream::iter(lives).buffer_unordered(2 * AT_ONCE).collect().await;
    println!("{} writes found the disk full, in {} lives", lived.len(), lived.iter().sum::<u64>());
}

/// How many lives it took until one came to that write.
async fn until_full(verb: Verb, at: u64) -> Option<u64> {
    let _round = Round(format!("{verb:?} with the disk full at write {at}"));
    for lives in 1..=LIVES_MAX {
        if live(verb, Arc::new(Watch::full_at(at, FULL_FOR))).await.refused() > 0 {
            return Some(lives);
        }
    }
    None
}

/// One instance's life, with the disk full at some moment of a request.
async fn live(verb: Verb, watch: Arc<Watch>) -> Arc<Watch> {
    let mut life = Life::prepare(verb).await;
    let plane = start(&life, &watch).await;
    let operation = ask(&plane, &life).await;
    life.accepted = Some(done(&operation).await.id.to_string());
    drop(operation);
    let full = watch.refused();
    if let Err(error) = plane.try_stop().await {
        assert!(error.kind() == ErrorKind::StoreFull && watch.refused() > full, "{error:?}");
    }
    check::recover(life, std::time::Duration::ZERO).await;
    watch
}

async fn start(life: &Life, watch: &Arc<Watch>) -> Plane {
    loop {
        let options = Options { watch: Some(Arc::clone(watch)), ..Options::default() };
        let full = watch.refused();
        match Plane::try_start(&life.place, options).await {
            Ok(plane) => return plane,
            Err(error) => assert!(error.kind() == ErrorKind::StoreFull && watch.refused() > full, "{error:?}"),
        }
    }
}

/// Asks until it is accepted. What was refused for want of room left nothing behind.
async fn ask(plane: &Plane, life: &Life) -> OperationHandle {
    loop {
        match life.verb.ask(&plane.plane, &life.place).await {
            Ok(operation) => return operation,
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::StoreFull, "{error:?}");
                let key = IdempotencyKey::new(life.verb.to_string()).unwrap();
                assert!(plane.store.operation_of_key(&key).await.unwrap().is_none(), "refused, and there");
            }
        }
    }
}
