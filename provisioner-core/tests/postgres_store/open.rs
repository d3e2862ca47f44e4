//! Opening: schemas that are made, brought forward, or refused untouched.

use provisioner_core::{store::*, types::*};

use crate::{fixture::*, postgres::TestSchema, tests};

tests! { TESTS:
    eight_that_open_at_once_make_one_schema,
    what_was_written_is_there_after_a_restart,
    a_schema_of_a_newer_release_is_refused_untouched,
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
