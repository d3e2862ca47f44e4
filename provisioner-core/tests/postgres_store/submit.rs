//! The function by which a caller's own transaction puts a request into the inbox.

use provisioner_core::{store::*, types::*};
use tokio_postgres::Client;

use crate::{fixture::*, postgres::TestSchema, tests};

tests! { TESTS:
    a_request_is_there_when_its_transaction_is_committed_and_not_before,
    a_request_of_a_transaction_that_is_rolled_back_never_was,
    the_same_key_is_the_same_request_for_24_hours,
    of_two_at_once_with_one_key_both_get_one_operation,
    what_cannot_be_right_is_refused_and_named,
    what_is_passed_may_have_any_collation,
    what_cannot_be_read_keeps_nobody_else_up,
    what_one_cannot_read_is_left_to_who_can,
    a_caller_needs_the_right_to_execute_and_no_other,
    an_operation_is_named_as_all_are,
}

async fn open(schema: &TestSchema) -> (std::sync::Arc<PostgresStore>, u64, Client) {
    let store = PostgresStore::open(schema.config(), control_plane()).await.unwrap();
    let epoch = store.open_session("one", at(0)).await.unwrap().epoch;
    (store, epoch, schema.client().await)
}

const SUBMIT: &str = "SELECT submit('wake', $1, '{}', 'somebody', key => $2)";

async fn submit(client: &Client, instance: &str, key: Option<&str>) -> Result<String, String> {
    match client.query_one(SUBMIT, &[&instance, &key]).await {
        Ok(row) => Ok(row.get(0)),
        Err(error) => Err(error.as_db_error().expect("the server says why").message().to_owned()),
    }
}

async fn a_request_is_there_when_its_transaction_is_committed_and_not_before(schema: &TestSchema) {
    let (store, epoch, mut client) = open(schema).await;
    client.batch_execute("CREATE TABLE customers (name text)").await.unwrap();
    let transaction = client.transaction().await.unwrap();
    transaction.batch_execute("INSERT INTO customers VALUES ('acme')").await.unwrap();
    let row = transaction.query_one(SUBMIT, &[&"acme", &None::<&str>]).await.unwrap();
    let operation = OperationId::new(row.get::<_, &str>(0)).unwrap();
    assert_eq!(store.inbox(epoch, 9).await.unwrap(), []);
    assert_eq!(store.operation(&operation).await.unwrap(), None);
    transaction.commit().await.unwrap();
    assert_eq!(store.inbox(epoch, 9).await.unwrap()[0].operation, operation);
    assert_eq!(store.operation(&operation).await.unwrap().unwrap().state, OperationState::Pending);
}

async fn a_request_of_a_transaction_that_is_rolled_back_never_was(schema: &TestSchema) {
    let (store, epoch, mut client) = open(schema).await;
    let transaction = client.transaction().await.unwrap();
    let row = transaction.query_one(SUBMIT, &[&"acme", &Some("k")]).await.unwrap();
    let operation = OperationId::new(row.get::<_, &str>(0)).unwrap();
    transaction.rollback().await.unwrap();
    assert_eq!(store.inbox(epoch, 9).await.unwrap(), []);
    assert_eq!(store.operation(&operation).await.unwrap(), None);
    assert_eq!(store.operation_of_key(&key("k")).await.unwrap(), None);
    submit(&client, "other", Some("k")).await.expect("the key is free");
}

async fn the_same_key_is_the_same_request_for_24_hours(schema: &TestSchema) {
    let (store, epoch, client) = open(schema).await;
    let first = submit(&client, "acme", Some("k")).await.unwrap();
    assert_eq!(submit(&client, "acme", Some("k")).await.unwrap(), first);
    let why = submit(&client, "other", Some("k")).await.unwrap_err();
    assert!(why.contains(&format!("key: it belongs to operation {first}, which is to wake acme")), "{why}");
    assert_eq!(store.inbox(epoch, 9).await.unwrap().len(), 1);
    // Taken in, it is the same.
    let request = store.inbox(epoch, 9).await.unwrap().remove(0);
    let operation = Operation { instance: id("acme"), ..request.pending() };
    let change = Change { epoch: Some(epoch), answers: Some(request.number), ..with_operation(operation) };
    store.commit(change).await.unwrap();
    assert_eq!(submit(&client, "acme", Some("k")).await.unwrap(), first);
    submit(&client, "other", Some("k")).await.unwrap_err();
    assert_eq!(store.inbox(epoch, 9).await.unwrap(), []);
    // A day later it is free.
    let older = "UPDATE operations SET accepted_at = accepted_at - 24 * 3600 * 1000";
    client.batch_execute(older).await.unwrap();
    let second = submit(&client, "other", Some("k")).await.unwrap();
    assert_ne!(second, first);
    assert_eq!(store.operation_of_key(&key("k")).await.unwrap().unwrap().id.as_str(), second, "the last one");
    client.batch_execute("UPDATE inbox SET at = at - 24 * 3600 * 1000").await.unwrap();
    let third = submit(&client, "other", Some("k")).await.unwrap();
    assert_ne!(third, second);
}

