//! What is promised to one and cannot be promised to another: host names, capacity, keys, data.

use std::{collections::BTreeMap, sync::Arc};

use provisioner_core::{seams::Random, store::*, types::*};

use crate::fixture::{rules, *};

rules! {
    a_host_name_belongs_to_one_instance_until_it_is_given_back,
    an_instance_keeps_its_own_host_names_when_it_reserves_again,
    capacity_is_not_exceeded_by_64_inserts_at_once,
    every_resource_is_bounded_and_named,
    capacity_is_released_by_shrinking_moving_and_deleting,
    an_instance_of_a_cell_that_was_made_smaller_can_be_changed_but_not_grow,
    usage_is_exact_after_many_changes,
    a_key_belongs_to_its_operation_for_24_hours,
    of_64_requests_with_one_key_one_is_taken,
    an_operation_that_lost_its_key_does_not_take_it_back,
    an_operation_is_replaced_and_keeps_its_key,
    an_operation_ends_once,
    one_key_for_two_operations_of_a_change_is_refused,
    data_is_taken_up_only_when_it_is_retained_for_that_tenant_in_that_cell,
    retained_data_is_taken_up_once,
    provisioning_times_are_those_of_creations_that_ended,
}

fn with_host_names(names: &[&str], change: Change) -> Change {
    Change { reservation: Some(reservation(names)), ..change }
}

async fn a_host_name_belongs_to_one_instance_until_it_is_given_back(store: Arc<dyn Store>) {
    store.commit(with_host_names(&["x.example.com", "y.example.com"], insert(row("a")))).await.unwrap();
    let taken = |error: StoreError| match error {
        StoreError::HostNameTaken(name) => name.to_string(),
        other => panic!("{other:?}"),
    };
    let wants_x = || with_host_names(&["b.example.com", "x.example.com"], insert(row("b")));
    assert_eq!(taken(store.commit(wants_x()).await.unwrap_err()), "x.example.com");
    // Replaced: what is not in the new reservation is free.
    store.commit(with_host_names(&["y.example.com", "z.example.com"], update(row("a"), 1))).await.unwrap();
    store.commit(wants_x()).await.unwrap();
    let wants_z = || with_host_names(&["z.example.com"], insert(row("c")));
    assert_eq!(taken(store.commit(wants_z()).await.unwrap_err()), "z.example.com");
    store.commit(update(row("a"), 2)).await.unwrap();
    assert_eq!(taken(store.commit(wants_z()).await.unwrap_err()), "z.example.com", "an update without a reservation");
    store.commit(delete("a", 3)).await.unwrap();
    store.commit(wants_z()).await.unwrap();
}

async fn an_instance_keeps_its_own_host_names_when_it_reserves_again(store: Arc<dyn Store>) {
    store.commit(with_host_names(&["x.example.com"], insert(row("a")))).await.unwrap();
    store.commit(with_host_names(&["x.example.com", "x.example.com"], update(row("a"), 1))).await.unwrap();
    let other = with_host_names(&["x.example.com"], insert(row("b")));
    assert!(matches!(store.commit(other).await, Err(StoreError::HostNameTaken(_))));
}

async fn capacity_is_not_exceeded_by_64_inserts_at_once(store: Arc<dyn Store>) {
    let capacity = Capacity { instances: 10, ..Capacity::UNBOUNDED };
    let attempt = |number: u32| {
        let store = Arc::clone(&store);
        let reservation = Reservation { capacity, ..reservation(&[]) };
        let change = Change { reservation: Some(reservation), ..insert(row(format!("i-{number}"))) };
        tokio::spawn(async move { store.commit(change).await })
    };
    let attempts: Vec<_> = (0..64).map(attempt).collect();
    let mut accepted = 0;
    for attempt in attempts {
        match attempt.await.unwrap() {
            Ok(_) => accepted += 1,
            Err(StoreError::CellFull { cell: full, resource, used, capacity }) => {
                assert_eq!((full, resource, used, capacity), (cell("one"), "instances", 11, 10));
            }
            Err(error) => panic!("{error:?}"),
        }
    }
    assert_eq!(accepted, 10);
    assert_eq!(store.usage(&cell("one")).await.unwrap().instances, 10);
    assert_eq!(store.instances(&InstanceFilter::default(), None, 99).await.unwrap().len(), 10);
}

