//! What others have in the same resource group is left alone.

use futures::StreamExt;
use provisioner_core::{
    ErrorKind, Provisioner, Retry,
    types::{DataDisposition, DataSource, Generation, Incarnation, InstanceId, OwnedKind, Phase, Target},
};
use serde_json::json;
use test_azure::Method;

use crate::fixture::{Fixture, anew, changed, cx, host, idle, target};

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

/// Has somebody with all rights change something at the service.
async fn put(
    fixture: &Fixture,
    method: Method,
    provider: &str,
    resource: &str,
    version: &str,
    body: serde_json::Value,
) {
    let stand = &fixture.stand;
    let (subscription, group) = (stand.subscription(), stand.resource_group());
    let url = format!(
        "{}/subscriptions/{subscription}/resourceGroups/{group}/providers/{provider}/{resource}?api-version={version}",
        stand.endpoint()
    );
    let answer = stand.client().send(method, &url, Some(&stand.token()), Some(body.to_string())).await.unwrap();
    assert!(matches!(answer.status, 200..300), "{answer:?}");
    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
}

/// A new instance of the same tenant on its data.
fn heir(name: &str, of: &Target) -> Target {
    let data = DataSource::Existing(of.data.id().clone());
    let number = of.incarnation.nonce() + name.len() as u128 + u128::from(name.as_bytes()[0]);
    Target {
        id: InstanceId::new(name).unwrap(),
        incarnation: Incarnation::new(1, number),
        generation: Generation(1),
        data,
        ..of.clone()
    }
}

#[tokio::test]
async fn what_has_lost_its_marks_is_not_absent_and_its_data_is_given_to_nobody() {
    let fixture = Fixture::start(idle()).await;
    let first = target("a");
    fixture.create(&first).await.unwrap();
    let site = fixture.sites().await.remove(0);
    let plan = format!(
        "/subscriptions/{}/resourceGroups/{}/providers/Microsoft.Web/serverfarms/{}",
        fixture.stand.subscription(),
        fixture.stand.resource_group(),
        site.plan
    );
    let body = json!({"location": fixture.stand.region(), "tags": {}, "properties": {"serverFarmId": plan}});
    put(&fixture, Method::PUT, "Microsoft.Web", &format!("sites/{}", site.name), "2024-04-01", body).await;
    let error = fixture.backend.observe(&cx(), &first).await.unwrap_err();
    assert_eq!((error.kind(), error.retry()), (ErrorKind::Conflict, Retry::Backoff), "{error:?}");
    assert!(fixture.destroy(&first).await.is_err());
    for other in [anew(&first), heir("b", &first)] {
        let error = fixture.create(&other).await.unwrap_err();
        assert_eq!((error.kind(), error.field()), (ErrorKind::Conflict, Some("data")), "{error:?}");
    }
    assert!(fixture.backend.delete_data(&cx(), first.data.id()).await.is_err());
}

#[tokio::test]
async fn retained_data_goes_to_one_of_many_who_come_at_once() {
    let fixture = Fixture::start(idle()).await;
    let first = target("a");
    fixture.create(&first).await.unwrap();
    // It keeps the plan, which is not what they are to meet at.
    fixture.create(&target("keeper")).await.unwrap();
    fixture.backend.destroy(&cx(), &first, DataDisposition::Retain).await.unwrap();
    let other = fixture.another();
    let data = first.data.id().to_string();
    let heirs = ["b", "c", "d", "e"].map(|name| heir(name, &first));
    let calls = heirs.iter().enumerate().map(|(n, heir)| {
        let backend = if n < 2 { &fixture.backend } else { &other };
        let heir = heir.clone();
        async move { backend.create(&cx(), &heir).await }
    });
    let answers = futures::future::join_all(calls).await;
    let through = answers.iter().filter(|answer| answer.is_ok()).count();
    let sites: Vec<_> =
        fixture.sites().await.into_iter().filter(|site| site.tags["provisioner-data"] == *data).collect();
    assert!(through <= 1 && sites.len() <= 1, "{through} are through, and have {sites:?}: {answers:?}");
    // Of those who were in each other's way one comes through when they come again.
    for (n, heir) in heirs.iter().enumerate().cycle().take(4 * heirs.len()) {
        let _ = if n < 2 { &fixture.backend } else { &other }.create(&cx(), heir).await;
    }
    let sites = fixture.sites().await;
    assert_eq!(sites.iter().filter(|site| site.tags["provisioner-data"] == *data).count(), 1);
}

