//! What the cluster says instead of yes.

use std::time::{Duration, Instant};

use provisioner_core::{Chain, Effect, Error, ErrorKind, Provisioner, Retry, types::Observed};

use crate::{
    fixture::{Fixture, cx, cx_after_a_call, target},
    server::Answer,
};

/// What `create` fails with when its first write is answered so; and that the backend does not try again by itself.
async fn create_fails(answer: Answer) -> (Fixture, Error) {
    create_fails_at("namespaces", answer).await
}

async fn create_fails_at(plural: &'static str, answer: Answer) -> (Fixture, Error) {
    let fixture = Fixture::new().await;
    fixture.server.answer("create", plural, usize::MAX, answer);
    let error = fixture.backend.create(&cx(), &target(1)).await.unwrap_err();
    assert_eq!(fixture.server.count("create", plural), 1, "tried again by itself");
    assert_eq!((error.operation(), error.instance().map(|id| id.as_str())), ("create", Some("acme")));
    (fixture, error)
}

#[track_caller]
fn assert_says(error: &Error, words: &str) {
    let text = Chain(error).to_string();
    assert!(text.contains(words), "{text}");
    assert!(!error.customer_message().contains("acme-"), "{}", error.customer_message());
}

#[tokio::test]
async fn throttling_is_told_with_the_time_to_come_back() {
    let body = Answer::refusal(429, "TooManyRequests", "too many requests").with_header("retry-after", "7");
    let text = Answer::Status(429, "Too many requests, please try again later.\n".into(), vec![("retry-after", "7")]);
    for answer in [body, text] {
        let (fixture, error) = create_fails(answer).await;
        assert_eq!((error.kind(), error.effect()), (ErrorKind::Throttled, Effect::None));
        assert_eq!(error.retry(), Retry::After(Duration::from_secs(7)));
        fixture.server.clear();
        fixture.backend.create(&cx_after_a_call(), &target(1)).await.unwrap();
    }
}

#[tokio::test]
async fn a_watch_that_is_throttled_comes_back_when_it_is_told() {
    let fixture = Fixture::new().await;
    let throttled = Answer::refusal(429, "TooManyRequests", "later").with_header("retry-after", "5");
    fixture.server.answer("list", "pods", 1, throttled);
    let error = fixture.backend.create(&cx(), &target(1)).await.unwrap_err();
    assert_eq!((error.kind(), error.retry()), (ErrorKind::Throttled, Retry::After(Duration::from_secs(5))));
    // By its own pauses it would have asked three times by now.
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(fixture.server.count("list", "pods"), 1);
    let mut made = fixture.backend.create(&cx(), &target(1)).await;
    for _ in 0..500 {
        if made.is_ok() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
        made = fixture.backend.create(&cx(), &target(1)).await;
    }
    made.unwrap();
}

#[tokio::test]
async fn a_server_error_may_have_acted_and_names_its_request() {
    let (_, error) = create_fails(Answer::refusal(500, "InternalError", "etcdserver: request timed out")).await;
    assert_eq!((error.kind(), error.effect()), (ErrorKind::Unavailable, Effect::Unknown));
    assert_eq!((error.code(), error.request_id()), (Some("InternalError"), Some("a-1")));
    assert_says(&error, "create namespaces: etcdserver: request timed out");
}

#[tokio::test]
async fn a_webhook_that_times_out_is_named_and_nothing_was_done() {
    let message = "Internal error occurred: failed calling webhook \"policy.example.com\": failed to call webhook: Post \
                   \"https://policy.example.svc:443/\": context deadline exceeded";
    for (code, reason) in [(500, "InternalError"), (504, "Timeout")] {
        let (_, error) = create_fails(Answer::refusal(code, reason, message)).await;
        assert_eq!((error.kind(), error.effect()), (ErrorKind::Unavailable, Effect::None), "{code}");
        assert_says(&error, "policy.example.com");
    }
}

#[tokio::test]
async fn a_missing_right_names_verb_and_resource() {
    let message = "statefulsets.apps is forbidden: User \"u\" cannot create resource \"statefulsets\"";
    let (_, error) = create_fails_at("statefulsets", Answer::refusal(403, "Forbidden", message)).await;
    // What it needs was made before it.
    assert_eq!((error.kind(), error.retry(), error.effect()), (ErrorKind::Unauthorized, Retry::Never, Effect::Unknown));
    assert_says(&error, "create statefulsets.apps");

    let fixture = Fixture::new().await;
    fixture.server.answer("list", "ingresses", usize::MAX, Answer::refusal(403, "Forbidden", "it is forbidden"));
    let error = fixture.backend.observe(&cx(), &target(1)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unauthorized);
    assert_says(&error, "list ingresses.networking.k8s.io");
}

