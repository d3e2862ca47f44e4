//! Refusals, answers that are lost, and operations that do not end as they should.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use provisioner_core::{Effect, ErrorKind, Provisioner, Retry, types::Observed};
use test_azure::{Lasting, Once, Options, Style};

use crate::fixture::{Fixture, anew, cx, idle, target};

#[tokio::test]
async fn tokens_that_expire_are_renewed_and_nobody_notices() {
    let fixture = Fixture::start(idle()).await;
    let target = target("a");
    fixture.create(&target).await.unwrap();
    fixture.stand.expire_tokens();
    fixture.backend.scale_to_zero(&cx(), &target).await.unwrap();
    fixture.stand.expire_tokens();
    fixture.destroy(&target).await.unwrap();
    assert_eq!(fixture.left().await, [""; 0]);
}

#[tokio::test]
async fn in_a_storm_of_refusals_nothing_is_sent_until_the_service_wants_it_again() {
    let fixture = Fixture::start(idle()).await;
    let after = Duration::from_secs(20);
    fixture.stand.befall(Some(Lasting::Throttled { after }));
    let error = fixture.create(&target("a")).await.unwrap_err();
    assert_eq!(
        (error.kind(), error.retry(), error.effect()),
        (ErrorKind::Throttled, Retry::After(after), Effect::None)
    );
    assert!(error.request_id().is_some(), "{error:?}");
    let before = fixture.stand.calls();
    let hasty = cx().with_timeout(Duration::from_millis(200));
    for name in ["a", "b", "c"] {
        let error = fixture.backend.create(&hasty, &target(name)).await.unwrap_err();
        assert_eq!(error.effect(), Effect::None, "{error:?}");
    }
    assert_eq!(fixture.stand.calls(), before, "it was asked before it wanted to be");
    fixture.stand.befall(None);
    // Nobody waits for the time to pass.
    tokio::time::pause();
    tokio::time::advance(after).await;
    tokio::time::resume();
    fixture.create(&target("a")).await.unwrap();
}

#[tokio::test]
async fn a_hundred_sign_ups_at_once_wait_for_what_is_documented_and_none_is_refused() {
    let options = Options { buckets: Some(test_azure::Buckets::default()), ..idle() };
    let fixture = Fixture::with(options, |config| config.buckets = backend_appservice::Buckets::default()).await;
    let targets: Vec<_> = (0..100).map(|n| target(&format!("i{n}"))).collect();
    let began = std::time::Instant::now();
    let made = futures::future::join_all(targets.iter().map(|target| fixture.create(target))).await;
    assert!(made.iter().all(Result::is_ok), "{:?}", made.iter().find(|made| made.is_err()));
    assert_eq!((fixture.sites().await.len(), fixture.plans().await.len()), (100, 13));
    assert!(began.elapsed() > Duration::from_secs(5), "three writes each are more than come at once");
}

#[tokio::test]
async fn a_service_that_fails_while_an_operation_goes_on_is_asked_again() {
    for style in [Style::AsyncOperation, Style::Location] {
        let fixture = Fixture::start(Options { style, work: Duration::from_millis(300), ..idle() }).await;
        for status in [503, 500, 429] {
            let fault = |status| Once::BeforeSend {
                status,
                code: "Unwell".to_owned(),
                message: "not now".to_owned(),
                capitalised: false,
            };
            fixture.stand.once("Poll", fault(status));
        }
        let target = target("a");
        fixture.create(&target).await.unwrap();
        assert_eq!(fixture.sites().await.len(), 1, "{style:?}");
    }
}

#[tokio::test]
async fn an_operation_without_a_word_about_its_end_has_ended_well() {
    let fixture = Fixture::start(Options { style: Style::AsyncOperation, ..idle() }).await;
    // All that the contract has for the operations of App Service.
    for _ in 0..20 {
        let ended = Once::BeforeSend { status: 204, code: String::new(), message: String::new(), capitalised: false };
        fixture.stand.once("Poll", ended);
    }
    fixture.create(&target("a")).await.unwrap();
    assert_eq!(fixture.sites().await.len(), 1);
}

