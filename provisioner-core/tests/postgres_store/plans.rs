//! How the database looks things up: never by reading a whole table.

use provisioner_core::store::*;

use crate::{fixture::*, postgres::TestSchema, tests};

tests! { TESTS:
    no_statement_reads_a_whole_table,
}

/// How many rows: enough that reading all of them would be chosen by nobody.
const ROWS: u32 = 20_000;

async fn no_statement_reads_a_whole_table(schema: &TestSchema) {
    let store = PostgresStore::open(schema.config(), control_plane()).await.unwrap();
    let client = schema.client().await;
    fill(&client).await;
    let before = scans(&client).await;
    use_everything(&store).await;
    let after = scans(&client).await;
    let read: Vec<_> =
        after.iter().filter(|(table, count)| before.iter().any(|(t, c)| t == table && c < count)).collect();
    assert!(read.is_empty(), "read from end to end: {read:?}");
}

/// Copies one row of each kind many times.
async fn fill(client: &tokio_postgres::Client) {
    let rows = format!(
        "INSERT INTO instances SELECT 'i-' || n, 1, 'tenant-' || n % 100, 'cell-' || n % 3, n % 2, n, 'running', n % 50 = 0,
             NULL, false, '{{}}' FROM generate_series(1, {ROWS}) n;
         INSERT INTO specs SELECT 'i-' || n, 1, '{{}}' FROM generate_series(1, {ROWS}) n;
         INSERT INTO reservations SELECT 'i-' || n, 'cell-' || n % 3, 1, 1, 1 FROM generate_series(1, {ROWS}) n;
         INSERT INTO host_names SELECT n || '.example.com', 'i-' || n FROM generate_series(1, {ROWS}) n;
         INSERT INTO events SELECT n, 'i-' || n % 1000, n, false, '{{}}' FROM generate_series(1, {ROWS}) n;
         INSERT INTO operations SELECT lpad(to_hex(n), 32, '0'), 'i-' || n, 'k-' || n, 'create', 'done', n, n, NULL, '{{}}'
             FROM generate_series(1, {ROWS}) n;
         INSERT INTO incarnations SELECT n || '-x', 'i-' || n, 't', 'cell-' || n % 3, 'd', 'ended', n, NULL, NULL
             FROM generate_series(1, {ROWS}) n;
         INSERT INTO data SELECT lpad(to_hex(n), 32, '0'), 'tenant-' || n % 100, 'i-' || n, 'cell-' || n % 3, 'used', n
             FROM generate_series(1, {ROWS}) n;
         INSERT INTO inbox (operation, instance, verb, parameters, actor, at)
             SELECT md5(n::text), 'i-' || n % 100, 'wake', '{{}}', 'me', n FROM generate_series(1, {ROWS}) n;
         UPDATE counters SET position = {ROWS};
         ANALYZE"
    );
    client.batch_execute(&rows).await.unwrap();
}

/// How often each of the large tables was read from end to end.
async fn scans(client: &tokio_postgres::Client) -> Vec<(String, i64)> {
    // What others did is told with a delay.
    tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    let query = "SELECT relname::text, seq_scan FROM pg_stat_user_tables
         WHERE schemaname = current_schema() AND relname IN ('instances', 'specs', 'reservations', 'host_names', 'events',
             'operations', 'incarnations', 'data', 'inbox') ORDER BY relname";
    client.query(query, &[]).await.unwrap().iter().map(|row| (row.get(0), row.get(1))).collect()
}

async fn use_everything(store: &PostgresStore) {
    let epoch = store.open_session("one", at(0)).await.unwrap().epoch;
    for number in 0..8_u64 {
        let name = format!("new-{number}");
        let change = Change {
            epoch: Some(epoch),
            claiming: Claiming::Take,
            reservation: Some(reservation(&[&format!("{name}.example.org")])),
            specs: vec![(provisioner_core::types::Generation::FIRST, spec("1"))],
            operations: vec![operation(900_000 + number, Some(&name), at(0))],
            events: vec![happened(&name, at(0))],
            incarnations: vec![making(5, IncarnationState::Ended, Some(at(1)))],
            data: vec![data_row(77, DataState::Retained)],
            ..insert(InstanceRow { due_at: Some(at(1)), ..row(&name) })
        };
        let version = store.commit(change).await.unwrap().version;
        let change = Change { epoch: Some(epoch), claiming: Claiming::Keep, ..update(row(&name), version) };
        store.commit(Change { keep_specs: Some(Vec::new()), ..change }).await.unwrap();
        let claim = Claim { epoch, cell: cell("one"), lane: Lane::Interactive, now: at(100), after: None, limit: 10 };
        store.claim(&claim).await.unwrap();
        store.claim_instance(epoch, &id(&name)).await.unwrap();
        store.next_due(&cell("one"), at(0)).await.unwrap();
        store.claim_incarnations(epoch, &cell("one"), at(9), 9).await.unwrap();
        store.inbox(epoch, 10).await.unwrap();
        store.instance(&id(&name)).await.unwrap();
        for filter in [
            InstanceFilter { tenant: Some(tenant("acme")), ..InstanceFilter::default() },
            InstanceFilter { cell: Some(cell("one")), parked: Some(false), ..InstanceFilter::default() },
            InstanceFilter { phase: Some(provisioner_core::types::Phase::Zero), ..InstanceFilter::default() },
        ] {
            store.instances(&filter, None, 10).await.unwrap();
        }
        store.instances(&InstanceFilter::default(), Some(&id("j")), 4).await.unwrap();
        store.counts().await.unwrap();
        store.cells_in_use().await.unwrap();
        store.operation(&operation_id(900_000)).await.unwrap();
        store.operation_of_key(&key("new-1")).await.unwrap();
        store.ended(&[operation_id(1)]).await.unwrap();
        store.provisioning_times(at(0), 10).await.unwrap();
        store.events(None, u64::from(ROWS), 10).await.unwrap();
        store.events(Some(&id(&name)), 0, 10).await.unwrap();
        store.data(Some(&tenant("acme")), None, 10).await.unwrap();
        store.commit(delete(&name, version + 1)).await.unwrap();
        store.prune(provisioner_core::types::Timestamp::from_unix_ms(10), 5).await.unwrap();
    }
}
