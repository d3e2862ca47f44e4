//! Opening: schemas that are made, brought forward, or refused untouched.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use provisioner_core::{store::*, types::*};

use crate::{faults::eventually, fixture::*, postgres::TestSchema, tests};

tests! { TESTS:
    eight_that_open_at_once_make_one_schema,
    what_was_written_is_there_after_a_restart,
    a_schema_of_a_newer_release_is_refused_untouched,
    a_newer_release_brings_the_schema_forward_while_this_one_is_at_work,
    a_step_that_is_given_up_for_a_deadlock_is_made_again,
    a_step_that_waits_for_somebody_keeps_nobody_waiting,
    a_schema_of_another_control_plane_is_refused_untouched,
    a_schema_of_another_application_is_refused_untouched,
    an_empty_schema_is_taken,
    who_is_not_let_in_is_told_so_without_the_password,
    a_database_that_is_not_there_is_an_error_soon,
    a_host_that_is_silent_keeps_nobody_from_the_next,
}

async fn refused(schema: &TestSchema, control_plane: ControlPlaneId) -> String {
    match PostgresStore::open(schema.config(), control_plane).await {
        Err(StoreError::Refused(why)) => why,
        other => panic!("{other:?}"),
    }
}

/// Everything in the schema, as text.
async fn content(schema: &TestSchema) -> String {
    let query = "SELECT coalesce(string_agg(c.relname || c.relkind::text, ',' ORDER BY c.relname), '')
         FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = $1";
    schema.client().await.query_one(query, &[&schema.name()]).await.unwrap().get(0)
}

async fn eight_that_open_at_once_make_one_schema(schema: &TestSchema) {
    let opening: Vec<_> = (0..8)
        .map(|_| {
            let config = schema.config();
            tokio::spawn(async move { PostgresStore::open(config, control_plane()).await })
        })
        .collect();
    let mut stores = Vec::new();
    for store in opening {
        stores.push(store.await.unwrap().unwrap());
    }
    for (number, store) in stores.iter().enumerate() {
        let told = store.commit(with_event(happened("a", at(0)))).await.unwrap();
        assert_eq!(told.position, number as u64 + 1);
    }
}

async fn what_was_written_is_there_after_a_restart(schema: &TestSchema) {
    let store = PostgresStore::open(schema.config(), control_plane()).await.unwrap();
    let change = Change { events: vec![happened("a", at(0))], ..insert(row("a")) };
    store.commit(change).await.unwrap();
    drop(store);
    let store = PostgresStore::open(schema.config(), control_plane()).await.unwrap();
    assert_eq!(store.instance(&id("a")).await.unwrap().unwrap().version, 1);
    assert_eq!(*store.positions().borrow(), 1, "known from the first moment");
    assert_eq!(store.control_plane(), &control_plane());
}

async fn a_schema_of_a_newer_release_is_refused_untouched(schema: &TestSchema) {
    drop(PostgresStore::open(schema.config(), control_plane()).await.unwrap());
    let client = schema.client().await;
    client
        .batch_execute("UPDATE meta SET value = '99' WHERE key = 'schema_version'; DROP TABLE forgotten")
        .await
        .unwrap();
    let before = content(schema).await;
    let why = refused(schema, control_plane()).await;
    assert!(why.contains("newer release: found schema version 99, expected up to"), "{why}");
    assert_eq!(content(schema).await, before);
}

