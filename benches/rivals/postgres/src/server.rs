//! The server: whether it keeps what it was given, and a database of its own for each run.

use std::{
    env, process,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use sqlx::{
    AssertSqlSafe, Connection, PgConnection, PgPool,
    postgres::{PgConnectOptions, PgPoolOptions},
};

use crate::Result;

/// Where the server is, as who calls tells it.
pub fn options() -> Result<PgConnectOptions> {
    let url = env::var("DATABASE_URL").map_err(|_| {
        "DATABASE_URL has to name a PostgreSQL server where databases may be created and dropped, \
         as in postgres://postgres@127.0.0.1:5432/postgres"
    })?;
    Ok(url.parse()?)
}

/// Opens so many connections to this database, and fails unless all of them are durable.
pub async fn open(database: &str, connections: u32) -> Result<PgPool> {
    let pool = PgPoolOptions::new()
        .min_connections(connections)
        .max_connections(connections)
        .acquire_timeout(Duration::from_secs(60))
        .connect_with(options()?.database(database))
        .await?;
    durability(&pool).await?;
    Ok(pool)
}

/// Fails where a commit on one of these connections would not be on disk when it is told.
pub async fn durability(pool: &PgPool) -> Result<()> {
    // All at once, as otherwise the pool gives the same one again.
    let mut connections = Vec::new();
    for _ in 0..pool.options().get_max_connections() {
        connections.push(pool.acquire().await?);
    }
    for connection in &mut connections {
        let (fsync, commit): (String, String) =
            sqlx::query_as("SELECT current_setting('fsync'), current_setting('synchronous_commit')")
                .fetch_one(&mut **connection)
                .await?;
        if fsync != "on" || commit == "off" {
            return Err(format!("fsync {fsync}, synchronous_commit {commit}: what is told as done may be lost").into());
        }
    }
    Ok(())
}

/// What a reader of the figures has to know of the server.
pub async fn conditions() -> Result<String> {
    let mut connection = PgConnection::connect_with(&options()?).await?;
    let version: String = sqlx::query_scalar("SHOW server_version").fetch_one(&mut connection).await?;
    let mut told = vec![format!("PostgreSQL {version}")];
    for name in
        ["fsync", "synchronous_commit", "full_page_writes", "wal_sync_method", "shared_buffers", "max_connections"]
    {
        let value: String =
            sqlx::query_scalar("SELECT current_setting($1)").bind(name).fetch_one(&mut connection).await?;
        told.push(format!("{name} {value}"));
    }
    connection.close().await?;
    Ok(told.join(", "))
}

/// Runs this in a database of its own, which is there only meanwhile.
pub async fn in_database<T>(run: impl AsyncFnOnce(&str) -> Result<T>) -> Result<T> {
    static MADE: AtomicUsize = AtomicUsize::new(0);
    let name = format!("rival_postgres_{}_{}", process::id(), MADE.fetch_add(1, Ordering::Relaxed));
    let mut server = PgConnection::connect_with(&options()?).await?;
    sqlx::raw_sql(AssertSqlSafe(format!("CREATE DATABASE {name} TEMPLATE template0"))).execute(&mut server).await?;
    let came_of_it = run(&name).await;
    // Whoever is still connected. The server makes a checkpoint then, so that each run but the first begins behind one.
    let dropped = sqlx::raw_sql(AssertSqlSafe(format!("DROP DATABASE {name} WITH (FORCE)"))).execute(&mut server).await;
    let came_of_it = came_of_it?;
    dropped?;
    server.close().await?;
    Ok(came_of_it)
}
