//! A replica that stands still while others take its work over, and goes on as if nothing had happened.

use std::time::Duration;

use provisioner_core::types::Phase;
use test_replicas::{
    command::{Answer, Ask, Verb, Why},
    stop::Stop,
};

use tokio::time::sleep;

use crate::{
    PATIENCE,
    process::Replica,
    until,
    world::{Database, LAPSES_AFTER, World},
};

/// What came late is looked for after so long and a session more: until then the test has to bring it about, also on a
/// busy machine.
const CALL_TIMEOUT: Duration = Duration::from_secs(20);

/// How late what is late comes: when nobody who looks at once sees it any more.
const LATE: Duration = Duration::from_secs(2);

/// The one that is paused is `a`; the others are asked by name.
async fn world() -> World {
    let world = World::new(Database::shared()).await.with_timings(LAPSES_AFTER, CALL_TIMEOUT);
    world.start_all(&["a", "b", "c"]).await;
    world
}

async fn accepted(replica: &Replica, verb: Verb, name: &str) -> String {
    let ask = Ask::Request { verb, name: name.to_owned(), key: format!("{verb:?} {name} of {}", replica.name) };
    match replica.insist(ask).await {
        Answer::Accepted { operation } => operation,
        other => panic!("{verb:?} {name}: {other:?}"),
    }
}

async fn ended(replica: &Replica, operation: String) -> String {
    match replica.insist(Ask::Wait { operation }).await {
        Answer::Ended { state, .. } => state,
        other => panic!("{other:?}"),
    }
}

async fn stop_before(replica: &Replica, stop: Stop) {
    assert_eq!(replica.answer(Ask::Stop(stop)).await, Answer::Done);
}

/// Waits until the thing of this instance is in this phase, and that is in the store; without a thing it is gone.
async fn until_phase(world: &World, name: &str, phase: Phase) {
    let there = || async {
        let settled = world.look(name).await.is_some_and(|found| found.settled && found.phase == Some(phase));
        (settled && world.provider.thing(name).is_some_and(|thing| thing.phase == phase)).then_some(())
    };
    until(&format!("{name} is {phase}"), there).await;
}

/// The paused one has another session and works.
async fn goes_on(world: &World, replica: &Replica) {
    replica.until_logged("a new session with the store", PATIENCE).await;
    let sessions = format!("SELECT count(*) FROM sessions WHERE holder = '{}'", replica.name);
    assert!(world.database.number(&sessions).await >= 2);
    // Asked before it has noticed, it refuses at first.
    let operation = accepted(replica, Verb::Create, "afterwards").await;
    assert_eq!(ended(replica, operation).await, "done");
}

async fn refused(replica: &Replica, name: &str) -> Vec<Why> {
    match replica.answer(Ask::Report).await {
        Answer::Report { refused } => {
            refused.into_iter().filter(|refused| refused.instance == name).map(|refused| refused.why).collect()
        }
        other => panic!("{other:?}"),
    }
}

/// It stands still when it is about to wake an instance; meanwhile that is put to sleep again. Then it wakes it.
pub(crate) async fn about_to_call() {
    let world = world().await;
    let (a, b) = (world.replica("a"), world.replica("b"));
    for verb in [Verb::Create, Verb::Sleep] {
        let operation = accepted(&a, verb, "slept").await;
        assert_eq!(ended(&a, operation).await, "done");
    }
    stop_before(&a, Stop::Call { verb: "resume".into(), name: "slept".into() }).await;
    let woken = accepted(&a, Verb::Wake, "slept").await;
    a.until_paused().await;
    world.take_out(&a);
    let slept = accepted(&b, Verb::Sleep, "slept").await;
    assert_eq!(ended(&b, slept).await, "done");
    assert_eq!(ended(&b, woken).await, "superseded");
    assert_eq!(world.provider.thing("slept").unwrap().phase, Phase::Zero);
    sleep(LATE).await;
    let calls = world.provider.arrived().len();
    a.go_on();
    until("the late call arrives", || async {
        let late = world.provider.arrived().into_iter().skip(calls).find(|call| call.by == "a");
        late.map(|call| assert_eq!(call.verb.as_str(), "resume"))
    })
    .await;
    until("it is asleep again", || async {
        let undone = world.provider.arrived().into_iter().skip(calls);
        let undone = undone.filter(|call| call.verb.as_str() == "scale to zero" && call.name == "slept").count();
        (undone > 0).then_some(())
    })
    .await;
    until_phase(&world, "slept", Phase::Zero).await;
    goes_on(&world, &a).await;
    until_phase(&world, "slept", Phase::Zero).await;
    world.exactly(&["slept".into(), "afterwards".into()]).await;
}