#[tokio::test]
async fn a_late_removal_of_the_making_before_leaves_the_data_to_the_one_after() {
    let fixture = Fixture::start(idle()).await;
    let first = target("a");
    fixture.create(&first).await.unwrap();
    fixture.backend.destroy(&cx(), &first, DataDisposition::Retain).await.unwrap();
    let second = anew(&first);
    let (made, gone) =
        futures::future::join(fixture.create(&second), fixture.backend.destroy(&cx(), &first, DataDisposition::Retain))
            .await;
    gone.unwrap();
    if made.is_err() {
        fixture.create(&second).await.unwrap();
    }
    let third = changed(&second, |_| {});
    fixture.create(&third).await.unwrap();
    fixture.destroy(&third).await.unwrap();
    assert_eq!(fixture.left().await, [""; 0]);
}

#[tokio::test]
async fn a_host_name_that_another_site_has_is_named_and_one_that_is_let_go_can_be_had() {
    let fixture = Fixture::start(idle()).await;
    let with = |target: &Target, names: &[&str]| {
        let wanted = changed(target, |spec| spec.host_names = names.iter().map(|name| host(name)).collect());
        Target { data: target.data.clone(), ..wanted }
    };
    let first = with(&target("a"), &["www.example.com"]);
    fixture.create(&first).await.unwrap();
    let second = with(&target("b"), &["www.example.com"]);
    let error = fixture.create(&second).await.unwrap_err();
    assert_eq!((error.kind(), error.field()), (ErrorKind::Conflict, Some("host_names")), "{error:?}");
    // The other one may be about to let it go.
    assert_eq!(error.retry(), Retry::Backoff);
    // The number of its names stays, and still it is not done before the other one is bound.
    let renamed = with(&first, &["other.example.com"]);
    fixture.stand.once(
        "WebApps_DeleteHostNameBinding",
        test_azure::Once::BeforeSend { status: 500, code: "X".into(), message: "x".into(), capitalised: false },
    );
    assert!(fixture.create(&renamed).await.is_err());
    fixture.create(&renamed).await.unwrap();
    let hosts = |name: &str| fixture_hosts(&fixture, name.to_owned());
    assert_eq!(hosts("a").await, ["other.example.com"]);
    fixture.create(&second).await.unwrap();
    assert_eq!(hosts("b").await, ["www.example.com"]);
}

async fn fixture_hosts(fixture: &Fixture, instance: String) -> Vec<String> {
    let sites = fixture.sites().await;
    let site = sites.into_iter().find(|site| site.tags["provisioner-instance"] == instance).unwrap();
    site.hosts
}

#[tokio::test]
async fn plans_of_another_kind_get_no_more_sites_and_stay_what_they_are() {
    let fixture = Fixture::start(idle()).await;
    fixture.create(&target("a")).await.unwrap();
    let mut config = crate::stand::config(&fixture.stand);
    config.plans.sku = "P0v3".to_owned();
    let other = crate::stand::backend(&fixture.stand, config);
    other.create(&cx(), &target("b")).await.unwrap();
    assert_eq!(fixture.plans().await, [1, 1]);
    let mut left = fixture.left().await;
    left.retain(|line| line.starts_with("plan"));
    assert!(left.iter().any(|line| line.contains("B1")) && left.iter().any(|line| line.contains("P0v3")), "{left:?}");
    // Its last site takes the old one along.
    other.destroy(&cx(), &target("a"), DataDisposition::Delete).await.unwrap();
    assert_eq!(fixture.plans().await, [1]);
}

#[tokio::test]
async fn an_empty_plan_of_another_kind_is_not_kept_for_sites_to_come() {
    let fixture = Fixture::with(idle(), |config| config.plans.plans_min = 1).await;
    fixture.backend.maintain(&cx(), false).await.unwrap();
    let mut config = crate::stand::config(&fixture.stand);
    (config.plans.sku, config.plans.plans_min) = ("P0v3".to_owned(), 1);
    let other = crate::stand::backend(&fixture.stand, config);
    other.maintain(&cx(), false).await.unwrap();
    let mut left = fixture.left().await;
    left.retain(|line| line.starts_with("plan"));
    assert!(left.len() == 1 && left[0].contains("P0v3"), "{left:?}");
}

