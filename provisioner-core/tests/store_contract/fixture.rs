//! Rows and changes to try a store with.

use std::{sync::Arc, time::Duration};

use futures::future::BoxFuture;
use provisioner_core::{seams::SettableClock, store::*, types::*};

/// One promise of a store. Gets an empty one.
pub(crate) struct Rule {
    pub(crate) name: &'static str,
    pub(crate) run: Run,
}

/// How a rule is tried.
pub(crate) enum Run {
    Store(fn(Arc<dyn Store>) -> BoxFuture<'static, ()>),
    /// With what puts requests into the inbox, as other programs do.
    Inbox(fn(Arc<dyn Store>, Inbox) -> BoxFuture<'static, ()>),
}

/// A way into a store's inbox, and to the clock by which its sessions lapse.
pub(crate) enum Inbox {
    Memory(Arc<MemoryStore>, Arc<SettableClock>),
    /// A connection of somebody else to the same database, who calls the documented function.
    #[cfg(feature = "postgres")]
    Postgres(tokio_postgres::Client),
}

impl Inbox {
    /// Puts a request of the instance there; tells its operation.
    pub(crate) async fn submit(&self, verb: Verb, instance: &str, with_key: Option<&str>) -> OperationId {
        let parameters = serde_json::json!({"number": 1, "text": "ümläut"});
        match self {
            Self::Memory(store, _) => {
                let number = rand::random();
                let operation = OperationId::from_parts(number, number.into());
                let request = Submitted {
                    number: 0,
                    operation: operation.clone(),
                    instance: id(instance),
                    ask: Ask { verb, parameters: Ok(parameters) },
                    actor: Actor::new("signup").unwrap(),
                    reason: Some("wanted".into()),
                    key: with_key.map(key),
                    expected: Some(Revision(3)),
                    at: at(0),
                };
                store.submit(request);
                operation
            }
            #[cfg(feature = "postgres")]
            Self::Postgres(client) => {
                let text = parameters.to_string();
                let query = "SELECT submit($1, $2, $3::text::jsonb, 'signup', 'wanted', $4, 3)";
                let row = client.query_one(query, &[&verb.as_str(), &instance, &text, &with_key]).await.unwrap();
                OperationId::new(row.get::<_, &str>(0)).unwrap()
            }
        }
    }

    /// Sets the clock, forward or back.
    pub(crate) async fn set_clock(&self, forward: bool, by: Duration) {
        match self {
            Self::Memory(_, clock) if forward => clock.set_forward(by),
            Self::Memory(_, clock) => clock.set_back(by),
            // Nothing sets the server's clock: what is compared with it is moved the other way.
            #[cfg(feature = "postgres")]
            Self::Postgres(client) => {
                let ms = i64::try_from(by.as_millis()).unwrap() * if forward { -1 } else { 1 };
                let query = "UPDATE sessions SET expires_at = expires_at + $1::bigint * interval '1 millisecond'";
                client.execute(query, &[&ms]).await.unwrap();
            }
        }
    }
}

/// Lists functions as rules under their own names.
macro_rules! rules {
    ($($rule:ident),* $(,)?) => {
        pub(crate) const RULES: &[crate::fixture::Rule] = &[
            $(crate::fixture::Rule {
                name: stringify!($rule),
                run: crate::fixture::Run::Store(|store| Box::pin($rule(store))),
            }),*
        ];
    };
}
pub(crate) use rules;

/// The same, for those that need the inbox.
macro_rules! inbox_rules {
    ($($rule:ident),* $(,)?) => {
        pub(crate) const RULES: &[crate::fixture::Rule] = &[
            $(crate::fixture::Rule {
                name: stringify!($rule),
                run: crate::fixture::Run::Inbox(|store, inbox| Box::pin($rule(store, inbox))),
            }),*
        ];
    };
}
pub(crate) use inbox_rules;

pub(crate) fn control_plane() -> ControlPlaneId {
    ControlPlaneId::new("contract").unwrap()
}

pub(crate) fn id(text: impl AsRef<str>) -> InstanceId {
    InstanceId::new(text).unwrap()
}

pub(crate) fn cell(text: &str) -> CellName {
    CellName::new(text).unwrap()
}

pub(crate) fn tenant(text: &str) -> TenantId {
    TenantId::new(text).unwrap()
}

pub(crate) fn host(text: impl AsRef<str>) -> HostName {
    HostName::new(text).unwrap()
}

/// A time, in milliseconds after some day.
pub(crate) fn at(ms: i64) -> Timestamp {
    Timestamp::from_unix_ms(1_700_000_000_000 + ms)
}

pub(crate) fn operation_id(number: u64) -> OperationId {
    OperationId::from_parts(number, number.into())
}

pub(crate) fn data_id(number: u128) -> DataId {
    DataId::from_random(number)
}

pub(crate) fn spec(version: &str) -> Arc<InstanceSpec> {
    Arc::new(InstanceSpec::new(Workload::new(version).with_command(["/bin/product"])))
}

/// A row of tenant `acme` in cell `one`, at rest.
pub(crate) fn row(name: impl AsRef<str>) -> InstanceRow {
    InstanceRow {
        id: id(name),
        tenant: tenant("acme"),
        cell: cell("one"),
        intent: Intent::running(),
        revision: Revision::FIRST,
        wanted: Generation::FIRST,
        in_force: Generation::FIRST,
        applied: None,
        live: None,
        incarnations: 0,
        data: data_id(1),
        data_made: false,
        settled: false,
        settled_at: None,
        phase: None,
        endpoint: None,
        reason: None,
        parked: false,
        attempts: 0,
        busy: 0,
        retry_at: None,
        moving_since: None,
        due_at: None,
        lane: Lane::Interactive,
        operation: None,
        created_by: operation_id(1),
        created_at: at(0),
        expires_at: None,
        taken_over_at: None,
    }
}

pub(crate) fn insert(row: InstanceRow) -> Change {
    Change { instance: Some(InstanceWrite::Insert(Arc::new(row))), ..Change::default() }
}

pub(crate) fn update(row: InstanceRow, expected: u64) -> Change {
    Change { instance: Some(InstanceWrite::Update { row: Arc::new(row), expected }), ..Change::default() }
}

pub(crate) fn delete(name: &str, expected: u64) -> Change {
    Change { instance: Some(InstanceWrite::Delete { id: id(name), expected }), ..Change::default() }
}

/// What an instance of the default size reserves in cell `one`.
pub(crate) fn reservation(host_names: &[&str]) -> Reservation {
    Reservation {
        cell: cell("one"),
        capacity: Capacity::UNBOUNDED,
        size: Size::default(),
        data_mib: 1024,
        host_names: host_names.iter().map(host).collect(),
    }
}

pub(crate) fn key(text: &str) -> IdempotencyKey {
    IdempotencyKey::new(text).unwrap()
}

/// A creation that is under way.
pub(crate) fn operation(number: u64, with_key: Option<&str>, accepted_at: Timestamp) -> Operation {
    Operation {
        id: operation_id(number),
        instance: id("a"),
        verb: Verb::Create,
        revision: Revision::FIRST,
        actor: Actor::new("somebody").unwrap(),
        reason: Some("signed up".into()),
        key: with_key.map(key),
        fingerprint: "f".into(),
        accepted_at,
        state: OperationState::Pending,
        ended_at: None,
        failure: None,
    }
}

pub(crate) fn with_operation(operation: Operation) -> Change {
    Change { operations: vec![operation], ..Change::default() }
}

pub(crate) fn making(number: u32, state: IncarnationState, due_at: Option<Timestamp>) -> IncarnationRow {
    IncarnationRow {
        incarnation: Incarnation::new(number, u128::from(number) << 100),
        instance: id("a"),
        tenant: tenant("acme"),
        cell: cell("one"),
        data: data_id(1),
        state,
        ended_at: None,
        due_at,
    }
}

pub(crate) fn data_row(number: u128, state: DataState) -> DataRow {
    DataRow { id: data_id(number), tenant: tenant("acme"), instance: id("a"), cell: cell("one"), state, since: at(0) }
}

pub(crate) fn stranger(number: u32) -> Stranger {
    Stranger {
        incarnation: Incarnation::new(number, 7),
        instance: id("a"),
        cell: cell("one"),
        data: Some(data_id(number.into())),
        generation: Generation(number.into()),
        found_at: at(1),
    }
}

pub(crate) fn event(instance: Option<&str>, time: Timestamp, what: EventKind) -> NewEvent {
    NewEvent { instance: instance.map(id), at: time, revision: None, actor: None, reason: None, what }
}

/// Something that happened to an instance.
pub(crate) fn happened(instance: &str, time: Timestamp) -> NewEvent {
    event(Some(instance), time, EventKind::Drifted { found: "nothing".into() })
}

pub(crate) fn with_event(event: NewEvent) -> Change {
    Change { events: vec![event], ..Change::default() }
}

/// Everything that can be read of a store, as text, to see that nothing of it changed. Reads the operations and
/// makings of the first few numbers, which is where the rules put them.
pub(crate) async fn everything(store: &dyn Store) -> String {
    let mut text = String::new();
    let mut add = |part: &dyn std::fmt::Debug| text.push_str(&format!("{part:?}\n"));
    add(&store.instances(&InstanceFilter::default(), None, 1000).await.unwrap());
    add(&store.counts().await.unwrap());
    for number in 0..10 {
        let operation = store.operation(&operation_id(number)).await.unwrap();
        let key = operation.as_ref().and_then(|operation| operation.key.clone());
        add(&operation);
        if let Some(key) = key {
            add(&store.operation_of_key(&key).await.unwrap());
        }
    }
    let makings: Vec<_> = (0..10).map(|number| making(number, IncarnationState::Live, None).incarnation).collect();
    add(&store.incarnations(&makings).await.unwrap());
    add(&store.events(None, 0, 1000).await.unwrap());
    add(&*store.positions().borrow());
    add(&store.data(None, None, 1000).await.unwrap());
    add(&store.strangers().await.unwrap());
    add(&store.cells().await.unwrap());
    add(&store.cells_in_use().await.unwrap());
    for name in ["one", "two"] {
        add(&store.usage(&cell(name)).await.unwrap());
    }
    add(&store.frozen().await.unwrap());
    text
}
