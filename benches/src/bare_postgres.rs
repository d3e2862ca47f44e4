//! The same rows, written to PostgreSQL with nothing in between: statements over arrays, a transaction for each batch.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use futures::future::try_join_all;
use provisioner_core::store::{Change, InstanceWrite};
use tokio_postgres::{
    Client, Error, NoTls, Statement,
    types::{ToSql, Type},
};

/// A column of a statement's rows.
#[derive(Debug)]
enum Column {
    Texts(Vec<Option<String>>),
    Numbers(Vec<Option<i64>>),
}

impl Column {
    fn of(kind: Kind) -> Self {
        match kind {
            Kind::Text => Self::Texts(Vec::new()),
            Kind::Number => Self::Numbers(Vec::new()),
        }
    }

    fn push(&mut self, value: Value) {
        match (self, value) {
            (Self::Texts(texts), Value::Text(text)) => texts.push(text),
            (Self::Numbers(numbers), Value::Number(number)) => numbers.push(number),
            _ => unreachable!("each statement says what its columns are"),
        }
    }

    fn as_sql(&self) -> &(dyn ToSql + Sync) {
        match self {
            Self::Texts(texts) => texts,
            Self::Numbers(numbers) => numbers,
        }
    }
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Text,
    Number,
}

#[derive(Debug)]
enum Value {
    Text(Option<String>),
    Number(Option<i64>),
}

fn text(value: impl ToString) -> Value {
    Value::Text(Some(value.to_string()))
}

fn number(value: impl TryInto<i64>) -> Value {
    Value::Number(Some(value.try_into().unwrap_or(i64::MAX)))
}

fn json(value: &impl serde::Serialize) -> Value {
    text(serde_json::to_string(value).expect("stored types have text keys"))
}

use Kind::{Number, Text};

/// Every statement there is, in the order in which they are sent.
const STATEMENTS: &[(&str, &str, &[Kind])] = &[
    (
        "insert",
        "INSERT INTO instances (id, version, tenant, cell, lane, due_at, parked, body)
         SELECT id, 1, tenant, cell, 0, due_at, false, body
         FROM unnest($1::text[], $2::text[], $3::text[], $4::bigint[], $5::text[]) AS n (id, tenant, cell, due_at, body)",
        &[Text, Text, Text, Number, Text],
    ),
    (
        "update",
        "UPDATE instances SET version = version + 1, due_at = n.due_at, phase = n.phase, body = n.body
         FROM unnest($1::text[], $2::bigint[], $3::text[], $4::text[]) AS n (id, due_at, phase, body)
         WHERE instances.id = n.id",
        &[Text, Number, Text, Text],
    ),
    ("delete", "DELETE FROM instances WHERE id = ANY ($1)", &[Text]),
    ("delete specs", "DELETE FROM specs WHERE instance = ANY ($1)", &[Text]),
    ("delete reservations", "DELETE FROM reservations WHERE instance = ANY ($1)", &[Text]),
    (
        "specs",
        "INSERT INTO specs (instance, generation, body) SELECT * FROM unnest($1::text[], $2::bigint[], $3::text[])
         ON CONFLICT (instance, generation) DO UPDATE SET body = excluded.body",
        &[Text, Number, Text],
    ),
    (
        "reservations",
        "INSERT INTO reservations (instance, cell, cpu_millis, memory_mib, data_mib)
         SELECT * FROM unnest($1::text[], $2::text[], $3::bigint[], $4::bigint[], $5::bigint[])
         ON CONFLICT (instance) DO UPDATE SET cpu_millis = excluded.cpu_millis",
        &[Text, Text, Number, Number, Number],
    ),
    (
        "operations",
        "INSERT INTO operations (id, instance, key, verb, state, accepted_at, body)
         SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::bigint[], $7::text[])",
        &[Text, Text, Text, Text, Text, Number, Text],
    ),
    (
        "ended",
        "UPDATE operations SET state = n.state, ended_at = n.ended_at
         FROM unnest($1::text[], $2::text[], $3::bigint[]) AS n (id, state, ended_at) WHERE operations.id = n.id",
        &[Text, Text, Number],
    ),
    (
        "incarnations",
        "INSERT INTO incarnations (incarnation, instance, tenant, cell, data, state, ended_at, due_at)
         SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::bigint[], $8::bigint[])
         ON CONFLICT (incarnation) DO UPDATE SET state = excluded.state, ended_at = excluded.ended_at, due_at = excluded.due_at",
        &[Text, Text, Text, Text, Text, Text, Number, Number],
    ),
    (
        "data",
        "INSERT INTO data (id, tenant, instance, cell, state, since)
         SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::bigint[])
         ON CONFLICT (id) DO UPDATE SET state = excluded.state, since = excluded.since",
        &[Text, Text, Text, Text, Text, Number],
    ),
    ("drop data", "DELETE FROM data WHERE id = ANY ($1)", &[Text]),
    // Last, as whoever numbers events waits for whoever has.
    (
        "events",
        "WITH counter AS (UPDATE counters SET position = position + cardinality($1::text[]) RETURNING position)
         INSERT INTO events (position, instance, at, last, body)
         SELECT position - number + 1, instance, at, false, body
         FROM counter, unnest($1::text[], $2::bigint[], $3::text[]) WITH ORDINALITY AS n (instance, at, body, number)",
        &[Text, Number, Text],
    ),
];