async fn every_resource_is_bounded_and_named(store: Arc<dyn Store>) {
    let size = Size { cpu_millis: 100, memory_mib: 200 };
    let exact = Capacity { instances: 1, cpu_millis: 100, memory_mib: 200, data_mib: 300 };
    let one_less = [
        ("instances", 0, Capacity { instances: 0, ..exact }),
        ("cpu_millis", 99, Capacity { cpu_millis: 99, ..exact }),
        ("memory_mib", 199, Capacity { memory_mib: 199, ..exact }),
        ("data_mib", 299, Capacity { data_mib: 299, ..exact }),
    ];
    let change = |capacity| {
        let reservation = Reservation { capacity, size, data_mib: 300, ..reservation(&[]) };
        Change { reservation: Some(reservation), ..insert(row("a")) }
    };
    for (name, bound, capacity) in one_less {
        match store.commit(change(capacity)).await {
            Err(StoreError::CellFull { resource, used, capacity, .. }) => {
                assert_eq!((resource, used, capacity), (name, bound + 1, bound));
            }
            other => panic!("{name}: {other:?}"),
        }
    }
    store.commit(change(exact)).await.unwrap();
    let expected = CellUsage { instances: 1, cpu_millis: 100, memory_mib: 200, data_mib: 300 };
    assert_eq!(store.usage(&cell("one")).await.unwrap(), expected);
}

async fn capacity_is_released_by_shrinking_moving_and_deleting(store: Arc<dyn Store>) {
    let reserve = |cpu_millis, place: &str| {
        let size = Size { cpu_millis, ..Size::default() };
        let capacity = Capacity { cpu_millis: 1000, ..Capacity::UNBOUNDED };
        Some(Reservation { cell: cell(place), capacity, size, ..reservation(&[]) })
    };
    let used = async |place: &str| {
        let usage = store.usage(&cell(place)).await.unwrap();
        (usage.instances, usage.cpu_millis)
    };
    store.commit(Change { reservation: reserve(1000, "one"), ..insert(row("a")) }).await.unwrap();
    let small = || Change { reservation: reserve(400, "one"), ..insert(row("b")) };
    assert!(matches!(store.commit(small()).await, Err(StoreError::CellFull { used: 1400, .. })));
    store.commit(Change { reservation: reserve(600, "one"), ..update(row("a"), 1) }).await.unwrap();
    assert_eq!(used("one").await, (1, 600));
    store.commit(small()).await.unwrap();
    assert_eq!(used("one").await, (2, 1000));
    store.commit(Change { reservation: reserve(700, "two"), ..update(row("a"), 2) }).await.unwrap();
    assert_eq!((used("one").await, used("two").await), ((1, 400), (1, 700)));
    store.commit(delete("a", 3)).await.unwrap();
    store.commit(delete("b", 1)).await.unwrap();
    for place in ["one", "two", "never-named"] {
        assert_eq!(store.usage(&cell(place)).await.unwrap(), CellUsage::default());
    }
}

