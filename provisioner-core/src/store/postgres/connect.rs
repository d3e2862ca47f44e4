//! Connections: how one is made, how reads share some, and that one in doubt is never used again.

use std::{
    fmt,
    ops::Deref,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use deadpool_postgres::{
    ClientWrapper, Connect, Manager, ManagerConfig, Object, Pool, PoolError, RecyclingMethod, Timeouts,
};
use futures::{StreamExt, future::BoxFuture, stream::FuturesUnordered};
use tokio::{task::JoinHandle, time};
use tokio_postgres::{Client, Connection, Row, Socket, types::ToSql};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::{
    super::StoreError,
    config::PostgresConfig,
    fault::{self, TimedOut},
};

/// How long a host may be silent until the next one is tried beside it, at most.
const NEXT_HOST_AFTER: Duration = Duration::from_millis(500);

/// What carries a connection's messages.
pub(super) type Carrier =
    Connection<Socket, <MakeRustlsConnect as tokio_postgres::tls::MakeTlsConnect<Socket>>::Stream>;

/// Makes connections.
#[derive(Clone)]
pub(super) struct Connector {
    hosts: Vec<tokio_postgres::Config>,
    /// The one that was reached last.
    preferred: Arc<AtomicUsize>,
    tls: MakeRustlsConnect,
    timeout: Duration,
    /// How long a host may be silent until the next one is tried beside it.
    next_after: Duration,
}

impl Connector {
    pub(super) fn new(config: &PostgresConfig) -> Result<Self, StoreError> {
        let tls = config.trust.connector()?;
        let (hosts, timeout) = (config.connections(), config.connect_timeout);
        // So soon that a renewal, and a read, has time for the next one.
        let next_after = NEXT_HOST_AFTER.min(config.lapses_after / 16).min(config.timeout / 4);
        Ok(Self { hosts, preferred: Arc::default(), tls, timeout, next_after })
    }

    /// Connects to the first host that takes writes, beginning with the one that was reached last. One that is silent does not keep the
    /// next from being tried. An error says why none of them could be used; none: all were silent.
    async fn reach(&self) -> Result<(Client, Carrier), Option<tokio_postgres::Error>> {
        let count = self.hosts.len();
        let first = self.preferred.load(Ordering::Relaxed);
        let mut order = (0..count).map(|number| (first + number) % count);
        let mut attempts = FuturesUnordered::new();
        let (mut told, mut all_begun) = (None, false);
        loop {
            match order.next() {
                Some(host) => attempts.push(async move {
                    // The driver bounds only the making of the socket.
                    (host, time::timeout(self.timeout, self.hosts[host].connect(self.tls.clone())).await)
                }),
                None => all_begun = true,
            }
            if all_begun && attempts.is_empty() {
                return Err(told);
            }
            let pause = async {
                match all_begun {
                    true => std::future::pending().await,
                    false => time::sleep(self.next_after).await,
                }
            };
            tokio::select! {
                biased;
                Some((host, reached)) = attempts.next() => match reached {
                    Ok(Ok(made)) => {
                        self.preferred.store(host, Ordering::Relaxed);
                        return Ok(made);
                    }
                    // Why a server refuses says more than that another one is a standby, or is not there.
                    Ok(Err(error)) if error.as_db_error().is_none() && told.is_some() => {}
                    Ok(Err(error)) => told = Some(error),
                    Err(_) => {}
                },
                () = pause => {}
            }
        }
    }

    /// Makes a connection whose messages are to be carried by the caller.
    pub(super) async fn connect_raw(&self) -> Result<(Client, Carrier), StoreError> {
        self.reach().await.map_err(|error| match error {
            Some(error) => fault::refused(error),
            None => StoreError::Failed(Box::new(TimedOut(self.timeout))),
        })
    }

    /// Makes a connection that is ready for use.
    pub(super) async fn connect(&self) -> Result<ClientWrapper, StoreError> {
        let (client, carrier) = self.connect_raw().await?;
        let carried = ClientWrapper::new(client, tokio::spawn(carry(carrier)));
        match time::timeout(self.timeout, make_durable(&carried)).await {
            Ok(made) => made.map(|()| carried).map_err(fault::refused),
            Err(_) => Err(StoreError::Failed(Box::new(TimedOut(self.timeout)))),
        }
    }
}

async fn carry(carrier: Carrier) {
    if let Err(error) = carrier.await {
        tracing::debug!(error = %crate::error::Chain(&error), "a connection to the database ended");
    }
}

/// Durable means durable: a server that answers commits before they are on disk is told not to do so here. Any other setting
/// asks for at least as much. <https://www.postgresql.org/docs/current/runtime-config-wal.html#GUC-SYNCHRONOUS-COMMIT>
async fn make_durable(client: &Client) -> Result<(), tokio_postgres::Error> {
    let query = "SELECT set_config('synchronous_commit', 'on', false)
         WHERE current_setting('synchronous_commit') = 'off'";
    client.batch_execute(query).await
}

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connector").finish_non_exhaustive()
    }
}

