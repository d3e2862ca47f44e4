//! The provider in memory that all replicas share, and what is seen there of their calls.

use std::{
    collections::BTreeMap,
    net::Ipv4Addr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::{StreamExt, TryStreamExt};
use provisioner_core::{
    OpContext, Provisioner, Result,
    memory::{MemoryConfig, MemoryProvisioner, Thing},
    types::{Incarnation, Target},
};
use test_replicas::wire::{Asked, Call, Found, Told, Verb};
use tests::place::control_plane;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinHandle,
};

/// How long each call takes to arrive.
const LATENCY: Duration = Duration::from_millis(5);

/// One call about one thing that arrived.
#[derive(Debug, Clone)]
pub(crate) struct Arrived {
    pub(crate) by: String,
    pub(crate) verb: Verb,
    pub(crate) name: String,
}

/// A provider that is served to replicas for as long as this lives.
#[derive(Debug)]
pub(crate) struct Provider {
    inner: Arc<Inner>,
    pub(crate) port: u16,
    server: JoinHandle<()>,
}

#[derive(Debug)]
struct Inner {
    memory: MemoryProvisioner,
    state: Mutex<State>,
    /// Whoever makes something does so alone, so that it is known who made it.
    making: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct State {
    arrived: Vec<Arrived>,
    /// How often each incarnation came to be, by instance.
    made: BTreeMap<String, BTreeMap<Incarnation, u64>>,
    holds: Vec<Hold>,
}

#[derive(Debug)]
struct Hold {
    verb: &'static str,
    name: String,
    arrived: watch::Sender<bool>,
    released: watch::Receiver<bool>,
}

/// A call that has not done anything yet, and does it once this is dropped.
#[derive(Debug)]
pub(crate) struct Held {
    arrived: watch::Receiver<bool>,
    _release: watch::Sender<bool>,
}

impl Held {
    /// Waits for the call.
    pub(crate) async fn arrived(&mut self) {
        let arrived = self.arrived.wait_for(|arrived| *arrived);
        let arrived = tokio::time::timeout(crate::PATIENCE, arrived).await;
        arrived.expect("the call does not come").expect("a provider");
    }
}

impl Provider {
    pub(crate) async fn serve() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let memory = MemoryProvisioner::new(MemoryConfig::default());
        let inner = Arc::new(Inner { memory, state: Mutex::default(), making: tokio::sync::Mutex::default() });
        let serving = Arc::clone(&inner);
        let server = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let inner = Arc::clone(&serving);
                // Whether anybody waits for the answer or not, what was asked for is done.
                tokio::spawn(async move { inner.answer(stream).await });
            }
        });
        Self { inner, port, server }
    }

    /// Keeps the next call of this verb about this instance from acting.
    pub(crate) fn hold(&self, verb: &'static str, name: &str) -> Held {
        let (arrived, arriving) = watch::channel(false);
        let (release, released) = watch::channel(false);
        self.inner.state().holds.push(Hold { verb, name: name.to_owned(), arrived, released });
        Held { arrived: arriving, _release: release }
    }

    pub(crate) fn things(&self) -> Vec<Thing> {
        self.inner.memory.things(&control_plane())
    }

    /// The thing of this instance, if there is one. There are never two.
    pub(crate) fn thing(&self, name: &str) -> Option<Thing> {
        let mut things = self.things();
        things.retain(|thing| thing.id.as_str() == name);
        assert!(things.len() < 2, "made twice: {things:?}");
        things.pop()
    }

    /// How many data sets there are.
    pub(crate) fn data(&self) -> usize {
        self.inner.memory.data(&control_plane()).len()
    }

    /// Every call about one thing so far, in order.
    pub(crate) fn arrived(&self) -> Vec<Arrived> {
        self.inner.state().arrived.clone()
    }

    /// Each instance that was ever made, with how often each of its incarnations came to be.
    pub(crate) fn made(&self) -> BTreeMap<String, BTreeMap<Incarnation, u64>> {
        self.inner.state().made.clone()
    }

    /// Everything that was ever made was made once, under one incarnation.
    pub(crate) fn nothing_was_made_twice(&self) {
        let made = self.made();
        let twice: Vec<_> = made.iter().filter(|(_, made)| made.values().sum::<u64>() != 1).collect();
        assert!(twice.is_empty(), "made more than once: {twice:?}");
    }
}

impl Drop for Provider {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does what one connection asks for. A caller who is gone in the middle of a line has asked for nothing.
    async fn answer(&self, stream: TcpStream) {
        let mut stream = BufReader::new(stream);
        let mut line = String::new();
        if !stream.read_line(&mut line).await.is_ok_and(|read| read > 0) {
            return;
        }
        let Ok(call) = serde_json::from_str::<Call>(&line) else { return };
        let told = self.act(call).await.unwrap_or_else(|error| Told::Failed(error.into()));
        let mut line = serde_json::to_string(&told).unwrap();
        line.push('\n');
        let _ = stream.write_all(line.as_bytes()).await;
    }

    async fn act(&self, Call { by, control_plane, asked }: Call) -> Result<Told> {
        let cx = OpContext::new(control_plane);
        match asked {
            Asked::Of(verb, wanted) => {
                self.arrive(by, verb, wanted.id.as_str()).await;
                let seen = match verb {
                    Verb::Create => self.create(&cx, &wanted.into()).await?,
                    Verb::Suspend => self.memory.suspend(&cx, &wanted.into()).await?,
                    Verb::ScaleToZero => self.memory.scale_to_zero(&cx, &wanted.into()).await?,
                    Verb::Resume => self.memory.resume(&cx, &wanted.into()).await?,
                    Verb::Destroy(data) => self.memory.destroy(&cx, &wanted.into(), data).await?,
                    Verb::Observe => self.memory.observe(&cx, &wanted.into()).await?,
                };
                Ok(Told::Seen(seen.into()))
            }
            Asked::List => {
                let found = self.memory.list(&cx).map(|owned| owned.map(Found::from));
                Ok(Told::Listed(found.try_collect().await?))
            }
            Asked::DeleteData(data) => self.memory.delete_data(&cx, &data).await.map(|()| Told::Done),
        }
    }

    async fn arrive(&self, by: String, verb: Verb, name: &str) {
        tokio::time::sleep(LATENCY).await;
        let hold = {
            let mut state = self.state();
            state.arrived.push(Arrived { by, verb, name: name.to_owned() });
            let found = state.holds.iter().position(|hold| hold.verb == verb.as_str() && hold.name == name);
            found.map(|found| state.holds.remove(found))
        };
        if let Some(mut hold) = hold {
            hold.arrived.send_replace(true);
            // Until the other end is dropped.
            let _ = hold.released.wait_for(|released| *released).await;
        }
    }

    async fn create(&self, cx: &OpContext, target: &Target) -> Result<provisioner_core::types::Observed> {
        let _alone = self.making.lock().await;
        let was_there = self.memory.thing(&cx.control_plane, target.incarnation).is_some();
        let created = self.memory.create(cx, target).await;
        if !was_there && self.memory.thing(&cx.control_plane, target.incarnation).is_some() {
            let mut state = self.state();
            let made = state.made.entry(target.id.to_string()).or_default();
            *made.entry(target.incarnation).or_default() += 1;
        }
        created
    }
}
