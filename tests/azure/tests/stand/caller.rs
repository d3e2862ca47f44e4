//! What asks the resource manager and sites, and what every test asks for.

use std::{
    path::PathBuf,
    sync::OnceLock,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use test_azure::{Answer, Azure, Client, HeaderMap, Method, Options, Seen};

pub(crate) const TAG: (&str, &str) = ("owner", "test");
pub(crate) const WEB: &str = "2024-04-01";

/// What asks the resource manager, and sites.
pub(crate) struct Caller {
    pub(crate) azure: Azure,
    pub(crate) http: Client,
    pub(crate) token: String,
}

/// An answer: the status, the headers, and the body, null where it is none.
#[derive(Debug)]
pub(crate) struct Answered {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Value,
}

impl Answered {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    /// The code of a refusal, in either shape.
    pub(crate) fn code(&self) -> &str {
        self.body["error"]["code"].as_str().or(self.body["Code"].as_str()).unwrap_or_default()
    }
}

impl Caller {
    pub(crate) async fn start(options: Options) -> Self {
        let azure = Azure::start(options).await.unwrap();
        let http = azure.client();
        let token = azure.token();
        Self { azure, http, token }
    }

    /// Sends a request; nothing, when there is no answer.
    pub(crate) async fn try_ask(&self, method: Method, url: &str, body: &Value) -> Option<Answered> {
        let body = (!body.is_null()).then(|| body.to_string());
        let Answer { status, headers, body } = self.http.send(method, url, Some(&self.token), body).await.ok()?;
        Some(Answered { status, headers, body: serde_json::from_slice(&body).unwrap_or_default() })
    }

    pub(crate) fn url(&self, path: &str) -> String {
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
    pub(crate) async fn ask(&self, method: &str, path: &str, body: Value) -> Answered {
        self.try_ask(method.parse().unwrap(), &self.url(path), &body).await.unwrap()
    }

    pub(crate) async fn get(&self, path: &str) -> Answered {
        self.ask("GET", path, Value::Null).await
    }

    /// Asks, and waits until what was asked for is done, however that is told. Gives the last answer.
    pub(crate) async fn done(&self, method: &str, path: &str, body: Value) -> Answered {
        let answer = self.ask(method, path, body).await;
        assert!(matches!(answer.status, 200..=204), "{method} {path}: {answer:?}");
        self.settled(path, answer).await
    }

    pub(crate) async fn settled(&self, path: &str, first: Answered) -> Answered {
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

    pub(crate) async fn plan(&self, name: &str) -> Answered {
        self.done("PUT", &format!("Microsoft.Web/serverfarms/{name}"), plan()).await
    }

    pub(crate) async fn site(&self, name: &str, plan: &str, config: Value) -> Answered {
        let body = self.site_body(plan, config);
        self.done("PUT", &format!("Microsoft.Web/sites/{name}"), body).await
    }

    pub(crate) fn site_body(&self, plan: &str, config: Value) -> Value {
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

    pub(crate) fn share_path(&self, share: &str) -> String {
        format!(
            "Microsoft.Storage/storageAccounts/{}/fileServices/default/shares/{share}",
            self.azure.storage_account()
        )
    }

    pub(crate) async fn seen(&self, site: &str) -> Seen {
        self.azure.sites(TAG).await.into_iter().find(|seen| seen.name == site).unwrap()
    }

    /// What a site says to a caller: the status and the text.
    pub(crate) async fn visit(&self, site: &str, path: &str) -> Option<(u16, String)> {
        let url = format!("https://{}{path}", self.seen(site).await.address);
        let answer = self.http.send(Method::GET, &url, None, None).await.ok()?;
        Some((answer.status, String::from_utf8_lossy(&answer.body).into_owned()))
    }

    pub(crate) async fn until_status(&self, site: &str, status: u16) {
        let what = format!("{site} answers {status}");
        until(&what, async || self.visit(site, "/healthz").await.is_some_and(|(it, _)| it == status)).await;
    }

    /// A product that keeps its notebook on a share.
    pub(crate) fn product(&self, share: &str) -> Value {
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

    pub(crate) async fn write_page(&self, site: &str) {
        let url = format!("https://{}/api/pages", self.seen(site).await.address);
        let page = json!({ "title": "kept", "text": "words" });
        let answer = self.http.send(Method::POST, &url, None, Some(page.to_string())).await.unwrap();
        assert!(matches!(answer.status, 200..300), "{answer:?}");
    }
}

pub(crate) fn product() -> &'static PathBuf {
    static PRODUCT: OnceLock<PathBuf> = OnceLock::new();
    PRODUCT.get_or_init(benches::product)
}

pub(crate) fn plan() -> Value {
    json!({
        "location": "westeurope", "kind": "linux", "tags": { "owner": "test" },
        "sku": { "name": "B1", "capacity": 1 }, "properties": { "reserved": true },
    })
}

pub(crate) fn without_boots() -> Options {
    Options { boots: false, work: Duration::from_millis(30), ..Options::default() }
}

pub(crate) async fn until(what: &str, is_so: impl AsyncFn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !is_so().await {
        assert!(Instant::now() < deadline, "it never was so that {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
