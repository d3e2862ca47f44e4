//! What is due, who may take it, and what is removed for its age.

use std::sync::Arc;

use provisioner_core::{store::*, types::*};

use crate::fixture::{rules, *};

rules! {
    due_rows_come_in_the_order_of_time_and_id,
    due_rows_are_of_one_cell_and_one_lane,
    a_row_at_rest_is_not_due,
    the_next_due_time_is_after_now,
    due_makings_come_in_order_up_to_a_limit,
    makings_are_looked_up_in_the_order_asked,
    what_is_old_is_pruned_up_to_a_limit,
    what_is_still_to_be_looked_for_is_not_pruned,
    of_a_forgotten_instance_only_the_last_event_stays,
    a_pruned_operation_gives_its_key_back,
}

pub(crate) fn due(name: &str, time: i64) -> InstanceRow {
    InstanceRow { due_at: Some(at(time)), ..row(name) }
}

pub(crate) async fn claim(store: &dyn Store) -> Claim {
    let epoch = store.open_session("contract", at(0)).await.unwrap().epoch;
    Claim { epoch, cell: cell("one"), lane: Lane::Interactive, now: at(100), after: None, limit: 100 }
}

pub(crate) async fn claimed(store: &dyn Store, claim: &Claim) -> Vec<String> {
    store.claim(claim).await.unwrap().into_iter().map(|record| record.row.id.to_string()).collect()
}

async fn due_rows_come_in_the_order_of_time_and_id(store: Arc<dyn Store>) {
    for (name, time) in [("d", 100), ("b", 50), ("e", 101), ("a", 50), ("c", 50), ("f", -1)] {
        store.commit(insert(due(name, time))).await.unwrap();
    }
    let claim = claim(&*store).await;
    assert_eq!(claimed(&*store, &claim).await, ["f", "a", "b", "c", "d"]);
    assert_eq!(claimed(&*store, &Claim { limit: 3, ..claim.clone() }).await, ["f", "a", "b"]);
    assert_eq!(claimed(&*store, &Claim { limit: 0, ..claim.clone() }).await, [""; 0]);
    let after = |time, name| Claim { after: Some((at(time), id(name))), ..claim.clone() };
    assert_eq!(claimed(&*store, &after(50, "a")).await, ["b", "c", "d"]);
    assert_eq!(claimed(&*store, &after(50, "z")).await, ["d"]);
    assert_eq!(claimed(&*store, &after(100, "d")).await, [""; 0]);
    assert_eq!(claimed(&*store, &Claim { now: at(99), ..claim.clone() }).await, ["f", "a", "b", "c"]);
    // A row that was looked at again is at another place.
    store.commit(update(due("f", 60), 1)).await.unwrap();
    assert_eq!(claimed(&*store, &claim).await, ["a", "b", "c", "f", "d"]);
}

async fn due_rows_are_of_one_cell_and_one_lane(store: Arc<dyn Store>) {
    let rows = [
        due("a", 1),
        InstanceRow { lane: Lane::Background, ..due("b", 1) },
        InstanceRow { cell: cell("two"), ..due("c", 1) },
    ];
    for row in rows {
        store.commit(insert(row)).await.unwrap();
    }
    let claim = claim(&*store).await;
    assert_eq!(claimed(&*store, &claim).await, ["a"]);
    let background = Claim { lane: Lane::Background, ..claim.clone() };
    assert_eq!(claimed(&*store, &background).await, ["b"]);
    assert_eq!(claimed(&*store, &Claim { cell: cell("two"), ..claim.clone() }).await, ["c"]);
    store.commit(update(InstanceRow { lane: Lane::Background, ..due("a", 1) }, 1)).await.unwrap();
    assert_eq!(claimed(&*store, &claim).await, [""; 0]);
    assert_eq!(claimed(&*store, &background).await, ["a", "b"]);
    store.commit(update(InstanceRow { lane: Lane::Background, cell: cell("two"), ..due("a", 1) }, 2)).await.unwrap();
    assert_eq!(claimed(&*store, &background).await, ["b"]);
}

