//! 100,000 dormant instances in PostgreSQL: start, memory, size on disk, and the time of each query.
//!
//! `cargo bench -p benches --bench postgres_fleet`. `DATABASE_URL` names the server; without it a private one is started, with
//! `fsync` on.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use benches::{AT_REST, FLEET, cpu_time, fleet_cell, fleet_id, fleet_tenant, heading, one_more, resident_mib, row};
use provisioner_core::{
    ControlPlane, Result,
    memory::{MemoryConfig, MemoryProvisioner},
    store::{
        Change, Claim, EventKind, InstanceFilter, InstanceWrite, Lane, NewEvent, PostgresConfig, PostgresStore, Store,
        StoreError,
    },
    types::{CellName, ControlPlaneId, IdempotencyKey, Phase, Timestamp},
};
use test_peers::postgres::{Durability, Server};

/// How often each query is asked; the middle one counts.
const ASKED: usize = 21;
/// How many requests wait in the inbox when it is read.
const SUBMITTED: i32 = 1000;

/// Asks so often, and prints how long the middle one took.
macro_rules! time {
    ($what:literal, $query:expr) => {{
        let mut times = Vec::new();
        for _ in 0..ASKED {
            let began = Instant::now();
            $query.await?;
            times.push(began.elapsed());
        }
        times.sort();
        row(&[$what.into(), format!("{:.2} ms", times[ASKED / 2].as_secs_f64() * 1e3), String::new()]);
    }};
}

fn main() {
    // A process of its own for the start that is measured: memory that the filling took is not counted.
    if let Ok(url) = std::env::var("BENCH_FLEET") {
        run(start(&url));
        return;
    }
    let (url, _server) = match std::env::var("DATABASE_URL") {
        Ok(url) => (url, None),
        Err(_) => {
            let server = Server::create(Durability::Durable).unwrap_or_else(|why| panic!("no server: {why}"));
            (server.url().to_owned(), Some(server))
        }
    };
    run(fill_store(&url));
    let this = std::env::current_exe().expect("a program knows where it is");
    let status = std::process::Command::new(this).env("BENCH_FLEET", &url).status().expect("it starts again");
    assert!(status.success(), "the start was measured");
    run(drop_all(&url));
}

fn run(what: impl Future<Output = Result<()>>) {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    runtime.block_on(what).expect("the benchmark ran");
}

async fn open(url: &str) -> Result<Arc<PostgresStore>> {
    let opened = async {
        let config = PostgresConfig::from_url(url)?.with_schema("bench_fleet")?;
        PostgresStore::open(config, ControlPlaneId::new("bench").expect("a name")).await
    };
    opened.await.map_err(|error: StoreError| error.into_error("open"))
}

async fn client(url: &str) -> tokio_postgres::Client {
    let (client, connection) = tokio_postgres::connect(url, tokio_postgres::NoTls).await.expect("it connects");
    tokio::spawn(connection);
    client
}

async fn drop_all(url: &str) -> Result<()> {
    client(url).await.batch_execute("DROP SCHEMA bench_fleet CASCADE").await.expect("it is dropped");
    Ok(())
}

/// Signs them all up and puts them to sleep.
async fn fill_store(url: &str) -> Result<()> {
    let store = open(url).await?;
    let provider = MemoryProvisioner::new(MemoryConfig::default());
    let plane = ControlPlane::builder(store as Arc<dyn Store>).cell(fleet_cell(&provider)).start().await?;
    benches::fill(&plane).await;
    plane.shutdown().await?;
    client(url).await.batch_execute("VACUUM (ANALYZE)").await.expect("as the server does by itself in time");
    Ok(())
}

/// Starts on them in a fresh process, watches it do nothing, and asks it things.
async fn start(url: &str) -> Result<()> {
    let empty = resident_mib();
    let provider = MemoryProvisioner::new(MemoryConfig::default());
    let began = Instant::now();
    let store = open(url).await?;
    let opened = began.elapsed();
    let plane = ControlPlane::builder(Arc::clone(&store) as Arc<dyn Store>).cell(fleet_cell(&provider)).start().await?;
    one_more(&plane).await?;
    let started = began.elapsed();
    let (calls, cpu) = (provider.calls().values().sum::<u64>(), cpu_time());
    tokio::time::sleep(AT_REST).await;
    let rest_calls = provider.calls().values().sum::<u64>() - calls;
    let rest_cpu = cpu_time().saturating_sub(cpu);
    let bytes =
        "SELECT sum(pg_total_relation_size(c.oid))::bigint FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace
         WHERE nspname = 'bench_fleet' AND relkind = 'r'";
    let size: i64 = client(url).await.query_one(bytes, &[]).await.expect("it tells").get(0);
    heading(&["100,000 dormant instances in PostgreSQL", "figure", "target"]);
    let seconds = |time: Duration| format!("{:.2} s", time.as_secs_f64());
    row(&["store opened".into(), seconds(opened), String::new()]);
    row(&["from the start to a first sign-up running".into(), seconds(started), "2 s".into()]);
    let memory = format!("{:.0} MiB (a process that does nothing: {empty:.0})", resident_mib());
    row(&["resident memory".into(), memory, "100 MB".into()]);
    let at_rest = format!("{rest_calls} calls, {} ms", rest_cpu.as_millis());
    row(&[format!("provider calls and CPU time in {} s at rest", AT_REST.as_secs()), at_rest, "no call".into()]);
    row(&["tables and indexes on disk".into(), format!("{} MiB", size >> 20), String::new()]);
    let failed = |error: StoreError| error.into_error("ask");
    queries(&*store).await.map_err(failed)?;
    plane.shutdown().await?;
    // Nobody is there who would take them in.
    let submit = "SELECT count(bench_fleet.submit('sleep', 'i-' || number, '{}', 'bench')) FROM generate_series(1, $1) AS number";
    client(url).await.query_one(submit, &[&SUBMITTED]).await.expect("they are put in");
    writes(&*store).await.map_err(failed)
}

