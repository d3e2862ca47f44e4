//! The stand itself: that it does what the real service does.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::{
    collections::BTreeSet,
    path::PathBuf,
    sync::OnceLock,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use test_azure::{Answer, Azure, Bucket, Buckets, Client, HeaderMap, Lasting, Method, Once, Options, Seen, Style};

const TAG: (&str, &str) = ("owner", "test");
const WEB: &str = "2024-04-01";

/// What asks the resource manager, and sites.
struct Caller {
    azure: Azure,
    http: Client,
    token: String,
}

/// An answer: the status, the headers, and the body, null where it is none.
#[derive(Debug)]
struct Answered {
    status: u16,
    headers: HeaderMap,
    body: Value,
}

impl Answered {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    /// The code of a refusal, in either shape.
    fn code(&self) -> &str {
        self.body["error"]["code"].as_str().or(self.body["Code"].as_str()).unwrap_or_default()
    }
}

impl Caller {
    async fn start(options: Options) -> Self {
        let azure = Azure::start(options).await.unwrap();
        let http = azure.client();
        let token = azure.token();
        Self { azure, http, token }
    }

    /// Sends a request; nothing, when there is no answer.
    async fn try_ask(&self, method: Method, url: &str, body: &Value) -> Option<Answered> {
        let body = (!body.is_null()).then(|| body.to_string());
        let Answer { status, headers, body } = self.http.send(method, url, Some(&self.token), body).await.ok()?;
        Some(Answered { status, headers, body: serde_json::from_slice(&body).unwrap_or_default() })
    }

    fn url(&self, path: &str) -> String {
        let (endpoint, subscription) = (self.azure.endpoint(), self.azure.subscription());
        let version = match path.split('/').next() {
            Some("Microsoft.Storage") => "2023-05-01",
            Some("Microsoft.ContainerService") => "2024-09-01",
            _ => WEB,
        };
        let mark = if path.contains('?') { '&' } else { '?' };
        let group = self.azure.resource_group();
        format!(
            "{endpoint}/subscriptions/{subscription}/resourceGroups/{group}/providers/{path}{mark}api-version={version}"
        )
    }

    /// Asks for something in the group, such as `Microsoft.Web/sites/a`.
    async fn ask(&self, method: &str, path: &str, body: Value) -> Answered {
        self.try_ask(method.parse().unwrap(), &self.url(path), &body).await.unwrap()
    }

    async fn get(&self, path: &str) -> Answered {
        self.ask("GET", path, Value::Null).await
    }

    /// Asks, and waits until what was asked for is done, however that is told. Gives the last answer.
    async fn done(&self, method: &str, path: &str, body: Value) -> Answered {
        let answer = self.ask(method, path, body).await;
        assert!(matches!(answer.status, 200..=204), "{method} {path}: {answer:?}");
        self.settled(path, answer).await
    }

