//! How sites share plans, and which plans go.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use futures::future::join_all;
use provisioner_core::{ErrorKind, Provisioner, types::DataDisposition};
use test_azure::Options;

use crate::fixture::{Fixture, cx, idle, target};

#[tokio::test]
async fn twenty_at_once_fill_three_plans_and_leave_none() {
    let fixture = Fixture::start(idle()).await;
    let targets: Vec<_> = (0..20).map(|n| target(&format!("i{n}"))).collect();
    for made in join_all(targets.iter().map(|target| fixture.create(target))).await {
        made.unwrap();
    }
    assert_eq!(fixture.plans().await, [4, 8, 8]);
    // Who leaves makes room for who comes.
    fixture.destroy(&targets[0]).await.unwrap();
    fixture.create(&target("next")).await.unwrap();
    assert_eq!(fixture.plans().await.iter().sum::<usize>(), 20);
    assert_eq!(fixture.plans().await.len(), 3);
    fixture.destroy(&target("next")).await.unwrap();
    for gone in join_all(targets.iter().map(|target| fixture.destroy(target))).await {
        gone.unwrap();
    }
    assert_eq!(fixture.left().await, [""; 0]);
}

#[tokio::test]
async fn when_all_plans_are_full_there_is_no_room_and_nothing_is_made() {
    let fixture = Fixture::with(idle(), |config| (config.plans.sites_max, config.plans.plans_max) = (2, 1)).await;
    for name in ["a", "b"] {
        fixture.create(&target(name)).await.unwrap();
    }
    let error = fixture.create(&target("c")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::CapacityExhausted);
    assert_eq!((fixture.sites().await.len(), fixture.plans().await), (2, vec![2]));
    fixture.destroy(&target("a")).await.unwrap();
    fixture.create(&target("c")).await.unwrap();
    assert_eq!(fixture.plans().await, [2]);
}

#[tokio::test]
async fn as_many_plans_as_are_wanted_are_kept_and_upkeep_tells_and_does_the_rest() {
    let fixture = Fixture::with(idle(), |config| (config.plans.sites_max, config.plans.plans_min) = (2, 1)).await;
    assert_eq!(fixture.backend.maintain(&cx(), true).await.unwrap().len(), 1, "one is missing");
    assert_eq!(fixture.plans().await, [0; 0], "it was only planned");
    fixture.backend.maintain(&cx(), false).await.unwrap();
    assert_eq!(fixture.plans().await, [0]);
    for name in ["a", "b", "c", "d"] {
        fixture.create(&target(name)).await.unwrap();
    }
    assert_eq!(fixture.plans().await, [2, 2]);
    fixture.destroy(&target("a")).await.unwrap();
    fixture.destroy(&target("c")).await.unwrap();
    let told = fixture.backend.maintain(&cx(), true).await.unwrap();
    assert!(told.len() == 1 && told[0].contains("2 sites in 2 plans would have room in 1"), "{told:?}");
    fixture.destroy(&target("b")).await.unwrap();
    // Also by a process that has made and listed none of them.
    let mut config = crate::stand::config(&fixture.stand);
    (config.plans.sites_max, config.plans.plans_min) = (2, 1);
    let other = crate::stand::backend(&fixture.stand, config);
    other.destroy(&cx(), &target("d"), DataDisposition::Delete).await.unwrap();
    assert_eq!(fixture.plans().await, [0], "one is kept");
}

#[tokio::test]
async fn two_processes_that_write_to_one_plan_refuse_each_other_and_come_through() {
    let fixture = Fixture::start(Options { work: Duration::from_millis(60), ..idle() }).await;
    fixture.create(&target("first")).await.unwrap();
    let (other, refused) = (fixture.another(), AtomicUsize::new(0));
    let through = |n: usize| {
        let (fixture, other, refused) = (&fixture, &other, &refused);
        async move {
            let (target, backend) =
                (target(&format!("i{n}")), if n.is_multiple_of(2) { &fixture.backend } else { other });
            for _ in 0..200 {
                match backend.create(&cx(), &target).await {
                    Ok(_) => return,
                    Err(error) => {
                        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
                        refused.fetch_add(1, Ordering::Relaxed);
                        tokio::time::sleep(Duration::from_millis(50 + 7 * n as u64)).await;
                    }
                }
            }
            panic!("{} does not come through", target.id);
        }
    };
    join_all((0..7).map(through)).await;
    assert!(refused.load(Ordering::Relaxed) > 0, "they were never in each other's way");
    assert_eq!((fixture.sites().await.len(), fixture.plans().await), (8, vec![8]));
}
