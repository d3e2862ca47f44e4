//! A connection with TLS that can be closed without an answer.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::{Accept, TlsAcceptor, server::TlsStream};

/// Closes a connection without an answer.
#[derive(Debug, Clone, Default)]
pub(crate) struct Cut(Arc<AtomicBool>);

impl Cut {
    /// From now on nothing is written: whatever is answered closes the connection.
    pub(crate) fn cut(&self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// A connection that can be cut.
pub(crate) struct Line {
    stream: Stream,
    cut: Cut,
}

/// Whoever reads first goes through the handshake, so that slow callers keep nobody else waiting.
enum Stream {
    Shaking(Box<Accept<TcpStream>>),
    Open(Box<TlsStream<TcpStream>>),
}

impl Line {
    pub(crate) fn new(acceptor: &TlsAcceptor, stream: TcpStream) -> Self {
        Self { stream: Stream::Shaking(Box::new(acceptor.accept(stream))), cut: Cut::default() }
    }

    /// What cuts it.
    pub(crate) fn cut(&self) -> Cut {
        self.cut.clone()
    }

    fn opened(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<&mut TlsStream<TcpStream>>> {
        if let Stream::Shaking(accept) = &mut self.stream {
            let open = ready!(Pin::new(&mut **accept).poll(cx))?;
            self.stream = Stream::Open(Box::new(open));
        }
        match &mut self.stream {
            Stream::Open(open) => Poll::Ready(Ok(open)),
            Stream::Shaking(_) => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        }
    }
}

impl AsyncRead for Line {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let open = ready!(self.opened(cx))?;
        Pin::new(open).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Line {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.cut.0.load(Ordering::SeqCst) {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        let open = ready!(self.opened(cx))?;
        Pin::new(open).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let open = ready!(self.opened(cx))?;
        Pin::new(open).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Stream::Open(open) => Pin::new(open).poll_shutdown(cx),
            // Nothing was said yet.
            Stream::Shaking(_) => Poll::Ready(Ok(())),
        }
    }
}