#[tokio::test]
async fn cells_in_several_regions_of_a_group_leave_each_other_alone() {
    let one_plan = |config: &mut backend_appservice::AppServiceConfig| config.plans.plans_max = 1;
    let fixture = Fixture::with(idle(), one_plan).await;
    let mut config = crate::stand::config(&fixture.stand);
    one_plan(&mut config);
    (config.region, config.plans.plans_min) = ("northeurope".to_owned(), 1);
    let north = crate::stand::backend(&fixture.stand, config);
    north.maintain(&cx(), false).await.unwrap();
    fixture.create(&target("a")).await.unwrap();
    north.create(&cx(), &target("b")).await.unwrap();
    assert_eq!(fixture.plans().await, [1, 1]);
    for (backend, own) in [(&fixture.backend, "a"), (&north, "b")] {
        let listed: Vec<_> = backend.list(&cx()).collect().await;
        let sites = listed.into_iter().map(|it| it.unwrap()).filter(|it| it.kind == OwnedKind::Instance);
        assert_eq!(sites.map(|it| it.id.to_string()).collect::<Vec<_>>(), [own]);
    }
    north.destroy(&cx(), &target("b"), DataDisposition::Delete).await.unwrap();
    // Theirs is kept for sites to come, whatever is empty here.
    fixture.backend.maintain(&cx(), false).await.unwrap();
    assert_eq!(fixture.plans().await, [0, 1]);
    fixture.destroy(&target("a")).await.unwrap();
    assert_eq!(fixture.plans().await, [0]);
}

#[tokio::test]
async fn a_removal_that_was_cut_before_its_site_was_gone_is_taken_back_by_a_create() {
    let fixture = Fixture::start(idle()).await;
    let first = target("a");
    fixture.create(&first).await.unwrap();
    let refused =
        test_azure::Once::BeforeSend { status: 500, code: "X".into(), message: "x".into(), capitalised: false };
    fixture.stand.once("WebApps_Delete", refused);
    assert!(fixture.destroy(&first).await.is_err(), "its share is noted as ending by now");
    let data = DataSource::Existing(first.data.id().clone());
    let again = Target { data, ..first.clone() };
    fixture.create(&again).await.unwrap();
    assert_eq!(fixture.left().await.iter().filter(|line| line.starts_with("share")).count(), 1);
    fixture.destroy(&again).await.unwrap();
    assert_eq!(fixture.left().await, [""; 0]);
}

#[tokio::test]
async fn data_of_a_removal_that_was_cut_is_retained_by_one_that_retains_it() {
    let fixture = Fixture::start(idle()).await;
    let first = target("a");
    fixture.create(&first).await.unwrap();
    let refused =
        test_azure::Once::BeforeSend { status: 500, code: "X".into(), message: "x".into(), capitalised: false };
    fixture.stand.once("WebApps_Delete", refused);
    assert!(fixture.destroy(&first).await.is_err(), "its share is noted as ending by now");
    fixture.backend.destroy(&cx(), &first, DataDisposition::Retain).await.unwrap();
    let listed: Vec<_> = fixture.backend.list(&cx()).collect().await;
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[0].as_ref().unwrap().kind, provisioner_core::types::OwnedKind::Data);
    fixture.backend.delete_data(&cx(), first.data.id()).await.unwrap();
    assert_eq!(fixture.left().await, [""; 0]);
}

#[tokio::test]
async fn an_account_that_is_not_there_is_no_absence_of_a_share() {
    let fixture = Fixture::with(idle(), |config| config.storage_account = "elsewhere".to_owned()).await;
    assert!(fixture.backend.identity(&cx()).await.is_err());
    let error = fixture.backend.observe(&cx(), &target("a")).await.unwrap_err();
    assert_ne!(error.kind(), ErrorKind::Conflict, "{error:?}");
}

#[tokio::test]
async fn an_absence_is_believed_when_it_lasts() {
    let fixture = Fixture::start(idle()).await;
    let first = target("a");
    let seen = fixture.backend.observe(&cx(), &first).await.unwrap();
    assert_eq!((seen.phase(), seen == provisioner_core::types::Observed::Absent), (None, false), "{seen:?}");
    fixture.until(&first, None).await;
    fixture.create(&first).await.unwrap();
    let gone = test_azure::Once::BeforeSend {
        status: 404,
        code: "ResourceNotFound".into(),
        message: "not here".into(),
        capitalised: false,
    };
    fixture.stand.once("WebApps_Get", gone);
    let seen = fixture.backend.observe(&cx(), &first).await.unwrap();
    assert_ne!(seen, provisioner_core::types::Observed::Absent, "one answer that lags");
    let seen = fixture.backend.observe(&cx(), &first).await.unwrap();
    assert_eq!(seen.phase(), Some(Phase::Provisioning));
}