#[tokio::test]
async fn a_right_that_is_taken_away_later_is_missed_too() {
    let (fixture, target) = Fixture::with_instance().await;
    fixture.server.answer("watch", "pods", usize::MAX, Answer::refusal(403, "Forbidden", "it is forbidden"));
    fixture.server.cut_watches();
    let mut seen = fixture.backend.observe(&cx(), &target).await;
    for _ in 0..1000 {
        if seen.is_err() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
        seen = fixture.backend.observe(&cx(), &target).await;
    }
    let error = seen.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unauthorized);
    assert_says(&error, "watch pods");
    // And given back.
    fixture.server.clear();
    for _ in 0..500 {
        if fixture.backend.observe(&cx(), &target).await.is_ok() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("it is still missed");
}

#[tokio::test]
async fn who_is_not_known_is_unauthorized() {
    let (_, error) = create_fails(Answer::refusal(401, "Unauthorized", "Unauthorized")).await;
    assert_eq!((error.kind(), error.retry(), error.effect()), (ErrorKind::Unauthorized, Retry::Never, Effect::None));

    let fixture = Fixture::new().await;
    fixture.server.answer("*", "*", usize::MAX, Answer::refusal(401, "Unauthorized", "Unauthorized"));
    let error = fixture.backend.observe(&cx(), &target(1)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unauthorized);
    let error = fixture.backend.identity(&cx()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unauthorized);
}

#[tokio::test]
async fn an_answer_that_nobody_can_read_may_have_acted() {
    let (_, error) = create_fails(Answer::Status(200, "<html>Welcome</html>".into(), vec![])).await;
    assert_eq!((error.kind(), error.effect()), (ErrorKind::Internal, Effect::Unknown));
    assert_says(&error, "create namespaces");
}

#[tokio::test]
async fn a_page_that_is_not_found_is_nothing_that_is_absent() {
    let (fixture, target) = Fixture::with_instance().await;
    for page in ["404 page not found\n", "<html>404</html>"] {
        fixture.server.answer("get", "namespaces", 1, Answer::Status(404, page.into(), vec![]));
        let error = fixture.backend.observe(&cx_after_a_call(), &self::target(2)).await;
        // This process wrote last, and knows what: nobody is asked.
        assert!(matches!(error, Ok(Observed::Present(_))), "{error:?}");
        fixture.server.clear();

        fixture.server.answer("delete", "namespaces", 1, Answer::Status(404, page.into(), vec![]));
        let gone = provisioner_core::types::DataDisposition::Delete;
        let error = fixture.backend.destroy(&cx(), &target, gone).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        fixture.server.clear();

        // After a verb that failed, the cluster itself is asked.
        fixture.server.answer("get", "namespaces", 1, Answer::Status(404, page.into(), vec![]));
        let error = fixture.backend.observe(&cx_after_a_call(), &target).await.unwrap_err();
        assert_eq!((error.kind(), error.effect()), (ErrorKind::Unavailable, Effect::None));
        fixture.server.clear();
        fixture.backend.create(&cx(), &target).await.unwrap();
    }
}

#[tokio::test]
async fn a_hang_ends_at_the_deadline() {
    let fixture = Fixture::new().await;
    fixture.observe(&target(1)).await;
    fixture.server.answer("create", "namespaces", 1, Answer::Hang);
    let started = Instant::now();
    // Long enough for the request to be sent before.
    let in_time = cx().with_timeout(Duration::from_secs(2));
    let error = fixture.backend.create(&in_time, &target(1)).await.unwrap_err();
    assert_eq!((error.kind(), error.effect()), (ErrorKind::Timeout, Effect::Unknown));
    assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
    // Nothing was done, and who looks now has to ask; that hangs too.
    fixture.server.answer("get", "namespaces", 1, Answer::Hang);
    let after = cx_after_a_call().with_timeout(Duration::from_millis(300));
    let error = fixture.backend.observe(&after, &target(1)).await.unwrap_err();
    assert_eq!((error.kind(), error.effect()), (ErrorKind::Timeout, Effect::None));
    assert_eq!(fixture.observe(&target(1)).await, Observed::Absent);
}
