//! The engine on the memory backend and PostgreSQL, one, two and three replicas, beside the same rows written bare.
//!
//! `cargo bench -p benches --bench postgres`. `DATABASE_URL` names the server; without it a private one is started, with
//! `fsync` on.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use benches::{CALLERS, RecordingStore, Samples, by, heading, large_spec, live_all, row, sign_up_all, write_bare};
use provisioner_core::{
    Cell, ControlPlane,
    memory::{MemoryConfig, MemoryProvisioner},
    store::{Change, PostgresConfig, PostgresStore, Store},
    types::{CellName, ControlPlaneId},
};
use test_peers::postgres::{Durability, Server};

fn main() {
    let (url, _server) = match std::env::var("DATABASE_URL") {
        Ok(url) => (url, None),
        Err(_) => {
            let server = Server::create(Durability::Durable).unwrap_or_else(|why| panic!("no server: {why}"));
            (server.url().to_owned(), Some(server))
        }
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        println!("{CALLERS} callers at once, specs of {} bytes\n", {
            serde_json::to_vec(&large_spec("1.0")).expect("a spec is JSON").len()
        });
        heading(&["what", "a second", "p50 / p99", "changes a transaction", "bare, same batches", "times the floor"]);
        for replicas in 1..=3 {
            steps(&url, replicas).await;
        }
        for replicas in 1..=3 {
            sign_ups(&url, replicas).await;
        }
    });
}

/// Replicas, each with a store and connections of its own, over one provider.
struct Bench {
    url: String,
    stores: Vec<(Arc<RecordingStore<PostgresStore>>, Arc<PostgresStore>)>,
    planes: Vec<ControlPlane>,
}

impl Bench {
    async fn start(url: &str, schema: &str, replicas: usize) -> Self {
        let provider = MemoryProvisioner::new(MemoryConfig::default());
        let mut bench = Self { url: url.to_owned(), stores: Vec::new(), planes: Vec::new() };
        for _ in 0..replicas {
            let inner = open(url, schema).await;
            let store = RecordingStore::new(Arc::clone(&inner));
            let cell = CellName::new("memory").expect("a name");
            let cell = Cell::new(cell, Arc::new(provider.clone())).with_calls_max(CALLERS);
            let plane = ControlPlane::builder(Arc::clone(&store) as Arc<dyn Store>).cell(cell).start().await;
            bench.planes.push(plane.expect("it starts"));
            bench.stores.push((store, inner));
        }
        bench
    }

    fn transactions(&self) -> u64 {
        self.stores.iter().map(|(_, store)| store.transactions()).sum()
    }

    /// What each replica wrote, in order.
    fn take(&self) -> Vec<Vec<Change>> {
        self.stores.iter().map(|(store, _)| store.take()).collect()
    }

    async fn stop(&self) {
        for plane in &self.planes {
            plane.shutdown().await.expect("it stops");
        }
    }

    async fn print(
        &self,
        what: &str,
        count: usize,
        changes: &[Vec<Change>],
        took: Duration,
        transactions: u64,
        samples: &Samples,
    ) {
        let batch = written(changes).count().div_ceil(usize::try_from(transactions).unwrap_or(1).max(1));
        drop(open(&self.url, "bare").await);
        let bare = write_bare(&self.url, "bare", changes, batch).await.expect("the floor is written");
        drop_schema(&self.url, "bare").await;
        row(&[
            format!("{what}, replicas: {}", self.planes.len()),
            format!("{:.0}", count as f64 / took.as_secs_f64()),
            samples.p50_p99(),
            batch.to_string(),
            format!("{:.0}", count as f64 / bare.as_secs_f64()),
            format!("{:.2}", took.as_secs_f64() / bare.as_secs_f64()),
        ]);
    }
}

/// What all replicas wrote.
fn written(changes: &[Vec<Change>]) -> impl Iterator<Item = &Change> {
    changes.iter().flatten()
}

async fn open(url: &str, schema: &str) -> Arc<PostgresStore> {
    let config = PostgresConfig::from_url(url).and_then(|config| config.with_schema(schema)).expect("a URL");
    let id = ControlPlaneId::new("bench").expect("a name");
    PostgresStore::open(config, id).await.unwrap_or_else(|error| panic!("{}", provisioner_core::Chain(&error)))
}

async fn drop_schema(url: &str, schema: &str) {
    let (client, connection) = tokio_postgres::connect(url, tokio_postgres::NoTls).await.expect("it connects");
    let connection = tokio::spawn(connection);
    client.batch_execute(&format!("DROP SCHEMA {schema} CASCADE; CHECKPOINT")).await.expect("it is dropped");
    drop(client);
    let _ = connection.await;
}

/// Whole lives: create, sleep, wake, update, destroy, each waited for.
async fn steps(url: &str, replicas: usize) {
    let schema = format!("steps_{replicas}");
    let bench = Bench::start(url, &schema, replicas).await;
    let before = bench.transactions();
    let _ = bench.take();
    let began = Instant::now();
    let samples = live_all(&bench.planes).await.expect("every request succeeds");
    let (took, transactions, changes) = (began.elapsed(), bench.transactions() - before, bench.take());
    bench.stop().await;
    let steps = written(&changes).filter(|change| change.operations.is_empty()).count();
    bench.print("engine: durable steps", steps, &changes, took, transactions, &samples).await;
    drop_schema(url, &schema).await;
}

/// Sign-ups alone: the engine is frozen.
async fn sign_ups(url: &str, replicas: usize) {
    let schema = format!("sign_ups_{replicas}");
    let bench = Bench::start(url, &schema, replicas).await;
    bench.planes[0].freeze(true, by()).await.expect("it freezes");
    while !bench.planes.iter().all(ControlPlane::is_frozen) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let _ = bench.take();
    let before = bench.transactions();
    let began = Instant::now();
    let samples = sign_up_all(&bench.planes).await.expect("every request succeeds");
    let (took, transactions, changes) = (began.elapsed(), bench.transactions() - before, bench.take());
    bench.stop().await;
    let accepted = written(&changes).count();
    bench.print("sign-ups accepted, workers idle", accepted, &changes, took, transactions, &samples).await;
    drop_schema(url, &schema).await;
}