async fn of_two_at_once_with_one_key_both_get_one_operation(schema: &TestSchema) {
    let (store, epoch, _) = open(schema).await;
    let mut callers = Vec::new();
    for _ in 0..8 {
        let client = schema.client().await;
        callers.push(tokio::spawn(async move { submit(&client, "acme", Some("k")).await.unwrap() }));
    }
    let mut all = Vec::new();
    for caller in callers {
        all.push(caller.await.unwrap());
    }
    all.dedup();
    assert_eq!(all.len(), 1);
    assert_eq!(store.inbox(epoch, 9).await.unwrap().len(), 1);
}

async fn what_cannot_be_right_is_refused_and_named(schema: &TestSchema) {
    let (store, epoch, client) = open(schema).await;
    let long = format!("'{}'", "a".repeat(129));
    let bad = [
        ("verb", "'adopt', 'a', '{}', 'me'"),
        ("verb", "'Create', 'a', '{}', 'me'"),
        ("verb", "NULL, 'a', '{}', 'me'"),
        ("instance", "'wake', 'A', '{}', 'me'"),
        ("instance", "'wake', 'a-', '{}', 'me'"),
        ("instance", "'wake', E'a\\n', '{}', 'me'"),
        ("instance", "'wake', '', '{}', 'me'"),
        ("instance", "'wake', NULL, '{}', 'me'"),
        ("parameters", "'wake', 'a', '[]', 'me'"),
        ("parameters", "'wake', 'a', NULL, 'me'"),
        ("actor", "'wake', 'a', '{}', ''"),
        ("actor", "'wake', 'a', '{}', ' '"),
        ("actor", "'wake', 'a', '{}', U&' \\3000\\00A0\\2009'"),
        ("actor", "'wake', 'a', '{}', NULL"),
        ("actor", "'wake', 'a', '{}', E'a\\tb'"),
        ("actor", "'wake', 'a', '{}', U&'a\\202Eb'"),
        ("actor", &format!("'wake', 'a', '{{}}', {long}")),
        ("key", "'wake', 'a', '{}', 'me', key => ''"),
        ("key", "'wake', 'a', '{}', 'me', key => 'ä'"),
        ("expected", "'wake', 'a', '{}', 'me', expected => 0"),
    ];
    for (name, arguments) in bad {
        let error = client.query_one(&format!("SELECT submit({arguments})"), &[]).await.unwrap_err();
        let why = error.as_db_error().expect("the server says why").message().to_owned();
        assert!(why.starts_with(name) && why.contains("expected"), "{arguments}: {why}");
    }
    let longest = format!(
        "SELECT submit('wake', '{}', '{{}}', '{}', key => '{}')",
        "a".repeat(40),
        "ü".repeat(128),
        "k".repeat(255)
    );
    client.query_one(&longest, &[]).await.expect("as long as it may be");
    assert_eq!(store.inbox(epoch, 9).await.unwrap().len(), 1);
}

