//! Where the resource manager is reached, with TLS: connections can be closed without an answer, and the port can be shut.

use std::{
    future, io,
    net::SocketAddr,
    time::{Duration, Instant},
};

use axum::{
    extract::connect_info::Connected,
    serve::{IncomingStream, Listener},
};
use tokio::{net::TcpListener, sync::watch};
use tokio_rustls::TlsAcceptor;

use crate::{
    faults::Lasting,
    line::{Cut, Line},
};

/// A port that is shut while nothing is reachable.
pub(crate) struct Door {
    address: SocketAddr,
    listener: Option<TcpListener>,
    acceptor: TlsAcceptor,
    faults: watch::Receiver<Option<Lasting>>,
}

/// How long a stand that was dropped may take to let go of its port.
const LET_GO_WITHIN: Duration = Duration::from_secs(10);

impl Door {
    pub(crate) async fn open(
        address: SocketAddr,
        acceptor: TlsAcceptor,
        faults: watch::Receiver<Option<Lasting>>,
    ) -> io::Result<Self> {
        let began = Instant::now();
        let listener = loop {
            match TcpListener::bind(address).await {
                // A stand that this process has just dropped had the port, and lets go of it in a moment.
                Err(error) if error.kind() == io::ErrorKind::AddrInUse && began.elapsed() < LET_GO_WITHIN => {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                bound => break bound?,
            }
        };
        Ok(Self { address, listener: Some(listener), acceptor, faults })
    }

    /// Waits for a change of what befalls requests.
    async fn changed(faults: &mut watch::Receiver<Option<Lasting>>) {
        if faults.changed().await.is_err() {
            future::pending().await
        }
    }
}

impl Listener for Door {
    type Io = Line;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Line, SocketAddr) {
        loop {
            if matches!(*self.faults.borrow_and_update(), Some(Lasting::Unreachable)) {
                self.listener = None;
                Self::changed(&mut self.faults).await;
                continue;
            }
            if self.listener.is_none() {
                self.listener = TcpListener::bind(self.address).await.ok();
            }
            let Some(listener) = &self.listener else {
                tokio::time::sleep(Duration::from_millis(10)).await;
                continue;
            };
            tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok((stream, peer)) => {
                        return (Line::new(&self.acceptor, stream), peer);
                    }
                    Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
                },
                () = Self::changed(&mut self.faults) => {}
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }
}

impl Connected<IncomingStream<'_, Door>> for Cut {
    fn connect_info(stream: IncomingStream<'_, Door>) -> Self {
        stream.io().cut()
    }
}
