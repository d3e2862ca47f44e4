//! Real processes as instances, and a replica that is killed among them.

use futures::StreamExt;
use test_replicas::command::Verb;
use tests::{http, place::Place};

use crate::{
    customers::names,
    until,
    world::{Database, World},
};

const PRODUCT: &str = env!("CARGO_BIN_EXE_replica-product");
const PRODUCTS: usize = 40;

pub(crate) async fn killed() {
    let place = Place::new(PRODUCT);
    let world = World::new(Database::shared()).await;
    for name in ["a", "b", "c"] {
        world.start_on(name, &place.root, place.address, PRODUCT).await;
    }
    let names = names(PRODUCTS);
    let victim = world.replica("b");
    let killing = async {
        world.until_accepted(PRODUCTS / 2).await;
        victim.kill().await;
        world.take_out(&victim);
    };
    let (accepted, ()) = futures::join!(world.sign_up(&names), killing);
    world.all_done(&accepted).await;
    let answers = futures::stream::iter(&names).map(async |name| {
        let instance = world.look(name).await.expect("an instance");
        http::text(instance.endpoint.expect("where it answers").as_str(), "/version").await
    });
    let answers: Vec<_> = answers.buffer_unordered(4).collect().await;
    assert_eq!(answers, vec!["1.0"; PRODUCTS]);
    assert_eq!(place.products().len(), PRODUCTS, "one process each");
    assert_eq!(place.names("data").len(), PRODUCTS);
    for data in place.names("data") {
        assert_eq!(place.data_file(&data, "doubled"), None, "two processes on the same data");
    }
    let drift = world.drift().await;
    assert_eq!((drift.listed, drift.vanished, drift.strangers), (PRODUCTS as u64, 0, 0), "{drift:?}");
    let removals = names.iter().zip(0..).map(|(name, first)| world.insist(Verb::Destroy, name, first));
    let removals: Vec<_> = futures::stream::iter(removals).buffer_unordered(8).collect().await;
    world.all_done(&removals).await;
    until("nothing runs", || async { place.products().is_empty().then_some(()) }).await;
    until("no folder is left", || async {
        let left = ["instances", "data", "removed"].map(|folder| place.names(folder).len());
        (left == [0; 3] && place.ports().is_empty()).then_some(())
    })
    .await;
    for replica in world.replicas() {
        assert!(replica.terminate().await.success(), "{}", replica.last_words());
    }
}