async fn a_row_at_rest_is_not_due(store: Arc<dyn Store>) {
    store.commit(insert(due("a", 1))).await.unwrap();
    store.commit(insert(row("b"))).await.unwrap();
    store.commit(update(row("a"), 1)).await.unwrap();
    let claim = claim(&*store).await;
    assert_eq!(claimed(&*store, &claim).await, [""; 0]);
    assert_eq!(store.next_due(&cell("one"), at(-1000)).await.unwrap(), None);
}

async fn the_next_due_time_is_after_now(store: Arc<dyn Store>) {
    let rows = [
        due("a", 10),
        InstanceRow { lane: Lane::Background, ..due("b", 20) },
        InstanceRow { cell: cell("two"), ..due("c", 5) },
    ];
    for row in rows {
        store.commit(insert(row)).await.unwrap();
    }
    let ended = making(1, IncarnationState::Ended, Some(at(15)));
    store.commit(Change { incarnations: vec![ended], ..Change::default() }).await.unwrap();
    for (now, expected) in [(0, Some(10)), (9, Some(10)), (10, Some(15)), (15, Some(20)), (20, None)] {
        assert_eq!(store.next_due(&cell("one"), at(now)).await.unwrap(), expected.map(at), "after {now}");
    }
    assert_eq!(store.next_due(&cell("two"), at(0)).await.unwrap(), Some(at(5)));
    assert_eq!(store.next_due(&cell("three"), at(0)).await.unwrap(), None);
}

async fn due_makings_come_in_order_up_to_a_limit(store: Arc<dyn Store>) {
    let ended = |number, due_at: Option<i64>| IncarnationRow {
        ended_at: Some(at(0)),
        ..making(number, IncarnationState::Ended, due_at.map(at))
    };
    let elsewhere = IncarnationRow { cell: cell("two"), ..ended(6, Some(1)) };
    let incarnations = vec![
        making(1, IncarnationState::Live, None),
        ended(2, Some(30)),
        ended(3, Some(10)),
        ended(4, Some(41)),
        making(5, IncarnationState::Ending, Some(at(40))),
        elsewhere,
        ended(7, None),
    ];
    store.commit(Change { incarnations, ..Change::default() }).await.unwrap();
    let numbers = async |limit| {
        let due = store.due_incarnations(&cell("one"), at(40), limit).await.unwrap();
        due.into_iter().map(|row| row.incarnation.number()).collect::<Vec<_>>()
    };
    assert_eq!(numbers(9).await, [3, 2, 5]);
    assert_eq!(numbers(2).await, [3, 2]);
    store.commit(Change { incarnations: vec![ended(3, None)], ..Change::default() }).await.unwrap();
    assert_eq!(numbers(9).await, [2, 5], "one that was looked for");
}

async fn makings_are_looked_up_in_the_order_asked(store: Arc<dyn Store>) {
    let one = making(1, IncarnationState::Live, None);
    let two = IncarnationRow { ended_at: Some(at(5)), ..making(2, IncarnationState::Ended, Some(at(9))) };
    store.commit(Change { incarnations: vec![one.clone(), two.clone()], ..Change::default() }).await.unwrap();
    let unknown = Incarnation::new(1, 99);
    let asked = [two.incarnation, unknown, one.incarnation, two.incarnation];
    let found = store.incarnations(&asked).await.unwrap();
    assert_eq!(found, [Some(two.clone()), None, Some(one), Some(two)]);
    assert!(store.incarnations(&[]).await.unwrap().is_empty());
}

