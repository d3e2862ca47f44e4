//! A control plane with real processes and a real store, whose clock is set by hours in the middle of every request, and
//! between two control planes.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::{sync::Arc, time::Duration};

use provisioner_core::{
    seams::{Clock, SettableClock, SystemClock},
    types::Phase,
};
use tests::{
    http,
    place::{Place, Site},
    plane::{Options, Plane, done},
    verb::{NAME, Verb},
};
use tokio::time::Instant;

const PRODUCT: &str = env!("CARGO_BIN_EXE_tests-product");
const HOURS: Duration = Duration::from_secs(7 * 3600);
/// Retry and adopt begin from states of their own, and move like a creation and an update.
const VERBS: [Verb; 9] = [
    Verb::Create,
    Verb::Sleep,
    Verb::Wake,
    Verb::Suspend,
    Verb::Lift,
    Verb::Update,
    Verb::Restart,
    Verb::Delete,
    Verb::Retain,
];
/// What the customer wrote before the clock was set.
const NOTE: &str = "minutes";
/// Far less than the hours by which the clock is set, and enough for a busy machine.
const SOON: Duration = Duration::from_secs(20);

#[derive(Debug, Clone, Copy)]
enum Jump {
    Back,
    Forward,
}

fn set(clock: &SettableClock, jump: Jump) {
    match jump {
        Jump::Back => clock.set_back(HOURS),
        Jump::Forward => clock.set_forward(HOURS),
    }
}

async fn start(site: &Site, clock: &Arc<SettableClock>) -> Plane {
    let clock = Arc::clone(clock) as Arc<dyn Clock>;
    Plane::start(site, Options { clock, ..Options::default() }).await
}

/// One instance up to a request, with the clock set as soon as that is accepted; and again by a new control plane, if asked.
async fn one_life(verb: Verb, jump: Jump, restarted: bool) {
    let place = Place::new(PRODUCT);
    let clock = Arc::new(SettableClock::starting_at(SystemClock.now()));
    let mut plane = start(&place, &clock).await;
    if verb != Verb::Create {
        done(&Verb::Create.ask(&plane.plane, &place).await.unwrap()).await;
        http::text(&plane.endpoint(NAME).await, &format!("/write/{NOTE}")).await;
    }
    let first = match verb {
        Verb::Wake => Some(Verb::Sleep),
        Verb::Lift => Some(Verb::Suspend),
        _ => None,
    };
    if let Some(first) = first {
        done(&first.ask(&plane.plane, &place).await.unwrap()).await;
    }
    let operation = verb.ask(&plane.plane, &place).await.unwrap().operation().id.clone();
    set(&clock, jump);
    if restarted {
        plane.stop().await;
        set(&clock, jump);
        plane = start(&place, &clock).await;
    }
    let began = Instant::now();
    done(&plane.plane.operation(&operation).await.unwrap()).await;
    assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
    check(&plane, &place, verb).await;
    plane.stop().await;
}

async fn check(plane: &Plane, place: &Place, verb: Verb) {
    let events = plane.events(None).await;
    assert!(events.is_sorted_by_key(|event| event.event.at), "time went back: {events:#?}");
    if matches!(verb, Verb::Delete | Verb::Retain) {
        assert!(place.products().is_empty() && place.names("instances").is_empty());
        return;
    }
    let instance = plane.get(NAME).await;
    let phase = match verb {
        Verb::Sleep => Phase::Zero,
        Verb::Suspend => Phase::Suspended,
        _ => Phase::Running,
    };
    assert_eq!(instance.phase, Some(phase), "{instance:#?}");
    assert!(instance.settled && instance.incarnation.unwrap().number() == 1, "{instance:#?}");
    assert_eq!(place.products().len(), usize::from(phase == Phase::Running));
    if phase == Phase::Running {
        let note = if verb == Verb::Create { "" } else { NOTE };
        assert_eq!(http::text(&plane.endpoint(NAME).await, "/note").await, note);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_set_by_hours_in_the_middle_of_a_request_neither_delays_nor_parks_it() {
    for verb in VERBS {
        for jump in [Jump::Back, Jump::Forward] {
            one_life(verb, jump, false).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_set_by_hours_between_two_control_planes_neither_delays_nor_parks_what_was_under_way() {
    for verb in VERBS {
        for jump in [Jump::Back, Jump::Forward] {
            one_life(verb, jump, true).await;
        }
    }
}
