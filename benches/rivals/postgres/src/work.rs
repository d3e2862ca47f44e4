//! The work: the rows of a step, written in a transaction of its own or many at once.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sqlx::{PgConnection, PgPool, types::Json};

use crate::Result;

/// Steps in the life of an instance.
pub const STEPS: i16 = 4;

/// One step of one instance: what a job holds.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Step {
    pub instance: String,
    /// Counted from one.
    pub number: i16,
}

impl Step {
    /// The first of a life.
    pub fn first(instance: String) -> Self {
        Self { instance, number: 1 }
    }

    /// The one behind it, if this is not the last.
    pub fn next(self) -> Option<Self> {
        (self.number < STEPS).then(|| Self { number: self.number + 1, ..self })
    }
}

/// The tables of the product, which are the same whoever works on them.
const TABLES: &str = "
    CREATE TABLE instances (
        id text PRIMARY KEY, step smallint NOT NULL, spec jsonb NOT NULL, changed_at timestamptz NOT NULL DEFAULT now()
    );
    CREATE TABLE events (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        instance text NOT NULL, step smallint NOT NULL, at timestamptz NOT NULL DEFAULT now()
    );
    CREATE INDEX events_of_instance ON events (instance, id);
";

/// Makes the tables.
pub async fn create_tables(pool: &PgPool) -> Result<()> {
    sqlx::raw_sql(TABLES).execute(pool).await?;
    Ok(())
}

/// So many names that no other call with another prefix gives.
pub fn names(prefix: &str, count: usize) -> Vec<String> {
    (0..count).map(|number| format!("{prefix}-{number}")).collect()
}

/// What an instance should be, in about 1 KB.
pub fn spec(step: i16) -> Json<Value> {
    Json(json!({
        "workload": { "version": format!("1.{step}"), "command": ["/usr/bin/product", "--serve"], "port": 8080 },
        "environment": { "CONFIGURATION": "x".repeat(850) },
        "size": { "memory_mb": 256, "cpu_milli": 250 },
    }))
}

/// Writes the row of one customer, with nothing done yet.
pub async fn sign_up(connection: &mut PgConnection, instance: &str) -> Result<()> {
    sqlx::query("INSERT INTO instances (id, step, spec) VALUES ($1, 0, $2)")
        .bind(instance)
        .bind(spec(0))
        .execute(connection)
        .await?;
    Ok(())
}

/// The same for many.
pub async fn sign_up_all(connection: &mut PgConnection, instances: &[String]) -> Result<()> {
    sqlx::query("INSERT INTO instances (id, step, spec) SELECT id, 0, $2 FROM unnest($1::text[]) AS id")
        .bind(instances)
        .bind(spec(0))
        .execute(connection)
        .await?;
    Ok(())
}

/// Writes what one step came to, and tells whether it was still to be done: a queue may give a job twice.
pub async fn write(connection: &mut PgConnection, step: &Step) -> Result<bool> {
    let changed = sqlx::query(
        "UPDATE instances SET step = $2, spec = $3, changed_at = now() WHERE id = $1 AND step = $2::smallint - 1",
    )
    .bind(&step.instance)
    .bind(step.number)
    .bind(spec(step.number))
    .execute(&mut *connection)
    .await?;
    if changed.rows_affected() == 0 {
        return Ok(false);
    }
    sqlx::query("INSERT INTO events (instance, step) VALUES ($1, $2)")
        .bind(&step.instance)
        .bind(step.number)
        .execute(connection)
        .await?;
    Ok(true)
}

/// Writes what many steps came to, two statements for all. They are of different instances.
pub async fn write_all(connection: &mut PgConnection, steps: &[Step]) -> Result<()> {
    let instances: Vec<_> = steps.iter().map(|step| step.instance.as_str()).collect();
    let numbers: Vec<_> = steps.iter().map(|step| step.number).collect();
    let specs: Vec<_> = steps.iter().map(|step| spec(step.number)).collect();
    let changed = sqlx::query(
        "UPDATE instances SET step = new.step, spec = new.spec, changed_at = now() \
         FROM unnest($1::text[], $2::smallint[], $3::jsonb[]) AS new (id, step, spec) \
         WHERE instances.id = new.id AND instances.step = new.step - 1",
    )
    .bind(&instances)
    .bind(&numbers)
    .bind(&specs)
    .execute(&mut *connection)
    .await?;
    assert_eq!(changed.rows_affected(), steps.len() as u64, "nobody else works on them");
    sqlx::query("INSERT INTO events (instance, step) SELECT * FROM unnest($1::text[], $2::smallint[])")
        .bind(&instances)
        .bind(&numbers)
        .execute(connection)
        .await?;
    Ok(())
}

/// Fails unless each of so many instances went through each step once.
pub async fn check(pool: &PgPool, instances: usize) -> Result<()> {
    let done: i64 =
        sqlx::query_scalar("SELECT count(*) FROM instances WHERE step = $1").bind(STEPS).fetch_one(pool).await?;
    let events: i64 = sqlx::query_scalar("SELECT count(*) FROM events").fetch_one(pool).await?;
    let wanted = (instances, instances * usize::from(STEPS.unsigned_abs()));
    if (usize::try_from(done)?, usize::try_from(events)?) != wanted {
        return Err(format!("{done} instances and {events} events at the end, instead of {wanted:?}").into());
    }
    Ok(())
}