async fn what_is_passed_may_have_any_collation(schema: &TestSchema) {
    let (store, epoch, client) = open(schema).await;
    // Of a server that is built with ICU, as all that are packaged are.
    let columns = "CREATE COLLATION any_case (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
         CREATE TABLE customers (slug text COLLATE any_case, other text COLLATE \"und-x-icu\");
         INSERT INTO customers VALUES ('acme', 'emca')";
    client.batch_execute(columns).await.unwrap();
    for column in ["slug", "other"] {
        let query =
            format!("SELECT submit('wake', {column}, '{{}}', {column}, {column}, 'of ' || {column}) FROM customers");
        let first: String = client.query_one(&query, &[]).await.unwrap().get(0);
        assert_eq!(client.query_one(&query, &[]).await.unwrap().get::<_, String>(0), first);
    }
    // Names differ by case, whatever the caller's columns do.
    client.batch_execute("UPDATE customers SET slug = 'ACME'").await.unwrap();
    let refused = client.query_one("SELECT submit('wake', slug, '{}', slug) FROM customers", &[]).await.unwrap_err();
    assert!(refused.as_db_error().unwrap().message().contains("instance 'ACME': expected"), "{refused:?}");
    assert_eq!(store.inbox(epoch, 9).await.unwrap().len(), 2);
}

async fn what_cannot_be_read_keeps_nobody_else_up(schema: &TestSchema) {
    let (store, epoch, client) = open(schema).await;
    let deep = format!("{}1{}", r#"{"a":"#.repeat(200), "}".repeat(200));
    for (name, parameters) in [("large", r#"{"number": 1e400}"#), ("deep", &deep), ("good", "{}")] {
        let query = "SELECT submit('wake', $1, $2::text::jsonb, 'somebody')";
        client.query_one(query, &[&name, &parameters]).await.unwrap();
    }
    // Nobody can write past the function but the owner.
    client.batch_execute("UPDATE inbox SET actor = '' WHERE instance = 'good'").await.unwrap();
    submit(&client, "another", None).await.unwrap();
    let found = store.inbox(epoch, 9).await.unwrap();
    let read: Vec<_> = found.iter().map(|found| (found.instance.as_str(), found.ask.parameters.is_ok())).collect();
    assert_eq!(read, [("large", false), ("deep", false), ("another", true)]);
}

async fn what_one_cannot_read_is_left_to_who_can(schema: &TestSchema) {
    let (store, old, client) = open(schema).await;
    let new = store.open_session("new", at(0)).await.unwrap().epoch;
    let making = making(1, IncarnationState::Ending, Some(at(1)));
    store.commit(Change { incarnations: vec![making.clone()], ..Change::default() }).await.unwrap();
    submit(&client, "acme", None).await.unwrap();
    // As a newer release writes them.
    client.batch_execute("UPDATE inbox SET verb = 'hibernate'; UPDATE incarnations SET state = 'odd'").await.unwrap();
    assert_eq!(store.inbox(old, 9).await.unwrap(), []);
    assert_eq!(store.claim_incarnations(old, &cell("one"), at(9), 9).await.unwrap(), []);
    // Who can read them finds them, though the other is at work.
    client.batch_execute("UPDATE inbox SET verb = 'wake'; UPDATE incarnations SET state = 'ending'").await.unwrap();
    assert_eq!(store.inbox(new, 9).await.unwrap().len(), 1);
    assert_eq!(store.claim_incarnations(new, &cell("one"), at(9), 9).await.unwrap(), [making]);
}

async fn a_caller_needs_the_right_to_execute_and_no_other(schema: &TestSchema) {
    let (store, epoch, owner) = open(schema).await;
    let (name, role) = (schema.name(), format!("{}_caller", schema.name()));
    owner.batch_execute(&format!("CREATE ROLE {role}")).await.unwrap();
    let as_caller = |query: String| {
        let owner = &owner;
        let role = &role;
        async move {
            owner.batch_execute(&format!("SET ROLE {role}")).await.unwrap();
            let done = owner.batch_execute(&query).await;
            owner.batch_execute("RESET ROLE").await.unwrap();
            done.map_err(|error| error.as_db_error().unwrap().message().to_owned())
        }
    };
    let call = format!("SELECT {name}.submit('wake', 'a', '{{}}', 'me')");
    assert!(as_caller(call.clone()).await.unwrap_err().contains("permission denied"));
    owner.batch_execute(&format!("GRANT USAGE ON SCHEMA {name} TO {role}")).await.unwrap();
    assert!(as_caller(call.clone()).await.unwrap_err().contains("permission denied for function"));
    owner.batch_execute(&format!("GRANT EXECUTE ON FUNCTION {name}.submit TO {role}")).await.unwrap();
    // What a caller makes by the names that the function uses is not what the function uses.
    let shadowed = format!("CREATE TEMPORARY TABLE inbox (LIKE {name}.inbox); SET search_path = pg_temp; {call}");
    owner.batch_execute(&format!("GRANT SELECT ON {name}.inbox TO {role}")).await.unwrap();
    as_caller(shadowed).await.unwrap();
    owner.batch_execute(&format!("REVOKE ALL ON {name}.inbox FROM {role}")).await.unwrap();
    assert_eq!(store.inbox(epoch, 9).await.unwrap().len(), 1);
    assert!(as_caller(format!("SELECT FROM {name}.inbox")).await.unwrap_err().contains("permission denied"));
    owner.batch_execute(&format!("DROP OWNED BY {role}; DROP ROLE {role}")).await.unwrap();
}

async fn an_operation_is_named_as_all_are(schema: &TestSchema) {
    let (.., client) = open(schema).await;
    let before = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis() as u64;
    let mut names = Vec::new();
    for number in 0..50 {
        let name = submit(&client, &format!("i-{number}"), None).await.unwrap();
        OperationId::new(&name).unwrap();
        let time = u64::from_str_radix(&name[..12], 16).unwrap();
        assert!(time.abs_diff(before) < 3_600_000, "{name}");
        names.push(name[12..].to_owned());
    }
    names.sort();
    names.dedup();
    assert_eq!(names.len(), 50);
    // Every digit varies.
    for place in 0..20 {
        assert!(names.iter().any(|name| name[place..=place] != names[0][place..=place]), "{place}");
    }
}