/// For the pool, which knows the driver's errors only.
impl Connect for Connector {
    fn connect(
        &self,
        _: &tokio_postgres::Config,
    ) -> BoxFuture<'_, Result<(Client, JoinHandle<()>), tokio_postgres::Error>> {
        Box::pin(async move {
            let (client, carrier) = match self.reach().await {
                Ok(reached) => reached,
                Err(Some(error)) => return Err(error),
                // There is no error of the driver's to tell: the pool's own limit ends this.
                Err(None) => std::future::pending().await,
            };
            let carrying = tokio::spawn(carry(carrier));
            make_durable(&client).await?;
            Ok((client, carrying))
        })
    }
}

/// The connections that reads share.
#[derive(Debug, Clone)]
pub(super) struct Readers {
    pool: Pool,
    timeout: Duration,
}

impl Readers {
    pub(super) fn new(connector: &Connector, config: &PostgresConfig, size: usize) -> Result<Self, StoreError> {
        let recycling = ManagerConfig { recycling_method: RecyclingMethod::Fast };
        let manager = Manager::from_connect(tokio_postgres::Config::new(), connector.clone(), recycling);
        let others = u32::try_from(config.connections.len()).unwrap_or(u32::MAX).saturating_sub(1);
        let timeouts = Timeouts {
            wait: Some(config.timeout),
            create: Some(config.connect_timeout + NEXT_HOST_AFTER * (others + 1)),
            recycle: Some(config.timeout),
        };
        let pool = Pool::builder(manager)
            .max_size(size)
            .timeouts(timeouts)
            .runtime(deadpool_postgres::Runtime::Tokio1)
            .build()
            .map_err(|error| StoreError::Failed(Box::new(error)))?;
        Ok(Self { pool, timeout: config.timeout })
    }

    /// Answers a query, of one moment's state.
    pub(super) async fn query(&self, query: &str, values: &[&(dyn ToSql + Sync)]) -> Result<Vec<Row>, StoreError> {
        self.within(async {
            let lent = self.lend().await?;
            let statement = lent.prepare_cached(query).await?;
            let rows = lent.query(&statement, values).await?;
            lent.give_back();
            Ok(rows)
        })
        .await
    }

    /// Likewise, for a query that finds one row or none.
    pub(super) async fn query_one(
        &self,
        query: &str,
        values: &[&(dyn ToSql + Sync)],
    ) -> Result<Option<Row>, StoreError> {
        Ok(self.query(query, values).await?.into_iter().next())
    }

    /// Takes a connection. One on which the work was not finished is not used again: nobody knows what it would answer next.
    pub(super) async fn lend(&self) -> Result<Lent, StoreError> {
        let unavailable = |error| match error {
            PoolError::Backend(error) => StoreError::from(error),
            other => StoreError::Failed(Box::new(other)),
        };
        Ok(Lent(Some(self.pool.get().await.map_err(unavailable)?)))
    }

    /// Bounds work with the time there is for one transaction.
    pub(super) async fn within<T>(
        &self,
        work: impl Future<Output = Result<T, StoreError>> + Send,
    ) -> Result<T, StoreError> {
        let late = StoreError::Failed(Box::new(TimedOut(self.timeout)));
        time::timeout(self.timeout, work).await.unwrap_or(Err(late))
    }

    /// Ends the connections that are not in use, and each other one when it is given back.
    pub(super) fn close(&self) {
        self.pool.close();
    }
}

/// A connection that is thrown away unless it is given back.
#[derive(Debug)]
pub(super) struct Lent(Option<Object>);

impl Lent {
    pub(super) fn give_back(mut self) {
        drop(self.0.take());
    }

    /// The connection itself, for transactions.
    pub(super) fn client(&mut self) -> &mut ClientWrapper {
        self.0.as_mut().expect("taken only when it is given back")
    }
}

impl Deref for Lent {
    type Target = ClientWrapper;

    fn deref(&self) -> &ClientWrapper {
        self.0.as_ref().expect("taken only when it is given back")
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if let Some(object) = self.0.take() {
            drop(Object::take(object));
        }
    }
}
