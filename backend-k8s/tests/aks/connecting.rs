//! What a kubeconfig leads to, and who one is there.

use backend_k8s::{Connection, Https, KubernetesConfig, render::NamespaceEach};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use provisioner_core::{
    Chain, ErrorKind, Provisioner,
    types::{DataDisposition, Observed, Phase},
};

use crate::{
    fixture::{cx, target},
    stand::{NAME, SERVER_ID, Stand, config},
};

/// What the clusters' own servers are called at Entra ID, all of them.
const EVERY_SERVER: &str = "6dae42f8-4368-4678-94ff-3960e28e3630/.default";

#[tokio::test]
async fn nothing_is_asked_before_the_first_call() {
    let stand = Stand::with_user("{token: static-token}").await;
    assert_eq!(stand.backend.to_string(), format!("Kubernetes(AKS {NAME})"));
    assert_eq!((stand.azure.calls(), stand.door.seen().len()), (0, 0));
    stand.identity().await.unwrap();
    assert_eq!(stand.asked_azure(), 1);
}

#[tokio::test]
async fn a_token_of_the_kubeconfig_is_used_as_it_is() {
    let stand = Stand::with_user("{token: static-token}").await;
    let identity = stand.identity().await.unwrap();
    assert!(!identity.is_empty());
    stand.identity().await.unwrap();
    assert_eq!(stand.door.seen(), ["Bearer static-token", "Bearer static-token"]);
    assert_eq!(stand.credential.asked(), [""; 0]);
    assert_eq!(stand.asked_azure(), 1, "it is kept");
}

#[tokio::test]
async fn a_certificate_of_the_kubeconfig_is_used_as_it_is() {
    let stand = Stand::without_cluster().await;
    let [certificate, key] = stand.door.client_pem.each_ref().map(|pem| BASE64_STANDARD.encode(pem));
    let user = format!("{{client-certificate-data: {certificate}, client-key-data: {key}}}");
    stand.azure.add_cluster(NAME, stand.kubeconfig(&user));
    stand.identity().await.unwrap();
    assert_eq!(stand.door.seen(), ["a certificate"]);
    assert_eq!(stand.credential.asked(), [""; 0]);
}

#[tokio::test]
async fn where_a_plugin_would_sign_in_our_token_is_sent_for_the_server_that_it_was_told() {
    let stand = Stand::with_entra_id().await;
    stand.identity().await.unwrap();
    assert_eq!(stand.door.seen(), ["Bearer cluster-1"]);
    assert_eq!(stand.credential.asked(), [format!("{SERVER_ID}/.default")]);
    stand.assert_nothing_ran();
}

#[tokio::test]
async fn a_plugin_that_was_told_no_server_is_for_that_of_every_cluster() {
    let stand = Stand::without_cluster().await;
    stand.azure.add_cluster(NAME, stand.kubeconfig(&stand.plugin("get-token")));
    stand.identity().await.unwrap();
    assert_eq!(stand.door.seen(), ["Bearer cluster-1"]);
    assert_eq!(stand.credential.asked(), [EVERY_SERVER]);
    stand.assert_nothing_ran();
}

#[tokio::test]
async fn the_form_before_plugins_were_programs_does_as_well() {
    let user = format!("{{auth-provider: {{name: azure, config: {{apiserver-id: {SERVER_ID}, tenant-id: t}}}}}}");
    let stand = Stand::with_user(&user).await;
    stand.identity().await.unwrap();
    assert_eq!(stand.door.seen(), ["Bearer cluster-1"]);
    assert_eq!(stand.credential.asked(), [format!("{SERVER_ID}/.default")]);
}

#[tokio::test]
async fn an_instance_lives_from_its_making_to_its_removal_with_one_token() {
    let (stand, target) = (Stand::with_entra_id().await, target(1));
    stand.backend.create(&cx(), &target).await.unwrap();
    until(&stand, |seen| matches!(seen, Observed::Present(present) if present.phase == Phase::Running)).await;
    stand.backend.scale_to_zero(&cx(), &target).await.unwrap();
    until(&stand, |seen| matches!(seen, Observed::Present(present) if present.phase == Phase::Zero)).await;
    stand.backend.destroy(&cx(), &target, DataDisposition::Delete).await.unwrap();
    until(&stand, |seen| *seen == Observed::Absent).await;
    let seen = stand.door.seen();
    assert!(seen.len() > 20 && seen.iter().all(|header| header == "Bearer cluster-1"), "{seen:?}");
    // One for each watch and each verb would be dozens.
    assert_eq!((stand.credential.asked().len(), stand.asked_azure()), (1, 1));
    stand.assert_nothing_ran();
}

async fn until(stand: &Stand, holds: impl Fn(&Observed) -> bool) {
    let mut seen = Observed::Absent;
    for _ in 0..1500 {
        seen = stand.backend.observe(&cx(), &target(1)).await.unwrap();
        if holds(&seen) {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    panic!("not in time: {seen:?}");
}

#[tokio::test]
async fn no_token_goes_where_it_could_be_read() {
    let stand = Stand::without_cluster().await;
    let plain = stand.kubeconfig(&stand.plugin("get-token")).replace("https:", "http:");
    stand.azure.add_cluster(NAME, plain);
    let error = stand.identity().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.to_string().contains("not https"), "{error}");
    assert_eq!(stand.credential.asked(), [""; 0]);
    stand.assert_nothing_ran();
}

#[tokio::test]
async fn neither_tokens_nor_the_kubeconfig_are_shown() {
    for user in ["{token: static-token}", "{exec: {command: kubelogin}}"] {
        let stand = Stand::with_user(user).await;
        stand.identity().await.unwrap();
        stand.door.revoke(&stand.door.last());
        let error = stand.identity().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unauthorized);
        let shown = format!("{:?} {} {error:?} {}", stand.backend, stand.backend, Chain(&error));
        for secret in ["static-token", "cluster-1", &stand.door.url, "certificate-authority"] {
            assert!(!shown.contains(secret), "{secret}: {shown}");
        }
    }
}

#[tokio::test]
async fn a_credential_is_for_clusters_of_azure_alone() {
    let stand = Stand::without_cluster().await;
    let https = || Https::with_roots(stand.azure.ca_pem()).unwrap();
    let credential = || std::sync::Arc::clone(&stand.credential);
    let other = KubernetesConfig { connection: Connection::InCluster, ..KubernetesConfig::default() };
    let error = other.build_with_credential(credential(), &https(), NamespaceEach).unwrap_err();
    assert_eq!((error.kind(), error.field()), (ErrorKind::InvalidSpec, Some("connection")));
    let mut config = config(&stand.azure);
    if let Connection::Aks(cluster) = &mut config.connection {
        cluster.resource_group = "a/b".into();
    }
    let error = config.build_with_credential(credential(), &https(), NamespaceEach).unwrap_err();
    assert_eq!((error.kind(), error.field()), (ErrorKind::InvalidSpec, Some("connection.aks.resource_group")));
    assert_eq!(stand.azure.calls(), 0);
}
