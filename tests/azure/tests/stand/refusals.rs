//! Faults, throttling, and what a request must bring.

use std::{collections::BTreeSet, time::Duration};

use serde_json::{Value, json};
use test_azure::{Bucket, Buckets, Lasting, Method, Once, Options};

use crate::caller::{Caller, plan, until, without_boots};

#[tokio::test(flavor = "multi_thread")]
async fn faults_befall_requests_and_end() {
    let caller = Caller::start(without_boots()).await;
    let path = "Microsoft.Web/serverfarms/p";
    let all = "Microsoft.Web/sites";
    caller.azure.befall(Some(Lasting::Capacity));
    let refused = caller.ask("PUT", path, plan()).await;
    assert!(refused.status == 409 && refused.body["Message"].as_str().unwrap().starts_with("No available instances"));
    caller.azure.befall(Some(Lasting::Throttled { after: Duration::from_millis(1500) }));
    let refused = caller.get(all).await;
    assert_eq!((refused.status, refused.code(), refused.header("retry-after")), (429, "TooManyRequests", Some("2")));
    caller.azure.befall(Some(Lasting::Rights));
    assert_eq!(caller.get(all).await.code(), "AuthorizationFailed");
    caller.azure.befall(Some(Lasting::Unreachable));
    let before = caller.azure.calls();
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(caller.try_ask(Method::GET, &caller.url(all), &Value::Null).await.is_none());
    assert!(caller.azure.calls() <= before + 1, "the port is shut");
    caller.azure.befall(None);
    until("it is reachable again", async || {
        caller.try_ask(Method::GET, &caller.url(all), &Value::Null).await.is_some()
    })
    .await;
    caller.azure.befall(Some(Lasting::Hang));
    let url = caller.url(all);
    let hang = caller.try_ask(Method::GET, &url, &Value::Null);
    assert!(tokio::time::timeout(Duration::from_millis(100), hang).await.is_err());
    caller.azure.befall(None);

    let list = "WebApps_ListByResourceGroup";
    let before_send =
        |capitalised| Once::BeforeSend { status: 418, code: "A".to_owned(), message: "b".to_owned(), capitalised };
    for fault in [Once::LostBefore, Once::Html500, Once::MalformedJson, before_send(false), before_send(true)] {
        caller.azure.once(list, fault);
    }
    assert!(caller.try_ask(Method::GET, &caller.url(all), &Value::Null).await.is_none());
    let html = caller.get(all).await;
    assert_eq!((html.status, html.body), (500, Value::Null));
    let cut = caller.get(all).await;
    assert_eq!((cut.status, cut.body), (200, Value::Null));
    assert_eq!(caller.get(all).await.body["error"]["code"], "A");
    assert_eq!(caller.get(all).await.body["Code"], "A");

    // What becomes of a write that was accepted.
    let create = "AppServicePlans_CreateOrUpdate";
    caller.azure.once(create, Once::FailsLater { code: "Broken".to_owned(), message: "b".to_owned() });
    let failed = caller.done("PUT", path, plan()).await;
    assert_eq!((&failed.body["status"], &failed.body["error"]["code"]), (&json!("Failed"), &json!("Broken")));
    assert_eq!(caller.get(path).await.status, 404);
    caller.azure.once(create, Once::NeverEnds);
    let never = caller.ask("PUT", path, plan()).await;
    let poll = never.header("azure-asyncoperation").unwrap().to_owned();
    tokio::time::sleep(Duration::from_millis(100)).await;
    let polled = caller.try_ask(Method::GET, &poll, &Value::Null).await.unwrap();
    assert_eq!(polled.body["status"], "InProgress");
    caller.azure.once(create, Once::PollElsewhere("https://elsewhere.test/poll".to_owned()));
    let elsewhere = caller.ask("PUT", path, plan()).await;
    assert_eq!(elsewhere.header("azure-asyncoperation"), Some("https://elsewhere.test/poll"));
    until("it is there all the same", async || caller.get(path).await.status == 200).await;
    caller.azure.once("AppServicePlans_Delete", Once::LostAfter);
    assert!(caller.try_ask(Method::DELETE, &caller.url(path), &Value::Null).await.is_none());
    assert_eq!(caller.get(path).await.status, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_are_throttled_by_what_they_do() {
    let buckets = Buckets { reads: Bucket::new(5.0, 0.1), writes: Bucket::new(2.0, 0.1), ..Buckets::default() };
    let caller = Caller::start(Options { buckets: Some(buckets), ..without_boots() }).await;
    let mut statuses = Vec::new();
    for _ in 0..6 {
        statuses.push(caller.get("Microsoft.Web/sites").await.status);
    }
    assert_eq!(statuses, [200, 200, 200, 200, 200, 429]);
    let refused = caller.get("Microsoft.Web/sites").await;
    assert!(refused.header("retry-after").unwrap().parse::<u64>().unwrap() > 1);
    let wrote = caller.ask("PUT", "Microsoft.Web/serverfarms/p", plan()).await;
    assert_eq!((wrote.status, wrote.header("x-ms-ratelimit-remaining-subscription-writes")), (202, Some("1")));
    assert!(wrote.header("x-ms-request-id").is_some() && wrote.header("x-ms-correlation-request-id").is_some());
    assert_eq!(caller.azure.calls_of()["WebApps_ListByResourceGroup"], 7);
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_rights_and_versions_are_looked_at() {
    let actions = ["Microsoft.Web/sites/read", "microsoft.web/serverfarms/WRITE", "Microsoft.Web/sites/write"];
    let actions: BTreeSet<_> = actions.map(str::to_owned).into();
    let record = tempfile::NamedTempFile::new().unwrap();
    let options = Options { actions: Some(actions), record: Some(record.path().to_owned()), ..without_boots() };
    let mut caller = Caller::start(options).await;
    let all = "Microsoft.Web/sites";
    assert_eq!(caller.get(all).await.status, 200);
    assert_eq!(caller.get("Microsoft.Web/serverfarms").await.code(), "AuthorizationFailed");
    caller.plan("p").await;
    let body = caller.site_body("p", json!({}));
    let refused = caller.ask("PUT", "Microsoft.Web/sites/one", body).await;
    assert_eq!((refused.status, refused.code()), (403, "LinkedAuthorizationFailed"));
    caller.azure.expire_tokens();
    let refused = caller.get(all).await;
    assert_eq!((refused.status, refused.code()), (401, "ExpiredAuthenticationToken"));
    assert!(refused.header("www-authenticate").unwrap().starts_with("Bearer "));
    caller.token = "none".to_owned();
    assert_eq!(caller.get(all).await.code(), "InvalidAuthenticationToken");
    caller.token = caller.azure.token();
    let group = format!("{}/subscriptions/{}/resourceGroups", caller.azure.endpoint(), caller.azure.subscription());
    for (rest, code) in [
        ("/test-group/providers/Microsoft.Web/sites?api-version=2001-01-01", "NoRegisteredProviderFound"),
        ("/test-group/providers/Microsoft.Web/sites", "MissingApiVersionParameter"),
        ("/other/providers/Microsoft.Web/sites?api-version=2022-03-01", "ResourceGroupNotFound"),
        ("/test-group/providers/Microsoft.Other/things?api-version=2022-03-01", "InvalidResourceType"),
    ] {
        let answer = caller.try_ask(Method::GET, &format!("{group}{rest}"), &Value::Null).await.unwrap();
        assert_eq!(answer.code(), code, "{rest}: {answer:?}");
    }
    let lines = std::fs::read_to_string(record.path()).unwrap();
    assert!(!lines.contains(&caller.token) && !lines.contains("authorization\":\"Bearer"));
    let first: Value = serde_json::from_str(lines.lines().next().unwrap()).unwrap();
    assert_eq!(first["operation"], "WebApps_ListByResourceGroup");
    assert_eq!(first["liveResponse"]["statusCode"], "200");
    assert!(first["liveRequest"]["url"].as_str().unwrap().starts_with("https://management.azure.com/subscriptions/"));
}
