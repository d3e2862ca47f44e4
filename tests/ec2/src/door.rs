//! Where the proxy is reached: connections can be closed without an answer, and the port can be shut.

use std::{
    future, io,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    extract::connect_info::Connected,
    serve::{IncomingStream, Listener},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::watch,
};

use crate::faults::Lasting;

/// A port that is shut while nothing is reachable.
#[derive(Debug)]
pub(crate) struct Door {
    address: SocketAddr,
    listener: Option<TcpListener>,
    faults: watch::Receiver<Option<Lasting>>,
}

impl Door {
    pub(crate) async fn open(address: SocketAddr, faults: watch::Receiver<Option<Lasting>>) -> io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        Ok(Self { address, listener: Some(listener), faults })
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
                    Ok((stream, peer)) => return (Line { stream, cut: Cut::default() }, peer),
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

/// Closes a connection without an answer.
#[derive(Debug, Clone, Default)]
pub(crate) struct Cut(Arc<AtomicBool>);

impl Cut {
    /// From now on nothing is written: whatever is answered closes the connection.
    pub(crate) fn cut(&self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

impl Connected<IncomingStream<'_, Door>> for Cut {
    fn connect_info(stream: IncomingStream<'_, Door>) -> Self {
        stream.io().cut.clone()
    }
}

/// A connection that can be cut.
#[derive(Debug)]
pub(crate) struct Line {
    stream: TcpStream,
    cut: Cut,
}

impl AsyncRead for Line {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Line {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.cut.0.load(Ordering::SeqCst) {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
