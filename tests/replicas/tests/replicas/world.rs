//! A database, a provider, and the replicas between them.

use std::{
    fmt::Write as _,
    net::Ipv4Addr,
    path::Path,
    process,
    str::FromStr,
    sync::{
        Arc, RwLock,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tempfile::TempDir;
use test_peers::postgres::{self, Server};
use test_replicas::command::{Options, Place};
use tokio_postgres::{NoTls, SimpleQueryMessage, config::Host};

use crate::{process::Replica, provider::Provider, proxy::Proxy};

/// After how much silence a session lapses.
pub(crate) const LAPSES_AFTER: Duration = Duration::from_secs(2);
/// How long a call to the provider may take, and a transaction.
pub(crate) const CALL_TIMEOUT: Duration = Duration::from_secs(2);

/// A schema of its own in a database. It is dropped with this.
#[derive(Debug)]
pub(crate) struct Database {
    pub(crate) url: String,
    pub(crate) schema: String,
}

impl Database {
    /// In the database that tests share.
    pub(crate) fn shared() -> Self {
        Self::at(postgres::url().expect("PostgreSQL is here"))
    }

    /// In that of a server.
    pub(crate) fn of(server: &Server) -> Self {
        Self::at(&server.url())
    }

    /// In that of the one of two servers that takes writes.
    pub(crate) fn of_either(one: &Server, other: &Server) -> Self {
        let hosts = format!("127.0.0.1:{},127.0.0.1:{}", one.port(), other.port());
        let url = one.url().replace(&format!("127.0.0.1:{}", one.port()), &hosts);
        Self::at(&format!("{url}?target_session_attrs=read-write"))
    }

    fn at(url: &str) -> Self {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::SeqCst);
        Self { url: url.to_owned(), schema: format!("replicas_{}_{number}", process::id()) }
    }

    pub(crate) async fn connect(&self) -> tokio_postgres::Client {
        let (client, connection) = tokio_postgres::connect(&self.url, NoTls).await.unwrap();
        tokio::spawn(connection);
        client
    }

    /// The rows that statements bring, in this schema: columns as text, behind one another with blanks between.
    pub(crate) async fn rows(&self, sql: &str) -> Vec<String> {
        let client = self.connect().await;
        let sql = format!("SET search_path = {}; {sql}", self.schema);
        let row = |message| match message {
            SimpleQueryMessage::Row(row) => {
                let columns: Vec<_> = (0..row.len()).map(|column| row.get(column).unwrap_or_default()).collect();
                Some(columns.join(" "))
            }
            _ => None,
        };
        client.simple_query(&sql).await.unwrap().into_iter().filter_map(row).collect()
    }

    /// The one number that a statement brings.
    pub(crate) async fn number(&self, sql: &str) -> u64 {
        self.rows(sql).await[0].parse().unwrap()
    }

    /// A way there that can fail.
    pub(crate) async fn proxy(&self) -> Proxy {
        let config = tokio_postgres::Config::from_str(&self.url).unwrap();
        let host = match config.get_hosts() {
            [Host::Tcp(host), ..] => host.clone(),
            hosts => panic!("not reached over a network: {hosts:?}"),
        };
        Proxy::to(host, config.get_ports().first().copied().unwrap_or(5432)).await
    }

    /// The URL of the same database by another way.
    fn url_by(&self, proxy: &Proxy) -> String {
        let config = tokio_postgres::Config::from_str(&self.url).unwrap();
        let password = config.get_password().map(String::from_utf8_lossy).unwrap_or_default();
        let (user, database) = (config.get_user().unwrap_or_default(), config.get_dbname().unwrap_or_default());
        let escaped = password.bytes().fold(String::new(), |mut escaped, byte| {
            let _ = write!(escaped, "%{byte:02x}");
            escaped
        });
        let password = if escaped.is_empty() { escaped } else { format!(":{escaped}") };
        format!("postgres://{user}{password}@127.0.0.1:{}/{database}", proxy.port)
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        let (url, schema) = (self.url.clone(), self.schema.clone());
        // The server may be down or gone; then there is nothing to drop.
        let dropping = std::thread::spawn(move || {
            let Ok(mut client) = ::postgres::Client::connect(&url, ::postgres::NoTls) else { return };
            let _ = client.batch_execute(&format!("DROP SCHEMA IF EXISTS {schema} CASCADE"));
        });
        let _ = dropping.join();
    }
}

/// What a test has.
#[derive(Debug)]
pub(crate) struct World {
    replicas: RwLock<Vec<Arc<Replica>>>,
    pub(crate) provider: Provider,
    pub(crate) database: Database,
    /// How many requests were accepted so far.
    pub(crate) accepted: AtomicUsize,
    /// How many were refused.
    pub(crate) refused: AtomicUsize,
    lapses_after: Duration,
    call_timeout: Duration,
    folder: TempDir,
}

impl World {
    pub(crate) async fn new(database: Database) -> Self {
        let folder = tempfile::Builder::new().prefix("provisioner-replicas-").tempdir().unwrap();
        Self {
            replicas: RwLock::default(),
            provider: Provider::serve().await,
            database,
            accepted: AtomicUsize::new(0),
            refused: AtomicUsize::new(0),
            lapses_after: LAPSES_AFTER,
            call_timeout: CALL_TIMEOUT,
            folder,
        }
    }

    /// The same with other timings of the replicas to come.
    pub(crate) fn with_timings(mut self, lapses_after: Duration, call_timeout: Duration) -> Self {
        (self.lapses_after, self.call_timeout) = (lapses_after, call_timeout);
        self
    }

    /// With replicas of these names.
    pub(crate) async fn with(database: Database, names: &[&str]) -> Self {
        let world = Self::new(database).await;
        world.start_all(names).await;
        world
    }

    /// Starts these as well.
    pub(crate) async fn start_all(&self, names: &[&str]) {
        for name in names {
            self.start(name).await;
        }
    }

    /// Starts one more.
    pub(crate) async fn start(&self, name: &str) -> Arc<Replica> {
        self.start_with(name, self.database.url.clone(), Place::Memory { port: self.provider.port }).await
    }

    /// Starts one more that gets to the database this way.
    pub(crate) async fn start_behind(&self, name: &str, proxy: &Proxy) -> Arc<Replica> {
        let place = Place::Memory { port: self.provider.port };
        self.start_with(name, self.database.url_by(proxy), place).await
    }

    pub(crate) async fn start_with(&self, name: &str, url: String, place: Place) -> Arc<Replica> {
        let (name, schema) = (name.to_owned(), self.database.schema.clone());
        let (lapses_after, call_timeout) = (self.lapses_after, self.call_timeout);
        let log = self.folder.path().join(format!("{name}.log"));
        let options = Options { name, url, schema, place, lapses_after, call_timeout };
        let replica = Replica::start(&options, log).await;
        self.replicas.write().unwrap().push(Arc::clone(&replica));
        replica
    }

    /// Starts some on this machine's processes.
    pub(crate) async fn start_on(&self, name: &str, root: &Path, address: Ipv4Addr, product: &str) -> Arc<Replica> {
        let place = Place::Process { root: root.to_owned(), address, product: product.into() };
        self.start_with(name, self.database.url.clone(), place).await
    }

    /// Nobody asks this one any more.
    pub(crate) fn take_out(&self, replica: &Replica) {
        self.replicas.write().unwrap().retain(|other| other.name != replica.name);
    }

    /// Those that may be asked.
    pub(crate) fn replicas(&self) -> Vec<Arc<Replica>> {
        self.replicas.read().unwrap().clone()
    }

    pub(crate) fn replica(&self, name: &str) -> Arc<Replica> {
        self.replicas().into_iter().find(|replica| replica.name == name).expect("a replica of this name")
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for replica in self.replicas() {
                eprintln!("the last that {} logged:\n{}", replica.name, replica.last_words());
            }
        }
    }
}
