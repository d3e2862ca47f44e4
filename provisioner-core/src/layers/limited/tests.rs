use std::time::Duration;

use tokio::time::Instant;

use super::{
    super::{
        Chaos, Fault,
        fixture::{VERBS, cx, memory, target, verb},
    },
    *,
};
use crate::{
    context::Priority,
    error::{Effect, Error},
    memory::{MemoryConfig, MemoryProvisioner},
};

const SECOND: Duration = Duration::from_secs(1);

/// A backend with one place, and a call without end that has it.
async fn taken() -> (Limited<Chaos<MemoryProvisioner>>, Chaos<MemoryProvisioner>, tokio::task::JoinHandle<()>) {
    let chaos = Chaos::new(memory());
    let limited = Limited::new(chaos.clone(), 1);
    chaos.script("identity", Fault::Hang);
    let hanging = limited.clone();
    let hanging = tokio::spawn(async move { drop(hanging.identity(&cx()).await) });
    tokio::task::yield_now().await;
    assert_eq!(chaos.calls()["identity"], 1);
    (limited, chaos, hanging)
}

#[tokio::test(start_paused = true)]
async fn so_many_calls_run_at_once_and_the_others_wait() {
    let chaos = Chaos::new(memory());
    let limited = Limited::new(chaos.clone(), 2);
    assert_eq!(limited.to_string(), "Limited(Chaos(Memory(memory)))");
    let began = Instant::now();
    let calls: Vec<_> = (0..5)
        .map(|n| {
            chaos.script("create", Fault::Late { after_ms: 1000 });
            let limited = limited.clone();
            tokio::spawn(async move {
                limited.create(&cx(), &target(n)).await.unwrap();
                began.elapsed()
            })
        })
        .collect();
    tokio::task::yield_now().await;
    assert_eq!(chaos.calls()["create"], 2, "the others were not sent");
    let mut took = Vec::new();
    for call in calls {
        took.push(call.await.unwrap().as_secs());
    }
    assert_eq!(took, [1, 1, 2, 2, 3], "who came first is served first");
}

#[tokio::test(start_paused = true)]
async fn a_wait_ends_at_the_deadline_or_when_it_is_cancelled_and_nothing_is_sent() {
    let (limited, chaos, hanging) = taken().await;
    let target = target(1);
    let expect = |error: &Error, kind, operation| {
        assert_eq!((error.kind(), error.effect()), (kind, Effect::None), "{operation}");
        assert_eq!((error.operation(), error.instance()), (operation, Some(&target.id)));
    };
    for operation in VERBS {
        let began = Instant::now();
        let late = verb(&limited, operation, &cx().with_timeout(5 * SECOND), &target).await.unwrap_err();
        assert_eq!(began.elapsed(), 5 * SECOND, "{operation}");
        expect(&late, ErrorKind::Timeout, operation);

        let (cx, began) = (cx(), Instant::now());
        let cancel = async {
            tokio::time::sleep(SECOND).await;
            cx.cancel.cancel();
        };
        let (cancelled, ()) = tokio::join!(verb(&limited, operation, &cx, &target), cancel);
        assert_eq!(began.elapsed(), SECOND, "{operation}");
        expect(&cancelled.unwrap_err(), ErrorKind::Cancelled, operation);
    }
    let cx = cx().with_timeout(SECOND);
    let many = limited.observe_many(&cx, &[target.clone(), target.clone()]).await;
    assert_eq!(many.len(), 2);
    many.iter().for_each(|answer| expect(answer.as_ref().unwrap_err(), ErrorKind::Timeout, "observe many"));
    let listed: Vec<_> = limited.list(&cx).collect().await;
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[0].as_ref().unwrap_err().effect(), Effect::None);
    assert_eq!(chaos.calls().into_iter().collect::<Vec<_>>(), [("identity", 1)], "nothing else arrived");

    // And the place of a call that is dropped is free again.
    hanging.abort();
    assert!(hanging.await.is_err());
    limited.create(&cx, &target).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_wait_that_is_dropped_passes_its_turn_on() {
    let (limited, chaos, hanging) = taken().await;
    let target = target(1);
    for _ in 0..3 {
        let cx = cx();
        let waits = limited.observe(&cx, &target);
        assert!(tokio::time::timeout(SECOND, waits).await.is_err());
    }
    let last = limited.clone();
    let last = tokio::spawn(async move { last.observe(&cx(), &super::super::fixture::target(1)).await });
    tokio::task::yield_now().await;
    hanging.abort();
    last.await.unwrap().unwrap();
    assert_eq!(chaos.calls()["observe"], 1);
}