async fn an_instance_of_a_cell_that_was_made_smaller_can_be_changed_but_not_grow(store: Arc<dyn Store>) {
    let reserve = |cpu_millis| {
        let capacity = Capacity { instances: 1, cpu_millis: 100, ..Capacity::UNBOUNDED };
        let size = Size { cpu_millis, ..Size::default() };
        Some(Reservation { capacity, size, ..reservation(&[]) })
    };
    for name in ["a", "b"] {
        store.commit(with_host_names(&[], insert(row(name)))).await.unwrap();
    }
    let cpu_millis = Size::default().cpu_millis;
    store.commit(Change { reservation: reserve(cpu_millis), ..update(row("a"), 1) }).await.unwrap();
    store.commit(Change { reservation: reserve(cpu_millis - 1), ..update(row("a"), 2) }).await.unwrap();
    let grown = Change { reservation: reserve(cpu_millis), ..update(row("a"), 3) };
    assert!(matches!(store.commit(grown).await, Err(StoreError::CellFull { resource: "cpu_millis", .. })));
    let one_more = Change { reservation: reserve(1), ..insert(row("c")) };
    assert!(matches!(store.commit(one_more).await, Err(StoreError::CellFull { resource: "instances", .. })));
}

async fn usage_is_exact_after_many_changes(store: Arc<dyn Store>) {
    const SEED: u64 = 7;
    let random = Random::from_seed(SEED);
    let mut held: BTreeMap<String, (u64, CellName, u64)> = BTreeMap::new();
    for _ in 0..300 {
        let name = format!("i-{}", random.bits() % 12);
        let place = cell(["one", "two"][(random.bits() % 2) as usize]);
        let cpu_millis = (random.bits() % 1000) as u32;
        let size = Size { cpu_millis, ..Size::default() };
        let reservation = Some(Reservation { cell: place.clone(), size, ..reservation(&[]) });
        let version = match held.get(&name).map(|(version, ..)| *version) {
            None => store.commit(Change { reservation, ..insert(row(&name)) }).await.unwrap().version,
            Some(version) if random.bits().is_multiple_of(3) => {
                store.commit(delete(&name, version)).await.unwrap();
                held.remove(&name);
                continue;
            }
            Some(version) => store.commit(Change { reservation, ..update(row(&name), version) }).await.unwrap().version,
        };
        held.insert(name, (version, place, cpu_millis.into()));
    }
    for place in ["one", "two"].map(cell) {
        let here: Vec<_> = held.values().filter(|(_, at, _)| *at == place).collect();
        let instances = here.len() as u64;
        let expected = CellUsage {
            instances,
            cpu_millis: here.iter().map(|(.., cpu)| cpu).sum(),
            memory_mib: instances * u64::from(Size::default().memory_mib),
            data_mib: instances * 1024,
        };
        assert_eq!(store.usage(&place).await.unwrap(), expected, "seed {SEED}");
    }
}

async fn a_key_belongs_to_its_operation_for_24_hours(store: Arc<dyn Store>) {
    const DAY: i64 = 24 * 3600 * 1000;
    let first = operation(1, Some("k"), at(0));
    store.commit(with_operation(first.clone())).await.unwrap();
    for time in [-5, 0, DAY - 1] {
        match store.commit(with_operation(operation(2, Some("k"), at(time)))).await {
            Err(StoreError::KeyUsed(used)) => assert_eq!(*used, first),
            other => panic!("at {time}: {other:?}"),
        }
    }
    assert_eq!(store.operation_of_key(&key("k")).await.unwrap(), Some(first.clone()));
    let later = operation(2, Some("k"), at(DAY));
    store.commit(with_operation(later.clone())).await.unwrap();
    assert_eq!(store.operation_of_key(&key("k")).await.unwrap(), Some(later));
    let kept = store.operation(&first.id).await.unwrap();
    assert_eq!(kept, Some(Operation { key: None, ..first }), "it stays, without its key");
    assert_eq!(store.operation_of_key(&key("other")).await.unwrap(), None);
}

