//! Several processes over one database.

use std::time::Duration;

use futures::StreamExt;
use provisioner_core::store::*;

use crate::{fixture::*, postgres::TestSchema, tests};

tests! { TESTS:
    what_one_writes_another_is_told,
    a_connection_that_listens_and_was_lost_is_told_as_missed,
    events_of_many_processes_are_seen_in_order_without_gaps,
    capacity_and_keys_hold_across_processes,
    a_version_is_never_given_twice_across_processes,
    a_session_that_is_being_renewed_is_not_ended,
}

async fn two(schema: &TestSchema) -> [std::sync::Arc<PostgresStore>; 2] {
    let one = PostgresStore::open(schema.config(), control_plane()).await.unwrap();
    [one, PostgresStore::open(schema.config(), control_plane()).await.unwrap()]
}

async fn told(store: &PostgresStore, cause: impl Future<Output = ()>, wanted: Signal) {
    let mut signals = store.signals().unwrap();
    cause.await;
    let told = async { while signals.next().await.as_ref() != Some(&wanted) {} };
    tokio::time::timeout(Duration::from_secs(30), told).await.unwrap_or_else(|_| panic!("no {wanted:?}"));
}

async fn shows(store: &PostgresStore, position: u64) {
    let mut positions = store.positions();
    let shown = positions.wait_for(|shown| *shown >= position);
    tokio::time::timeout(Duration::from_secs(30), shown).await.expect("it is told").unwrap();
}

async fn what_one_writes_another_is_told(schema: &TestSchema) {
    let [one, two] = two(schema).await;
    let due = InstanceRow { due_at: Some(at(1)), ..row("a") };
    let write = async {
        let change = Change { events: vec![happened("a", at(0))], ..insert(due) };
        assert_eq!(one.commit(change).await.unwrap().position, 1);
    };
    told(&two, write, Signal::Due(cell("one"))).await;
    shows(&two, 1).await;
    assert_eq!(two.events(None, 0, 9).await.unwrap().len(), 1);
    let freeze = async { one.commit(Change { frozen: Some(true), ..Change::default() }).await.map(drop).unwrap() };
    told(&two, freeze, Signal::Decided).await;
    assert!(two.frozen().await.unwrap());
}

async fn a_connection_that_listens_and_was_lost_is_told_as_missed(schema: &TestSchema) {
    let [one, two] = two(schema).await;
    let cut = async {
        let query = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
             WHERE query LIKE '%FROM counters%' AND application_name = $1 AND state = 'idle'";
        assert!(!schema.client().await.query(query, &[&schema.name()]).await.unwrap().is_empty());
        one.commit(with_event(happened("a", at(0)))).await.unwrap();
    };
    told(&two, cut, Signal::Missed).await;
    shows(&two, 1).await;
    one.commit(with_event(happened("a", at(0)))).await.unwrap();
    shows(&two, 2).await;
}

async fn events_of_many_processes_are_seen_in_order_without_gaps(schema: &TestSchema) {
    const EACH: u64 = 100;
    let stores = [two(schema).await, two(schema).await].concat();
    let reader = std::sync::Arc::clone(&stores[0]);
    let follower = tokio::spawn(async move {
        let mut last = 0;
        while last < 4 * EACH {
            for event in reader.events(None, last, 50).await.unwrap() {
                assert_eq!(event.position, last + 1, "a gap");
                last = event.position;
            }
        }
    });
    let writers: Vec<_> = stores
        .into_iter()
        .map(|store| {
            tokio::spawn(async move {
                let mut last = 0;
                for number in 0..EACH {
                    let told = store.commit(with_event(happened("a", at(number as i64)))).await.unwrap().position;
                    assert!(told > last);
                    last = told;
                }
            })
        })
        .collect();
    for writer in writers {
        writer.await.unwrap();
    }
    follower.await.unwrap();
}

