//! Several control planes over one store.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use provisioner_core::{
    Cell, ControlPlane, Error, ErrorKind,
    control_plane::{NewInstance, Request},
    memory::{Fault, MemoryConfig, MemoryProvisioner},
    placement::{NamedOrOnly, Placement},
    seams::{Clock, Random, Seams, SettableClock, TokioClock},
    store::{Ask, EventKind, MemoryStore, OperationState, Store, Submitted, Taken, Verb},
    types::{Actor, CellName, DataDisposition, IdempotencyKey, OperationId, Phase, Reason, Timestamp},
};
use serde_json::{Value, json};

use crate::harness::{by, cell, config, done, ended, id, new, plane_id, spec};

const LAPSES_AFTER: Duration = Duration::from_secs(15);
const START: Timestamp = Timestamp::from_unix_ms(1_750_000_000_000);

struct Replicas {
    store: Arc<MemoryStore>,
    provider: MemoryProvisioner,
    planes: Vec<ControlPlane>,
    clock: Arc<dyn Clock>,
    placement: Arc<dyn Placement>,
}

impl Replicas {
    async fn new(count: usize, provider: MemoryConfig) -> Self {
        Self::by(Arc::new(TokioClock::starting_at(START)), count, provider).await
    }

    /// They go by this clock, which is the store's.
    async fn by(clock: Arc<dyn Clock>, count: usize, provider: MemoryConfig) -> Self {
        let mut replicas = Self {
            store: MemoryStore::shared(plane_id(), Arc::clone(&clock), LAPSES_AFTER),
            provider: MemoryProvisioner::new(provider),
            planes: Vec::new(),
            clock,
            placement: Arc::new(NamedOrOnly),
        };
        for _ in 0..count {
            replicas.start().await;
        }
        replicas
    }

    /// Two with an instance, of which the second one is ahead of the first: the store's clock was corrected just before it started.
    async fn with_one_ahead(provider: MemoryConfig) -> Self {
        let clock = Arc::new(SettableClock::starting_at(START));
        let mut replicas = Self::by(Arc::clone(&clock) as Arc<dyn Clock>, 1, provider).await;
        done(&replicas.planes[0].create(new("acme"), by()).await.unwrap()).await;
        // Long enough for the provider to miss it once more.
        tokio::time::sleep(Duration::from_secs(7200)).await;
        // Its time is asked for: what has passed since it was asked last bounds how fast it catches up.
        replicas.planes[0].slo(Duration::ZERO).await.unwrap();
        clock.set_forward(Duration::from_secs(4));
        replicas.start().await;
        // The first one's time gets to where the second one's began.
        tokio::time::sleep(Duration::from_secs(5)).await;
        replicas
    }

    async fn start(&mut self) {
        let store: Arc<dyn Store> = Arc::clone(&self.store) as Arc<dyn Store>;
        let seams = Seams { clock: Arc::clone(&self.clock), random: Random::from_os(), ..Seams::default() };
        let cell = Cell::new(cell(), Arc::new(self.provider.clone())).with_calls_max(8);
        let builder = ControlPlane::builder(store).cell(cell).seams(seams).config(config());
        self.planes.push(builder.placement(Arc::clone(&self.placement)).start().await.unwrap());
    }

    async fn phase(&self, name: &str) -> Option<Phase> {
        self.planes[0].get(&id(name)).await.unwrap().phase
    }

    /// Puts a request into the inbox, and tells its operation.
    fn submit(&self, name: &str, verb: Verb, parameters: Value, key: Option<&str>) -> OperationId {
        self.submit_read(name, verb, Ok(parameters), key)
    }

    fn submit_read(&self, name: &str, verb: Verb, parameters: Result<Value, String>, key: Option<&str>) -> OperationId {
        let operation = Random::from_os().operation_id(Timestamp::from_unix_ms(0));
        self.store.submit(Submitted {
            number: 0,
            operation: operation.clone(),
            instance: id(name),
            ask: Ask { verb, parameters },
            actor: Actor::new("the billing job").unwrap(),
            reason: Some("paid".into()),
            key: key.map(|key| IdempotencyKey::new(key).unwrap()),
            expected: None,
            at: START,
        });
        operation
    }

