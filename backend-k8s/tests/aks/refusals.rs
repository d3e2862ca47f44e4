//! What Resource Manager says instead of the way.

use std::time::Duration;

use provisioner_core::{Chain, Effect, Error, ErrorKind, Provisioner, Retry};
use test_azure::{Lasting, Once};

use crate::{
    fixture::{cx, target},
    stand::{CALL, NAME, Stand},
};

/// What the usual calls fail with, which say the same: a read without watches, one with them, and a verb.
async fn errors(stand: &Stand) -> [Error; 3] {
    let errors = [
        stand.identity().await.unwrap_err(),
        stand.backend.observe(&cx(), &target(1)).await.expect_err("what could not be asked is no absence"),
        stand.backend.create(&cx(), &target(1)).await.unwrap_err(),
    ];
    assert!(errors.iter().all(|error| error.effect() == Effect::None), "{errors:?}");
    assert_eq!(stand.door.seen(), [""; 0], "the cluster was asked");
    errors
}

#[track_caller]
fn assert_says(error: &Error, words: &[&str]) {
    let text = Chain(error).to_string();
    for word in words {
        assert!(text.contains(word), "{word}: {text}");
        assert!(!error.customer_message().contains(word), "{}", error.customer_message());
    }
}

#[tokio::test]
async fn a_missing_right_names_the_call() {
    let stand = Stand::with_entra_id().await;
    stand.azure.befall(Some(Lasting::Rights));
    for error in errors(&stand).await {
        assert_eq!((error.kind(), error.retry()), (ErrorKind::Unauthorized, Retry::Never));
        assert_eq!(error.code(), Some("AuthorizationFailed"));
        assert!(error.request_id().is_some());
        let right = "Microsoft.ContainerService/managedClusters/listClusterUserCredential/action";
        assert_says(&error, &["listClusterUserCredential", NAME, right]);
    }
    // Three calls, and what eleven watches want is asked once for all of them.
    assert!(stand.asked_azure() <= 6, "{}", stand.asked_azure());
    // And given.
    stand.azure.befall(None);
    stand.identity().await.unwrap();
    for _ in 0..100 {
        if stand.backend.observe(&cx(), &target(1)).await.is_ok() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("it is still missed");
}

#[tokio::test]
async fn a_cluster_that_is_not_there_is_named_and_nothing_in_it_is_absent() {
    let stand = Stand::without_cluster().await;
    for error in errors(&stand).await {
        assert_eq!((error.kind(), error.retry()), (ErrorKind::Unauthorized, Retry::Never));
        assert_eq!(error.code(), Some("ResourceNotFound"));
        assert_says(&error, &["there is no AKS", NAME, stand.azure.subscription(), stand.azure.resource_group()]);
    }
    stand.azure.add_cluster(NAME, stand.kubeconfig("{token: static-token}"));
    stand.identity().await.unwrap();
}

#[tokio::test]
async fn a_group_or_subscription_that_is_not_there_is_named_too() {
    let stand = Stand::with_entra_id().await;
    for code in ["ResourceGroupNotFound", "SubscriptionNotFound"] {
        let message = "it could not be found".to_owned();
        stand.azure.once(CALL, Once::BeforeSend { status: 404, code: code.into(), message, capitalised: false });
        let error = stand.identity().await.unwrap_err();
        assert_eq!((error.kind(), error.code()), (ErrorKind::Unauthorized, Some(code)));
        assert_says(&error, &["no way to", NAME, stand.azure.subscription(), stand.azure.resource_group()]);
    }
}

#[tokio::test]
async fn throttling_is_told_with_the_time_to_come_back_and_nobody_asks_before() {
    let stand = Stand::with_entra_id().await;
    let after = Duration::from_secs(4);
    stand.azure.befall(Some(Lasting::Throttled { after }));
    for error in errors(&stand).await {
        assert_eq!(error.kind(), ErrorKind::Throttled);
        assert!(
            matches!(error.retry(), Retry::After(left) if left <= after && left > after / 2),
            "{:?}",
            error.retry()
        );
        assert_says(&error, &["no way to", NAME]);
    }
    assert_eq!(stand.asked_azure(), 1);
    stand.azure.befall(None);
    assert_eq!(stand.identity().await.unwrap_err().kind(), ErrorKind::Throttled);
    tokio::time::sleep(after).await;
    stand.identity().await.unwrap();
    stand.backend.observe(&cx(), &target(1)).await.unwrap();
    assert_eq!(stand.asked_azure(), 2);
}

#[tokio::test]
async fn a_kubeconfig_that_cannot_be_read_is_told_without_its_text() {
    let stand = Stand::with_entra_id().await;
    let usual = stand.kubeconfig("{token: secret-words}");
    for (broken, words) in [
        ("secret-words".to_owned(), "no kubeconfig"),
        (String::new(), "no current context"),
        (usual.replace("current-context: cell-1", "current-context: other"), "not in it"),
        (usual.replace("server:", "servant:"), "no address"),
        (
            stand.kubeconfig("{client-certificate-data: c2VjcmV0LXdvcmRz, client-key-data: secret-words}"),
            "cannot be read",
        ),
    ] {
        stand.azure.add_cluster(NAME, broken);
        let error = stand.identity().await.unwrap_err();
        assert_eq!(
            (error.kind(), error.retry(), error.effect()),
            (ErrorKind::Unavailable, Retry::Backoff, Effect::None)
        );
        assert_says(&error, &["no way to", NAME, words]);
        let shown = format!("{error:?} {}", Chain(&error));
        assert!(!shown.contains("secret-words") && !shown.contains("c2VjcmV0"), "{shown}");
    }
    // Mended: what failed is not kept.
    stand.azure.add_cluster(NAME, usual.replace("secret-words", "static-token"));
    stand.identity().await.unwrap();
}

#[tokio::test]
async fn an_answer_that_is_lost_or_cut_is_asked_for_again_by_the_next_call() {
    let stand = Stand::with_entra_id().await;
    for lost in [Once::LostBefore, Once::LostAfter, Once::Html500, Once::MalformedJson] {
        stand.azure.once(CALL, lost.clone());
        let error = stand.identity().await.unwrap_err();
        assert_eq!((error.kind(), error.effect()), (ErrorKind::Unavailable, Effect::None), "{lost:?}: {error}");
        assert_says(&error, &["no way to", NAME]);
        // Where the token for Resource Manager has expired meanwhile, another one is asked for.
        stand.azure.expire_tokens();
    }
    stand.identity().await.unwrap();
    stand.assert_nothing_ran();
}

#[tokio::test]
async fn a_hang_ends_at_the_deadline() {
    let stand = Stand::with_entra_id().await;
    stand.azure.befall(Some(Lasting::Hang));
    let soon = cx().with_timeout(Duration::from_millis(300));
    let error = stand.backend.create(&soon, &target(1)).await.unwrap_err();
    assert_eq!((error.kind(), error.effect()), (ErrorKind::Timeout, Effect::None));
    stand.azure.befall(None);
    // That ends the connection of what the watches still ask, and whoever waits for that is told.
    let mut found = stand.identity().await;
    for _ in 0..20 {
        if found.is_ok() {
            break;
        }
        found = stand.identity().await;
    }
    found.unwrap();
}
