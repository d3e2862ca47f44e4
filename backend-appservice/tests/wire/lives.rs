//! Lives on real processes, in each of the ways in which the service answers.

use std::{sync::Arc, time::Duration};

use provisioner_core::{
    ErrorKind, Provisioner,
    secret::{SecretReference, SecretResolver, SecretString},
    types::{Package, Phase, Target},
};
use test_azure::{Once, Options, Style};

use crate::{
    fixture::{Fixture, changed, cx, host, idle, target},
    stand::{self, ask},
};

/// An instance of the product.
fn real() -> Target {
    Target { spec: Arc::new(stand::spec(&benches::product().display().to_string(), "1.0")), ..target("acme") }
}

#[tokio::test]
async fn a_life_in_each_way_in_which_the_service_answers() {
    for (style, mute_sites) in [
        (Style::Immediate, false),
        (Style::AsyncOperation, false),
        (Style::Location, false),
        (Style::ProvisioningState, false),
        (Style::ProvisioningState, true),
    ] {
        let fixture = Fixture::start(Options { style, mute_sites, ..Options::default() }).await;
        let first = real();
        fixture.create(&first).await.unwrap();
        let seen = fixture.until(&first, Some(Phase::Running)).await;
        let endpoint = seen.present().unwrap().endpoint.clone().unwrap();
        let client = fixture.stand.client();
        let page = serde_json::json!({"title": "Minutes", "text": "kept"}).to_string();
        ask(&client, &format!("{endpoint}/api/pages"), Some(page)).await.unwrap();
        for sleep in [true, false] {
            match sleep {
                true => fixture.backend.scale_to_zero(&cx(), &first).await.unwrap(),
                false => fixture.backend.suspend(&cx(), &first).await.unwrap(),
            };
            fixture.until(&first, Some(if sleep { Phase::Zero } else { Phase::Suspended })).await;
            let refused = ask(&client, &format!("{endpoint}/"), None).await.unwrap_err();
            assert!(refused.contains("403"), "{refused}");
            fixture.backend.resume(&cx(), &first).await.unwrap();
            fixture.until(&first, Some(Phase::Running)).await;
        }
        let second = changed(&first, |spec| spec.workload.version = "2.0".to_owned());
        fixture.create(&second).await.unwrap();
        let seen = fixture.until(&second, Some(Phase::Running)).await;
        assert_eq!(seen.present().unwrap().generation, second.generation);
        let pages = ask(&client, &format!("{endpoint}/api/pages"), None).await.unwrap();
        assert!(String::from_utf8_lossy(&pages).contains("kept"), "{style:?}");
        fixture.destroy(&second).await.unwrap();
        fixture.until(&second, None).await;
        assert_eq!(fixture.left().await, [""; 0], "{style:?}");
    }
}

#[tokio::test]
async fn a_site_answers_to_the_host_names_of_its_spec_and_to_no_others() {
    let fixture = Fixture::start(idle()).await;
    let with = |target: &Target, names: &[&str]| {
        changed(target, |spec| spec.host_names = names.iter().map(|name| host(name)).collect())
    };
    let hosts = async || fixture.sites().await[0].hosts.clone();
    let first = with(&target("a"), &["a.example.com", "b.example.com"]);
    let first = Target { data: target("a").data, ..first };
    fixture.create(&first).await.unwrap();
    assert_eq!(hosts().await, ["a.example.com", "b.example.com"]);
    let second = with(&first, &["b.example.com", "c.example.com"]);
    fixture.create(&second).await.unwrap();
    assert_eq!(hosts().await, ["b.example.com", "c.example.com"]);
    fixture.destroy(&second).await.unwrap();
    assert_eq!(fixture.left().await, [""; 0]);
}

