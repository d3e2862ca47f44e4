//! Instances: optimistic writes, specs, listings, and that a refused change writes nothing.

use std::{collections::BTreeSet, sync::Arc};

use provisioner_core::{store::*, types::*};

use crate::fixture::{rules, *};

rules! {
    an_instance_is_inserted_once,
    a_row_reads_back_as_it_was_written,
    an_update_is_taken_only_at_the_version_that_was_read,
    a_delete_is_taken_only_at_the_version_that_was_read,
    a_later_instance_of_an_id_never_has_a_version_of_the_one_before,
    of_64_updates_at_one_version_one_is_taken,
    a_record_holds_the_specs_wanted_in_force_and_applied,
    specs_that_are_not_kept_are_dropped,
    specs_go_with_their_instance,
    a_refused_change_writes_nothing_at_all,
    the_most_telling_reason_is_given_first,
    a_change_whose_parts_contradict_each_other_is_refused,
    a_change_can_write_every_part_at_once,
    listings_page_by_id_under_every_filter,
    counts_are_by_cell_and_phase,
    cells_in_use_are_those_that_rows_name,
}

async fn an_instance_is_inserted_once(store: Arc<dyn Store>) {
    let committed = store.commit(insert(row("a"))).await.unwrap();
    let again = InstanceRow { attempts: 7, ..row("a") };
    assert!(matches!(store.commit(insert(again)).await, Err(StoreError::Exists)));
    let record = store.instance(&id("a")).await.unwrap().unwrap();
    assert_eq!((record.version, record.row.attempts), (committed.version, 0));
    assert!(store.instance(&id("b")).await.unwrap().is_none());
}

async fn a_row_reads_back_as_it_was_written(store: Arc<dyn Store>) {
    let full = InstanceRow {
        intent: Intent {
            holds: BTreeSet::from([Hold::new("unpaid").unwrap()]),
            power: Power::Zero,
            gone: Some(DataDisposition::Retain),
        },
        revision: Revision(9),
        applied: Some(Generation::FIRST),
        live: Some(LiveIncarnation {
            incarnation: Incarnation::new(3, u128::MAX),
            seen: true,
            absent_since: Some(at(1)),
            last_call: Some(at(2)),
        }),
        incarnations: 3,
        settled_at: Some(at(3)),
        phase: Some(Phase::Failed),
        endpoint: Some("http://127.0.0.1:1".into()),
        reason: Some(Reason::new("exited", "with \"quotes\" and ümläuts\n")),
        parked: true,
        attempts: 4,
        retry_at: Some(at(4)),
        moving_since: Some(at(5)),
        due_at: Some(at(-6)),
        lane: Lane::Background,
        operation: Some(operation_id(5)),
        expires_at: Some(at(7)),
        ..row("a")
    };
    store.commit(insert(full.clone())).await.unwrap();
    assert_eq!(*store.instance(&id("a")).await.unwrap().unwrap().row, full);
    let bare = row("a");
    store.commit(update(bare.clone(), 1)).await.unwrap();
    assert_eq!(*store.instance(&id("a")).await.unwrap().unwrap().row, bare);
}

async fn an_update_is_taken_only_at_the_version_that_was_read(store: Arc<dyn Store>) {
    assert!(matches!(store.commit(update(row("a"), 1)).await, Err(StoreError::Stale)), "there is none yet");
    let first = store.commit(insert(row("a"))).await.unwrap().version;
    let second = store.commit(update(InstanceRow { attempts: 1, ..row("a") }, first)).await.unwrap().version;
    assert_eq!(second, first + 1);
    for wrong in [0, first, second + 1] {
        let late = update(InstanceRow { attempts: 2, ..row("a") }, wrong);
        assert!(matches!(store.commit(late).await, Err(StoreError::Stale)), "at {wrong}");
    }
    let record = store.instance(&id("a")).await.unwrap().unwrap();
    assert_eq!((record.version, record.row.attempts), (second, 1));
}

