use super::{
    super::{
        Chaos, Fault,
        fixture::{VERBS, cx, memory, target, verb},
    },
    *,
};

const SECOND: Duration = Duration::from_secs(1);

/// A backend that never answers and heeds no deadline; a listing gets stuck after two items.
#[derive(Debug)]
struct Stuck<P> {
    backend: P,
}

impl<P> fmt::Display for Stuck<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Stuck")
    }
}

impl<P: Provisioner> Around for Stuck<P> {
    async fn around<A: Answer>(&self, _call: BackendCall<'_>, _sent: impl Future<Output = A> + Send) -> A {
        std::future::pending().await
    }

    fn around_list(&self, _cx: &OpContext, listed: Listing) -> Listing {
        listed.take(2).chain(stream::pending()).boxed()
    }
}

forward_around!(Stuck);

#[tokio::test(start_paused = true)]
async fn a_call_that_is_not_answered_ends_and_may_have_acted_only_if_it_changes_something() {
    let timed = Timed::new(Stuck { backend: memory() }, 9 * SECOND).with_reads(2 * SECOND);
    assert_eq!(timed.to_string(), "Timed(Stuck)");
    let (cx, target) = (cx(), target(1));
    for operation in VERBS {
        let (limit, effect) = match operation {
            "observe" => (2 * SECOND, Effect::None),
            _ => (9 * SECOND, Effect::Unknown),
        };
        for (deadline, after) in [(None, limit), (Some(20 * SECOND), limit), (Some(SECOND), SECOND)] {
            let mut cx = cx.clone();
            let began = Instant::now();
            cx.deadline = deadline.map(|deadline| began + deadline);
            let late = verb(&timed, operation, &cx, &target).await.unwrap_err();
            assert_eq!(began.elapsed(), after, "{operation} {deadline:?}");
            assert_eq!((late.kind(), late.effect()), (ErrorKind::Timeout, effect), "{operation}");
            assert_eq!((late.operation(), late.instance()), (operation, Some(&target.id)));
        }
    }
    let effect = |answer: Result<()>| answer.unwrap_err().effect();
    assert_eq!(effect(timed.delete_data(&cx, target.data.id()).await), Effect::Unknown);
    assert_eq!(effect(timed.maintain(&cx, false).await.map(drop)), Effect::Unknown);
    assert_eq!(effect(timed.maintain(&cx, true).await.map(drop)), Effect::None);
    assert_eq!(effect(timed.identity(&cx).await.map(drop)), Effect::None);
    let many = timed.observe_many(&cx, &[target.clone(), target.clone()]).await;
    assert!(many.len() == 2 && many.iter().all(|answer| answer.as_ref().unwrap_err().instance() == Some(&target.id)));
}

#[tokio::test(start_paused = true)]
async fn the_backend_is_told_the_deadline_and_its_own_answer_is_handed_on() {
    let chaos = Chaos::new(memory());
    let timed = Timed::new(chaos.clone(), 5 * SECOND);
    chaos.script("observe", Fault::Hang);
    let began = Instant::now();
    let late = timed.observe(&cx(), &target(1)).await.unwrap_err();
    assert_eq!(began.elapsed(), 5 * SECOND);
    assert_eq!(late.to_string(), "observe i1: timeout", "in the backend's words");
}

#[tokio::test(start_paused = true)]
async fn a_call_whose_deadline_has_passed_is_not_sent() {
    let memory = memory();
    let timed = Timed::new(memory.clone(), 5 * SECOND);
    for operation in VERBS {
        let late = verb(&timed, operation, &cx().with_timeout(Duration::ZERO), &target(1)).await.unwrap_err();
        assert_eq!((late.kind(), late.effect()), (ErrorKind::Timeout, Effect::None), "{operation}");
    }
    assert!(memory.calls().is_empty(), "nothing arrived: {:?}", memory.calls());
}

#[tokio::test(start_paused = true)]
async fn a_limit_without_end_is_none() {
    let timed = Timed::new(memory(), Duration::MAX);
    timed.create(&cx(), &target(1)).await.unwrap();
    assert_eq!(timed.list(&cx()).collect::<Vec<_>>().await.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_listing_may_go_on_and_each_item_is_waited_for_so_long() {
    let memory = memory();
    for n in 0..5 {
        memory.create(&cx(), &target(n)).await.unwrap();
    }
    let timed = Timed::new(Stuck { backend: memory }, 9 * SECOND).with_reads(2 * SECOND);
    let mut listed = timed.list(&cx());
    for _ in 0..2 {
        assert!(listed.next().await.unwrap().is_ok());
        // What its caller does meanwhile takes no time of the backend's.
        tokio::time::sleep(60 * SECOND).await;
    }
    let began = Instant::now();
    let late = listed.next().await.unwrap().unwrap_err();
    assert_eq!(began.elapsed(), 2 * SECOND);
    assert_eq!((late.kind(), late.effect(), late.operation()), (ErrorKind::Timeout, Effect::None, "list"));
    assert!(listed.next().await.is_none(), "the listing is over");

    let began = Instant::now();
    let listed: Vec<_> = timed.list(&cx().with_timeout(SECOND)).collect().await;
    assert_eq!((listed.len(), began.elapsed()), (3, SECOND), "and not beyond the deadline of the whole");
}