#[tokio::test(start_paused = true)]
async fn a_listing_has_a_place_only_while_its_caller_waits_for_it() {
    let backend = MemoryProvisioner::new(MemoryConfig { page: 2, ..MemoryConfig::default() });
    let chaos = Chaos::new(backend);
    let limited = Limited::new(chaos.clone(), 1);
    for n in 0..5 {
        limited.create(&cx(), &target(n)).await.unwrap();
    }
    let mut listed = limited.list(&cx());
    listed.next().await.unwrap().unwrap();
    // Its caller works on what came, for which it needs the only place.
    limited.create(&cx().with_timeout(SECOND), &target(7)).await.unwrap();
    assert!(listed.collect::<Vec<_>>().await.iter().all(Result::is_ok));

    chaos.script("list", Fault::Late { after_ms: 1000 });
    let mut listed = limited.list(&cx());
    let began = Instant::now();
    let target_1 = target(1);
    let cx_1 = cx();
    let look = async {
        tokio::task::yield_now().await;
        limited.observe(&cx_1, &target_1).await.unwrap();
        began.elapsed()
    };
    let (first, looked) = tokio::join!(listed.next(), look);
    first.unwrap().unwrap();
    assert_eq!(looked, SECOND, "it waited for the listing");
}

#[tokio::test(start_paused = true)]
async fn a_watch_has_no_place() {
    let memory = memory();
    let limited = Limited::new(memory.clone(), 1);
    limited.create(&cx(), &target(1)).await.unwrap();
    let (_place, None) = limited.places.enter(Priority::Interactive) else { panic!("there is a place") };
    let mut events = limited.watch(&cx());
    memory.vanish(&cx().control_plane, &target(1).id);
    assert_eq!(tokio::time::timeout(SECOND, events.next()).await.unwrap(), Some(target(1).id));
}

#[tokio::test(start_paused = true)]
async fn backends_can_share_their_places() {
    let (limited, _chaos, hanging) = taken().await;
    let other = limited.share(memory());
    let late = other.create(&cx().with_timeout(SECOND), &target(1)).await.unwrap_err();
    assert_eq!((late.kind(), late.effect()), (ErrorKind::Timeout, Effect::None));
    hanging.abort();
    other.create(&cx().with_timeout(SECOND), &target(1)).await.unwrap();
}

/// Has so many of a line come for a place.
fn come(
    places: &Arc<Places>,
    line: Priority,
    many: usize,
) -> Vec<(Priority, Place, tokio::sync::oneshot::Receiver<()>)> {
    let waiting = (0..many).map(|_| match places.enter(line) {
        (place, Some(turn)) => (line, place, turn),
        (_, None) => panic!("there is a place"),
    });
    waiting.collect()
}

#[test]
fn people_come_first_and_the_background_has_every_fourth_turn() {
    let places = Places::new(1);
    let (first, None) = places.enter(Priority::Background) else { panic!("nobody else is there") };
    let mut waiting = come(&places, Priority::Background, 8);
    waiting.extend(come(&places, Priority::Interactive, 8));
    let mut order = String::new();
    drop(first);
    while !waiting.is_empty() {
        let mut served =
            waiting.iter_mut().enumerate().filter_map(|(at, (.., turn))| turn.try_recv().ok().map(|()| at));
        let at = served.next().expect("somebody is served");
        assert_eq!(served.next(), None, "one at a time");
        let (line, place, _) = waiting.remove(at);
        order.push(if line == Priority::Interactive { 'p' } else { 'b' });
        drop(place);
    }
    assert_eq!(order, "pppbpppbppbbbbbb");
}

#[test]
fn a_background_backlog_leaves_a_quarter_of_the_places_to_people() {
    let places = Places::new(8);
    let background: Vec<_> = (0..6).map(|_| places.enter(Priority::Background)).collect();
    assert!(background.iter().all(|(_, turn)| turn.is_none()));
    let mut backlog = come(&places, Priority::Background, 100);
    let people: Vec<_> = (0..2).map(|_| places.enter(Priority::Interactive)).collect();
    assert!(people.iter().all(|(_, turn)| turn.is_none()));
    let mut person = come(&places, Priority::Interactive, 1);
    // A place that people leave is no place for the background, of which enough run.
    drop(people);
    assert!(person[0].2.try_recv().is_ok());
    assert!(backlog.iter_mut().all(|(.., turn)| turn.try_recv().is_err()));
    drop(background);
    assert_eq!(backlog.iter_mut().filter_map(|(.., turn)| turn.try_recv().ok()).count(), 6);
}

#[test]
fn there_is_one_place_at_least_and_the_background_can_have_it() {
    let places = Places::new(0);
    let (place, None) = places.enter(Priority::Background) else { panic!("there is a place") };
    drop(come(&places, Priority::Background, 3));
    drop(place);
    assert!(places.enter(Priority::Background).1.is_none(), "nothing is lost");
}
