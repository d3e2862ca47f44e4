//! A cluster that does not answer at all.

use std::time::Duration;

use futures::StreamExt;
use provisioner_core::{
    Chain, Effect, ErrorKind, Provisioner,
    types::{DataDisposition, DataId, DataSource, Incarnation, InstanceId, Observed, Phase},
};

use crate::fixture::{Fixture, cx, cx_after_a_call, target};

#[tokio::test]
async fn a_cluster_that_is_down_at_first_is_unavailable_and_then_works() {
    let mut fixture = Fixture::new().await;
    fixture.server.stop().await;
    let cx = || cx().with_timeout(Duration::from_secs(1));
    let error = fixture.backend.create(&cx(), &target(1)).await.unwrap_err();
    assert_eq!((error.kind(), error.effect()), (ErrorKind::Unavailable, Effect::None), "{}", Chain(&error));
    let error = fixture.backend.identity(&cx()).await.unwrap_err();
    assert_eq!((error.kind(), error.effect()), (ErrorKind::Unavailable, Effect::None));
    fixture.server.start_again().await;
    fixture.backend.create(&crate::fixture::cx(), &target(1)).await.unwrap();
    fixture.until(&target(1), Phase::Running).await;
    assert_eq!(fixture.backend.identity(&cx()).await.unwrap(), "kubernetes uid-1");
}

#[tokio::test]
async fn a_cluster_that_is_started_again_is_unavailable_meanwhile_and_nothing_is_absent() {
    let (mut fixture, target) = Fixture::with_instance().await;
    fixture.server.stop().await;
    // All watches have met a closed door.
    tokio::time::sleep(Duration::from_millis(1200)).await;
    let error = fixture.backend.observe(&cx(), &target).await.unwrap_err();
    assert_eq!((error.kind(), error.effect()), (ErrorKind::Unavailable, Effect::None));
    let listed: Vec<_> = fixture.backend.list(&cx()).collect().await;
    assert!(matches!(&listed[..], [Err(error)] if error.kind() == ErrorKind::Unavailable), "{listed:?}");
    let error = fixture.backend.scale_to_zero(&cx(), &target).await.unwrap_err();
    assert_eq!((error.kind(), error.effect()), (ErrorKind::Unavailable, Effect::None));
    let error = fixture.backend.destroy(&cx(), &target, DataDisposition::Delete).await.unwrap_err();
    assert_eq!((error.kind(), error.effect()), (ErrorKind::Unavailable, Effect::None));

    // Meanwhile somebody else puts it to sleep.
    let set = fixture.key_of("statefulsets");
    fixture.server.world(|world| {
        world.change(&set, |set| {
            set["spec"]["replicas"] = 0.into();
            set["metadata"]["annotations"]["provisioner.internal/intended"] = "zero".into();
        });
    });
    fixture.server.start_again().await;
    for _ in 0..2500 {
        match fixture.backend.observe(&cx_after_a_call(), &target).await {
            Ok(Observed::Absent) => panic!("it is there"),
            Ok(Observed::Present(present)) if present.phase == Phase::Zero => break,
            _ => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
    fixture.until(&target, Phase::Zero).await;
}

#[tokio::test]
async fn a_write_that_could_not_be_sent_did_nothing() {
    let mut fixture = Fixture::new().await;
    fixture.server.serve_once_each();
    fixture.backend.create(&cx(), &target(1)).await.unwrap();
    fixture.until(&target(1), Phase::Running).await;
    // The watches go on.
    fixture.server.close_the_door().await;
    let error = fixture.backend.scale_to_zero(&cx(), &target(1)).await.unwrap_err();
    assert_eq!((error.kind(), error.effect()), (ErrorKind::Unavailable, Effect::None), "{}", Chain(&error));
    fixture.server.start_again().await;
    fixture.backend.scale_to_zero(&cx_after_a_call(), &target(1)).await.unwrap();
    fixture.until(&target(1), Phase::Zero).await;
}

#[tokio::test]
async fn a_list_in_doubt_is_compared_with_all_pages_of_the_clusters() {
    let (mut fixture, _) = Fixture::with_instance().await;
    let mut other = target(1);
    (other.id, other.incarnation) = (InstanceId::new("other").unwrap(), Incarnation::new(1, 2));
    other.data = DataSource::Fresh(DataId::from_random(2));
    fixture.backend.create(&cx(), &other).await.unwrap();
    fixture.until(&other, Phase::Running).await;
    fixture.server.stop().await;
    tokio::time::sleep(Duration::from_millis(1200)).await;
    fixture.server.world(|world| world.page_max = Some(1));
    fixture.server.start_again().await;
    for _ in 0..2500 {
        fixture.server.seen();
        let listed: Vec<_> = fixture.backend.list(&cx()).collect().await;
        let seen = fixture.server.seen();
        let pages = seen.iter().filter(|seen| (seen.verb, &*seen.plural) == ("list", "namespaces")).count();
        if pages > 0 && listed.iter().all(Result::is_ok) {
            assert_eq!((listed.len(), pages), (2, 2));
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("it was never in doubt, or never answered in doubt");
}

#[tokio::test]
async fn after_an_outage_reads_cost_no_request_again() {
    let (mut fixture, target) = Fixture::with_instance().await;
    fixture.server.stop().await;
    tokio::time::sleep(Duration::from_millis(1200)).await;
    fixture.server.start_again().await;
    fixture.until(&target, Phase::Running).await;
    // Every watch is open again, and what happened meanwhile was told.
    tokio::time::sleep(Duration::from_secs(5)).await;
    fixture.server.seen();
    fixture.until(&target, Phase::Running).await;
    let listed: Vec<_> = fixture.backend.list(&cx()).collect().await;
    assert_eq!(listed.len(), 1);
    assert_eq!(fixture.server.seen(), []);
}
