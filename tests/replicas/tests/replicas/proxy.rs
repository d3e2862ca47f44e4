//! A network between replicas and the database that fails in every way.

use std::{
    net::Ipv4Addr,
    sync::atomic::{AtomicU64, Ordering},
};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinHandle,
};

/// What becomes of what is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// It arrives.
    Open,
    /// Nobody is let in. Connections that there are go on.
    Refuse,
    /// It is swallowed, in both directions, and nobody is told. A connection of which something was swallowed is dead for good.
    Swallow,
}

#[derive(Debug, Clone, Copy)]
struct State {
    mode: Mode,
    /// Connections of an earlier number are cut.
    cuts: u64,
}

/// A port of this machine that leads to another one, as long as this lives.
#[derive(Debug)]
pub(crate) struct Proxy {
    pub(crate) port: u16,
    state: watch::Sender<State>,
    carried: &'static AtomicU64,
    server: JoinHandle<()>,
}

impl Proxy {
    pub(crate) async fn to(host: String, port: u16) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let own = listener.local_addr().unwrap().port();
        let (state, watched) = watch::channel(State { mode: Mode::Open, cuts: 0 });
        let carried: &'static AtomicU64 = Box::leak(Box::default());
        let server = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let State { mode, cuts } = *watched.borrow();
                if mode != Mode::Refuse {
                    carried.fetch_add(1, Ordering::SeqCst);
                    tokio::spawn(carry(client, (host.clone(), port), watched.clone(), cuts));
                }
            }
        });
        Self { port: own, state, carried, server }
    }

    pub(crate) fn set(&self, mode: Mode) {
        self.state.send_modify(|state| state.mode = mode);
    }

    /// Cuts every connection that there is.
    pub(crate) fn cut(&self) {
        self.state.send_modify(|state| state.cuts += 1);
    }

    /// How many connections there were so far.
    pub(crate) fn connections(&self) -> u64 {
        self.carried.load(Ordering::SeqCst)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.server.abort();
        self.cut();
    }
}

async fn carry(mut client: TcpStream, to: (String, u16), mut state: watch::Receiver<State>, cuts: u64) {
    let (mut there, mut back) = (state.clone(), state.clone());
    let carrying = async {
        let Ok(mut server) = TcpStream::connect((to.0.as_str(), to.1)).await else { return };
        let _ = (client.set_nodelay(true), server.set_nodelay(true));
        let ((from_client, to_client), (from_server, to_server)) = (client.split(), server.split());
        // Either end's end is the end of both.
        tokio::select! {
            () = pass_on(from_client, to_server, &mut there) => {}
            () = pass_on(from_server, to_client, &mut back) => {}
        }
    };
    tokio::select! {
        () = carrying => {}
        _ = state.wait_for(|state| state.cuts > cuts) => {}
    }
}

async fn pass_on(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    state: &mut watch::Receiver<State>,
) {
    let mut part = vec![0; 1 << 14];
    let mut is_dead = false;
    while let Ok(read @ 1..) = from.read(&mut part).await {
        is_dead |= state.borrow_and_update().mode == Mode::Swallow;
        if !is_dead && to.write_all(&part[..read]).await.is_err() {
            return;
        }
    }
    // The news of an end is swallowed as well: the other end keeps what it holds.
    let _ = state.wait_for(|state| state.mode != Mode::Swallow).await;
}
