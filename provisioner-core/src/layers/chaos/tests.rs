use tokio::time::Instant;

use super::{
    super::fixture::{VERBS, cx, memory, plane, target, verb},
    *,
};
use crate::{
    error::{Effect, ErrorKind, Retry},
    types::Phase,
};

#[tokio::test(start_paused = true)]
async fn what_was_not_sent_has_no_effect_and_says_so() {
    let (memory, target) = (memory(), target(1));
    let chaos = Chaos::new(memory.clone());
    for operation in VERBS {
        chaos.script(operation, Fault::BeforeSend(ErrorKind::Unavailable));
        chaos.script(operation, Fault::Throttled { after_ms: 1500 });
        let refused = verb(&chaos, operation, &cx(), &target).await.unwrap_err();
        assert_eq!((refused.kind(), refused.effect()), (ErrorKind::Unavailable, Effect::None), "{operation}");
        assert_eq!((refused.operation(), refused.instance()), (operation, Some(&target.id)));
        let throttled = verb(&chaos, operation, &cx(), &target).await.unwrap_err();
        assert_eq!((throttled.kind(), throttled.effect()), (ErrorKind::Throttled, Effect::None), "{operation}");
        assert_eq!(throttled.retry(), Retry::After(Duration::from_millis(1500)));
        assert_eq!(chaos.calls()[operation], 2);
    }
    assert!(memory.calls().is_empty(), "nothing arrived: {:?}", memory.calls());
}

