//! Accepted requests, to be waited for and followed.

use std::{collections::VecDeque, sync::Arc};

use futures::{
    StreamExt,
    stream::{self, BoxStream},
};
use tokio::sync::watch;

use crate::{
    engine::{Engine, sharing, waiters::News},
    error::{Error, ErrorKind, Result},
    store::{Event, EventKind, Operation},
    types::InstanceId,
};

/// How many events are read at a time.
const PAGE: usize = 256;

/// An accepted request. When it is in the caller's hands, the intent is on disk.
#[derive(Debug, Clone)]
pub struct OperationHandle {
    engine: Arc<Engine>,
    operation: Operation,
    /// What is known of its end since before it was accepted. `None`: it was accepted before, or elsewhere.
    news: Option<watch::Receiver<News>>,
}

impl OperationHandle {
    pub(super) fn new(engine: Arc<Engine>, operation: Operation) -> Self {
        Self { engine, operation, news: None }
    }

    /// That of an operation which was just accepted, and of whose end one was to be told since before.
    pub(super) fn of_accepted(engine: Arc<Engine>, operation: Operation, news: watch::Receiver<News>) -> Self {
        Self { engine, operation, news: Some(news) }
    }

    /// The operation as it was when the handle was made.
    #[must_use]
    pub fn operation(&self) -> &Operation {
        &self.operation
    }

    /// Waits until it ended, and answers with how: done, failed or superseded.
    ///
    /// # Errors
    /// [`Cancelled`](ErrorKind::Cancelled) when the control plane shuts down first (the operation goes on at the next
    /// start); what the store answers when it fails.
    ///
    /// # Cancellation
    /// Dropping the future changes nothing about the operation.
    pub async fn wait(&self) -> Result<Operation> {
        let subscribe = || self.engine.waiters.subscribe(&self.operation.id);
        // What was not heard of from the beginning on may have ended before it was asked for news.
        let (mut news, mut may_be_over) = match &self.news {
            Some(news) => (news.clone(), false),
            None => (subscribe(), true),
        };
        loop {
            let told = news.borrow_and_update().clone();
            match told {
                News::EndedLike(end) => return Ok(self.operation.clone().ended(end)),
                News::Ended => {
                    news = subscribe();
                    may_be_over = true;
                }
                News::None => {}
            }
            if may_be_over {
                let operation = self.read().await?;
                if operation.state.is_ended() {
                    return Ok(operation);
                }
            }
            tokio::select! {
                biased;
                // Who told is gone where nothing more is to come.
                told = news.changed() => {
                    may_be_over = told.is_err();
                    if may_be_over {
                        news = subscribe();
                    }
                }
                () = self.engine.cancel.cancelled() => {
                    let error = Error::new(ErrorKind::Cancelled, "wait").with_instance(&self.operation.instance);
                    return Err(error.with_message("the control plane shuts down; the operation goes on when it is back"));
                }
            }
        }
    }

    async fn read(&self) -> Result<Operation> {
        let read = self.engine.store.operation(&self.operation.id).await.map_err(|error| error.read_error("wait"))?;
        read.ok_or_else(|| {
            Error::new(ErrorKind::NotFound, "wait").with_message("the operation is older than what is kept")
        })
    }

    /// The events of its instance from its acceptance on, as they come, until it ended.
    #[must_use]
    pub fn progress(&self) -> BoxStream<'static, Result<Event>> {
        let progress = Progress {
            handle: self.clone(),
            positions: self.engine.store.positions(),
            read: VecDeque::new(),
            after: 0,
            began: false,
            over: false,
        };
        stream::unfold(progress, |mut progress| async move {
            let event = progress.next().await.transpose()?;
            progress.over |= event.is_err();
            Some((event, progress))
        })
        .boxed()
    }
}

/// How far somebody who follows an operation is.
struct Progress {
    handle: OperationHandle,
    positions: watch::Receiver<u64>,
    read: VecDeque<Event>,
    after: u64,
    began: bool,
    over: bool,
}

impl Progress {
    async fn next(&mut self) -> Result<Option<Event>> {
        let (engine, operation) = (Arc::clone(&self.handle.engine), self.handle.operation.clone());
        while !self.over {
            while let Some(event) = self.read.pop_front() {
                self.after = event.position;
                self.began |=
                    matches!(&event.event.what, EventKind::Accepted { operation: id, .. } if *id == operation.id);
                self.over =
                    matches!(&event.event.what, EventKind::OperationEnded { operation: id, .. } if *id == operation.id);
                if self.began || self.over {
                    return Ok(Some(event));
                }
            }
            self.positions.borrow_and_update();
            // Asked before the events are read: when it has ended, and no more events come, they were pruned already.
            let ended = self.handle.read().await.map_or(true, |operation| operation.state.is_ended());
            let events = engine.store.events(Some(&operation.instance), self.after, PAGE).await;
            self.read.extend(events.map_err(|error| error.read_error("follow events"))?);
            if self.read.is_empty() {
                if ended {
                    break;
                }
                tokio::select! {
                    biased;
                    () = engine.cancel.cancelled() => break,
                    news = sharing::news(&engine, &mut self.positions) => if news.is_none() { break },
                }
            }
        }
        Ok(None)
    }
}

/// Events after a position as they come: first those that are there, then live, in order and without gaps. Ends when the
/// control plane shuts down.
pub(super) fn follow(
    engine: Arc<Engine>,
    instance: Option<InstanceId>,
    after: u64,
) -> BoxStream<'static, Result<Event>> {
    struct Follower {
        engine: Arc<Engine>,
        instance: Option<InstanceId>,
        after: u64,
        read: VecDeque<Event>,
        positions: watch::Receiver<u64>,
    }
    let positions = engine.store.positions();
    let follower = Follower { engine, instance, after, read: VecDeque::new(), positions };
    stream::unfold(follower, |mut follower| async move {
        loop {
            if let Some(event) = follower.read.pop_front() {
                follower.after = event.position;
                return Some((Ok(event), follower));
            }
            follower.positions.borrow_and_update();
            match follower.engine.store.events(follower.instance.as_ref(), follower.after, PAGE).await {
                Ok(events) if events.is_empty() => tokio::select! {
                    biased;
                    () = follower.engine.cancel.cancelled() => return None,
                    news = sharing::news(&follower.engine, &mut follower.positions) => news?,
                },
                Ok(events) => follower.read.extend(events),
                Err(error) => return Some((Err(error.read_error("follow events")), follower)),
            }
        }
    })
    .boxed()
}