async fn a_delete_is_taken_only_at_the_version_that_was_read(store: Arc<dyn Store>) {
    let version = store.commit(insert(row("a"))).await.unwrap().version;
    assert!(matches!(store.commit(delete("a", version + 1)).await, Err(StoreError::Stale)));
    assert!(store.instance(&id("a")).await.unwrap().is_some());
    assert_eq!(store.commit(delete("a", version)).await.unwrap().version, 0);
    assert!(store.instance(&id("a")).await.unwrap().is_none());
    assert!(matches!(store.commit(delete("a", version)).await, Err(StoreError::Stale)));
}

async fn a_later_instance_of_an_id_never_has_a_version_of_the_one_before(store: Arc<dyn Store>) {
    let mut last = 0;
    for updates in [3, 0, 5, 1] {
        let mut version = store.commit(insert(row("a"))).await.unwrap().version;
        assert!(version > last, "{version} was a version of the one before, which went up to {last}");
        assert!(matches!(store.commit(delete("a", last)).await, Err(StoreError::Stale)));
        for _ in 0..updates {
            version = store.commit(update(row("a"), version)).await.unwrap().version;
        }
        store.commit(delete("a", version)).await.unwrap();
        last = version;
    }
}

async fn of_64_updates_at_one_version_one_is_taken(store: Arc<dyn Store>) {
    let version = store.commit(insert(row("a"))).await.unwrap().version;
    let attempt = |number| {
        let store = Arc::clone(&store);
        tokio::spawn(async move { store.commit(update(InstanceRow { attempts: number, ..row("a") }, version)).await })
    };
    let attempts: Vec<_> = (1..=64).map(|number| (number, attempt(number))).collect();
    let mut taken = Vec::new();
    for (number, attempt) in attempts {
        match attempt.await.unwrap() {
            Ok(_) => taken.push(number),
            Err(error) => assert!(matches!(error, StoreError::Stale), "{error:?}"),
        }
    }
    assert_eq!(taken.len(), 1);
    assert_eq!(store.instance(&id("a")).await.unwrap().unwrap().row.attempts, taken[0]);
}

async fn a_record_holds_the_specs_wanted_in_force_and_applied(store: Arc<dyn Store>) {
    let row = InstanceRow {
        wanted: Generation(4),
        in_force: Generation(3),
        applied: Some(Generation(2)),
        due_at: Some(at(0)),
        ..row("a")
    };
    let specs = (1..=4).map(|number| (Generation(number), spec(&number.to_string()))).collect();
    store.commit(Change { specs, ..insert(row) }).await.unwrap();
    let session = store.open_session("one", at(0)).await.unwrap();
    let claim =
        Claim { epoch: session.epoch, cell: cell("one"), lane: Lane::Interactive, now: at(0), after: None, limit: 9 };
    let records = [
        store.instance(&id("a")).await.unwrap().unwrap(),
        store.instances(&InstanceFilter::default(), None, 9).await.unwrap().remove(0),
        store.claim(&claim).await.unwrap().remove(0),
    ];
    for record in records {
        assert_eq!(record.specs.keys().map(|generation| generation.0).collect::<Vec<_>>(), [2, 3, 4]);
        for (generation, found) in &record.specs {
            assert_eq!(*found, spec(&generation.to_string()));
        }
    }
}

async fn specs_that_are_not_kept_are_dropped(store: Arc<dyn Store>) {
    let specs = (1..=3).map(|number| (Generation(number), spec(&number.to_string()))).collect();
    let other = Change { specs: vec![(Generation(1), spec("b"))], ..insert(row("b")) };
    store.commit(other).await.unwrap();
    let version = store.commit(Change { specs, ..insert(row("a")) }).await.unwrap().version;
    let newer = InstanceRow { wanted: Generation(4), in_force: Generation(2), ..row("a") };
    let change = Change {
        specs: vec![(Generation(4), spec("4"))],
        keep_specs: Some(vec![Generation(4), Generation(2)]),
        ..update(newer, version)
    };
    let version = store.commit(change).await.unwrap().version;
    let generations = |record: Record| record.specs.into_keys().map(|generation| generation.0).collect::<Vec<_>>();
    assert_eq!(generations(store.instance(&id("a")).await.unwrap().unwrap()), [2, 4]);
    // What was dropped is not found under a row that refers to it.
    let back = InstanceRow { wanted: Generation(4), in_force: Generation(3), applied: Some(Generation(1)), ..row("a") };
    store.commit(update(back, version)).await.unwrap();
    assert_eq!(generations(store.instance(&id("a")).await.unwrap().unwrap()), [4]);
    assert_eq!(generations(store.instance(&id("b")).await.unwrap().unwrap()), [1], "of another instance");
}

