//! What others have in the same resource group is left alone.

use futures::StreamExt;
use provisioner_core::Provisioner;

use crate::fixture::{Fixture, cx, idle, target};

#[tokio::test]
async fn a_strangers_plan_is_neither_used_nor_removed() {
    let fixture = Fixture::start(idle()).await;
    fixture.stand.add_stranger_plan("plan-of-a-stranger");
    fixture.create(&target("a")).await.unwrap();
    assert_eq!(fixture.plans().await, [0, 1]);
    fixture.destroy(&target("a")).await.unwrap();
    assert!(fixture.backend.maintain(&cx(), false).await.unwrap().is_empty());
    assert_eq!(fixture.plans().await, [0], "the stranger's");
}

#[tokio::test]
async fn a_plan_of_ours_with_a_strangers_site_stays() {
    let fixture = Fixture::start(idle()).await;
    fixture.create(&target("a")).await.unwrap();
    let plan = fixture.sites().await[0].plan.clone();
    fixture.stand.add_stranger_site(&plan, "a-strangers-site");
    fixture.destroy(&target("a")).await.unwrap();
    assert_eq!(fixture.plans().await, [1], "it has a site, whosever that is");
    let listed: Vec<_> = fixture.backend.list(&cx()).collect().await;
    assert!(listed.is_empty(), "{listed:?}");
}