/// One transaction: for each statement, its columns.
type Batch = BTreeMap<usize, Vec<Column>>;

fn add(batch: &mut Batch, name: &str, values: impl IntoIterator<Item = Value>) {
    let at = STATEMENTS.iter().position(|(known, ..)| *known == name).expect("a statement of this name");
    let columns = batch.entry(at).or_insert_with(|| STATEMENTS[at].2.iter().map(|kind| Column::of(*kind)).collect());
    for (column, value) in columns.iter_mut().zip(values) {
        column.push(value);
    }
}

/// The rows of these changes as they are after all of them, as one transaction writes them.
fn batch(changes: &[Change]) -> Batch {
    let mut batch = Batch::new();
    let mut rows = BTreeMap::new();
    let (mut data, mut incarnations, mut specs, mut reservations) =
        (BTreeMap::new(), BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
    for change in changes {
        if let Some(write) = &change.instance {
            let is_new = matches!(write, InstanceWrite::Insert(_))
                || rows.get(write.id()).is_some_and(|(is_new, _): &(bool, &InstanceWrite)| *is_new);
            rows.insert(write.id(), (is_new, write));
            for (generation, spec) in &change.specs {
                specs.insert((write.id(), *generation), spec);
            }
            reservations.extend(change.reservation.as_ref().map(|reservation| (write.id(), reservation)));
        }
        incarnations.extend(change.incarnations.iter().map(|row| (row.incarnation, row)));
        data.extend(change.data.iter().map(|row| (&row.id, Some(row))));
        data.extend(change.drop_data.iter().map(|id| (id, None)));
        for operation in &change.operations {
            let (id, key) = (text(&operation.id), Value::Text(operation.key.as_ref().map(ToString::to_string)));
            let (verb, state) = (text(operation.verb.as_str()), text(operation.state.as_str()));
            let (at, body) = (number(operation.accepted_at.unix_ms()), json(operation));
            add(&mut batch, "operations", [id, text(&operation.instance), key, verb, state, at, body]);
        }
        for end in &change.ended {
            add(&mut batch, "ended", [text(&end.id), text(end.state.as_str()), number(end.at.unix_ms())]);
        }
        for event in &change.events {
            let instance = Value::Text(event.instance.as_ref().map(ToString::to_string));
            add(&mut batch, "events", [instance, number(event.at.unix_ms()), json(event)]);
        }
    }
    for (is_new, write) in rows.values() {
        let Some(row) = write.row() else {
            for name in ["delete", "delete specs", "delete reservations"] {
                add(&mut batch, name, [text(write.id())]);
            }
            specs.retain(|(id, _), _| *id != write.id());
            reservations.remove(write.id());
            continue;
        };
        let due_at = Value::Number(row.due_at.map(|at| at.unix_ms()));
        if *is_new {
            add(&mut batch, "insert", [text(&row.id), text(&row.tenant), text(&row.cell), due_at, json(row)]);
        } else {
            let phase = Value::Text(row.phase.map(|phase| phase.as_str().to_owned()));
            add(&mut batch, "update", [text(&row.id), due_at, phase, json(row)]);
        }
    }
    for ((id, generation), spec) in specs {
        add(&mut batch, "specs", [text(id), number(generation.0), json(spec)]);
    }
    for (id, reservation) in reservations {
        let (cpu, memory) = (number(reservation.size.cpu_millis), number(reservation.size.memory_mib));
        add(&mut batch, "reservations", [text(id), text(&reservation.cell), cpu, memory, number(reservation.data_mib)]);
    }
    for row in incarnations.values() {
        let (name, state) = (text(row.incarnation), text(format!("{:?}", row.state).to_lowercase()));
        let (ended, due) = (row.ended_at.map(|at| at.unix_ms()), row.due_at.map(|at| at.unix_ms()));
        let whose = [text(&row.instance), text(&row.tenant), text(&row.cell), text(&row.data)];
        let times = [Value::Number(ended), Value::Number(due)];
        add(&mut batch, "incarnations", [name].into_iter().chain(whose).chain([state]).chain(times));
    }
    for (id, row) in data {
        match row {
            Some(row) => {
                let whose = [text(id), text(&row.tenant), text(&row.instance), text(&row.cell)];
                let since = number(row.since.unix_ms());
                add(&mut batch, "data", whose.into_iter().chain([text("used"), since]));
            }
            None => add(&mut batch, "drop data", [text(id)]),
        }
    }
    batch
}

/// Writes the rows of these changes into a schema that has a store's tables, so many changes to a transaction, those of each
/// writer over a connection of its own, and says how long all of it took, encoding not counted. Durable after each transaction,
/// as the store is; the statements of one are sent together.
///
/// # Errors
/// What PostgreSQL answers.
pub async fn write_bare(url: &str, schema: &str, writers: &[Vec<Change>], size: usize) -> Result<Duration, Error> {
    let ready = try_join_all(writers.iter().map(async |changes| {
        let batches: Vec<_> = changes.chunks(size.max(1)).map(batch).collect();
        Ok::<_, Error>((Writer::connect(url, schema).await?, batches))
    }));
    let ready = ready.await?;
    let began = Instant::now();
    try_join_all(ready.iter().map(|(writer, batches)| writer.write_all(batches))).await?;
    Ok(began.elapsed())
}

/// A connection with its statements.
struct Writer {
    client: Client,
    statements: Vec<Statement>,
}

impl Writer {
    async fn connect(url: &str, schema: &str) -> Result<Self, Error> {
        let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
        tokio::spawn(connection);
        client.batch_execute(&format!("SET search_path TO {schema}")).await?;
        let mut statements = Vec::new();
        for (_, sql, kinds) in STATEMENTS {
            let types: Vec<_> = kinds
                .iter()
                .map(|kind| match kind {
                    Text => Type::TEXT_ARRAY,
                    Number => Type::INT8_ARRAY,
                })
                .collect();
            statements.push(client.prepare_typed(sql, &types).await?);
        }
        Ok(Self { client, statements })
    }

    async fn write_all(&self, batches: &[Batch]) -> Result<(), Error> {
        for batch in batches {
            write(&self.client, &self.statements, batch).await?;
        }
        Ok(())
    }
}

async fn write(client: &Client, statements: &[Statement], batch: &Batch) -> Result<(), Error> {
    let parameters: Vec<(usize, Vec<_>)> =
        batch.iter().map(|(at, columns)| (*at, columns.iter().map(Column::as_sql).collect())).collect();
    let begin = client.batch_execute("BEGIN");
    let all = try_join_all(parameters.iter().map(|(at, columns)| client.execute(&statements[*at], columns)));
    // Asked for in this order, before the first answer is there.
    let commit = client.batch_execute("COMMIT");
    let (begun, done, committed) = futures::join!(begin, all, commit);
    begun?;
    done?;
    committed
}
