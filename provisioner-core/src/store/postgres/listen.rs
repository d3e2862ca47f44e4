//! Listening to what other processes tell, on a connection of its own that is made again whenever it is lost.

use std::{future, pin::pin, task::Poll, time::Duration};

use tokio::{sync::watch, time};
use tokio_postgres::{AsyncMessage, Client};
use tokio_util::sync::CancellationToken;

use super::{
    super::{Signal, StoreError, format::Columns, signals::Signals},
    config::Schema,
    connect::{Carrier, Connector},
    fault::TimedOut,
    notice::{self, Notice},
    read,
};
use crate::error::Chain;

/// How often a silent connection is asked whether it is still there.
const PROBE_EVERY: Duration = Duration::from_secs(10);
/// More events than are written between two notices.
const EVENTS_MAX: u64 = 1_000_000;
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// What is told to the readers of this process.
#[derive(Debug, Clone)]
pub(super) struct Told {
    pub(super) positions: watch::Sender<u64>,
    pub(super) signals: Signals,
}

impl Told {
    /// Shows a position, unless a later one was shown already.
    pub(super) fn show(&self, position: u64) {
        self.positions.send_if_modified(|shown| {
            let is_news = position > *shown;
            *shown = position.max(*shown);
            is_news
        });
    }

    /// Shows a position that was read, also one before that shown: a database that was restored or failed over may have lost the
    /// last events. Whoever waits looks again.
    fn show_again(&self, position: u64) {
        self.positions.send_replace(position);
    }

    fn tell(&self, payload: &str) {
        for notice in notice::read(payload) {
            match notice {
                // Anybody who may connect may notify. What no batch can have written is not believed.
                Notice::Position(position) if position > self.positions.borrow().saturating_add(EVENTS_MAX) => {
                    tracing::warn!(position, "passed over a position that no event can have");
                }
                Notice::Position(position) => self.show(position),
                Notice::Signal(signal) => self.signals.tell(signal),
            }
        }
    }
}

/// Listens for a store, for as long as that lives.
#[derive(Debug)]
pub(super) struct Listener {
    pub(super) connector: Connector,
    pub(super) schema: Schema,
    pub(super) told: Told,
    pub(super) timeout: Duration,
}

/// A connection that listens.
pub(super) struct Ear {
    client: Client,
    carrier: Carrier,
}

impl Listener {
    /// Begins to listen: what is told from now on is heard. Shows the last position of before, whatever was shown.
    pub(super) async fn begin(&self) -> Result<Ear, StoreError> {
        let (client, carrier) = self.connector.connect_raw().await?;
        let mut ear = Ear { client, carrier };
        let Ear { client, carrier } = &mut ear;
        let begun = async {
            client.batch_execute(&format!("LISTEN {}", self.schema.quoted())).await?;
            client.query_one(read::LAST_POSITION, &[]).await?.count(0)
        };
        let position = self.within(carrier, begun).await?;
        self.told.show_again(position);
        Ok(ear)
    }

    /// Listens until told to stop.
    pub(super) async fn serve(self, mut ear: Ear, stop: CancellationToken) {
        while let Some(error) = stop.run_until_cancelled(self.listen(&mut ear)).await {
            tracing::warn!(error = %Chain(&error), "the connection that listens to other processes was lost");
            let Some(again) = stop.run_until_cancelled(self.begin_again()).await else { return };
            ear = again;
            // Nobody kept for us what was told meanwhile.
            self.told.signals.tell(Signal::Missed);
        }
    }

    async fn begin_again(&self) -> Ear {
        let mut pause = PAUSE_MIN;
        loop {
            time::sleep(pause).await;
            match self.begin().await {
                Ok(ear) => return ear,
                Err(error) => tracing::debug!(error = %Chain(&error), "the database cannot be listened to yet"),
            }
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    /// Hears until the connection is lost.
    async fn listen(&self, ear: &mut Ear) -> StoreError {
        let Ear { client, carrier } = ear;
        loop {
            let silence = time::timeout(PROBE_EVERY, self.hear(carrier)).await;
            let lost = match silence {
                Ok(error) => Err(error),
                // A link that was cut without a word shows only when something is asked.
                Err(_) => self.within(carrier, async { Ok(client.batch_execute("").await?) }).await,
            };
            if let Err(error) = lost {
                return error;
            }
        }
    }

    /// Tells what is heard, until the connection ends.
    async fn hear(&self, carrier: &mut Carrier) -> StoreError {
        loop {
            match future::poll_fn(|cx| carrier.poll_message(cx)).await {
                Some(Ok(AsyncMessage::Notification(notification))) => self.told.tell(notification.payload()),
                Some(Ok(_)) => {}
                Some(Err(error)) => return error.into(),
                None => return StoreError::Failed("the database closed the connection".into()),
            }
        }
    }

    /// Asks something, hearing meanwhile, within the time there is.
    async fn within<T>(
        &self,
        carrier: &mut Carrier,
        asked: impl Future<Output = Result<T, StoreError>> + Send,
    ) -> Result<T, StoreError> {
        let mut asked = pin!(asked);
        let mut heard = pin!(self.hear(carrier));
        let answered = future::poll_fn(|cx| match asked.as_mut().poll(cx) {
            Poll::Ready(answer) => Poll::Ready(answer),
            Poll::Pending => heard.as_mut().poll(cx).map(Err),
        });
        let late = StoreError::Failed(Box::new(TimedOut(self.timeout)));
        time::timeout(self.timeout, answered).await.unwrap_or(Err(late))
    }
}
