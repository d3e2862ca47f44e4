//! Refusals, answers that cannot be read, and none at all.

use super::*;

#[tokio::test]
async fn a_throttled_call_says_when_to_come_back_and_the_next_one_waits() {
    let server = Server::start(|_| refusal(503, "RequestLimitExceeded")).await;
    let backend = server.backend(config());
    let error = backend.create(&cx(), &target(1)).await.unwrap_err();
    assert_eq!((error.kind(), error.effect()), (ErrorKind::Throttled, Effect::None));
    assert!(matches!(error.retry(), Retry::After(_)), "{error}");
    assert_eq!((error.code(), error.request_id()), (Some("RequestLimitExceeded"), Some("request-1")));
    server.answer(forgetful);
    server.asked();
    let hasty = cx().with_timeout(Duration::from_millis(300));
    let error = backend.create(&hasty, &target(2)).await.unwrap_err();
    assert_eq!((error.kind(), error.effect()), (ErrorKind::Timeout, Effect::None), "{error}");
    assert_eq!(server.asked().len(), 0, "nothing is sent for a while");
}

#[tokio::test]
async fn answers_that_cannot_be_read_are_told_as_such() {
    for (status, body) in [(200, "<unfinished"), (500, "<html>oh no</html>"), (502, "")] {
        let answer = (status, body.to_owned());
        let server = Server::start(move |asked| match asked.action.as_str() {
            "RunInstances" => answer.clone(),
            _ => empty(asked),
        })
        .await;
        let backend = server.backend(config());
        let error = backend.create(&cx(), &target(1)).await.unwrap_err();
        assert_eq!(error.effect(), Effect::Unknown, "{status} {body}: {error}");
        assert_ne!(error.retry(), Retry::Never, "{status} {body}: {error}");
        assert!(error.to_string().contains("acme-1") && error.to_string().contains("RunInstances"), "{error}");
        // Nobody looks, so nobody has acted.
        let answer = (status, body.to_owned());
        server.answer(move |_| answer.clone());
        let error = backend.observe(&cx(), &target(2)).await.unwrap_err();
        assert_eq!(error.effect(), Effect::None, "{error}");
    }
}

#[tokio::test]
async fn nobody_there_is_no_effect() {
    let (server, _) = start().await;
    drop(server);
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let free = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let backend = Server::at(free).backend(config());
    let error = backend.create(&cx(), &target(1)).await.unwrap_err();
    assert_eq!((error.kind(), error.effect()), (ErrorKind::Unavailable, Effect::None), "{error}");
}

#[tokio::test]
async fn a_machine_that_is_protected_is_reported() {
    let server = Server::start(|asked| match asked.action.as_str() {
        "TerminateInstances" => refusal(400, "OperationNotPermitted"),
        _ => fleet(asked),
    })
    .await;
    let backend = server.backend(config());
    let error = backend.destroy(&cx(), &target(1), DataDisposition::Retain).await.unwrap_err();
    assert_eq!((error.kind(), error.field(), error.retry()), (ErrorKind::Conflict, Some("protection"), Retry::Backoff));
}

/// What a machine that nobody shows yet is asked by its id.
#[tokio::test]
async fn not_found_right_after_it_was_made_is_no_absence() {
    let server = Server::start(|asked| match asked.action.as_str() {
        "DescribeInstances" => machines(asked, &[Thing::machine(&target(1), "running").with("volume", "vol-1")]),
        "DescribeInstanceStatus" | "CreateTags" => refusal(400, "InvalidInstanceID.NotFound"),
        _ => empty(asked),
    })
    .await;
    let backend = server.backend(config());
    let seen = backend.observe(&cx(), &target(1)).await.unwrap();
    assert_eq!(seen.phase(), Some(Phase::Provisioning), "{seen:?}");
    let error = backend.scale_to_zero(&cx(), &target(1)).await.unwrap_err();
    assert_eq!((error.kind(), error.retry()), (ErrorKind::NotFound, Retry::Backoff), "{error}");
}

/// Reads what is asked, and hangs up.
#[tokio::test]
async fn a_connection_that_is_cut_leaves_the_effect_in_doubt() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let backend = Server::at(format!("http://{}", listener.local_addr().unwrap())).backend(config());
    let service = tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let mut request = Vec::new();
                let mut piece = [0; 65_536];
                loop {
                    let read = stream.read(&mut piece).await.unwrap();
                    request.extend_from_slice(&piece[..read]);
                    let text = String::from_utf8_lossy(&request).into_owned();
                    if read == 0 || text.contains("Action=RunInstances") {
                        return;
                    }
                    let Some((_, action)) = text.split_once("Action=") else { continue };
                    let action = action.split('&').next().unwrap().to_owned();
                    let asked = Asked { action, parameters: std::collections::BTreeMap::new() };
                    let (_, body) = empty(&asked);
                    let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len());
                    stream.write_all((head + &body).as_bytes()).await.unwrap();
                    request.clear();
                }
            });
        }
    });
    let error = backend.create(&cx(), &target(1)).await.unwrap_err();
    assert_eq!((error.kind(), error.effect()), (ErrorKind::Unavailable, Effect::Unknown), "{error}");
    assert_ne!(error.retry(), Retry::Never);
    service.abort();
}
