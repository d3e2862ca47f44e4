//! Events: in order, without gaps, and seen by whoever was told of them.

use std::{sync::Arc, time::Duration};

use provisioner_core::{store::*, types::*};

use crate::fixture::{rules, *};

rules! {
    events_get_rising_positions_and_read_back,
    a_follower_sees_every_event_once_and_in_order_under_concurrent_writers,
    events_of_one_instance_page_in_order,
    positions_follow_the_last_commit,
    a_read_sees_every_commit_that_was_answered_before,
    a_commit_whose_future_is_dropped_happens_or_does_not,
}

async fn events_get_rising_positions_and_read_back(store: Arc<dyn Store>) {
    let kinds = [
        EventKind::Accepted {
            verb: Verb::Suspend,
            operation: operation_id(1),
            hold: Some(Hold::new("unpaid").unwrap()),
        },
        EventKind::PhaseChanged { from: None, to: Some(Phase::Running), detail: Some(Reason::new("x", "y")) },
        EventKind::Freeze { frozen: true },
        EventKind::Forgotten { data: DataDisposition::Retain },
    ];
    let events: Vec<_> = kinds
        .into_iter()
        .map(|what| NewEvent {
            instance: Some(id("a")),
            at: at(1),
            revision: Some(Revision(3)),
            actor: Some(Actor::new("ümläut \"x\"").unwrap()),
            reason: Some("because\nof that".into()),
            what,
        })
        .collect();
    let committed = store.commit(Change::default()).await.unwrap();
    assert_eq!((committed.version, committed.position), (0, 0));
    let committed = store.commit(Change { events: events.clone(), ..Change::default() }).await.unwrap();
    assert_eq!(committed.position, 4);
    let expected: Vec<_> = (1..).zip(events).map(|(position, event)| Event { position, event }).collect();
    assert_eq!(store.events(None, 0, 99).await.unwrap(), expected);
    assert_eq!(store.events(None, 1, 2).await.unwrap(), expected[1..3]);
    assert_eq!(store.events(None, 4, 99).await.unwrap(), []);
    assert_eq!(store.events(None, u64::MAX, 99).await.unwrap(), []);
    assert_eq!(store.commit(Change::default()).await.unwrap().position, 4);
}

async fn a_follower_sees_every_event_once_and_in_order_under_concurrent_writers(store: Arc<dyn Store>) {
    const WRITERS: u32 = 16;
    const EACH: u64 = 25;
    let follower = {
        let store = Arc::clone(&store);
        tokio::spawn(async move {
            let mut positions = store.positions();
            let mut seen: Vec<Event> = Vec::new();
            while seen.len() < (u64::from(WRITERS) * EACH) as usize {
                let last = seen.last().map_or(0, |event| event.position);
                positions.wait_for(|position| *position > last).await.unwrap();
                let page = store.events(None, last, 7).await.unwrap();
                assert!(!page.is_empty(), "a position was told whose event cannot be read");
                seen.extend(page);
            }
            seen
        })
    };
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let store = Arc::clone(&store);
            tokio::spawn(async move {
                for number in 0..EACH {
                    let name = format!("w-{writer}");
                    let told = store.commit(with_event(happened(&name, at(number as i64)))).await.unwrap().position;
                    assert!(*store.positions().borrow() >= told);
                    // Changes that are refused leave no gap.
                    let refused = Change { events: vec![happened(&name, at(0))], ..update(row("nobody"), 1) };
                    store.commit(refused).await.unwrap_err();
                }
            })
        })
        .collect();
    for writer in writers {
        writer.await.unwrap();
    }
    let seen = tokio::time::timeout(Duration::from_secs(30), follower).await.expect("within the deadline").unwrap();
    let positions: Vec<_> = seen.iter().map(|event| event.position).collect();
    assert_eq!(positions, Vec::from_iter(1..=u64::from(WRITERS) * EACH));
    for writer in 0..WRITERS {
        let own = |event: &&Event| event.event.instance == Some(id(format!("w-{writer}")));
        let times: Vec<_> = seen.iter().filter(own).map(|event| event.event.at).collect();
        assert_eq!(times, (0..EACH as i64).map(at).collect::<Vec<_>>(), "each writer's in its own order");
    }
}

async fn events_of_one_instance_page_in_order(store: Arc<dyn Store>) {
    for number in 0..30 {
        let instance = [Some("a"), Some("b"), None][number % 3];
        let what = EventKind::Drifted { found: number.to_string() };
        store.commit(with_event(event(instance, at(0), what))).await.unwrap();
    }
    let mut found: Vec<u64> = Vec::new();
    loop {
        let page = store.events(Some(&id("b")), found.last().copied().unwrap_or(0), 4).await.unwrap();
        found.extend(page.iter().map(|event| event.position));
        if page.len() < 4 {
            break;
        }
    }
    assert_eq!(found, (0..10).map(|number| number * 3 + 2).collect::<Vec<u64>>());
    assert_eq!(store.events(Some(&id("c")), 0, 9).await.unwrap(), []);
}

async fn positions_follow_the_last_commit(store: Arc<dyn Store>) {
    let mut positions = store.positions();
    assert_eq!(*positions.borrow_and_update(), 0);
    store.commit(insert(row("a"))).await.unwrap();
    assert!(!positions.has_changed().unwrap(), "a commit without an event is no news");
    store
        .commit(Change { events: vec![happened("a", at(0)), happened("a", at(0))], ..Change::default() })
        .await
        .unwrap();
    assert!(positions.has_changed().unwrap());
    assert_eq!(*positions.borrow_and_update(), 2);
    assert_eq!(*store.positions().borrow(), 2, "also for one who comes later");
}

async fn a_read_sees_every_commit_that_was_answered_before(store: Arc<dyn Store>) {
    let tasks: Vec<_> = (0..16)
        .map(|task| {
            let store = Arc::clone(&store);
            tokio::spawn(async move {
                let name = format!("i-{task}");
                let mut version = store.commit(insert(row(&name))).await.unwrap().version;
                for _ in 0..20 {
                    let found = store.instance(&id(&name)).await.unwrap().expect("it was inserted");
                    assert_eq!(found.version, version);
                    version = store.commit(update(row(&name), version)).await.unwrap().version;
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
}

async fn a_commit_whose_future_is_dropped_happens_or_does_not(store: Arc<dyn Store>) {
    for number in 0..50 {
        let name = format!("i-{number}");
        let change = Change { events: vec![happened(&name, at(0))], ..insert(row(&name)) };
        let mut commit = store.commit(change);
        let _ = futures::poll!(&mut commit);
        drop(commit);
    }
    // What comes after it in the same queue is answered after it was done.
    store.commit(insert(row("last"))).await.unwrap();
    let rows = store.instances(&InstanceFilter::default(), None, 99).await.unwrap().len() - 1;
    assert_eq!(store.events(None, 0, 99).await.unwrap().len(), rows, "all of it or nothing");
}