    /// The state in which an operation that was put into the inbox ended, and why it failed.
    async fn end_of(&self, operation: &OperationId) -> (OperationState, Option<String>) {
        for _ in 0..600 {
            if let Some(found) = self.store.operation(operation).await.unwrap()
                && found.state.is_ended()
            {
                return (found.state, found.failure.map(|failure| failure.to_string()));
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("it does not end");
    }
}

#[tokio::test(start_paused = true)]
async fn what_one_accepts_others_know_wait_for_and_change() {
    let replicas = Replicas::new(3, MemoryConfig::default()).await;
    let [one, two, three] = &replicas.planes[..] else { panic!("three") };
    let created = one.create(new("acme"), by()).await.unwrap();
    let id_of_it = &created.operation().id;
    let (a, b) = (two.operation(id_of_it).await.unwrap(), three.operation(id_of_it).await.unwrap());
    tokio::join!(done(&a), done(&b), done(&created));
    assert_eq!(replicas.phase("acme").await, Some(Phase::Running));
    done(&two.sleep(&id("acme"), by()).await.unwrap()).await;
    done(&three.update(&id("acme"), spec("2.0"), by()).await.unwrap()).await;
    done(&one.wake(&id("acme"), by()).await.unwrap()).await;
    let thing = &replicas.provider.things(&plane_id())[0];
    assert_eq!(thing.phase, Phase::Running);
    done(&three.destroy(&id("acme"), DataDisposition::Delete, by()).await.unwrap()).await;
    assert_eq!(one.get(&id("acme")).await.unwrap_err().kind(), ErrorKind::NotFound);
    assert!(replicas.provider.things(&plane_id()).is_empty());
}

#[tokio::test(start_paused = true)]
async fn what_is_asked_of_one_while_another_works_on_it_is_done_next() {
    let slow = MemoryConfig { start: Duration::from_secs(10), ..MemoryConfig::default() };
    let replicas = Replicas::new(2, slow).await;
    let created = replicas.planes[0].create(new("acme"), by()).await.unwrap();
    tokio::time::sleep(Duration::from_secs(3)).await;
    let slept = replicas.planes[1].sleep(&id("acme"), by()).await.unwrap();
    assert_eq!(ended(&created).await.state, OperationState::Superseded);
    done(&slept).await;
    assert_eq!(replicas.phase("acme").await, Some(Phase::Zero));
    assert_eq!(replicas.provider.things(&plane_id()).len(), 1);
}

#[tokio::test(start_paused = true)]
async fn many_requests_at_all_of_them_make_one_thing_each() {
    let replicas = Replicas::new(3, MemoryConfig::default()).await;
    let mut operations = Vec::new();
    for number in 0..150 {
        let plane = &replicas.planes[number % 3];
        operations.push(plane.create(new(&format!("i-{number}")), by()).await.unwrap());
    }
    for operation in &operations {
        done(operation).await;
    }
    assert_eq!(replicas.provider.things(&plane_id()).len(), 150);
    assert_eq!(replicas.provider.calls()["create"], 150, "each was called for once");
}

#[tokio::test(start_paused = true)]
async fn the_same_request_at_two_is_one() {
    let replicas = Replicas::new(2, MemoryConfig::default()).await;
    let keyed = || by().with_key(IdempotencyKey::new("sign-up 7").unwrap());
    let (a, b) =
        tokio::join!(replicas.planes[0].create(new("acme"), keyed()), replicas.planes[1].create(new("acme"), keyed()));
    let (a, b) = (a.unwrap(), b.unwrap());
    assert_eq!(a.operation().id, b.operation().id);
    tokio::join!(done(&a), done(&b));
}

#[tokio::test(start_paused = true)]
async fn a_freeze_at_one_stops_all() {
    let replicas = Replicas::new(2, MemoryConfig::default()).await;
    let [one, two] = &replicas.planes[..] else { panic!("two") };
    one.freeze(true, by()).await.unwrap();
    let created = two.create(new("acme"), by()).await.unwrap();
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert!(two.is_frozen());
    assert!(replicas.provider.things(&plane_id()).is_empty());
    one.freeze(false, by()).await.unwrap();
    done(&created).await;
    assert!(!two.is_frozen());
}

#[tokio::test(start_paused = true)]
async fn one_that_shuts_down_leaves_its_work_to_the_others() {
    let slow = MemoryConfig { start: Duration::from_secs(10), ..MemoryConfig::default() };
    let mut replicas = Replicas::new(2, slow).await;
    let created = replicas.planes[0].create(new("acme"), by()).await.unwrap().operation().id.clone();
    tokio::time::sleep(Duration::from_secs(3)).await;
    replicas.planes.remove(0).shutdown().await.unwrap();
    done(&replicas.planes[0].operation(&created).await.unwrap()).await;
    assert_eq!(replicas.phase("acme").await, Some(Phase::Running));
    // Another one may join at any time.
    replicas.start().await;
    done(&replicas.planes[1].sleep(&id("acme"), by()).await.unwrap()).await;
}

#[tokio::test(start_paused = true)]
async fn one_that_has_just_started_takes_over_from_one_that_ends() {
    let mut replicas = Replicas::new(1, MemoryConfig::default()).await;
    // As many as it works on at once, so that it has claimed others that wait.
    for _ in 0..8 {
        replicas.provider.script("create", Fault::Late { after_ms: 2000 });
    }
    let mut created = Vec::new();
    for number in 0..16 {
        let accepted = replicas.planes[0].create(new(&format!("i-{number}")), by()).await.unwrap();
        created.push(accepted.operation().id.clone());
    }
    // It ends between the other one's first look and its first renewal.
    replicas.start().await;
    replicas.planes.remove(0).shutdown().await.unwrap();
    for operation in created {
        let operation = replicas.planes[0].operation(&operation).await.unwrap();
        let told = tokio::time::timeout(LAPSES_AFTER, done(&operation)).await;
        told.expect("nobody waits for a look that nothing asked for");
    }
}

#[tokio::test(start_paused = true)]
async fn one_that_lost_its_session_goes_on_with_another() {
    let replicas = Replicas::new(2, MemoryConfig::default()).await;
    let [one, two] = &replicas.planes[..] else { panic!("two") };
    done(&one.create(new("acme"), by()).await.unwrap()).await;
    // Somebody ends them behind their backs, as an operator or a long pause does.
    for epoch in 1..=2 {
        replicas.store.close_session(epoch).await.unwrap();
    }
    let refused = one.sleep(&id("acme"), by()).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unavailable, "{refused}");
    tokio::time::sleep(LAPSES_AFTER).await;
    done(&one.sleep(&id("acme"), by()).await.unwrap()).await;
    done(&two.wake(&id("acme"), by()).await.unwrap()).await;
}

#[tokio::test(start_paused = true)]
async fn requests_of_the_inbox_are_accepted_in_order() {
    let replicas = Replicas::new(3, MemoryConfig::default()).await;
    let spec = serde_json::to_value(spec("1.0")).unwrap();
    let created = replicas.submit("acme", Verb::Create, json!({"tenant": "Acme Inc.", "spec": spec}), None);
    let held = replicas.submit("acme", Verb::Suspend, json!({"hold": "unpaid"}), None);
    let lifted = replicas.submit("acme", Verb::Lift, json!({"hold": "unpaid"}), None);
    let slept = replicas.submit("acme", Verb::Sleep, json!({}), None);
    let other = replicas.submit("other", Verb::Create, json!({"tenant": "Acme Inc.", "spec": spec}), Some("k"));
    assert_eq!(replicas.end_of(&slept).await, (OperationState::Done, None));
    for operation in [created, held, lifted] {
        let (state, failure) = replicas.end_of(&operation).await;
        assert!(matches!(state, OperationState::Done | OperationState::Superseded), "{state:?} {failure:?}");
    }
    assert_eq!(replicas.end_of(&other).await, (OperationState::Done, None));
    assert_eq!(replicas.phase("acme").await, Some(Phase::Zero));
    let request = Request::by(Actor::new("somebody").unwrap()).with_key(IdempotencyKey::new("k").unwrap());
    let repeated = replicas.planes[0].create(new("other"), request).await.unwrap();
    assert_eq!(repeated.operation().id, other, "the same request, through another door");
    let updated = replicas.submit("acme", Verb::Update, json!({"spec": spec}), None);
    let destroyed = replicas.submit("acme", Verb::Destroy, json!({"data": "retain"}), None);
    assert_eq!(replicas.end_of(&destroyed).await, (OperationState::Done, None));
    replicas.end_of(&updated).await;
}

#[tokio::test(start_paused = true)]
async fn a_request_of_the_inbox_that_is_refused_is_an_operation_that_failed() {
    let replicas = Replicas::new(2, MemoryConfig::default()).await;
    let spec = serde_json::to_value(spec("1.0")).unwrap();
    let refused = [
        ("nobody", Verb::Sleep, json!({}), "not-found"),
        ("acme", Verb::Create, json!({"tenant": "Acme Inc."}), "missing field `spec`"),
        ("acme", Verb::Create, json!({"tenant": "Acme Inc.", "spec": {"size": {}}}), "spec"),
        ("acme", Verb::Create, json!({"tenant": "Acme Inc.", "spec": spec, "colour": "red"}), "colour"),
        ("acme", Verb::Create, json!({"tenant": "Acme Inc.", "spec": spec, "cell": "elsewhere"}), "elsewhere"),
        ("acme", Verb::Suspend, json!({"hold": 7}), "hold"),
        ("acme", Verb::Wake, json!({"now": true}), "now"),
        ("acme", Verb::Adopt, json!({}), "operator"),
    ];
    for (name, verb, parameters, expected) in refused {
        let operation = replicas.submit(name, verb, parameters, None);
        let (state, failure) = replicas.end_of(&operation).await;
        let failure = failure.unwrap_or_default();
        assert!(state == OperationState::Failed && failure.contains(expected), "{verb:?}: {failure}");
        let events = replicas.store.events(Some(&id(name)), 0, 99).await.unwrap();
        let told = |what: &EventKind| matches!(what, EventKind::Refused { operation: of, .. } if *of == operation);
        assert!(events.iter().any(|event| told(&event.event.what)), "{verb:?}");
    }
    let unreadable = replicas.submit_read("acme", Verb::Wake, Err("number out of range".into()), None);
    let (state, failure) = replicas.end_of(&unreadable).await;
    let failure = failure.unwrap_or_default();
    let is_told = failure.contains("parameters") && failure.contains("number out of range");
    assert!(state == OperationState::Failed && is_told, "{failure}");
    // A key that another request has used.
    let first = replicas.submit("one", Verb::Create, json!({"tenant": "Acme Inc.", "spec": spec}), Some("k"));
    assert_eq!(replicas.end_of(&first).await.0, OperationState::Done);
    let second = replicas.submit("two", Verb::Create, json!({"tenant": "Acme Inc.", "spec": spec}), Some("k"));
    let (state, failure) = replicas.end_of(&second).await;
    assert!(state == OperationState::Failed && failure.unwrap_or_default().contains("key"));
    assert_eq!(replicas.provider.things(&plane_id()).len(), 1);
}

/// Finds no place for some until it can ask somebody.
#[derive(Debug, Default)]
struct Asking {
    is_answered: AtomicBool,
}

impl Placement for Asking {
    fn choose(&self, new: &NewInstance, cells: &[&Cell]) -> provisioner_core::Result<CellName> {
        if new.id.as_str().starts_with("stuck") && !self.is_answered.load(Ordering::SeqCst) {
            return Err(Error::new(ErrorKind::Unavailable, "place"));
        }
        NamedOrOnly.choose(new, cells)
    }
}

#[tokio::test(start_paused = true)]
async fn requests_of_the_inbox_that_cannot_be_judged_keep_nobody_else_up() {
    let mut replicas = Replicas::new(0, MemoryConfig::default()).await;
    let asking = Arc::new(Asking::default());
    replicas.placement = Arc::clone(&asking) as Arc<dyn Placement>;
    replicas.start().await;
    let parameters = json!({"tenant": "Acme Inc.", "spec": spec("1.0")});
    let create = |name: &str| replicas.submit(name, Verb::Create, parameters.clone(), None);
    let stuck: Vec<_> = (0..200).map(|number| create(&format!("stuck-{number}"))).collect();
    let other = create("acme");
    assert_eq!(replicas.end_of(&other).await, (OperationState::Done, None));
    // They are not forgotten.
    asking.is_answered.store(true, Ordering::SeqCst);
    for operation in &stuck {
        assert_eq!(replicas.end_of(operation).await, (OperationState::Done, None));
    }
}

#[tokio::test(start_paused = true)]
async fn a_look_of_one_that_is_ahead_is_no_second_look() {
    let lagging = MemoryConfig { lag: Duration::from_secs(2), blink_percent: 100, ..MemoryConfig::default() };
    let replicas = Replicas::with_one_ahead(lagging).await;
    let [one, two] = &replicas.planes[..] else { panic!("two") };
    let made = one.get(&id("acme")).await.unwrap().incarnation;
    one.sleep(&id("acme"), by()).await.unwrap();
    let is_missed = async || {
        let record = replicas.store.instance(&id("acme")).await.unwrap().unwrap();
        record.row.live.as_ref().is_some_and(|live| live.absent_since.is_some())
    };
    let missed = async {
        while !is_missed().await {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(1), missed).await.expect("the first one misses it");
    // By its own time the second one looks three seconds later, and by the provider's at the same moment.
    done(&two.wake(&id("acme"), by()).await.unwrap()).await;
    assert_eq!(two.get(&id("acme")).await.unwrap().incarnation, made, "it was there all the time");
    assert_eq!(replicas.provider.things(&plane_id()).len(), 1);
}

#[tokio::test(start_paused = true)]
async fn what_one_that_is_ahead_accepts_is_called_for_once() {
    let slow = MemoryConfig { start: Duration::from_secs(10), ..MemoryConfig::default() };
    let replicas = Replicas::with_one_ahead(slow).await;
    let [one, two] = &replicas.planes[..] else { panic!("two") };
    // The first one works on it while the second one accepts more.
    replicas.provider.script("create", Fault::Late { after_ms: 2000 });
    one.update(&id("acme"), spec("2.0"), by()).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    done(&two.update(&id("acme"), spec("3.0"), by()).await.unwrap()).await;
    let events = replicas.store.events(Some(&id("acme")), 0, 999).await.unwrap();
    let newer = events.iter().filter(|event| matches!(event.event.what, EventKind::NewerFound { .. })).count();
    assert_eq!(newer, 0, "{events:#?}");
}

#[tokio::test(start_paused = true)]
async fn who_looks_and_has_nothing_to_write_leaves_the_instance_to_all() {
    // One that is due by itself some day is no exception.
    for suspend_after_seconds in [None, Some(24 * 3600)] {
        let lag = Duration::from_secs(2);
        let replicas = Replicas::new(2, MemoryConfig { lag, ..MemoryConfig::default() }).await;
        let plane = &replicas.planes[0];
        let mut acme = new("acme");
        acme.spec.expiry.suspend_after_seconds = suspend_after_seconds;
        done(&plane.create(acme, by()).await.unwrap()).await;
        done(&plane.sleep(&id("acme"), by()).await.unwrap()).await;
        // So long that a look is believed at once, whoever's time the last call was made by.
        tokio::time::sleep(Duration::from_secs(20)).await;
        let version = async || replicas.store.instance(&id("acme")).await.unwrap().unwrap().version;
        // Both are told, and look at what is still shown as it was.
        let (looked, before) = (replicas.provider.calls()["observe"], version().await);
        replicas.provider.fail(&plane_id(), &id("acme"), &Reason::new("exited", "with status 137"));
        tokio::time::sleep(lag / 2).await;
        assert!(replicas.provider.calls()["observe"] > looked, "somebody looked");
        assert_eq!(version().await, before, "there was nothing to write");
        // Whoever finds out later may see to it.
        let somebody = replicas.store.open_session("somebody", START).await.unwrap().epoch;
        let taken = replicas.store.claim_instance(somebody, &id("acme")).await.unwrap();
        assert!(matches!(&taken, Taken::Here(record) if !record.taken_over), "{suspend_after_seconds:?}: {taken:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_accepted_while_shutting_down_is_another_ones_work() {
    let replicas = Replicas::new(2, MemoryConfig::default()).await;
    let one = replicas.planes[0].clone();
    // A call that keeps it from ending.
    replicas.provider.script("create", Fault::Late { after_ms: 50_000 });
    one.create(new("slow"), by()).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let ending = tokio::spawn({
        let one = one.clone();
        async move { one.shutdown().await }
    });
    tokio::time::sleep(Duration::from_secs(1)).await;
    let accepted = one.create(new("acme"), by()).await.unwrap();
    assert_eq!(replicas.end_of(&accepted.operation().id).await, (OperationState::Done, None));
    assert!(!ending.is_finished(), "it has not ended yet");
    ending.await.unwrap().unwrap();
}