async fn of_64_requests_with_one_key_one_is_taken(store: Arc<dyn Store>) {
    let attempt = |number: u64| {
        let store = Arc::clone(&store);
        let change =
            Change { operations: vec![operation(number, Some("k"), at(0))], ..insert(row(format!("i-{number}"))) };
        tokio::spawn(async move { store.commit(change).await })
    };
    let attempts: Vec<_> = (1..=64).map(|number| (number, attempt(number))).collect();
    let (mut taken, mut told) = (Vec::new(), Vec::new());
    for (number, attempt) in attempts {
        match attempt.await.unwrap() {
            Ok(_) => taken.push(operation_id(number)),
            Err(StoreError::KeyUsed(used)) => told.push(used.id),
            Err(error) => panic!("{error:?}"),
        }
    }
    assert_eq!((taken.len(), told.len()), (1, 63));
    assert!(told.iter().all(|id| *id == taken[0]), "everybody else is told which one it was");
    assert_eq!(store.instances(&InstanceFilter::default(), None, 99).await.unwrap().len(), 1);
}

async fn an_operation_that_lost_its_key_does_not_take_it_back(store: Arc<dyn Store>) {
    let first = operation(1, Some("k"), at(0));
    let later = operation(2, Some("k"), at(90_000_000));
    store.commit(with_operation(first.clone())).await.unwrap();
    store.commit(with_operation(later.clone())).await.unwrap();
    // Its writer read it before it lost the key.
    let ended = Operation { state: OperationState::Done, ended_at: Some(at(90_000_001)), ..first };
    store.commit(with_operation(ended.clone())).await.unwrap();
    assert_eq!(store.operation(&ended.id).await.unwrap(), Some(Operation { key: None, ..ended }));
    assert_eq!(store.operation_of_key(&key("k")).await.unwrap(), Some(later));
}

async fn an_operation_is_replaced_and_keeps_its_key(store: Arc<dyn Store>) {
    let pending = operation(1, Some("k"), at(0));
    store.commit(with_operation(pending.clone())).await.unwrap();
    let failed = Operation {
        state: OperationState::Failed,
        ended_at: Some(at(5)),
        failure: Some(Reason::new("exited", "with 1")),
        ..pending
    };
    store.commit(with_operation(failed.clone())).await.unwrap();
    assert_eq!(store.operation(&failed.id).await.unwrap(), Some(failed.clone()));
    assert_eq!(store.operation_of_key(&key("k")).await.unwrap(), Some(failed));
}

async fn an_operation_ends_once(store: Arc<dyn Store>) {
    let pending = operation(1, Some("k"), at(0));
    store.commit(with_operation(pending.clone())).await.unwrap();
    let reason = Reason::new("deadline", "not running within 60 s");
    let end = |state, time, failure: Option<Reason>| Change {
        ended: vec![OperationEnd { id: pending.id.clone(), state, at: at(time), failure }],
        ..Change::default()
    };
    store.commit(end(OperationState::Failed, 5, Some(reason.clone()))).await.unwrap();
    store.commit(end(OperationState::Done, 9, None)).await.unwrap();
    let ended =
        Operation { state: OperationState::Failed, ended_at: Some(at(5)), failure: Some(reason), ..pending.clone() };
    assert_eq!(store.operation(&pending.id).await.unwrap(), Some(ended.clone()));
    assert_eq!(store.operation_of_key(&key("k")).await.unwrap(), Some(ended));
    let nobody = OperationEnd { id: operation_id(9), state: OperationState::Done, at: at(1), failure: None };
    store.commit(Change { ended: vec![nobody], ..Change::default() }).await.unwrap();
    assert_eq!(store.operation(&operation_id(9)).await.unwrap(), None);
}

async fn one_key_for_two_operations_of_a_change_is_refused(store: Arc<dyn Store>) {
    let twins = vec![operation(1, Some("k"), at(0)), operation(2, Some("k"), at(0))];
    let refused = store.commit(Change { operations: twins, ..Change::default() }).await;
    assert!(matches!(refused, Err(StoreError::KeyUsed(used)) if used.id == operation_id(1)));
    assert_eq!(store.operation(&operation_id(1)).await.unwrap(), None);
}