async fn specs_go_with_their_instance(store: Arc<dyn Store>) {
    let change = Change { specs: vec![(Generation(1), spec("1"))], ..insert(row("a")) };
    let version = store.commit(change).await.unwrap().version;
    store.commit(delete("a", version)).await.unwrap();
    store.commit(insert(row("a"))).await.unwrap();
    assert!(store.instance(&id("a")).await.unwrap().unwrap().specs.is_empty());
}

/// A change that writes every part there is; nothing of it is in an empty store.
fn change_of_every_part(instance: InstanceWrite) -> Change {
    Change {
        epoch: None,
        instance: Some(instance),
        specs: vec![(Generation(1), spec("changed"))],
        keep_specs: Some(vec![Generation(1)]),
        reservation: Some(reservation(&["changed.example.com"])),
        claiming: Claiming::Take,
        answers: None,
        take_data: None,
        incarnations: vec![making(5, IncarnationState::Ended, Some(at(5)))],
        data: vec![data_row(5, DataState::Used)],
        drop_data: vec![data_id(1)],
        operations: vec![operation(5, Some("changed"), at(0))],
        ended: vec![OperationEnd { id: operation_id(1), state: OperationState::Done, at: at(5), failure: None }],
        strangers: vec![stranger(5)],
        drop_strangers: vec![stranger(1).incarnation],
        events: vec![happened("a", at(5))],
        cells: vec![CellRow { name: cell("two"), identity: Some("changed".into()), drift_frozen: None }],
        frozen: Some(true),
    }
}

/// A store with something of everything, and the version of its instance `a`.
async fn fill(store: &dyn Store) -> u64 {
    let taken = Change { reservation: Some(reservation(&["taken.example.com"])), ..insert(row("taken")) };
    store.commit(taken).await.unwrap();
    let change = Change {
        specs: vec![(Generation(1), spec("1"))],
        reservation: Some(reservation(&["a.example.com"])),
        incarnations: vec![making(1, IncarnationState::Live, None)],
        data: vec![data_row(1, DataState::Retained), data_row(2, DataState::Used), data_row(3, DataState::Unseen)],
        operations: vec![operation(1, Some("used"), at(0)), operation(2, Some("old"), at(-90_000_000))],
        strangers: vec![stranger(1)],
        events: vec![happened("a", at(0))],
        cells: vec![CellRow { name: cell("one"), identity: Some("1".into()), drift_frozen: None }],
        ..insert(row("a"))
    };
    store.commit(change).await.unwrap().version
}

async fn a_refused_change_writes_nothing_at_all(store: Arc<dyn Store>) {
    let stale = store.open_session("old", at(0)).await.unwrap();
    store.open_session("new", at(0)).await.unwrap();
    store.close_session(stale.epoch).await.unwrap();
    let version = fill(&*store).await;
    let before = everything(&*store).await;
    let changed = Arc::new(InstanceRow { attempts: 9, phase: Some(Phase::Running), ..row("a") });
    let good = || change_of_every_part(InstanceWrite::Update { row: Arc::clone(&changed), expected: version });
    // Each takes the key of an operation whose day is over, and is refused for something else.
    let takes_key = || {
        let mut change = good();
        change.operations.push(operation(6, Some("old"), at(0)));
        change
    };
    let small = Capacity { cpu_millis: 499, ..Capacity::UNBOUNDED };
    let grown = Size { cpu_millis: 251, ..Size::default() };
    let refused = [
        ("an old session", Change { epoch: Some(stale.epoch), ..takes_key() }),
        ("a key that is used", Change { operations: vec![operation(7, Some("used"), at(0))], ..good() }),
        ("another version", {
            let write = InstanceWrite::Update { row: Arc::clone(&changed), expected: version + 1 };
            Change { instance: Some(write), ..takes_key() }
        }),
        ("an id that is there", Change { instance: Some(InstanceWrite::Insert(Arc::clone(&changed))), ..takes_key() }),
        ("a host name of another", {
            let reservation = reservation(&["b.example.com", "taken.example.com"]);
            Change { reservation: Some(reservation), ..takes_key() }
        }),
        ("a full cell", {
            let reservation = Reservation { capacity: small, size: grown, ..reservation(&["b.example.com"]) };
            Change { reservation: Some(reservation), ..takes_key() }
        }),
        ("data in use", Change { take_data: Some(data_id(2)), ..takes_key() }),
        ("no such data", Change { take_data: Some(data_id(99)), ..takes_key() }),
    ];
    for (why, change) in refused {
        store.commit(change).await.expect_err(why);
        assert_eq!(everything(&*store).await, before, "after a change that was refused for {why}");
    }
    store.commit(takes_key()).await.expect("without a reason to refuse it");
    assert_ne!(everything(&*store).await, before);
}

