//! Tokens that end, and what comes of renewing them.

use std::time::Duration;

use futures::future::join_all;
use provisioner_core::{Chain, Effect, ErrorKind, Provisioner, Retry};

use crate::{
    credential::Given,
    fixture::{cx, target},
    server::until,
    stand::Stand,
};

/// Shorter than the time before its end at which a token is renewed.
const SOON: Duration = Duration::from_secs(4 * 60);

#[tokio::test]
async fn a_token_that_ends_soon_is_renewed_before_and_nobody_waits_for_it() {
    let stand = Stand::with_entra_id().await;
    stand.credential.then([Given::For(SOON)]);
    stand.identity().await.unwrap();
    assert_eq!((stand.credential.asked().len(), stand.door.last()), (1, "Bearer cluster-1".into()));
    // This one notices, and goes with the old one.
    stand.identity().await.unwrap();
    assert_eq!(stand.door.last(), "Bearer cluster-1");
    until("it is renewed", || stand.credential.asked().len() == 2).await;
    for _ in 0..200 {
        stand.identity().await.unwrap();
        if stand.door.last() == "Bearer cluster-2" {
            break;
        }
    }
    for _ in 0..20 {
        stand.identity().await.unwrap();
        assert_eq!(stand.door.last(), "Bearer cluster-2");
    }
    assert_eq!(stand.credential.asked().len(), 2, "a good one is not asked for again");
}

#[tokio::test]
async fn a_renewal_that_fails_or_hangs_harms_nothing_while_the_old_token_is_good() {
    for given in [Given::Refused, Given::Nothing] {
        let stand = Stand::with_entra_id().await;
        stand.credential.then([Given::For(SOON), given]);
        stand.identity().await.unwrap();
        stand.identity().await.unwrap();
        until("a renewal", || stand.credential.asked().len() == 2).await;
        for _ in 0..30 {
            stand.identity().await.unwrap();
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert!(stand.door.seen().iter().all(|header| header == "Bearer cluster-1"));
        assert_eq!(stand.credential.asked().len(), 2, "{given:?}: who gives none is not asked with each request");
    }
}

#[tokio::test]
async fn without_a_good_token_nothing_is_sent_and_the_error_says_who_refused() {
    let stand = Stand::with_entra_id().await;
    stand.credential.then([Given::For(Duration::ZERO), Given::Refused]);
    stand.identity().await.unwrap();
    assert_eq!(stand.door.seen().len(), 1);
    let error = stand.identity().await.unwrap_err();
    assert_eq!((error.kind(), error.effect()), (ErrorKind::Unauthorized, Effect::None));
    assert!(Chain(&error).to_string().contains("the account is locked"), "{}", Chain(&error));
    assert_eq!(stand.door.seen().len(), 1);
    // Its next word is asked for by the next call.
    stand.identity().await.unwrap();
    assert_eq!(stand.door.last(), "Bearer cluster-2");
}

#[tokio::test]
async fn a_verb_that_has_no_token_says_so_and_that_nothing_was_done() {
    let stand = Stand::with_entra_id().await;
    stand.credential.then([Given::Refused; 100]);
    let error = stand.backend.create(&cx(), &target(1)).await.unwrap_err();
    assert_eq!((error.kind(), error.effect()), (ErrorKind::Unauthorized, Effect::None));
    assert_eq!((error.operation(), error.instance().map(|id| id.as_str())), ("create", Some("acme")));
    assert!(error.to_string().contains("no token for the cluster"), "{error}");
    let error = stand.backend.observe(&cx(), &target(1)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unauthorized);
    assert_eq!(stand.door.seen(), [""; 0]);
}

#[tokio::test]
async fn a_token_service_that_cannot_be_asked_is_worth_another_try() {
    let stand = Stand::with_entra_id().await;
    stand.credential.then([Given::Unreachable]);
    let error = stand.identity().await.unwrap_err();
    assert_eq!((error.kind(), error.effect()), (ErrorKind::Unavailable, Effect::None));
    assert_ne!(error.retry(), Retry::Never);
    stand.identity().await.unwrap();
}

#[tokio::test]
async fn many_at_once_ask_for_one_token_and_share_one_refusal() {
    let stand = Stand::with_entra_id().await;
    stand.credential.then([Given::Refused]);
    let answers = join_all((0..20).map(|_| stand.identity())).await;
    let refused = answers.iter().filter(|answer| answer.is_err()).count();
    assert_eq!((stand.credential.asked().len(), refused), (1, 20));
    for answer in join_all((0..20).map(|_| stand.identity())).await {
        answer.unwrap();
    }
    assert_eq!((stand.credential.asked().len(), stand.asked_azure()), (2, 1));
}

#[tokio::test]
async fn a_token_that_the_cluster_refuses_is_not_used_again() {
    let stand = Stand::with_entra_id().await;
    stand.identity().await.unwrap();
    stand.door.revoke("Bearer cluster-1");
    let error = stand.identity().await.unwrap_err();
    assert_eq!((error.kind(), error.effect()), (ErrorKind::Unauthorized, Effect::None));
    stand.identity().await.unwrap();
    assert_eq!(stand.door.seen(), ["Bearer cluster-1", "Bearer cluster-1", "Bearer cluster-2"]);
}