async fn data_is_taken_up_only_when_it_is_retained_for_that_tenant_in_that_cell(store: Arc<dyn Store>) {
    let rows = vec![
        data_row(1, DataState::Used),
        DataRow { tenant: tenant("umbrella"), ..data_row(2, DataState::Retained) },
        DataRow { cell: cell("two"), ..data_row(3, DataState::Retained) },
        DataRow { instance: id("gone"), ..data_row(4, DataState::Retained) },
    ];
    store.commit(Change { data: rows, ..Change::default() }).await.unwrap();
    let take_as = |number, data_made| {
        let row = InstanceRow { data_made, ..row("a") };
        Change { take_data: Some(data_id(number)), ..insert(row) }
    };
    let take = |number| take_as(number, true);
    for (why, number) in [("in use", 1), ("of another tenant", 2), ("in another cell", 3), ("not there", 9)] {
        match store.commit(take(number)).await {
            Err(StoreError::DataNotRetained(id)) => assert_eq!(id, data_id(number)),
            other => panic!("{why}: {other:?}"),
        }
    }
    let blank = store.commit(take_as(4, false)).await;
    assert!(matches!(blank, Err(StoreError::DataNotRetained(_))), "what was seen in use must exist: {blank:?}");
    let used = data_row(4, DataState::Used);
    store.commit(Change { data: vec![used.clone()], ..take(4) }).await.unwrap();
    assert_eq!(store.data(None, None, 9).await.unwrap()[3], used);
    let of_umbrella = store.data(Some(&tenant("umbrella")), None, 9).await.unwrap();
    assert_eq!(of_umbrella.iter().map(|data| data.id.clone()).collect::<Vec<_>>(), [data_id(2)]);
    let page = store.data(Some(&tenant("acme")), Some(&data_id(1)), 1).await.unwrap();
    assert_eq!(page.iter().map(|data| data.id.clone()).collect::<Vec<_>>(), [data_id(3)]);
}

async fn retained_data_is_taken_up_once(store: Arc<dyn Store>) {
    store.commit(Change { data: vec![data_row(1, DataState::Retained)], ..Change::default() }).await.unwrap();
    let attempt = |number: u32| {
        let store = Arc::clone(&store);
        let name = format!("i-{number}");
        let data = vec![DataRow { instance: id(&name), ..data_row(1, DataState::Used) }];
        let row = InstanceRow { data_made: true, ..row(name) };
        let change = Change { take_data: Some(data_id(1)), data, ..insert(row) };
        tokio::spawn(async move { store.commit(change).await })
    };
    let attempts: Vec<_> = (0..16).map(attempt).collect();
    let mut taken = 0;
    for attempt in attempts {
        match attempt.await.unwrap() {
            Ok(_) => taken += 1,
            Err(error) => assert!(matches!(error, StoreError::DataNotRetained(_)), "{error:?}"),
        }
    }
    assert_eq!(taken, 1);
}

async fn provisioning_times_are_those_of_creations_that_ended(store: Arc<dyn Store>) {
    let ended = |number, verb, state, took: i64| Operation {
        verb,
        state,
        ended_at: Some(at(100 * number as i64 + took)),
        ..operation(number, None, at(100 * number as i64))
    };
    let operations = vec![
        ended(1, Verb::Create, OperationState::Done, 11),
        ended(2, Verb::Create, OperationState::Failed, 22),
        ended(3, Verb::Wake, OperationState::Done, 33),
        ended(4, Verb::Create, OperationState::Superseded, 44),
        ended(5, Verb::Create, OperationState::Done, 55),
        operation(6, None, at(600)),
    ];
    store.commit(Change { operations, ..Change::default() }).await.unwrap();
    let times = async |since, limit| store.provisioning_times(at(since), limit).await.unwrap();
    assert_eq!(times(0, 9).await, [(55, true), (22, false), (11, true)]);
    assert_eq!(times(0, 2).await, [(55, true), (22, false)]);
    assert_eq!(times(222, 9).await, [(55, true), (22, false)]);
    assert_eq!(times(223, 9).await, [(55, true)]);
}