async fn the_most_telling_reason_is_given_first(store: Arc<dyn Store>) {
    let stale = store.open_session("old", at(0)).await.unwrap();
    store.open_session("new", at(0)).await.unwrap();
    store.close_session(stale.epoch).await.unwrap();
    fill(&*store).await;
    let repeated = || Change {
        operations: vec![operation(7, Some("used"), at(1))],
        reservation: Some(reservation(&["taken.example.com"])),
        ..insert(row("a"))
    };
    let error = store.commit(Change { epoch: Some(stale.epoch), ..repeated() }).await.unwrap_err();
    assert!(matches!(error, StoreError::SessionLost), "{error:?}");
    // A request that is repeated must find its operation, not learn that what it made exists.
    let error = store.commit(repeated()).await.unwrap_err();
    assert!(matches!(&error, StoreError::KeyUsed(used) if used.id == operation_id(1)), "{error:?}");
    let error = store.commit(Change { operations: Vec::new(), ..repeated() }).await.unwrap_err();
    assert!(matches!(error, StoreError::Exists), "{error:?}");
}

async fn a_change_whose_parts_contradict_each_other_is_refused(store: Arc<dyn Store>) {
    let version = fill(&*store).await;
    let before = everything(&*store).await;
    let homeless = [
        Change { specs: vec![(Generation(1), spec("1"))], ..Change::default() },
        Change { reservation: Some(reservation(&[])), ..Change::default() },
        Change { take_data: Some(data_id(1)), ..Change::default() },
        Change { keep_specs: Some(Vec::new()), ..delete("a", version) },
    ];
    for change in homeless {
        assert!(matches!(store.commit(change).await, Err(StoreError::NotWritten(_))));
    }
    assert_eq!(everything(&*store).await, before);
}

async fn a_change_can_write_every_part_at_once(store: Arc<dyn Store>) {
    let version = fill(&*store).await;
    let changed = Arc::new(InstanceRow { attempts: 9, phase: Some(Phase::Running), ..row("a") });
    let write = InstanceWrite::Update { row: Arc::clone(&changed), expected: version };
    let committed = store.commit(change_of_every_part(write)).await.unwrap();
    assert_eq!((committed.version, committed.position), (version + 1, 2));
    let record = store.instance(&id("a")).await.unwrap().unwrap();
    assert_eq!((&record.row, record.version), (&changed, version + 1));
    assert_eq!(*record.spec(Generation(1)), spec("changed"));
    let wanted = making(5, IncarnationState::Ended, Some(at(5)));
    assert_eq!(store.incarnations(&[wanted.incarnation]).await.unwrap(), [Some(wanted)]);
    let data: Vec<_> = store.data(None, None, 9).await.unwrap().into_iter().map(|data| data.id).collect();
    assert_eq!(data, [data_id(2), data_id(3), data_id(5)]);
    assert_eq!(store.operation_of_key(&key("changed")).await.unwrap().unwrap().id, operation_id(5));
    assert_eq!(store.strangers().await.unwrap(), [stranger(5)]);
    let cells: Vec<_> = store.cells().await.unwrap().into_iter().map(|row| (row.name, row.identity)).collect();
    assert_eq!(cells, [(cell("one"), Some("1".into())), (cell("two"), Some("changed".into()))]);
    assert!(store.frozen().await.unwrap());
    store.commit(Change { frozen: Some(false), ..Change::default() }).await.unwrap();
    assert!(!store.frozen().await.unwrap());
}

