//! A schema for each trial, in the database that the environment names, or in that of a server of this process.

use std::{
    sync::{
        OnceLock,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use provisioner_core::store::PostgresConfig;
use test_peers::postgres::{Durability, Programs, Server, VARIABLE, is_required, url};
use tokio_postgres::{Client, NoTls};

/// A server that is nobody else's, and may crash.
static OWN: OnceLock<Server> = OnceLock::new();

/// From now on, everything here is tried on a server that may crash.
#[allow(dead_code)] // The contract has no use for it.
pub(crate) fn use_own_server() {
    OWN.get_or_init(|| Server::create(Durability::Durable).unwrap());
}

/// Why nothing can be tried here. Where PostgreSQL is required that is no reason: then it is tried, and fails.
pub(crate) fn missing() -> Option<String> {
    let named = std::env::var_os(VARIABLE).is_some();
    if named || is_required() { None } else { Programs::find().err() }
}

/// The database to try it in, or why there is none. Starts a server where there is none yet.
pub(crate) fn postgres_url() -> Result<String, String> {
    OWN.get().map_or_else(|| url().map(str::to_owned), |own| Ok(own.url()))
}

/// A name for a schema that nobody else has. What is in it is dropped with this.
pub(crate) struct TestSchema(String);

impl TestSchema {
    pub(crate) fn new() -> Self {
        static LAST: AtomicU32 = AtomicU32::new(0);
        Self(format!("test_{}_{}", std::process::id(), LAST.fetch_add(1, Ordering::Relaxed)))
    }

    #[allow(dead_code)] // The contract has no use for it.
    pub(crate) fn name(&self) -> &str {
        &self.0
    }

    pub(crate) fn config(&self) -> PostgresConfig {
        let url = postgres_url().unwrap();
        // Others use the database too.
        let separator = if url.contains('?') { '&' } else { '?' };
        let config = PostgresConfig::from_url(&format!("{url}{separator}application_name={}", self.0)).unwrap();
        // A machine that is busy with other tests is slow, and not broken.
        config.with_schema(&self.0).unwrap().with_timeout(Duration::from_secs(60)).unwrap()
    }

    /// A connection of somebody else, who looks into this schema.
    pub(crate) async fn client(&self) -> Client {
        let mut config: tokio_postgres::Config = postgres_url().unwrap().parse().unwrap();
        config.options(format!("-c search_path={}", self.0));
        let (client, connection) = config.connect(NoTls).await.unwrap();
        tokio::spawn(connection);
        client
    }
}

impl Drop for TestSchema {
    fn drop(&mut self) {
        let name = self.0.clone();
        // On a thread of its own: this one may be running something asynchronous.
        let dropped = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let (client, connection) = tokio_postgres::connect(&postgres_url().unwrap(), NoTls).await.unwrap();
                tokio::spawn(connection);
                client.batch_execute(&format!("DROP SCHEMA IF EXISTS {name} CASCADE")).await.unwrap();
            });
        });
        if dropped.join().is_err() {
            eprintln!("the schema {} was not dropped", self.0);
        }
    }
}