/// Its calls are on their way when it is paused, and arrive when everything has changed.
pub(crate) async fn calls_under_way() {
    let world = world().await;
    let (a, b) = (world.replica("a"), world.replica("b"));
    let names = ["to-sleep", "to-go", "to-run"];
    let mut held = names.map(|name| world.provider.hold("create", name));
    let mut created = Vec::new();
    for name in names {
        created.push(accepted(&a, Verb::Create, name).await);
    }
    for call in &mut held {
        call.arrived().await;
    }
    a.pause().await;
    world.take_out(&a);
    let slept = accepted(&b, Verb::Sleep, "to-sleep").await;
    let gone = accepted(&b, Verb::Destroy, "to-go").await;
    for operation in [slept, gone, created[2].clone()] {
        assert_eq!(ended(&b, operation).await, "done");
    }
    assert!(world.look("to-go").await.is_none());
    let things: Vec<_> = world.provider.things().into_iter().map(|thing| thing.id.to_string()).collect();
    assert_eq!(things, ["to-run"], "nothing of the others was ever made");
    sleep(LATE).await;
    drop(held);
    until("the late calls have acted", || async { (world.provider.made().len() == 3).then_some(()) }).await;
    // By the others alone: the one that made the calls would look again by itself.
    until_phase(&world, "to-sleep", Phase::Zero).await;
    until("what is gone is gone again", || async {
        (world.provider.thing("to-go").is_none() && world.provider.data() == 2).then_some(())
    })
    .await;
    until_phase(&world, "to-run", Phase::Running).await;
    a.go_on();
    goes_on(&world, &a).await;
    world.exactly(&["to-sleep".into(), "to-run".into(), "afterwards".into()]).await;
}

/// It stands still when it is about to write what came of its work. It is also asked for something while it does.
pub(crate) async fn about_to_write() {
    let world = world().await;
    let (a, b) = (world.replica("a"), world.replica("b"));
    stop_before(&a, Stop::Record { name: "acme".into() }).await;
    accepted(&a, Verb::Create, "acme").await;
    a.until_paused().await;
    world.take_out(&a);
    assert_eq!(world.provider.thing("acme").unwrap().phase, Phase::Running, "made, and that is not on record");
    let slept = accepted(&b, Verb::Sleep, "acme").await;
    assert_eq!(ended(&b, slept).await, "done");
    let meanwhile = Ask::Request { verb: Verb::Create, name: "meanwhile".into(), key: "meanwhile".into() };
    let (answer, ()) = futures::join!(a.answer(meanwhile), async {
        a.go_on();
        until("its write is refused", || async { (!refused(&a, "acme").await.is_empty()).then_some(()) }).await;
    });
    assert_eq!(refused(&a, "acme").await[0], Why::SessionLost);
    match answer {
        // It had not noticed yet that it has to have another session.
        Answer::Failed { kind, text } => {
            assert_eq!(kind, "unavailable", "{text}");
            assert!(world.look("meanwhile").await.is_none());
        }
        Answer::Accepted { operation } => assert_eq!(ended(&a, operation).await, "done"),
        other => panic!("{other:?}"),
    }
    goes_on(&world, &a).await;
    until_phase(&world, "acme", Phase::Zero).await;
    world.provider.nothing_was_made_twice();
}