async fn listings_page_by_id_under_every_filter(store: Arc<dyn Store>) {
    let phases = [None, Some(Phase::Running), Some(Phase::Zero)];
    let rows: Vec<InstanceRow> = (0..36_usize)
        .map(|number| InstanceRow {
            tenant: tenant(["acme", "umbrella"][number % 2]),
            cell: cell(["one", "two"][number / 2 % 2]),
            phase: phases[number / 4 % 3],
            parked: number / 12 % 2 == 0,
            // Not in the order in which they are inserted.
            ..row(format!("i-{:02}", number * 7 % 36))
        })
        .collect();
    for row in &rows {
        store.commit(insert(row.clone())).await.unwrap();
    }
    for tenant in [None, Some(tenant("acme")), Some(tenant("nobody"))] {
        for cell in [None, Some(cell("one")), Some(cell("nowhere"))] {
            for phase in [None, Some(Phase::Running), Some(Phase::Failed)] {
                for parked in [None, Some(true), Some(false)] {
                    let filter = InstanceFilter { tenant: tenant.clone(), cell: cell.clone(), phase, parked };
                    assert_pages(&*store, &rows, &filter).await;
                }
            }
        }
    }
}

async fn assert_pages(store: &dyn Store, rows: &[InstanceRow], filter: &InstanceFilter) {
    let fits = |row: &&InstanceRow| {
        filter.tenant.as_ref().is_none_or(|tenant| row.tenant == *tenant)
            && filter.cell.as_ref().is_none_or(|cell| row.cell == *cell)
            && filter.phase.is_none_or(|phase| row.phase == Some(phase))
            && filter.parked.is_none_or(|parked| row.parked == parked)
    };
    let expected: BTreeSet<_> = rows.iter().filter(fits).map(|row| row.id.clone()).collect();
    let mut found = Vec::new();
    loop {
        let page = store.instances(filter, found.last(), 5).await.unwrap();
        assert!(page.len() <= 5);
        found.extend(page.iter().map(|record| record.row.id.clone()));
        if page.len() < 5 {
            break;
        }
    }
    assert_eq!(found, Vec::from_iter(expected), "{filter:?}");
}

async fn counts_are_by_cell_and_phase(store: Arc<dyn Store>) {
    assert!(store.counts().await.unwrap().is_empty());
    let phases = [None, Some(Phase::Running), Some(Phase::Running), Some(Phase::Zero)];
    for (number, phase) in phases.into_iter().enumerate() {
        for (prefix, place) in [("a", "one"), ("b", "two")] {
            let row = InstanceRow { phase, cell: cell(place), ..row(format!("{prefix}-{number}")) };
            store.commit(insert(row)).await.unwrap();
        }
    }
    store.commit(delete("b-0", 1)).await.unwrap();
    store.commit(update(InstanceRow { phase: Some(Phase::Failed), cell: cell("two"), ..row("b-3") }, 1)).await.unwrap();
    let expected = [
        (cell("one"), None, 1),
        (cell("one"), Some(Phase::Running), 2),
        (cell("one"), Some(Phase::Zero), 1),
        (cell("two"), Some(Phase::Running), 2),
        (cell("two"), Some(Phase::Failed), 1),
    ];
    assert_eq!(store.counts().await.unwrap(), expected);
}

async fn cells_in_use_are_those_that_rows_name(store: Arc<dyn Store>) {
    let recorded = CellRow { name: cell("only-recorded"), identity: None, drift_frozen: None };
    let change = Change {
        cells: vec![recorded],
        incarnations: vec![
            IncarnationRow { cell: cell("making"), ..making(1, IncarnationState::Live, None) },
            IncarnationRow { cell: cell("remnant"), ..making(2, IncarnationState::Ended, Some(at(1))) },
            IncarnationRow { cell: cell("over"), ..making(3, IncarnationState::Ended, None) },
        ],
        data: vec![DataRow { cell: cell("data"), ..data_row(1, DataState::Retained) }],
        strangers: vec![Stranger { cell: cell("stranger"), ..stranger(1) }],
        ..insert(row("a"))
    };
    store.commit(change).await.unwrap();
    let expected = ["data", "making", "one", "remnant", "stranger"].map(cell);
    assert_eq!(store.cells_in_use().await.unwrap(), expected);
}
