//! What reads show: late, whole, and in pages.

use std::{collections::BTreeSet, time::Duration};

use serde_json::{Value, json};
use test_azure::{Method, Options, Style};

use crate::caller::{Caller, plan, until, without_boots};

#[tokio::test(flavor = "multi_thread")]
async fn reads_lag_behind_writes() {
    let lag = Duration::from_secs(2);
    let caller = Caller::start(Options { lag, style: Style::Immediate, ..without_boots() }).await;
    let path = "Microsoft.Web/sites/one";
    caller.ask("PUT", "Microsoft.Web/serverfarms/p", plan()).await;
    let body = caller.site_body("p", json!({}));
    assert_eq!(caller.ask("PUT", path, body).await.status, 200);
    assert_eq!(caller.get(path).await.status, 404);
    assert_eq!(caller.get("Microsoft.Web/sites").await.body["value"], json!([]));
    assert_eq!(caller.seen("one").await.state, "Running");
    until("the site is shown", async || caller.get(path).await.status == 200).await;
    assert_eq!(caller.ask("POST", "Microsoft.Web/sites/one/stop", Value::Null).await.status, 200);
    assert_eq!(caller.get(path).await.body["properties"]["state"], "Running");
    until("it is shown as stopped", async || caller.get(path).await.body["properties"]["state"] == "Stopped").await;
    assert_eq!(caller.ask("DELETE", path, Value::Null).await.status, 200);
    assert_eq!(caller.get("Microsoft.Web/sites").await.body["value"].as_array().unwrap().len(), 1);
    until("it is no longer shown", async || caller.get(path).await.status == 404).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_that_is_there_can_be_read() {
    let caller = Caller::start(without_boots()).await;
    caller.plan("p").await;
    let config = json!({ "azureStorageAccounts": { "d": {
        "type": "AzureFiles", "accountName": caller.azure.storage_account(), "shareName": "data",
        "accessKey": caller.azure.storage_key(), "mountPath": "/data",
    } } });
    caller.site("one", "p", config).await;
    caller.azure.add_cluster("k", String::new());
    let certificate = json!({ "location": "westeurope", "properties": { "pfxBlob": "YQ==", "serverFarmId": "p" } });
    assert_eq!(caller.ask("PUT", "Microsoft.Web/certificates/c", certificate).await.status, 200);
    let host = caller.seen("one").await.address.to_string();
    let instances = caller.get("Microsoft.Web/sites/one/instances").await.body;
    let instance = instances["value"][0]["name"].as_str().unwrap().to_owned();
    let account = format!("Microsoft.Storage/storageAccounts/{}", caller.azure.storage_account());
    for path in [
        "Microsoft.Web/serverfarms",
        "Microsoft.Web/sites",
        "Microsoft.Web/certificates",
        "Microsoft.Web/certificates/c",
        "Microsoft.ContainerService/managedClusters",
        "Microsoft.ContainerService/managedClusters/k",
        &format!("Microsoft.Web/sites/one/instances/{instance}"),
        &format!("Microsoft.Web/sites/one/hostNameBindings/{host}"),
        &account,
        &format!("{account}/fileServices/default/shares"),
    ] {
        let answer = caller.get(path).await;
        assert!(answer.status == 200 && answer.body.is_object(), "{path}: {answer:?}");
    }
    // Those of the subscription are the same, and it is there itself.
    for path in ["Microsoft.Web/serverfarms", "Microsoft.Web/sites", "Microsoft.ContainerService/managedClusters"] {
        let url = caller.url(path).replace("/resourceGroups/test-group", "");
        let answer = caller.try_ask(Method::GET, &url, &Value::Null).await.unwrap();
        assert_eq!(answer.body["value"], caller.get(path).await.body["value"], "{path}");
    }
    for path in ["", "/resourceGroups/Test-Group"] {
        let (endpoint, subscription) = (caller.azure.endpoint(), caller.azure.subscription());
        let url = format!("{endpoint}/subscriptions/{subscription}{path}?api-version=2021-04-01");
        assert_eq!(caller.try_ask(Method::GET, &url, &Value::Null).await.unwrap().status, 200, "{path}");
    }
    // Keys are for those alone who ask for them.
    let mounts = "Microsoft.Web/sites/one/config/azurestorageaccounts";
    let listed = caller.ask("POST", &format!("{mounts}/list"), Value::Null).await.body;
    assert_eq!(listed["properties"]["d"]["accessKey"], caller.azure.storage_key());
    assert_eq!(listed["properties"]["d"]["state"], "InvalidShare");
    let mut written = listed["properties"].clone();
    // It is only read.
    written["d"].as_object_mut().unwrap().remove("state");
    let written = caller.ask("PUT", mounts, json!({ "properties": written })).await;
    assert!(written.status == 200 && written.body["properties"]["d"]["accessKey"].is_null(), "{written:?}");
    let keys = caller.ask("POST", &format!("{account}/listKeys"), Value::Null).await.body;
    assert_eq!(keys["keys"][0]["value"], caller.azure.storage_key());

    // A patch changes properties, and nothing else.
    let patch = json!({ "properties": { "perSiteScaling": true }, "tags": {}, "sku": { "name": "B2" } });
    let plan = caller.done("PATCH", "Microsoft.Web/serverfarms/p", patch).await;
    assert_eq!(plan.body["status"], "Succeeded");
    let plan = caller.get("Microsoft.Web/serverfarms/p").await.body;
    assert_eq!(plan["properties"]["perSiteScaling"], true);
    assert_eq!((&plan["sku"]["name"], &plan["tags"]["owner"]), (&json!("B1"), &json!("test")));
    assert_eq!(caller.ask("POST", "Microsoft.Web/serverfarms/p/restartSites", Value::Null).await.status, 204);
    assert_eq!(caller.ask("POST", "Microsoft.Web/sites/one/restart", Value::Null).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_show_everything_once_and_clusters_are_led_to() {
    let caller = Caller::start(Options { page: 3, style: Style::Immediate, ..without_boots() }).await;
    caller.plan("p").await;
    for at in 0..7 {
        caller.site(&format!("site-{at}"), "p", json!({})).await;
    }
    let mut url = Some(caller.url("Microsoft.Web/sites"));
    let mut pages = Vec::new();
    while let Some(next) = url {
        let page = caller.try_ask(Method::GET, &next, &Value::Null).await.unwrap().body;
        pages.push(page["value"].as_array().unwrap().iter().map(|site| site["name"].to_string()).collect::<Vec<_>>());
        url = page["nextLink"].as_str().map(str::to_owned);
    }
    assert_eq!(pages.iter().map(Vec::len).collect::<Vec<_>>(), [3, 3, 1]);
    let names: BTreeSet<_> = pages.concat().into_iter().collect();
    assert_eq!(names.len(), 7);
    caller.azure.add_cluster("k", "config".to_owned());
    let path = "Microsoft.ContainerService/managedClusters/k/listClusterUserCredential";
    let answer = caller.ask("POST", path, Value::Null).await;
    assert_eq!(answer.body["kubeconfigs"][0]["value"], "Y29uZmln");
}
