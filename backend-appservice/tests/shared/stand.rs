//! A backend on a stand-in, and somebody who asks its sites.

use std::{sync::Arc, time::Duration};

use azure_core::{
    credentials::{AccessToken, TokenCredential, TokenRequestOptions},
    time::OffsetDateTime,
};
use backend_appservice::{AppServiceBackend, AppServiceConfig, Buckets, Https, Scope};
use provisioner_account::Bucket;
use provisioner_core::types::{InstanceSpec, Workload};
use test_azure::{Azure, Client, Method};

/// Signed in at a stand-in.
#[derive(Debug)]
pub(crate) struct SignedIn(pub(crate) Azure);

#[async_trait::async_trait]
impl TokenCredential for SignedIn {
    async fn get_token(&self, _: &[&str], _: Option<TokenRequestOptions<'_>>) -> azure_core::Result<AccessToken> {
        let expires = OffsetDateTime::now_utc() + azure_core::time::Duration::hours(1);
        Ok(AccessToken::new(self.0.token(), expires))
    }
}

pub(crate) fn https(stand: &Azure) -> Https {
    Https::with_roots(stand.ca_pem()).expect("the stand's own root")
}

pub(crate) fn config(stand: &Azure) -> AppServiceConfig {
    let scope =
        Scope { subscription: stand.subscription().to_owned(), resource_group: stand.resource_group().to_owned() };
    let mut config = AppServiceConfig::new(scope, stand.region(), stand.storage_account());
    config.endpoint = Some(stand.endpoint().to_owned());
    // Nothing is fetched.
    config.start_time = Duration::ZERO;
    config.look_every = Duration::from_millis(200);
    config.buckets = unpaced();
    config
}

pub(crate) fn unpaced() -> Buckets {
    let bucket = Bucket { size: 1_000_000, refill: 1_000_000 };
    Buckets { read: bucket, write: bucket, delete: bucket, storage_read: bucket, storage_write: bucket }
}

pub(crate) fn backend(stand: &Azure, config: AppServiceConfig) -> AppServiceBackend {
    config.build_with(Arc::new(SignedIn(stand.clone())), https(stand)).expect("the configuration is right")
}

/// A spec of the product. What it does is told by variables.
pub(crate) fn spec(product: &str, version: &str) -> InstanceSpec {
    let script = format!(
        "if [ -n \"${{EXIT_AT_ONCE:-}}\" ]; then exit 3; fi; sleep \"${{READY_AFTER_SECONDS:-0}}\"; \
         export TENANT=contract PRODUCT_VERSION=1; exec {product}"
    );
    let mut workload = Workload::new(version).with_command(["/bin/sh", "-c", &script]);
    workload.image = Some(format!("registry.example.com/product:{version}"));
    workload.port = Some(8080);
    workload.health_path = "/healthz".into();
    workload.start_timeout_seconds = 8;
    workload.stop_grace_seconds = 1;
    let mut spec = InstanceSpec::new(workload);
    spec.data.size_mib = 1024;
    spec
}

/// Asks a site, by its front door. With a body, posts it.
#[allow(dead_code, reason = "some of those who share this ask nobody")]
pub(crate) async fn ask(client: &Client, url: &str, body: Option<String>) -> Result<Vec<u8>, String> {
    let method = if body.is_some() { Method::POST } else { Method::GET };
    let answer = client.send(method, url, None, body).await?;
    match answer.status {
        200..300 => Ok(answer.body.to_vec()),
        status => Err(format!("it answers {status}: {}", String::from_utf8_lossy(&answer.body))),
    }
}