async fn capacity_and_keys_hold_across_processes(schema: &TestSchema) {
    let stores = two(schema).await;
    let capacity = Capacity { instances: 10, ..Capacity::UNBOUNDED };
    let attempts: Vec<_> = (0..64_u64)
        .map(|number| {
            let store = std::sync::Arc::clone(&stores[number as usize % 2]);
            let name = format!("i-{number}");
            let change = Change {
                reservation: Some(Reservation { capacity, ..reservation(&[&format!("{}.example.com", number / 2)]) }),
                operations: vec![operation(number + 1, Some(&format!("k-{}", number / 4)), at(0))],
                ..insert(row(name))
            };
            tokio::spawn(async move { store.commit(change).await })
        })
        .collect();
    let mut taken = 0;
    for attempt in attempts {
        match attempt.await.unwrap() {
            Ok(_) => taken += 1,
            Err(StoreError::CellFull { .. } | StoreError::KeyUsed(_) | StoreError::HostNameTaken(_)) => {}
            Err(error) => panic!("{error:?}"),
        }
    }
    assert_eq!(taken, 10);
    assert_eq!(stores[0].usage(&cell("one")).await.unwrap().instances, 10);
}

async fn a_version_is_never_given_twice_across_processes(schema: &TestSchema) {
    let writers: Vec<_> = two(schema)
        .await
        .into_iter()
        .map(|store| {
            tokio::spawn(async move {
                let mut seen = Vec::new();
                while seen.len() < 40 {
                    let Ok(made) = store.commit(insert(row("a"))).await else { continue };
                    let version = store.commit(update(row("a"), made.version)).await.unwrap().version;
                    seen.extend([made.version, version]);
                    store.commit(delete("a", version)).await.unwrap();
                }
                seen
            })
        })
        .collect();
    let mut all = Vec::new();
    for writer in writers {
        all.extend(writer.await.unwrap());
    }
    let count = all.len();
    all.sort_unstable();
    all.dedup();
    assert_eq!(all.len(), count, "a write that was meant for one could hit another");
}

/// It lapses over two instances, and is renewed the moment before; that becomes known after another one has taken both.
async fn a_session_that_is_being_renewed_is_not_ended(schema: &TestSchema) {
    let [one, two] = two(schema).await;
    let epoch = one.open_session("one", at(0)).await.unwrap().epoch;
    for name in ["a", "b"] {
        one.commit(Change { epoch: Some(epoch), claiming: Claiming::Take, ..insert(row(name)) }).await.unwrap();
    }
    let other = two.open_session("two", at(0)).await.unwrap().epoch;
    let (clock, renewal) = (schema.client().await, schema.client().await);
    let lapses = "UPDATE sessions SET expires_at = clock_timestamp() WHERE epoch = $1";
    let number = i64::try_from(epoch).unwrap();
    clock.execute(lapses, &[&number]).await.unwrap();
    renewal.batch_execute("BEGIN").await.unwrap();
    let renews = "UPDATE sessions SET expires_at = clock_timestamp() + interval '1 hour' WHERE epoch = $1";
    renewal.execute(renews, &[&number]).await.unwrap();
    let taken = two.claim_instance(other, &id("a")).await.unwrap();
    assert!(matches!(taken, Taken::Here(record) if record.taken_over));
    let asks = Change { epoch: Some(other), claiming: Claiming::Take, ..update(row("b"), 1) };
    assert_eq!(two.commit(asks).await.unwrap().worker, Worker::TakenOver);
    // Nor does another one's renewal wait for it.
    assert_eq!(two.renew_session(other).await.unwrap().in_force, [other]);
    renewal.batch_execute("COMMIT").await.unwrap();
    assert_eq!(one.renew_session(epoch).await.unwrap().in_force, [epoch, other]);
    // It goes on without them.
    for (name, version) in [("a", 1), ("b", 2)] {
        let works = Change { epoch: Some(epoch), claiming: Claiming::Keep, ..update(row(name), version) };
        assert!(matches!(one.commit(works).await, Err(StoreError::Stale)), "{name}");
    }
}
