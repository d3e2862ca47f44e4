//! Faults: answers that are lost, connections that are cut, a database that hangs or crashes.

use std::{
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

use provisioner_core::{
    Cell, ControlPlane, Effect, ErrorKind,
    control_plane::Request,
    error::Chain,
    memory::{MemoryConfig, MemoryProvisioner},
    seams::Random,
    store::*,
    types::*,
};

use crate::{
    fixture::*,
    postgres::TestSchema,
    proxy::{Mode, Proxy},
    tests,
};

tests! { TESTS:
    an_answer_that_was_lost_is_found_out,
    a_commit_that_never_arrived_is_answered_so,
    connections_cut_under_load_lose_and_invent_nothing,
    a_database_that_hangs_is_an_error_in_time,
    a_lock_that_somebody_holds_is_an_error_in_time,
    a_change_that_cannot_be_written_fails_alone,
    a_row_that_cannot_be_read_is_an_error,
    a_read_that_fails_had_no_effect,
    what_is_due_and_cannot_be_read_is_left_to_who_can,
    a_database_that_takes_no_writes_is_an_error_until_it_does,
}

tests! { CRASHES:
    a_server_that_crashes_under_load_loses_and_invents_nothing,
    a_process_of_the_server_that_is_stopped_is_an_error_in_time,
}

/// How long a store waits for a database that does not answer: longer than one takes that is only busy.
const SHORT: Duration = Duration::from_secs(5);
/// By when it has told so, whatever it looked up in between.
const IN_TIME: Duration = Duration::from_secs(60);

async fn through(proxy: &Proxy, schema: &TestSchema, timeout: Duration) -> Arc<PostgresStore> {
    let config = PostgresConfig::from_url(&proxy.url()).unwrap().with_schema(schema.name()).unwrap();
    PostgresStore::open(config.with_timeout(timeout).unwrap(), control_plane()).await.unwrap()
}

fn sign_up(name: &str) -> Change {
    Change {
        reservation: Some(reservation(&[&format!("{name}.example.com")])),
        specs: vec![(Generation::FIRST, spec("1"))],
        events: vec![happened(name, at(0))],
        ..insert(row(name))
    }
}

fn is_known_not_written(error: &StoreError) -> bool {
    matches!(error, StoreError::NotWritten(_))
}

async fn an_answer_that_was_lost_is_found_out(schema: &TestSchema) {
    let proxy = Proxy::start().await;
    let store = through(&proxy, schema, Duration::from_secs(30)).await;
    for number in 0..5 {
        proxy.set(Mode::CutAfterCommit);
        let name = format!("i-{number}");
        match store.commit(sign_up(&name)).await {
            Ok(committed) => assert_eq!((committed.version, committed.position), (1, number + 1)),
            Err(error) => panic!("{}", Chain(&error)),
        }
        assert_eq!(proxy.cuts(), number + 1);
        assert!(store.instance(&id(name)).await.unwrap().is_some());
    }
    let events = store.events(None, 0, 99).await.unwrap();
    assert_eq!(events.iter().map(|event| event.position).collect::<Vec<_>>(), [1, 2, 3, 4, 5]);
}

async fn a_commit_that_never_arrived_is_answered_so(schema: &TestSchema) {
    let proxy = Proxy::start().await;
    let store = through(&proxy, schema, Duration::from_secs(30)).await;
    for number in 0..5 {
        proxy.set(Mode::CutBeforeCommit);
        let name = format!("i-{number}");
        let error = store.commit(sign_up(&name)).await.unwrap_err();
        assert!(is_known_not_written(&error), "{}", Chain(&error));
        assert!(store.instance(&id(&name)).await.unwrap().is_none());
        store.commit(sign_up(&name)).await.expect("the next finds a connection");
    }
    assert_eq!(store.events(None, 0, 99).await.unwrap().len(), 5);
}

/// What callers were told.
#[derive(Debug, Default)]
struct Answers {
    committed: Vec<String>,
    not_written: Vec<String>,
    unknown: Vec<String>,
}

/// Signs up from many callers until told otherwise.
async fn load(store: &Arc<PostgresStore>, callers: usize, until: Instant) -> Answers {
    let callers: Vec<_> = (0..callers)
        .map(|caller| {
            let store = Arc::clone(store);
            tokio::spawn(async move {
                let mut answers = Answers::default();
                let mut number = 0;
                while Instant::now() < until {
                    let name = format!("c-{caller}-{number}");
                    number += 1;
                    match store.commit(sign_up(&name)).await {
                        Ok(_) => answers.committed.push(name),
                        Err(error) if is_known_not_written(&error) => answers.not_written.push(name),
                        Err(_) => answers.unknown.push(name),
                    }
                }
                answers
            })
        })
        .collect();
    let mut all = Answers::default();
    for caller in callers {
        let answers = caller.await.unwrap();
        all.committed.extend(answers.committed);
        all.not_written.extend(answers.not_written);
        all.unknown.extend(answers.unknown);
    }
    all
}

/// Asserts that what callers were told is so, and that the parts of each change are there together.
async fn assert_truth(store: &PostgresStore, answers: &Answers) {
    for name in &answers.committed {
        assert!(store.instance(&id(name)).await.unwrap().is_some(), "{name} was answered and is gone");
    }
    for name in &answers.not_written {
        assert!(store.instance(&id(name)).await.unwrap().is_none(), "{name} was not written and is there");
    }
    let events = store.events(None, 0, 1_000_000).await.unwrap();
    let positions: Vec<_> = events.iter().map(|event| event.position).collect();
    assert_eq!(positions, Vec::from_iter(1..=events.len() as u64), "no gap, none twice");
    let there: u64 = store.counts().await.unwrap().iter().map(|(.., count)| count).sum();
    assert_eq!(there, events.len() as u64);
    assert_eq!(store.usage(&cell("one")).await.unwrap().instances, there);
}

async fn connections_cut_under_load_lose_and_invent_nothing(schema: &TestSchema) {
    const SEED: u64 = 11;
    let proxy = Proxy::start().await;
    let store = through(&proxy, schema, Duration::from_secs(30)).await;
    let until = Instant::now() + Duration::from_secs(8);
    let cutting = async {
        let random = Random::from_seed(SEED);
        let client = schema.client().await;
        let terminate = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
             WHERE application_name = 'provisioner' AND pid <> pg_backend_pid()
                 AND pid IN (SELECT pid FROM pg_locks WHERE relation = $1::text::regclass)";
        while Instant::now() < until {
            tokio::time::sleep(Duration::from_millis(20 + random.bits() % 60)).await;
            match random.bits() % 3 {
                0 => proxy.set(Mode::CutBeforeCommit),
                1 => proxy.set(Mode::CutAfterCommit),
                // Whoever is in the middle of a transaction here.
                _ => drop(client.query(terminate, &[&format!("{}.instances", schema.name())]).await.unwrap()),
            }
        }
        proxy.set(Mode::Pass);
    };
    let (answers, ()) = futures::join!(load(&store, 16, until), cutting);
    println!(
        "seed {SEED}: {} cuts, {} committed, {} not written, {} unknown",
        proxy.cuts(),
        answers.committed.len(),
        answers.not_written.len(),
        answers.unknown.len()
    );
    assert!(proxy.cuts() > 5 && answers.committed.len() > 50, "{answers:?}");
    assert!(answers.unknown.is_empty(), "the database could be asked: {:?}", answers.unknown);
    assert_truth(&store, &answers).await;
}

async fn a_database_that_hangs_is_an_error_in_time(schema: &TestSchema) {
    let proxy = Proxy::start().await;
    let store = through(&proxy, schema, SHORT).await;
    store.commit(sign_up("a")).await.unwrap();
    proxy.set(Mode::Hang);
    let began = Instant::now();
    let there = id("a");
    let (written, read) = futures::join!(store.commit(sign_up("b")), store.instance(&there));
    let error = written.unwrap_err();
    assert!(is_known_not_written(&error), "the commit was not even sent: {}", Chain(&error));
    read.unwrap_err();
    assert!(began.elapsed() < IN_TIME, "{:?}", began.elapsed());
    proxy.set(Mode::Pass);
    eventually(async || store.commit(sign_up("b")).await.is_ok()).await;
    eventually(async || store.instance(&id("b")).await.is_ok_and(|found| found.is_some())).await;
}

pub(crate) async fn eventually(mut holds: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !holds().await {
        assert!(Instant::now() < deadline, "it does not come to itself");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn a_lock_that_somebody_holds_is_an_error_in_time(schema: &TestSchema) {
    let config = schema.config().with_timeout(SHORT).unwrap();
    let store = PostgresStore::open(config, control_plane()).await.unwrap();
    store.commit(sign_up("a")).await.unwrap();
    let mut holder = schema.client().await;
    let held = holder.transaction().await.unwrap();
    held.batch_execute("SELECT FROM instances WHERE id = 'a' FOR UPDATE").await.unwrap();
    let began = Instant::now();
    let error = store.commit(update(row("a"), 1)).await.unwrap_err();
    assert!(is_known_not_written(&error), "{}", Chain(&error));
    let session = store.open_session("one", at(0)).await.unwrap();
    store.claim_instance(session.epoch, &id("a")).await.unwrap_err();
    assert!(began.elapsed() < IN_TIME, "{:?}", began.elapsed());
    held.commit().await.unwrap();
    eventually(async || store.commit(update(row("a"), 1)).await.is_ok()).await;
}

async fn a_change_that_cannot_be_written_fails_alone(schema: &TestSchema) {
    let store = PostgresStore::open(schema.config(), control_plane()).await.unwrap();
    let identity = Some("with a \0 in it".to_owned());
    let bad = CellRow { name: cell("one"), identity, drift_frozen: None };
    let bad = Change { cells: vec![bad], ..sign_up("bad") };
    let others: Vec<_> = (0..20).map(|number| store.commit(sign_up(&format!("i-{number}")))).collect();
    let (bad, others) = futures::join!(store.commit(bad), futures::future::join_all(others));
    let error = bad.unwrap_err();
    assert!(is_known_not_written(&error), "{}", Chain(&error));
    assert!(others.iter().all(Result::is_ok), "{others:?}");
    assert!(store.instance(&id("bad")).await.unwrap().is_none());
}

async fn a_row_that_cannot_be_read_is_an_error(schema: &TestSchema) {
    let store = PostgresStore::open(schema.config(), control_plane()).await.unwrap();
    store.commit(sign_up("a")).await.unwrap();
    let client = schema.client().await;
    client.batch_execute("UPDATE instances SET body = '{}'; UPDATE usage SET instances = -1").await.unwrap();
    let errors = [
        store.instance(&id("a")).await.map(drop).unwrap_err(),
        store.usage(&cell("one")).await.map(drop).unwrap_err(),
        store.commit(sign_up("b")).await.map(drop).unwrap_err(),
    ];
    for error in errors {
        assert!(Chain(&error).to_string().contains("cannot be read"), "{}", Chain(&error));
    }
    store.commit(update(row("a"), 1)).await.expect("what is not looked at does no harm");
    assert!(store.instance(&id("a")).await.unwrap().is_some());
}

async fn a_read_that_fails_had_no_effect(schema: &TestSchema) {
    let store = PostgresStore::open(schema.config(), control_plane()).await.unwrap();
    store.commit(sign_up("a")).await.unwrap();
    let provisioner = Arc::new(MemoryProvisioner::new(MemoryConfig::default()));
    let builder = ControlPlane::builder(Arc::clone(&store) as Arc<dyn Store>);
    let plane = builder.cell(Cell::new(cell("one"), provisioner)).start().await.unwrap();
    let broken = "UPDATE instances SET body = '{}'; UPDATE events SET body = '{}'";
    schema.client().await.batch_execute(broken).await.unwrap();
    let by = Request::by(Actor::new("somebody").unwrap());
    let errors = [
        plane.get(&id("a")).await.map(drop).unwrap_err(),
        plane.list(&InstanceFilter::default(), None, 9).await.map(drop).unwrap_err(),
        plane.events(None, 0, 9).await.map(drop).unwrap_err(),
        // A verb reads before it writes.
        plane.sleep(&id("a"), by).await.map(drop).unwrap_err(),
    ];
    for error in errors {
        assert_eq!((error.kind(), error.effect()), (ErrorKind::Unavailable, Effect::None), "{}", Chain(&error));
    }
    plane.shutdown().await.unwrap();
}

async fn what_is_due_and_cannot_be_read_is_left_to_who_can(schema: &TestSchema) {
    let store = PostgresStore::open(schema.config(), control_plane()).await.unwrap();
    for name in ["a", "b", "c", "d"] {
        let row = InstanceRow { due_at: Some(at(1)), ..row(name) };
        store.commit(Change { specs: vec![(Generation::FIRST, spec("1"))], ..insert(row) }).await.unwrap();
    }
    let session = async || store.open_session("one", at(0)).await.unwrap().epoch;
    let claimed = async |epoch, limit| {
        let claim = Claim { epoch, cell: cell("one"), lane: row("a").lane, now: at(9), after: None, limit };
        let found = store.claim(&claim).await.unwrap();
        found.iter().map(|record| (record.row.id.to_string(), record.taken_over)).collect::<Vec<_>>()
    };
    // Somebody works on the first and ends; it and the next one are of a newer release, as far as this one knows.
    let gone = session().await;
    assert_eq!(claimed(gone, 1).await, [("a".to_owned(), false)]);
    store.close_session(gone).await.unwrap();
    let client = schema.client().await;
    let hide = "CREATE TABLE hidden AS SELECT id, body FROM instances WHERE id IN ('a', 'b');
        UPDATE instances SET body = '{\"v\":99}' WHERE id IN ('a', 'b')";
    client.batch_execute(hide).await.unwrap();
    let (old, new) = (session().await, session().await);
    assert_eq!(claimed(old, 2).await, [("c".to_owned(), false), ("d".to_owned(), false)], "they take nobody's place");
    let error = store.claim_instance(old, &id("a")).await.map(drop).unwrap_err();
    assert!(Chain(&error).to_string().contains("cannot be read"), "{}", Chain(&error));
    client.batch_execute("UPDATE instances i SET body = h.body FROM hidden h WHERE h.id = i.id").await.unwrap();
    let expected = [("a".to_owned(), true), ("b".to_owned(), false)];
    assert_eq!(claimed(new, 4).await, expected, "as if the other had never tried");
}

async fn a_database_that_takes_no_writes_is_an_error_until_it_does(schema: &TestSchema) {
    let proxy = Proxy::start().await;
    let store = through(&proxy, schema, Duration::from_secs(30)).await;
    store.commit(sign_up("a")).await.unwrap();
    let client = schema.client().await;
    // As a server answers that became a standby.
    let refuse = "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql
             AS $$ BEGIN RAISE 'cannot execute INSERT in a read-only transaction' USING ERRCODE = '25006'; END $$;
         CREATE TRIGGER refuse BEFORE INSERT ON instances EXECUTE FUNCTION refuse()";
    client.batch_execute(refuse).await.unwrap();
    let connections = proxy.connections();
    let error = store.commit(sign_up("b")).await.unwrap_err();
    assert!(is_known_not_written(&error), "{}", Chain(&error));
    assert!(proxy.connections() > connections, "the server that takes writes may be another one");
    client.batch_execute("DROP TRIGGER refuse ON instances").await.unwrap();
    store.commit(sign_up("b")).await.unwrap();
}

/// Numbers of the server's processes that work for the store; none while the server cannot be asked.
async fn processes() -> Vec<i32> {
    let query = "SELECT pid FROM pg_stat_activity WHERE application_name <> '' AND pid <> pg_backend_pid()";
    let url = crate::postgres::postgres_url().unwrap();
    let Ok((client, connection)) = tokio_postgres::connect(&url, tokio_postgres::NoTls).await else {
        return Vec::new();
    };
    tokio::spawn(connection);
    client.query(query, &[]).await.map_or(Vec::new(), |rows| rows.iter().map(|row| row.get(0)).collect())
}

fn signal(name: &str, process: i32) {
    assert!(Command::new("kill").args([name, &process.to_string()]).status().unwrap().success());
}

async fn a_server_that_crashes_under_load_loses_and_invents_nothing(schema: &TestSchema) {
    let config = schema.config().with_timeout(Duration::from_secs(30)).unwrap();
    let store = PostgresStore::open(config, control_plane()).await.unwrap();
    let until = Instant::now() + Duration::from_secs(12);
    let crashing = async {
        for _ in 0..4 {
            tokio::time::sleep(Duration::from_millis(1500)).await;
            // One process that dies takes the whole server down, which then recovers from its log.
            let deadline = Instant::now() + Duration::from_secs(60);
            while processes().await.first().map(|process| signal("-KILL", *process)).is_none() {
                assert!(Instant::now() < deadline, "the server does not come back");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    };
    let (answers, ()) = futures::join!(load(&store, 16, until), crashing);
    println!(
        "{} committed, {} not written, {} unknown",
        answers.committed.len(),
        answers.not_written.len(),
        answers.unknown.len()
    );
    assert!(answers.unknown.is_empty(), "the database could be asked: {:?}", answers.unknown);
    eventually(async || store.frozen().await.is_ok()).await;
    let store = PostgresStore::open(schema.config(), control_plane()).await.unwrap();
    assert_truth(&store, &answers).await;
}

async fn a_process_of_the_server_that_is_stopped_is_an_error_in_time(schema: &TestSchema) {
    let config = schema.config().with_timeout(SHORT).unwrap();
    let store = PostgresStore::open(config, control_plane()).await.unwrap();
    store.commit(sign_up("a")).await.unwrap();
    let stopped = processes().await;
    stopped.iter().for_each(|process| signal("-STOP", *process));
    let began = Instant::now();
    let error = store.commit(sign_up("b")).await.unwrap_err();
    let told = Chain(&error).to_string();
    stopped.iter().for_each(|process| signal("-CONT", *process));
    assert!(is_known_not_written(&error), "{told}");
    assert!(began.elapsed() < IN_TIME, "{:?}", began.elapsed());
    eventually(async || store.commit(sign_up("b")).await.is_ok()).await;
    eventually(async || store.instance(&id("b")).await.is_ok()).await;
}
