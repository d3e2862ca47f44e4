//! A proxy in front of the database that cuts connections where it hurts: around commits.

use std::sync::{
    Arc,
    atomic::{AtomicU8, AtomicU64, Ordering},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tokio_postgres::config::Host;

use crate::postgres::postgres_url;

/// What it does to what passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Mode {
    Pass,
    /// The next commit is not passed on, and its connection is cut.
    CutBeforeCommit,
    /// The next commit is passed on, and its connection is cut before the answer.
    CutAfterCommit,
    /// Nothing passes.
    Hang,
}

/// As the client sends it: a simple query.
const COMMIT: &[u8] = b"Q\0\0\0\x0bCOMMIT\0";

pub(crate) struct Proxy {
    port: u16,
    mode: Arc<AtomicU8>,
    cuts: Arc<AtomicU64>,
    connections: Arc<AtomicU64>,
}

/// The database's URL with another user, or another port.
fn rewritten(user: Option<(&str, &str)>, port: Option<u16>) -> String {
    let config: tokio_postgres::Config = postgres_url().unwrap().parse().unwrap();
    let own_password = String::from_utf8(config.get_password().unwrap_or_default().to_vec()).unwrap();
    let (user, password) = user.unwrap_or((config.get_user().unwrap_or("postgres"), &own_password));
    let (host, port) = port.map_or_else(upstream, |port| ("127.0.0.1".into(), port));
    format!("postgres://{user}:{password}@{host}:{port}/{}?sslmode=disable", config.get_dbname().unwrap_or("postgres"))
}

pub(crate) fn url_with(user: &str, password: &str) -> String {
    rewritten(Some((user, password)), None)
}

fn upstream() -> (String, u16) {
    let config: tokio_postgres::Config = postgres_url().unwrap().parse().unwrap();
    let host = match config.get_hosts().first() {
        Some(Host::Tcp(name)) => name.clone(),
        _ => "127.0.0.1".into(),
    };
    (host, config.get_ports().first().copied().unwrap_or(5432))
}

impl Proxy {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (mode, cuts) = (Arc::new(AtomicU8::new(0)), Arc::new(AtomicU64::new(0)));
        let (seen_mode, seen_cuts) = (Arc::clone(&mode), Arc::clone(&cuts));
        let connections = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&connections);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                counted.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(carry(client, Arc::clone(&seen_mode), Arc::clone(&seen_cuts)));
            }
        });
        Self { port, mode, cuts, connections }
    }

    pub(crate) fn url(&self) -> String {
        rewritten(None, Some(self.port))
    }

    pub(crate) fn set(&self, mode: Mode) {
        self.mode.store(mode as u8, Ordering::SeqCst);
    }

    /// How many connections were made.
    pub(crate) fn connections(&self) -> u64 {
        self.connections.load(Ordering::SeqCst)
    }

    /// How many connections were cut.
    pub(crate) fn cuts(&self) -> u64 {
        self.cuts.load(Ordering::SeqCst)
    }
}

async fn carry(mut client: TcpStream, mode: Arc<AtomicU8>, cuts: Arc<AtomicU64>) {
    let Ok(mut server) = TcpStream::connect(upstream()).await else { return };
    let (mut from_client, mut from_server) = (vec![0; 65536], vec![0; 65536]);
    // What was read and may be the beginning of a commit.
    let mut held = Vec::new();
    loop {
        while mode.load(Ordering::SeqCst) == Mode::Hang as u8 {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        tokio::select! {
            read = client.read(&mut from_client) => {
                let Ok(count @ 1..) = read else { return };
                held.extend_from_slice(&from_client[..count]);
                let commit = held.windows(COMMIT.len()).position(|window| window == COMMIT);
                let taken = |wanted: Mode| {
                    mode.compare_exchange(wanted as u8, Mode::Pass as u8, Ordering::SeqCst, Ordering::SeqCst).is_ok()
                };
                if let Some(start) = commit {
                    if taken(Mode::CutBeforeCommit) {
                        cuts.fetch_add(1, Ordering::SeqCst);
                        let _ = server.write_all(&held[..start]).await;
                        return;
                    }
                    if taken(Mode::CutAfterCommit) {
                        cuts.fetch_add(1, Ordering::SeqCst);
                        let _ = server.write_all(&held).await;
                        swallow_answer(&mut server).await;
                        return;
                    }
                }
                // Anything but the beginning of what may become a commit is passed on at once.
                let kept = (1..COMMIT.len()).rev().find(|kept| held.ends_with(&COMMIT[..*kept])).unwrap_or(0);
                let passed = held.len() - kept;
                if server.write_all(&held[..passed]).await.is_err() {
                    return;
                }
                held.drain(..passed);
            }
            read = server.read(&mut from_server) => {
                let Ok(count @ 1..) = read else { return };
                if client.write_all(&from_server[..count]).await.is_err() {
                    return;
                }
            }
        }
    }
}

/// Waits for the answer to a commit, so that it has happened when the connection is cut, or the end.
async fn swallow_answer(server: &mut TcpStream) {
    let (mut seen, mut buffer) = (Vec::new(), vec![0; 65536]);
    while !seen.windows(7).any(|window| window == b"COMMIT\0" || window == b"ROLLBAC") {
        match server.read(&mut buffer).await {
            Ok(count @ 1..) => seen.extend_from_slice(&buffer[..count]),
            _ => return,
        }
    }
}