    async fn settled(&self, path: &str, first: Answered) -> Answered {
        let deadline = Instant::now() + Duration::from_secs(20);
        let poll = first.header("azure-asyncoperation").or(first.header("location")).map(str::to_owned);
        let mut answer = first;
        loop {
            let is_done = match answer.body["status"].as_str() {
                Some("Failed") => return answer,
                status => status != Some("InProgress") && answer.status != 202 && answer.status != 404,
            };
            if is_done && answer.body["properties"]["provisioningState"] != "InProgress" {
                return answer;
            }
            assert!(Instant::now() < deadline, "{path}: {answer:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
            let url = poll.clone().unwrap_or_else(|| self.url(path));
            answer = self.try_ask(Method::GET, &url, &Value::Null).await.unwrap();
        }
    }

    async fn plan(&self, name: &str) -> Answered {
        self.done("PUT", &format!("Microsoft.Web/serverfarms/{name}"), plan()).await
    }

    async fn site(&self, name: &str, plan: &str, config: Value) -> Answered {
        let body = self.site_body(plan, config);
        self.done("PUT", &format!("Microsoft.Web/sites/{name}"), body).await
    }

    fn site_body(&self, plan: &str, config: Value) -> Value {
        let id = format!(
            "/subscriptions/{}/resourceGroups/{}/providers/Microsoft.Web/serverfarms/{plan}",
            self.azure.subscription(),
            self.azure.resource_group()
        );
        json!({
            "location": "West Europe", "kind": "app,linux,container", "tags": { "owner": "test" },
            "properties": { "serverFarmId": id, "httpsOnly": true, "siteConfig": config },
        })
    }

    fn share_path(&self, share: &str) -> String {
        format!(
            "Microsoft.Storage/storageAccounts/{}/fileServices/default/shares/{share}",
            self.azure.storage_account()
        )
    }

    async fn seen(&self, site: &str) -> Seen {
        self.azure.sites(TAG).await.into_iter().find(|seen| seen.name == site).unwrap()
    }

    /// What a site says to a caller: the status and the text.
    async fn visit(&self, site: &str, path: &str) -> Option<(u16, String)> {
        let url = format!("https://{}{path}", self.seen(site).await.address);
        let answer = self.http.send(Method::GET, &url, None, None).await.ok()?;
        Some((answer.status, String::from_utf8_lossy(&answer.body).into_owned()))
    }

    async fn until_status(&self, site: &str, status: u16) {
        let what = format!("{site} answers {status}");
        until(&what, async || self.visit(site, "/healthz").await.is_some_and(|(it, _)| it == status)).await;
    }

    /// A product that keeps its notebook on a share.
    fn product(&self, share: &str) -> Value {
        json!({
            "linuxFxVersion": "DOCKER|registry.test/product:1",
            "appCommandLine": format!("'{}'", product().display()),
            "appSettings": [
                { "name": "TENANT", "value": "a tenant" },
                { "name": "PRODUCT_VERSION", "value": "1" },
                { "name": "DATA_PATH", "value": "/data/notebook" },
                { "name": "ADDRESS", "value": "0.0.0.0" },
                { "name": "WEBSITES_PORT", "value": "8080" },
            ],
            "azureStorageAccounts": { "data": {
                "type": "AzureFiles", "accountName": self.azure.storage_account(), "shareName": share,
                "accessKey": self.azure.storage_key(), "mountPath": "/data",
            } },
        })
    }

    async fn write_page(&self, site: &str) {
        let url = format!("https://{}/api/pages", self.seen(site).await.address);
        let page = json!({ "title": "kept", "text": "words" });
        let answer = self.http.send(Method::POST, &url, None, Some(page.to_string())).await.unwrap();
        assert!(matches!(answer.status, 200..300), "{answer:?}");
    }
}

fn product() -> &'static PathBuf {
    static PRODUCT: OnceLock<PathBuf> = OnceLock::new();
    PRODUCT.get_or_init(benches::product)
}

fn plan() -> Value {
    json!({
        "location": "westeurope", "kind": "linux", "tags": { "owner": "test" },
        "sku": { "name": "B1", "capacity": 1 }, "properties": { "reserved": true },
    })
}

fn without_boots() -> Options {
    Options { boots: false, work: Duration::from_millis(30), ..Options::default() }
}

async fn until(what: &str, is_so: impl AsyncFn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !is_so().await {
        assert!(Instant::now() < deadline, "it never was so that {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn life(style: Style, mute_sites: bool) {
    let caller = Caller::start(Options { style, mute_sites, ..Options::default() }).await;
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
    assert_eq!(caller.azure.left(("my-owner", "test")).await, ["share data"]);
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

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_takes_one_write_at_a_time_and_only_so_many_sites() {
    let caller = Caller::start(Options { sites_max: 2, plans_max: 2, ..without_boots() }).await;
    caller.plan("p").await;
    let body = caller.site_body("p", json!({}));
    let first = caller.ask("PUT", "Microsoft.Web/sites/one", body.clone()).await;
    let refused = caller.ask("PUT", "Microsoft.Web/sites/two", body.clone()).await;
    assert_eq!((refused.status, refused.code(), refused.header("retry-after")), (429, "429", Some("1")));
    let refused = caller.ask("PUT", "Microsoft.Web/sites/two", body.clone()).await;
    let extended = &refused.body["Details"][2]["ErrorEntity"]["ExtendedCode"];
    assert_eq!((refused.status, refused.code(), extended), (409, "Conflict", &json!("59205")));
    caller.settled("", first).await;
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

#[tokio::test(flavor = "multi_thread")]
async fn reads_lag_behind_writes() {
    let lag = Duration::from_millis(700);
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