#[tokio::test(start_paused = true)]
async fn a_lost_answer_leaves_its_effect() {
    let (memory, target) = (memory(), target(1));
    let chaos = Chaos::new(memory.clone());
    for (operation, phase) in [("create", Some(Phase::Running)), ("suspend", Some(Phase::Suspended)), ("destroy", None)]
    {
        chaos.script(operation, Fault::AfterApply);
        let lost = verb(&chaos, operation, &cx(), &target).await.unwrap_err();
        assert_eq!((lost.kind(), lost.effect()), (ErrorKind::Timeout, Effect::Unknown), "{operation}");
        assert_eq!(memory.things(&plane()).first().map(|thing| thing.phase), phase, "{operation}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_hanging_call_ends_at_its_deadline_or_when_it_is_cancelled_and_never_arrives() {
    let memory = memory();
    let chaos = Chaos::new(memory.clone());
    for operation in VERBS {
        for _ in 0..3 {
            chaos.script(operation, Fault::Hang);
        }
        let began = Instant::now();
        let hung = verb(&chaos, operation, &cx().with_timeout(Duration::from_secs(5)), &target(1)).await.unwrap_err();
        assert_eq!(began.elapsed(), Duration::from_secs(5), "{operation}");
        assert_eq!((hung.kind(), hung.effect()), (ErrorKind::Timeout, Effect::Unknown), "{operation}");

        let cancelled = cx();
        let cancel = cancelled.cancel.clone();
        let cancel = async move {
            tokio::time::sleep(Duration::from_secs(1)).await;
            cancel.cancel()
        };
        let (target_1, began) = (target(1), Instant::now());
        let (hung, ()) = tokio::join!(verb(&chaos, operation, &cancelled, &target_1), cancel);
        assert_eq!(began.elapsed(), Duration::from_secs(1), "{operation}");
        assert_eq!(hung.unwrap_err().kind(), ErrorKind::Cancelled, "{operation}");

        let cx = cx();
        let ever = tokio::time::timeout(Duration::from_secs(86_400), verb(&chaos, operation, &cx, &target_1));
        assert!(ever.await.is_err(), "{operation}: nobody ends a call without a deadline");
    }
    assert!(memory.calls().is_empty(), "nothing arrived: {:?}", memory.calls());
}

#[tokio::test(start_paused = true)]
async fn a_late_answer_comes_after_its_effect_or_not_before_the_deadline() {
    let (memory, target) = (memory(), target(1));
    let chaos = Chaos::new(memory.clone());
    chaos.script("create", Fault::Late { after_ms: 700 });
    chaos.script("create", Fault::Late { after_ms: 700 });
    let create = tokio::spawn({
        let (chaos, target) = (chaos.clone(), target.clone());
        async move { chaos.create(&cx(), &target).await }
    });
    tokio::time::sleep(Duration::from_millis(699)).await;
    assert_eq!(memory.things(&plane()).len(), 1, "the effect comes at once");
    assert!(!create.is_finished());
    tokio::time::sleep(Duration::from_millis(2)).await;
    assert!(create.is_finished());
    assert_eq!(create.await.unwrap().unwrap().phase(), Some(Phase::Running));
    let late = chaos.create(&cx().with_timeout(Duration::from_millis(600)), &target).await.unwrap_err();
    assert_eq!((late.kind(), late.effect()), (ErrorKind::Timeout, Effect::Unknown));
}

#[tokio::test(start_paused = true)]
async fn a_late_effect_comes_when_nobody_waits_for_it_any_more() {
    let memory = memory();
    // Behind a pointer to any backend, as the engine holds it.
    let chaos = Chaos::new(Arc::new(memory.clone()) as Arc<dyn Provisioner>);
    chaos.script("create", Fault::LateEffect { after_ms: 3000 });
    let began = Instant::now();
    let late = chaos.create(&cx().with_timeout(Duration::from_secs(1)), &target(1)).await.unwrap_err();
    assert_eq!((late.kind(), late.effect()), (ErrorKind::Timeout, Effect::Unknown));
    assert_eq!(began.elapsed(), Duration::from_secs(1));
    assert_eq!((memory.things(&plane()).len(), chaos.late_effects()), (0, 1));
    // Whatever is stopped or cancelled meanwhile.
    chaos.stop();
    tokio::time::sleep(Duration::from_millis(1999)).await;
    assert!(memory.things(&plane()).is_empty());
    tokio::time::sleep(Duration::from_millis(2)).await;
    assert_eq!((memory.things(&plane()).len(), chaos.late_effects()), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_listing_fails_at_its_start_or_half_way_or_hangs() {
    let chaos = Chaos::new(memory());
    for n in 0..5 {
        chaos.create(&cx(), &target(n)).await.unwrap();
    }
    let list = async |cx: OpContext| chaos.list(&cx).collect::<Vec<_>>().await;
    chaos.script("list", Fault::BeforeSend(ErrorKind::Unauthorized));
    chaos.script("list", Fault::AfterApply);
    chaos.script("list", Fault::Hang);
    let refused = list(cx()).await;
    assert_eq!(refused.len(), 1);
    assert_eq!(refused[0].as_ref().unwrap_err().kind(), ErrorKind::Unauthorized);
    let cut = list(cx()).await;
    assert_eq!((cut.len(), cut.iter().filter(|item| item.is_ok()).count()), (3, 2));
    assert_eq!(cut[2].as_ref().unwrap_err().kind(), ErrorKind::Timeout);
    let began = Instant::now();
    let hung = list(cx().with_timeout(Duration::from_secs(5))).await;
    assert_eq!(began.elapsed(), Duration::from_secs(5));
    assert_eq!(hung[0].as_ref().unwrap_err().kind(), ErrorKind::Timeout);
    assert_eq!(list(cx()).await.len(), 5);
    assert_eq!(chaos.calls()["list"], 4);
}

#[tokio::test(start_paused = true)]
async fn a_look_at_many_fails_as_a_whole_when_scripted_and_in_part_at_random() {
    let memory = memory();
    let chaos = Chaos::new(memory.clone());
    let targets: Vec<_> = (0..10).map(target).collect();
    for target in &targets {
        chaos.create(&cx(), target).await.unwrap();
    }
    chaos.script("observe many", Fault::Throttled { after_ms: 1 });
    let all = chaos.observe_many(&cx(), &targets).await;
    assert!(
        all.iter().zip(&targets).all(|(answer, target)| answer.as_ref().unwrap_err().instance() == Some(&target.id))
    );
    assert!(chaos.observe_many(&cx(), &targets).await.iter().all(Result::is_ok));

    let chaos = Chaos::new(memory).with_random(RandomFaults::new(1, 50));
    let mut partly = 0;
    for _ in 0..100 {
        let answers = chaos.observe_many(&cx(), &targets).await;
        assert_eq!(answers.len(), targets.len());
        let failed = answers.iter().filter(|answer| answer.is_err()).count();
        partly += usize::from((1..10).contains(&failed));
        let right = answers.iter().zip(&targets).all(|(answer, target)| match answer {
            Ok(observed) => observed.present().is_some_and(|present| present.incarnation == target.incarnation),
            Err(error) => error.instance() == Some(&target.id),
        });
        assert!(right, "answers stay with their targets");
    }
    assert!(partly > 5, "{partly}");
}

#[tokio::test(start_paused = true)]
async fn an_event_is_lost_and_the_next_one_is_not() {
    let memory = memory();
    let chaos = Chaos::new(memory.clone());
    let mut events = chaos.watch(&cx());
    chaos.script("watch", Fault::Hang);
    for n in [1, 2] {
        memory.create(&cx(), &target(n)).await.unwrap();
        memory.vanish(&plane(), &target(n).id);
    }
    assert_eq!(events.next().await, Some(target(2).id));
}

async fn history(seed: u64, cx: impl Fn() -> OpContext) -> (Vec<String>, BTreeMap<&'static str, u64>, String) {
    let chaos = Chaos::new(memory()).with_random(RandomFaults::new(seed, 30));
    let mut history = Vec::new();
    for n in 0..400 {
        let operation = VERBS[n as usize % VERBS.len()];
        history.push(match verb(&chaos, operation, &cx(), &target(n % 7)).await {
            Ok(observed) => format!("{operation}: {observed:?}"),
            Err(error) => format!("{error} {:?} {:?}", error.effect(), error.retry()),
        });
    }
    (history, chaos.calls(), chaos.to_string())
}

#[tokio::test(start_paused = true)]
async fn the_same_seed_and_the_same_calls_have_the_same_faults() {
    let with_deadline = || cx().with_timeout(Duration::from_secs(10));
    let first = history(7, with_deadline).await;
    assert_eq!(first, history(7, with_deadline).await);
    assert_ne!(first.0, history(8, with_deadline).await.0);
    assert_eq!(first.2, "Chaos(Memory(memory), 30 % from seed 7)");
    let failed = first.0.iter().filter(|line| line.contains("Backoff") || line.contains("After")).count();
    assert!((60..180).contains(&failed), "about 30 of a hundred: {failed} of 400");
    // And a call without a deadline never hangs at random.
    let went_on = tokio::time::timeout(Duration::from_secs(3600), history(7, cx));
    assert!(went_on.await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn random_faults_come_in_every_way_and_end_when_stopped() {
    let mut faults = Faults::new(Random::from_seed(3), RandomFaults::new(3, 100));
    let with_deadline = cx().with_timeout(Duration::from_secs(10));
    let max = Duration::from_secs(4);
    let ways = |faults: &mut Faults, operation: &'static str, cx: &OpContext| {
        let mut ways = std::collections::BTreeSet::new();
        for _ in 0..1000 {
            let fault = faults.next(Call::new(operation, cx, max)).unwrap();
            if let Fault::LateEffect { after_ms } = fault {
                assert!((1..=2000).contains(&after_ms), "half of the longest call at most: {after_ms}");
            }
            ways.insert(format!("{fault:?}").split([' ', ')']).next().unwrap_or_default().to_owned());
        }
        ways.into_iter().collect::<Vec<_>>().join(" ")
    };
    let common = "AfterApply BeforeSend(Unavailable";
    assert_eq!(
        ways(&mut faults, "create", &with_deadline),
        "AfterApply BeforeSend(CapacityExhausted BeforeSend(Unavailable Hang Late LateEffect Throttled"
    );
    assert_eq!(ways(&mut faults, "destroy", &with_deadline), format!("{common} Hang Late LateEffect Throttled"));
    assert_eq!(ways(&mut faults, "observe", &with_deadline), format!("{common} Hang Late Throttled"));
    assert_eq!(ways(&mut faults, "destroy", &cx()), format!("{common} Late Throttled"));

    let chaos = Chaos::new(memory()).with_random(RandomFaults::new(3, 100));
    chaos.script("create", Fault::AfterApply);
    chaos.stop();
    for n in 0..50 {
        chaos.create(&cx(), &target(n)).await.unwrap();
    }
}
