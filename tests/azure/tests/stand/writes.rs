//! What a write does to what is there, and what is refused.

use std::time::Duration;

use serde_json::{Value, json};
use test_azure::{Method, Options};

use crate::caller::{Caller, TAG, WEB, plan, without_boots};

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_takes_one_write_at_a_time() {
    // What is refused arrives while the first write is under way, also on a busy machine.
    let caller = Caller::start(Options { work: Duration::from_secs(2), ..without_boots() }).await;
    caller.plan("p").await;
    let body = caller.site_body("p", json!({}));
    let first = caller.ask("PUT", "Microsoft.Web/sites/one", body.clone()).await;
    let refused = caller.ask("PUT", "Microsoft.Web/sites/two", body.clone()).await;
    assert_eq!((refused.status, refused.code(), refused.header("retry-after")), (429, "429", Some("1")));
    let refused = caller.ask("PUT", "Microsoft.Web/sites/two", body.clone()).await;
    let extended = &refused.body["Details"][2]["ErrorEntity"]["ExtendedCode"];
    assert_eq!((refused.status, refused.code(), extended), (409, "Conflict", &json!("59205")));
    caller.settled("", first).await;
    assert_eq!(caller.ask("PUT", "Microsoft.Web/sites/two", body).await.status, 202);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_takes_only_so_many_sites() {
    let caller = Caller::start(Options { sites_max: 2, plans_max: 2, ..without_boots() }).await;
    caller.plan("p").await;
    let body = caller.site_body("p", json!({}));
    caller.site("one", "p", json!({})).await;
    caller.site("two", "p", json!({})).await;
    assert_eq!(caller.ask("PUT", "Microsoft.Web/sites/three", body.clone()).await.status, 409);
    // Those that are there already are none too many.
    caller.site("two", "p", json!({})).await;
    assert_eq!(caller.azure.plans().await[0].2, 2);
    let sites = caller.get("Microsoft.Web/serverfarms/p/sites").await.body;
    assert_eq!(sites["value"].as_array().unwrap().len(), 2);
    assert_eq!(caller.get("Microsoft.Web/serverfarms/p").await.body["properties"]["numberOfSites"], 2);

    caller.plan("q").await;
    let refused = caller.ask("PUT", "Microsoft.Web/serverfarms/r", plan()).await;
    assert_eq!(refused.status, 403);
    caller.site("two", "q", json!({})).await;
    assert_eq!(caller.seen("two").await.plan, "q");
    let scaled = json!({ "location": "westeurope", "sku": { "name": "B1", "capacity": 4 } });
    assert_eq!(caller.ask("PUT", "Microsoft.Web/serverfarms/q", scaled).await.status, 400);

    let refused = caller.ask("DELETE", "Microsoft.Web/serverfarms/q", Value::Null).await;
    assert_eq!((refused.status, &refused.body["Details"][2]["ErrorEntity"]["ExtendedCode"]), (409, &json!("11003")));
    // A plan goes with its last site, unless that is not wanted.
    assert_eq!(caller.ask("DELETE", "Microsoft.Web/sites/two", Value::Null).await.status, 200);
    assert_eq!(caller.get("Microsoft.Web/serverfarms/q").await.status, 404);
    caller.azure.lock("one", true);
    assert_eq!(caller.ask("DELETE", "Microsoft.Web/sites/one", Value::Null).await.code(), "ScopeLocked");
    caller.azure.lock("one", false);
    let certificate = json!({ "location": "westeurope", "properties": { "pfxBlob": "YQ==", "serverFarmId": "p" } });
    assert_eq!(caller.ask("PUT", "Microsoft.Web/certificates/c", certificate).await.status, 200);
    assert_eq!(caller.ask("DELETE", "Microsoft.Web/sites/one", Value::Null).await.status, 200);
    assert_eq!(caller.ask("DELETE", "Microsoft.Web/serverfarms/p", Value::Null).await.status, 409);
    assert_eq!(caller.ask("DELETE", "Microsoft.Web/certificates/c", Value::Null).await.status, 200);
    assert_eq!(caller.ask("DELETE", "Microsoft.Web/serverfarms/p", Value::Null).await.status, 200);
    assert_eq!(caller.ask("DELETE", "Microsoft.Web/serverfarms/p", Value::Null).await.status, 204);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_write_does_not_name_stays_as_it_is() {
    let caller = Caller::start(without_boots()).await;
    caller.plan("p").await;
    let config = json!({
        "linuxFxVersion": "DOCKER|a", "appCommandLine": "run", "healthCheckPath": "/healthz",
        "appSettings": [{ "name": "SECRET", "value": "hush" }],
        "azureStorageAccounts": { "d": {
            "type": "AzureFiles", "accountName": caller.azure.storage_account(), "shareName": "data",
            "accessKey": caller.azure.storage_key(), "mountPath": "/data",
        } },
    });
    caller.site("one", "p", config).await;
    let before = caller.seen("one").await;
    assert_eq!(before.mounts["data"], "/data");
    caller.done("PUT", "Microsoft.Web/sites/one", json!({ "location": "westeurope", "properties": {} })).await;
    assert_eq!(caller.seen("one").await, before);
    let shown = caller.get("Microsoft.Web/sites/one").await.body;
    assert_eq!(shown["properties"]["httpsOnly"], true);
    assert_eq!(shown["properties"]["siteConfig"]["linuxFxVersion"], "DOCKER|a");
    let config = caller.get("Microsoft.Web/sites/one/config/web").await.body;
    assert_eq!(config["properties"]["healthCheckPath"], "/healthz");
    for shown in [&shown, &config] {
        let text = shown.to_string();
        assert!(!text.contains("hush") && !text.contains("appSettings") && !text.contains("accessKey"), "{text}");
    }
    assert_eq!(caller.azure.search("hush").await, [""; 0]);
    assert_eq!(caller.azure.search("SECRET").await, ["the names of the settings of site one"]);
    assert_eq!(caller.azure.search("DOCKER|a").await, ["site one", "the configuration of site one"]);

    let config = json!({ "appSettings": [{ "name": "B", "value": "2" }], "azureStorageAccounts": {} });
    let body = json!({ "location": "westeurope", "tags": { "owner": "test" }, "properties": { "siteConfig": config } });
    caller.done("PUT", "Microsoft.Web/sites/one", body).await;
    let now = caller.seen("one").await;
    assert_eq!((now.settings, now.mounts.len(), &*now.command), (vec!["B".to_owned()], 0, "run"));
    let settings = json!({ "properties": { "C": "3" } });
    assert_eq!(caller.ask("PUT", "Microsoft.Web/sites/one/config/appsettings", settings).await.status, 200);
    let listed = caller.ask("POST", "Microsoft.Web/sites/one/config/appsettings/list", Value::Null).await;
    assert_eq!(listed.body["properties"], json!({ "C": "3" }));
    let patch = json!({ "properties": { "alwaysOn": true } });
    assert_eq!(caller.ask("PATCH", "Microsoft.Web/sites/one/config/web", patch).await.status, 200);
    assert_eq!(caller.get("Microsoft.Web/sites/one").await.body["properties"]["siteConfig"]["alwaysOn"], true);
    let wrong = json!({ "properties": { "alwaysOn": "yes" } });
    assert_eq!(caller.ask("PATCH", "Microsoft.Web/sites/one/config/web", wrong).await.code(), "InvalidRequestContent");

    // Names in ids have no case, and lists have pages.
    assert_eq!(caller.get("microsoft.web/SITES/ONE").await.body["name"], "one");
    let wrong = json!({ "location": "eastus", "properties": {} });
    let refused = caller.ask("PUT", "Microsoft.Web/sites/one", wrong).await;
    assert_eq!(refused.code(), "LocationNotAvailableForResourceType");
    let mut elsewhere = caller.site_body("gone", json!({}));
    let refused = caller.ask("PUT", "Microsoft.Web/sites/one", elsewhere.clone()).await;
    assert_eq!((refused.status, refused.code()), (404, "NotFound"));
    elsewhere["tags"] = json!({ "a/b": "" });
    elsewhere["properties"]["serverFarmId"] = Value::Null;
    assert_eq!(caller.ask("PUT", "Microsoft.Web/sites/one", elsewhere).await.code(), "InvalidTagNameCharacters");
}

#[tokio::test(flavor = "multi_thread")]
async fn names_are_of_the_whole_world_and_hosts_need_certificates() {
    let caller = Caller::start(without_boots()).await;
    caller.plan("p").await;
    caller.azure.take_name("Taken");
    let body = caller.site_body("p", json!({}));
    let refused = caller.ask("PUT", "Microsoft.Web/sites/taken", body.clone()).await;
    let entity = &refused.body["Details"][2]["ErrorEntity"];
    assert_eq!((refused.status, refused.code(), &entity["ExtendedCode"]), (409, "Conflict", &json!("54001")));
    assert_eq!(caller.ask("PUT", "Microsoft.Web/sites/a_b", body).await.status, 400);
    let url = format!(
        "{}/subscriptions/{}/providers/Microsoft.Web/checknameavailability?api-version={WEB}",
        caller.azure.endpoint(),
        caller.azure.subscription()
    );
    for (name, is_available) in [("taken", false), ("free", true)] {
        let body = json!({ "name": name, "type": "Microsoft.Web/sites" });
        let answer = caller.try_ask(Method::POST, &url, &body).await.unwrap();
        assert_eq!(answer.body["nameAvailable"], is_available);
    }
    caller.site("one", "p", json!({})).await;
    let path = "Microsoft.Web/sites/one/hostNameBindings/www.example.com";
    let mut binding = json!({ "properties": { "siteName": "one", "sslState": "SniEnabled", "thumbprint": "AA" } });
    assert_eq!(caller.ask("PUT", path, binding.clone()).await.status, 404);
    let certificate = json!({
        "location": "westeurope", "tags": { "owner": "test" },
        "properties": { "pfxBlob": "YQ==", "password": "secret", "hostNames": ["www.example.com"] },
    });
    let made = caller.ask("PUT", "Microsoft.Web/certificates/c", certificate).await.body;
    assert!(!made.to_string().contains("secret"));
    binding["properties"]["thumbprint"] = made["properties"]["thumbprint"].clone();
    assert_eq!(caller.ask("PUT", path, binding.clone()).await.status, 200);
    let hosts = caller.get("Microsoft.Web/sites/one").await.body["properties"]["hostNames"].clone();
    assert_eq!(hosts[1], "www.example.com");
    assert_eq!(caller.get("Microsoft.Web/sites/one/hostNameBindings").await.body["value"].as_array().unwrap().len(), 2);
    assert_eq!(caller.ask("DELETE", "Microsoft.Web/certificates/c", Value::Null).await.status, 409);
    caller.site("two", "p", json!({})).await;
    let other = "Microsoft.Web/sites/two/hostNameBindings/www.example.com";
    assert_eq!(caller.ask("PUT", other, binding).await.status, 409);
    let left = caller.azure.left(TAG).await.join(", ");
    assert_eq!(
        left,
        "plan p (1 B1), site one (Running), host name www.example.com of site one, site two (Running), certificate c"
    );
    assert_eq!(caller.ask("DELETE", path, Value::Null).await.status, 200);
    assert_eq!(caller.ask("DELETE", path, Value::Null).await.status, 204);
    caller.azure.add_stranger_plan("strange");
    caller.azure.add_stranger_site("strange", "stranger");
    assert_eq!(caller.azure.left(TAG).await.len(), 4);
    caller.azure.delete_site_behind("stranger").unwrap();
    assert_eq!(caller.get("Microsoft.Web/serverfarms/strange").await.status, 200);
}
