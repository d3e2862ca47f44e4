//! Sites through their lives, however the service tells of its work, with the data that they keep.

use std::time::Duration;

use serde_json::{Value, json};
use test_azure::{Options, Style};

use crate::caller::{Caller, TAG, plan, until};

async fn life(style: Style, mute_sites: bool) {
    // Long enough to see that a site is not there before its write is done.
    let work = Duration::from_secs(1);
    let caller = Caller::start(Options { style, mute_sites, work, ..Options::default() }).await;
    let made = caller.ask("PUT", "Microsoft.Web/serverfarms/p", plan()).await;
    assert_eq!(made.header("retry-after"), None);
    let header = (made.header("azure-asyncoperation").is_some(), made.header("location").is_some());
    let expected = match style {
        Style::AsyncOperation => (202, (true, false)),
        Style::Location => (202, (false, true)),
        Style::Immediate | Style::ProvisioningState => (200, (false, false)),
    };
    assert_eq!((made.status, header), expected);
    let in_progress = made.body["properties"]["provisioningState"] == "InProgress";
    assert_eq!(in_progress, style == Style::ProvisioningState);
    caller.settled("Microsoft.Web/serverfarms/p", made).await;
    let share = caller.ask("PUT", &caller.share_path("data"), json!({ "properties": { "shareQuota": 1 } })).await;
    assert_eq!(share.status, 201);

    let body = caller.site_body("p", caller.product("data"));
    let made = caller.ask("PUT", "Microsoft.Web/sites/one", body).await;
    let at_once = matches!(style, Style::Immediate | Style::ProvisioningState) && !mute_sites;
    assert_eq!(made.status, if at_once { 200 } else { 202 });
    if !at_once {
        assert_eq!(caller.get("Microsoft.Web/sites/one").await.status, 404);
    }
    caller.settled("Microsoft.Web/sites/one", made).await;
    let site = caller.get("Microsoft.Web/sites/one").await.body;
    assert_eq!(site["properties"]["state"], "Running");
    assert_eq!(site["properties"]["defaultHostName"], caller.seen("one").await.address.to_string());
    caller.until_status("one", 200).await;
    caller.write_page("one").await;
    let environment = caller.azure.environment("one").unwrap();
    assert_eq!((&*environment["TENANT"], &*environment["ADDRESS"]), ("a tenant", "127.0.0.1"));
    assert_eq!(environment["DATA_PATH"], caller.azure.share_folder("data").join("notebook").to_string_lossy());
    assert!(environment["PORT"] != "8080" && environment["WEBSITES_PORT"] == "8080");
    assert!(!environment.contains_key("HOME"));

    // A tag restarts nothing; a setting does.
    let port_of = |environment: std::collections::BTreeMap<String, String>| environment.get("GREETING").cloned();
    let body = json!({ "location": "westeurope", "tags": { "owner": "test", "more": "1" }, "properties": {} });
    caller.done("PUT", "Microsoft.Web/sites/one", body).await;
    until("the tag is there", async || caller.seen("one").await.tags.len() == 2).await;
    assert_eq!(caller.visit("one", "/healthz").await.unwrap().0, 200);
    caller.azure.set_setting_behind("one", "GREETING", "hello").unwrap();
    until("the setting is there", async || {
        caller.azure.environment("one").is_ok_and(|it| port_of(it).as_deref() == Some("hello"))
    })
    .await;
    caller.until_status("one", 200).await;
    caller.azure.kill_product("one").unwrap();
    until("the end is told", async || caller.azure.console("one").contains("the product has ended: signal: 9")).await;
    caller.until_status("one", 200).await;

    assert_eq!(caller.ask("POST", "Microsoft.Web/sites/one/stop", Value::Null).await.status, 200);
    let (status, text) = caller.visit("one", "/healthz").await.unwrap();
    assert!(status == 403 && text.contains("stopped"), "{status} {text}");
    assert_eq!(caller.seen("one").await.state, "Stopped");
    assert_eq!(caller.ask("POST", "Microsoft.Web/sites/one/start", Value::Null).await.status, 200);
    caller.until_status("one", 200).await;
    assert!(caller.visit("one", "/api/pages").await.unwrap().1.contains("kept"));
    let address = caller.seen("one").await.address;
    let pages = "Microsoft.Web/sites/one?deleteEmptyServerFarm=false";
    assert_eq!(caller.ask("DELETE", pages, Value::Null).await.status, 200);
    assert!(std::net::TcpStream::connect(address).is_err());
    assert_eq!(caller.ask("DELETE", pages, Value::Null).await.status, 204);
    assert_eq!(caller.azure.left(TAG).await, ["plan p (1 B1)"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_site_lives_where_writes_are_done_at_once() {
    life(Style::Immediate, false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_site_lives_where_operations_tell() {
    life(Style::AsyncOperation, false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_site_lives_where_locations_tell() {
    life(Style::Location, false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_site_lives_where_resources_tell() {
    life(Style::ProvisioningState, false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_site_lives_where_nothing_tells() {
    life(Style::ProvisioningState, true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn shares_keep_data_and_a_site_without_one_does_not_start() {
    let caller = Caller::start(Options { style: Style::Immediate, ..Options::default() }).await;
    caller.plan("p").await;
    let share = caller.share_path("data");
    let metadata = json!({ "properties": { "shareQuota": 3, "metadata": { "my_owner": "test" } } });
    assert_eq!(caller.ask("PUT", &share, metadata.clone()).await.status, 201);
    assert_eq!(caller.ask("PUT", &share, metadata).await.status, 200);
    caller.site("one", "p", caller.product("data")).await;
    caller.until_status("one", 200).await;
    caller.write_page("one").await;
    assert_eq!(
        caller.ask("DELETE", "Microsoft.Web/sites/one?deleteEmptyServerFarm=false", Value::Null).await.status,
        200
    );
    caller.site("two", "p", caller.product("data")).await;
    caller.until_status("two", 200).await;
    assert!(caller.visit("two", "/api/pages").await.unwrap().1.contains("kept"));
    assert_eq!(caller.azure.left(("my-owner", "test")).await, ["share data (3 GiB)"]);
    let listed = caller.get(&caller.share_path("")).await.body["value"][0]["properties"].clone();
    assert_eq!((&listed["shareQuota"], &listed["metadata"]), (&json!(3), &Value::Null));
    assert_eq!(
        caller.ask("PATCH", &share, json!({ "properties": { "shareQuota": 4 } })).await.body["properties"]["shareQuota"],
        4
    );

    let mut wrong = caller.product("data");
    wrong["azureStorageAccounts"]["data"]["accessKey"] = "wrong".into();
    caller.site("three", "p", wrong).await;
    let mounts =
        caller.get("Microsoft.Web/sites/three/config/web").await.body["properties"]["azureStorageAccounts"].clone();
    assert_eq!((&mounts["data"]["state"], &mounts["data"]["accessKey"]), (&json!("InvalidCredentials"), &Value::Null));
    let mut missing = caller.product("data");
    missing["linuxFxVersion"] = "DOCKER|registry.test/missing:1".into();
    caller.site("four", "p", missing).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    for site in ["three", "four"] {
        assert_eq!(caller.visit(site, "/").await.unwrap().0, 503, "{}", caller.azure.console(site));
    }
    assert_eq!(caller.ask("DELETE", &share, Value::Null).await.status, 200);
    assert_eq!(caller.ask("DELETE", &share, Value::Null).await.status, 204);
    assert!(!caller.azure.share_folder("data").exists());
    assert_eq!(caller.ask("PUT", &caller.share_path("No"), json!({})).await.code(), "InvalidResourceName");

    // Nothing outlives the last handle.
    let address = caller.seen("two").await.address;
    assert!(std::net::TcpStream::connect(address).is_ok());
    drop(caller);
    until("its door is closed", async || std::net::TcpStream::connect(address).is_err()).await;
}