async fn what_is_old_is_pruned_up_to_a_limit(store: Arc<dyn Store>) {
    let ended = |number: u64| Operation {
        state: OperationState::Done,
        ended_at: Some(at(number as i64)),
        ..operation(number, None, at(0))
    };
    let over = |number: u32| IncarnationRow {
        ended_at: Some(at(number.into())),
        ..making(number, IncarnationState::Ended, None)
    };
    let change = Change {
        // In another order than that of their times.
        events: [4, 1, 3, 2].into_iter().map(|time| happened("a", at(time))).collect(),
        operations: (1..=4).map(ended).chain([operation(9, None, at(0))]).collect(),
        incarnations: (1..=4).map(over).chain([making(9, IncarnationState::Live, None)]).collect(),
        ..Change::default()
    };
    store.commit(change).await.unwrap();
    assert_eq!(store.prune(at(1), 9).await.unwrap(), Pruned::default(), "what ended then did not end before");
    let of_each = |count| Pruned { events: count, operations: count, incarnations: count };
    assert_eq!(store.prune(at(4), 2).await.unwrap(), of_each(2));
    let times: Vec<_> = store.events(None, 0, 9).await.unwrap().into_iter().map(|event| event.event.at).collect();
    assert_eq!(times, [at(4), at(3)], "the oldest went first");
    assert_eq!(store.prune(at(4), 2).await.unwrap(), of_each(1));
    assert_eq!(store.prune(at(4), 2).await.unwrap(), of_each(0));
    for number in [4, 9] {
        assert!(store.operation(&operation_id(number)).await.unwrap().is_some(), "{number}");
    }
    assert!(store.operation(&operation_id(3)).await.unwrap().is_none());
    let asked = [3, 4, 9].map(|number| over(number).incarnation);
    let left: Vec<_> = store.incarnations(&asked).await.unwrap().iter().map(Option::is_some).collect();
    assert_eq!(left, [false, true, true]);
    let committed = store.commit(with_event(happened("a", at(9)))).await.unwrap();
    assert_eq!(committed.position, 5, "positions are not given out again");
    assert_eq!(store.prune(at(100), 9).await.unwrap(), Pruned { events: 2, operations: 1, incarnations: 1 });
    let committed = store.commit(with_event(happened("a", at(9)))).await.unwrap();
    assert_eq!(committed.position, 6, "nor after the last one was pruned");
}

async fn what_is_still_to_be_looked_for_is_not_pruned(store: Arc<dyn Store>) {
    let over =
        |number, due_at| IncarnationRow { ended_at: Some(at(1)), ..making(number, IncarnationState::Ended, due_at) };
    let incarnations = vec![over(1, Some(at(2))), over(2, None)];
    store.commit(Change { incarnations, ..Change::default() }).await.unwrap();
    assert_eq!(store.prune(at(100), 9).await.unwrap().incarnations, 1);
    let asked = [1, 2].map(|number| over(number, None).incarnation);
    let left: Vec<_> = store.incarnations(&asked).await.unwrap().iter().map(Option::is_some).collect();
    assert_eq!(left, [true, false]);
}

async fn of_a_forgotten_instance_only_the_last_event_stays(store: Arc<dyn Store>) {
    let forgotten = |time| event(Some("a"), at(time), EventKind::Forgotten { data: DataDisposition::Delete });
    let events = vec![
        happened("a", at(10)),
        happened("b", at(10)),
        happened("a", at(10)),
        forgotten(11),
        happened("a", at(12)),
        forgotten(13),
        happened("a", at(14)),
    ];
    store.commit(Change { events, ..Change::default() }).await.unwrap();
    let positions = async || {
        let events = store.events(None, 0, 99).await.unwrap();
        events.into_iter().map(|event| event.position).collect::<Vec<_>>()
    };
    assert_eq!(store.prune(at(5), 2).await.unwrap().events, 2, "bounded");
    assert_eq!(store.prune(at(5), 2).await.unwrap().events, 1);
    assert_eq!(positions().await, [2, 4, 6, 7], "what tells of the going stays, and the later instance of that id");
    assert_eq!(store.prune(at(5), 2).await.unwrap().events, 0);
    assert_eq!(store.prune(at(12), 9).await.unwrap().events, 2);
    assert_eq!(positions().await, [6, 7], "until it is old itself");
}

async fn a_pruned_operation_gives_its_key_back(store: Arc<dyn Store>) {
    let ended = Operation { state: OperationState::Done, ended_at: Some(at(1)), ..operation(1, Some("k"), at(0)) };
    store.commit(with_operation(ended)).await.unwrap();
    assert_eq!(store.prune(at(2), 9).await.unwrap().operations, 1);
    assert_eq!(store.operation_of_key(&key("k")).await.unwrap(), None);
    store.commit(with_operation(operation(2, Some("k"), at(2)))).await.unwrap();
}