#[tokio::test]
async fn an_operation_that_never_ends_is_given_up_at_the_deadline_and_taken_up_later() {
    let fixture = Fixture::start(idle()).await;
    fixture.stand.once("WebApps_CreateOrUpdate", Once::NeverEnds);
    let target = target("a");
    let patient = cx().with_timeout(Duration::from_secs(8));
    let error = fixture.backend.create(&patient, &target).await.unwrap_err();
    assert_eq!((error.kind(), error.effect()), (ErrorKind::Timeout, Effect::Unknown));
    // What is known of it is that a call was made.
    let mut soon = cx();
    soon.since_last_call = Some(Duration::ZERO);
    let seen = fixture.backend.observe(&soon, &target).await.unwrap();
    assert!(matches!(seen, Observed::Unknown { .. }), "{seen:?}");
    fixture.create(&target).await.unwrap();
    assert_eq!(fixture.sites().await.len(), 1);
}

#[tokio::test]
async fn nobody_at_another_origin_gets_the_token() {
    let fixture = Fixture::start(idle()).await;
    let thief = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let asked = Arc::new(AtomicBool::new(false));
    let address = thief.local_addr().unwrap();
    let noted = Arc::clone(&asked);
    tokio::spawn(async move {
        while thief.accept().await.is_ok() {
            noted.store(true, Ordering::Relaxed);
        }
    });
    fixture.stand.once("WebApps_CreateOrUpdate", Once::PollElsewhere(format!("https://{address}/operations/1")));
    let error = fixture.create(&target("a")).await.unwrap_err();
    assert_eq!((error.kind(), error.effect()), (ErrorKind::Internal, Effect::Unknown));
    assert!(format!("{error}").contains("another origin"), "{error}");
    assert!(!asked.load(Ordering::Relaxed), "it was asked");
    fixture.create(&target("a")).await.unwrap();
    assert_eq!(fixture.sites().await.len(), 1);
}

#[tokio::test]
async fn whatever_befalls_a_write_the_next_call_comes_to_one_site() {
    let refused = |status, capitalised| Once::BeforeSend {
        status,
        code: "InternalServerError".to_owned(),
        message: "something".to_owned(),
        capitalised,
    };
    let faults = [
        refused(500, true),
        refused(503, false),
        Once::LostBefore,
        Once::LostAfter,
        Once::Html500,
        Once::MalformedJson,
        Once::Delay(Duration::from_millis(100)),
        Once::FailsLater { code: "Conflict".to_owned(), message: "it did not work out".to_owned() },
    ];
    let fixture = Fixture::start(idle()).await;
    for operation in
        ["AppServicePlans_CreateOrUpdate", "FileShares_Create", "WebApps_CreateOrUpdate", "FileShares_Update"]
    {
        for (n, fault) in faults.iter().enumerate() {
            if matches!(fault, Once::FailsLater { .. }) && operation.starts_with("FileShares") {
                continue;
            }
            let target = target(&format!("i{n}"));
            fixture.stand.once(operation, fault.clone());
            let first = fixture.create(&target).await;
            if let Err(error) = &first {
                let known = [ErrorKind::Unavailable, ErrorKind::Internal];
                assert!(
                    known.contains(&error.kind()) && error.retry() != Retry::Never,
                    "{operation} {fault:?}: {error:?}"
                );
            }
            fixture.create(&target).await.unwrap_or_else(|error| panic!("{operation} {fault:?}: {error:?}"));
            assert_eq!(fixture.sites().await.len(), 1, "{operation} {fault:?}");
            fixture.destroy(&target).await.unwrap();
            assert_eq!(fixture.left().await, [""; 0], "{operation} {fault:?}");
        }
    }
}

#[tokio::test]
async fn a_name_that_a_stranger_has_is_another_making_s_turn() {
    let fixture = Fixture::start(idle()).await;
    let first = target("a");
    // Its name is a function of what it is, so that it can be known beforehand.
    fixture.create(&first).await.unwrap();
    let name = fixture.sites().await[0].name.clone();
    fixture.destroy(&first).await.unwrap();
    fixture.stand.take_name(&name);
    let error = fixture.create(&first).await.unwrap_err();
    assert_eq!((error.retry(), error.effect()), (Retry::Anew, Effect::None), "{error:?}");
    assert!(error.code().is_some_and(|code| code.contains("54001")), "{error:?}");
    assert_eq!(fixture.plans().await, [0; 0], "no plan is kept for it");
    let second = anew(&first);
    fixture.create(&second).await.unwrap();
    fixture.destroy(&second).await.unwrap();
    assert_eq!(fixture.left().await, [""; 0]);
}

#[tokio::test]
async fn without_a_resource_group_nothing_is_said_to_be_absent() {
    let fixture = Fixture::with(idle(), |config| config.scope.resource_group = "elsewhere".to_owned()).await;
    let error = fixture.backend.observe(&cx(), &target("a")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unauthorized, "{error:?}");
    assert!(fixture.backend.identity(&cx()).await.is_err());
}