/// What a later release may add.
const LATER: &[&[&str]] = &[&[
    "ALTER TABLE instances ADD COLUMN region text COLLATE \"C\" NOT NULL DEFAULT 'here';
     CREATE INDEX instances_by_region ON instances (region, id);
     CREATE TABLE regions (name text COLLATE \"C\" PRIMARY KEY)",
    // So long that the other one comes meanwhile.
    "SELECT pg_sleep(1)",
]];

/// Writes an instance, claims it, and writes it as who works on it does.
async fn work(store: &PostgresStore, epoch: u64, name: &str) {
    let due = InstanceRow { due_at: Some(at(1)), ..row(name) };
    let made = Change {
        epoch: Some(epoch),
        specs: vec![(Generation::FIRST, spec("1"))],
        reservation: Some(reservation(&[])),
        events: vec![happened(name, at(0))],
        ..insert(due)
    };
    let made = store.commit(made).await.unwrap();
    let taken = store.claim_instance(epoch, &id(name)).await.unwrap();
    assert!(matches!(&taken, Taken::Here(record) if record.version == made.version), "{taken:?}");
    let last = Change { epoch: Some(epoch), claiming: Claiming::Release, ..update(row(name), made.version) };
    store.commit(last).await.unwrap();
    store.renew_session(epoch).await.unwrap();
}

async fn a_newer_release_brings_the_schema_forward_while_this_one_is_at_work(schema: &TestSchema) {
    // No session lapses on a busy machine.
    let config = schema.config().with_lapses_after(Duration::from_secs(600)).unwrap();
    let old = PostgresStore::open(config.clone(), control_plane()).await.unwrap();
    let epoch = old.open_session("old", at(0)).await.unwrap().epoch;
    let is_forward = AtomicBool::new(false);
    let newer = || PostgresStore::open(config.clone().with_later_steps(LATER), control_plane());
    let forward = async {
        let both = futures::join!(newer(), newer());
        is_forward.store(true, Ordering::SeqCst);
        both
    };
    let at_work = async {
        let mut number = 0;
        while !is_forward.load(Ordering::SeqCst) {
            work(&old, epoch, &format!("during-{number}")).await;
            number += 1;
        }
    };
    let ((one, two), ()) = futures::join!(forward, at_work);
    let (one, _two) = (one.unwrap(), two.expect("the step is made once"));
    // What one writes the others read.
    let newer_epoch = one.open_session("new", at(0)).await.unwrap().epoch;
    work(&one, newer_epoch, "of-the-newer").await;
    work(&old, epoch, "of-the-older").await;
    assert!(old.instance(&id("of-the-newer")).await.unwrap().is_some());
    assert!(one.instance(&id("of-the-older")).await.unwrap().is_some());
    assert_eq!(old.renew_session(epoch).await.unwrap().in_force, [epoch, newer_epoch]);
    // Another copy of this release does not start, and changes nothing.
    let before = content(schema).await;
    let why = refused(schema, control_plane()).await;
    assert!(why.contains("written by a newer release: found schema version"), "{why}");
    assert_eq!(content(schema).await, before);
    // Also over connections that are made from now on, the one at work goes on.
    let cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = $1";
    schema.client().await.query(cut, &[&schema.name()]).await.unwrap();
    eventually(async || old.commit(with_event(happened("a", at(0)))).await.is_ok()).await;
    eventually(async || old.claim_instance(epoch, &id("of-the-newer")).await.is_ok()).await;
    eventually(async || old.renew_session(epoch).await.is_ok()).await;
}

/// A step that alters two tables, with time between them.
const OF_TWO_TABLES: &[&[&str]] = &[&[
    "ALTER TABLE instances ADD COLUMN region text",
    "SELECT pg_sleep(4)",
    "ALTER TABLE sessions ADD COLUMN region text",
]];

async fn a_step_that_is_given_up_for_a_deadlock_is_made_again(schema: &TestSchema) {
    drop(PostgresStore::open(schema.config(), control_plane()).await.unwrap());
    // Who is at work: has one table, waits for the other, and does not give up first.
    let (at_work, watcher) = (schema.client().await, schema.client().await);
    let begin = "SET deadlock_timeout = '1min'; BEGIN; LOCK TABLE sessions IN ACCESS SHARE MODE";
    at_work.batch_execute(begin).await.unwrap();
    let waits = async {
        let held = "SELECT count(*) FROM pg_locks
             WHERE relation = 'instances'::regclass AND mode = 'AccessExclusiveLock' AND granted";
        eventually(async || watcher.query_one(held, &[]).await.unwrap().get::<_, i64>(0) == 1).await;
        at_work.batch_execute("LOCK TABLE instances IN ACCESS SHARE MODE; COMMIT").await.unwrap();
    };
    let newer = PostgresStore::open(schema.config().with_later_steps(OF_TWO_TABLES), control_plane());
    let (newer, ()) = futures::join!(newer, waits);
    newer.unwrap().commit(insert(row("a"))).await.unwrap();
    let added = "SELECT count(*) FROM pg_attribute WHERE attname = 'region'
         AND attrelid IN ('instances'::regclass, 'sessions'::regclass)";
    assert_eq!(watcher.query_one(added, &[]).await.unwrap().get::<_, i64>(0), 2);
}

async fn a_step_that_waits_for_somebody_keeps_nobody_waiting(schema: &TestSchema) {
    let old = PostgresStore::open(schema.config(), control_plane()).await.unwrap();
    let (backup, watcher) = (schema.client().await, schema.client().await);
    backup.batch_execute("BEGIN; LOCK TABLE instances IN ACCESS SHARE MODE").await.unwrap();
    let at_work = async {
        let waits = "SELECT count(*) FROM pg_locks
             WHERE relation = 'instances'::regclass AND mode = 'AccessExclusiveLock' AND NOT granted";
        for number in 0..2 {
            eventually(async || watcher.query_one(waits, &[]).await.unwrap().get::<_, i64>(0) == 1).await;
            old.commit(insert(row(format!("during-{number}")))).await.expect("it is not kept waiting for long");
        }
        backup.batch_execute("COMMIT").await.unwrap();
    };
    let newer = PostgresStore::open(schema.config().with_later_steps(OF_TWO_TABLES), control_plane());
    let (newer, ()) = futures::join!(newer, at_work);
    assert!(newer.unwrap().instance(&id("during-1")).await.unwrap().is_some());
}

async fn a_schema_of_another_control_plane_is_refused_untouched(schema: &TestSchema) {
    drop(PostgresStore::open(schema.config(), control_plane()).await.unwrap());
    let before = content(schema).await;
    let why = refused(schema, ControlPlaneId::new("another").unwrap()).await;
    assert!(why.contains("belongs to another control plane: found contract, expected another"), "{why}");
    assert_eq!(content(schema).await, before);
}

async fn a_schema_of_another_application_is_refused_untouched(schema: &TestSchema) {
    let client = schema.client().await;
    for (content_of, table) in [("things", "things"), ("a table of the same name", "meta")] {
        client
            .batch_execute(&format!("CREATE SCHEMA {0}; CREATE TABLE {0}.{table} (key text)", schema.name()))
            .await
            .unwrap();
        let before = content(schema).await;
        let why = refused(schema, control_plane()).await;
        assert!(why.contains("belongs to another application"), "{content_of}: {why}");
        assert_eq!(content(schema).await, before);
        client.batch_execute(&format!("DROP SCHEMA {} CASCADE", schema.name())).await.unwrap();
    }
}

async fn an_empty_schema_is_taken(schema: &TestSchema) {
    schema.client().await.batch_execute(&format!("CREATE SCHEMA {}", schema.name())).await.unwrap();
    let store = PostgresStore::open(schema.config(), control_plane()).await.unwrap();
    store.commit(insert(row("a"))).await.unwrap();
}

async fn who_is_not_let_in_is_told_so_without_the_password(schema: &TestSchema) {
    let url = crate::proxy::url_with("no_such_user_here", "hunter2");
    let config = PostgresConfig::from_url(&url).unwrap().with_schema(schema.name()).unwrap();
    let error = PostgresStore::open(config, control_plane()).await.unwrap_err();
    let told = provisioner_core::error::Chain(&error).to_string();
    assert!(!told.contains("hunter2") && !format!("{error:?}").contains("hunter2"), "{told}");
    assert!(matches!(error, StoreError::Refused(_)), "{error:?}");
}

async fn a_database_that_is_not_there_is_an_error_soon(_: &TestSchema) {
    // Something that listens and says nothing, and something that does not listen.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let closed = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let ports = [silent.local_addr().unwrap().port(), closed.local_addr().unwrap().port()];
    drop(closed);
    for port in ports {
        let config = PostgresConfig::from_url(&format!("postgres://u:p@127.0.0.1:{port}/d?connect_timeout=1")).unwrap();
        let began = std::time::Instant::now();
        let error = PostgresStore::open(config, control_plane()).await.unwrap_err();
        assert!(matches!(error, StoreError::Failed(_)), "{error:?}");
        assert!(began.elapsed() < std::time::Duration::from_secs(20));
    }
}

async fn a_host_that_is_silent_keeps_nobody_from_the_next(schema: &TestSchema) {
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = silent.local_addr().unwrap().port();
    let url = crate::postgres::postgres_url().unwrap();
    let (scheme, rest) = url.split_once("://").unwrap();
    let (user, hosts) =
        rest.rsplit_once('@').map_or((String::new(), rest), |(user, hosts)| (format!("{user}@"), hosts));
    let config = PostgresConfig::from_url(&format!("{scheme}://{user}127.0.0.1:{port},{hosts}")).unwrap();
    let config = config.with_schema(schema.name()).unwrap().with_connect_timeout(std::time::Duration::from_secs(600));
    let store = PostgresStore::open(config.unwrap(), control_plane()).await.unwrap();
    let session = store.open_session("one", at(0)).await.unwrap();
    assert_eq!(store.renew_session(session.epoch).await.unwrap().in_force, [session.epoch]);
    assert!(store.instances(&InstanceFilter::default(), None, 1).await.unwrap().is_empty());
}