/// Reads, and what is written on the way.
async fn queries(store: &dyn Store) -> Result<(), StoreError> {
    let middle = fleet_id(FLEET / 2);
    let now = Timestamp::from_unix_ms(i64::MAX / 2);
    let cell = CellName::new("memory").expect("a name");
    let epoch = store.open_session("queries", now).await?.epoch;
    let claim = Claim { epoch, cell: cell.clone(), lane: Lane::Interactive, now, after: None, limit: 256 };
    let of = |filter: InstanceFilter| (filter, Some(middle.clone()));
    let tenant = fleet_tenant(5000);
    let all = of(InstanceFilter::default());
    let in_cell = of(InstanceFilter { cell: Some(cell.clone()), ..InstanceFilter::default() });
    let asleep = of(InstanceFilter { phase: Some(Phase::Zero), ..InstanceFilter::default() });
    let parked = of(InstanceFilter { parked: Some(true), ..InstanceFilter::default() });
    let of_tenant = InstanceFilter { tenant: Some(tenant.clone()), ..InstanceFilter::default() };
    let page = store.instances(&all.0, all.1.as_ref(), 256).await?;
    let record = page.first().expect("the fleet is there");
    let operations: Vec<_> = page.iter().map(|record| record.row.created_by.clone()).collect();
    let makings: Vec<_> =
        page.iter().filter_map(|record| Some(record.row.live.as_ref()?.incarnation)).take(64).collect();
    let key = IdempotencyKey::new("of nobody").expect("a key");
    time!("one instance", store.instance(&middle));
    time!("100 of all, from the middle", store.instances(&all.0, all.1.as_ref(), 100));
    time!("100 of a cell", store.instances(&in_cell.0, in_cell.1.as_ref(), 100));
    time!("100 that sleep", store.instances(&asleep.0, asleep.1.as_ref(), 100));
    time!("those that are parked: none", store.instances(&parked.0, parked.1.as_ref(), 100));
    time!("those of a tenant: 10", store.instances(&of_tenant, None, 100));
    time!("what is due in a cell: nothing", store.claim(&claim));
    time!("when something is due next", store.next_due(&cell, Timestamp::from_unix_ms(0)));
    time!("makings to be looked for", store.claim_incarnations(epoch, &cell, Timestamp::from_unix_ms(0), 64));
    time!("an instance claimed", store.claim_instance(epoch, &middle));
    time!("counts by cell and phase: all rows", store.counts());
    time!("what a cell holds", store.usage(&cell));
    time!("which cells are in use", store.cells_in_use());
    time!("events of an instance", store.events(Some(&middle), 0, 100));
    time!("100 events of all, from the middle", store.events(None, FLEET as u64 * 4, 100));
    time!("data of a tenant", store.data(Some(&tenant), None, 100));
    time!("the newest 10,000 creations", store.provisioning_times(Timestamp::from_unix_ms(0), 10_000));
    time!("requests of the inbox: none", store.inbox(epoch, 64));
    time!("a session renewed", store.renew_session(epoch));
    time!("one operation", store.operation(&operations[0]));
    time!("the operation of a key: none", store.operation_of_key(&key));
    time!("which of 256 operations have ended: all", store.ended(&operations));
    time!("what is known of 64 makings", store.incarnations(&makings));
    time!("makings that are due: none", store.due_incarnations(&cell, Timestamp::from_unix_ms(0), 64));
    time!("one data set", store.data_set(&record.row.data));
    time!("strangers: none", store.strangers());
    time!("what is recorded of cells", store.cells());
    time!("whether all is frozen", store.frozen());
    store.close_session(epoch).await
}

/// Writes, and what waits for nobody: no control plane runs.
async fn writes(store: &dyn Store) -> Result<(), StoreError> {
    // One that nobody has claimed so far.
    let (one, now) = (fleet_id(FLEET / 3), Timestamp::from_unix_ms(i64::MAX / 2));
    let epoch = store.open_session("writes", now).await?.epoch;
    let record = store.instance(&one).await?.expect("the fleet is there");
    let mut version = record.version;
    let happened = NewEvent {
        instance: Some(one.clone()),
        at: now,
        revision: None,
        actor: None,
        reason: None,
        what: EventKind::Drifted { found: "nothing".into() },
    };
    let change = |expected| Change {
        epoch: Some(epoch),
        instance: Some(InstanceWrite::Update { row: Arc::clone(&record.row), expected }),
        events: vec![happened.clone()],
        ..Change::default()
    };
    time!("an instance written, with an event", async {
        version = store.commit(change(version)).await?.version;
        Ok::<_, StoreError>(())
    });
    time!("an instance claimed, and given back", async {
        store.claim_instance(epoch, &one).await?;
        assert!(store.release(epoch, &one, version).await?, "nobody else has it");
        Ok::<_, StoreError>(())
    });
    time!("64 of 1,000 requests of the inbox", store.inbox(epoch, 64));
    time!("what is old enough to be removed: nothing", store.prune(Timestamp::from_unix_ms(0), 1000));
    time!("1,000 events and 1,000 operations removed", store.prune(now, 1000));
    store.close_session(epoch).await
}