#[tokio::test]
async fn many_are_looked_at_in_pages_and_not_one_by_one() {
    let fixture = Fixture::with(Options { page: 10, ..idle() }, |config| config.plans.sites_max = 40).await;
    let targets: Vec<_> = (0..30).map(|n| target(&format!("i{n}"))).collect();
    for made in futures::future::join_all(targets.iter().map(|target| fixture.create(target))).await {
        made.unwrap();
    }
    tokio::time::sleep(Duration::from_millis(600)).await;
    let before = fixture.stand.calls();
    let seen = fixture.backend.observe_many(&cx(), &targets).await;
    assert!(seen.iter().all(|seen| seen.as_ref().is_ok_and(|seen| seen.present().is_some())), "{seen:?}");
    assert_eq!(fixture.stand.calls() - before, 3, "three pages of ten");
}

#[tokio::test]
async fn secrets_are_settings_and_those_of_a_vault_are_left_to_the_service() {
    let fixture = Fixture::start(Options::default()).await;
    let first = changed(&real(), |spec| {
        spec.secrets.insert("OWN".parse().unwrap(), "env:APPSERVICE_TEST_OWN".parse().unwrap());
        spec.secrets.insert("VAULTED".parse().unwrap(), "keyvault:vault/name".parse().unwrap());
    });
    let first = Target { data: real().data, ..first };
    let missing = fixture.create(&first).await.unwrap_err();
    assert_eq!((missing.kind(), missing.field()), (ErrorKind::InvalidSpec, Some("secrets.OWN")));
    assert_eq!(fixture.left().await, [""; 0]);
    // Somebody's own secret may be what the service looks up with the rights of the site.
    let theirs = cx().with_secrets(Arc::new(Known("@microsoft.keyvault(VaultName=ours;SecretName=all)")));
    let refused = fixture.backend.create(&theirs, &first).await.unwrap_err();
    assert_eq!((refused.kind(), refused.field()), (ErrorKind::InvalidSpec, Some("secrets.OWN")));
    assert!(!format!("{refused:?}").contains("ours"));
    assert_eq!(fixture.left().await, [""; 0]);
    let known = cx().with_secrets(Arc::new(Known("hidden")));
    fixture.backend.create(&known, &first).await.unwrap();
    fixture.until(&first, Some(Phase::Running)).await;
    let site = fixture.sites().await[0].name.clone();
    let environment = fixture.stand.environment(&site).unwrap();
    assert_eq!(environment["OWN"], "hidden");
    assert_eq!(environment["VAULTED"], "@Microsoft.KeyVault(VaultName=vault;SecretName=name)");
    assert!(fixture.stand.search("hidden").await.is_empty());
}

#[tokio::test]
async fn data_grow_with_a_spec_that_is_put_right_before_there_is_a_site() {
    let fixture = Fixture::start(idle()).await;
    let refused = Once::BeforeSend { status: 400, code: "BadRequest".into(), message: "no".into(), capitalised: true };
    fixture.stand.once("WebApps_CreateOrUpdate", refused);
    let small = target("a");
    let error = fixture.create(&small).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidSpec, "{error}");
    let large = changed(&small, |spec| spec.data.size_mib = 7 << 10);
    fixture.create(&Target { data: small.data, ..large }).await.unwrap();
    let left = fixture.left().await;
    assert!(left.iter().any(|line| line.starts_with("share ") && line.ends_with("(7 GiB)")), "{left:?}");
}

/// Knows one word for everything.
#[derive(Debug)]
struct Known(&'static str);

#[async_trait::async_trait]
impl SecretResolver for Known {
    async fn resolve(&self, _: &SecretReference) -> provisioner_core::Result<SecretString> {
        Ok(SecretString::from(self.0))
    }
}

#[tokio::test]
async fn a_package_is_run_by_its_runtime() {
    let fixture = Fixture::start(Options::default()).await;
    let url = "https://account.blob.core.windows.net/packages/1.zip";
    let first = changed(&real(), |spec| {
        spec.workload.image = None;
        spec.workload.package = Some(Package { url: url.into(), runtime: "NODE|20-lts".into() });
    });
    let first = Target { data: real().data, ..first };
    fixture.create(&first).await.unwrap();
    fixture.until(&first, Some(Phase::Running)).await;
    let site = fixture.sites().await.remove(0);
    assert_eq!(site.image, "NODE|20-lts");
    assert_eq!(fixture.stand.environment(&site.name).unwrap()["WEBSITE_RUN_FROM_PACKAGE"], url);
}
