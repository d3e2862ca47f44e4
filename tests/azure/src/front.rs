//! The front door of a site: it takes whoever comes to the product, or says why that is not possible.
//!
//! As the real one, it takes requests one by one, so that a connection that was there before a stop is answered, too. It does
//! not pass what becomes another protocol.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    http::{HeaderValue, header},
    response::Response,
    serve::Listener,
};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
};
use tokio_rustls::TlsAcceptor;

use crate::{answer::response, line::Line, program::Wanted};

/// A front door.
#[derive(Clone)]
pub(crate) struct Front {
    pub(crate) address: SocketAddr,
    /// Where the product listens.
    pub(crate) product: SocketAddr,
    pub(crate) acceptor: TlsAcceptor,
    pub(crate) wanted: watch::Receiver<Arc<Wanted>>,
}

impl Front {
    /// Lets callers in until the site is gone.
    pub(crate) async fn serve(self) {
        let listener = match TcpListener::bind(self.address).await {
            Ok(listener) => listener,
            Err(error) => {
                tracing::error!(%error, address = %self.address, "a front door does not open");
                return;
            }
        };
        let mut wanted = self.wanted.clone();
        let entrance = Entrance { listener, address: self.address, acceptor: self.acceptor.clone() };
        let router = Router::new().fallback(pass).with_state(self);
        tokio::select! {
            served = async { axum::serve(entrance, router).await } => drop(served),
            // It fails when nobody can want anything of the site any more.
            gone = wanted.wait_for(|wanted| **wanted == Wanted::Gone) => drop(gone),
        }
    }
}

/// Passes a request on.
async fn pass(State(front): State<Front>, request: Request) -> Response {
    let wanted = Arc::clone(&front.wanted.borrow());
    match *wanted {
        Wanted::Stopped => return page(403, "Error 403 - This web app is stopped."),
        Wanted::Gone => return page(404, "404 Web Site not found."),
        Wanted::Run(_) => {}
    }
    let Ok(stream) = TcpStream::connect(front.product).await else {
        return page(503, "The service is unavailable.");
    };
    match ask(stream, request).await {
        Ok(answer) => answer,
        Err(error) => {
            tracing::debug!(%error, "a product did not answer");
            page(502, "The web app did not answer.")
        }
    }
}

async fn ask(stream: TcpStream, mut request: Request) -> hyper::Result<Response> {
    let (mut product, connection) = http1::handshake(TokioIo::new(stream)).await?;
    // It ends with the answer, or when the product does.
    tokio::spawn(connection);
    // That of the caller is for the caller's connection alone.
    request.headers_mut().remove(header::CONNECTION);
    request.headers_mut().insert("x-forwarded-proto", HeaderValue::from_static("https"));
    let mut answer = product.send_request(request).await?;
    answer.headers_mut().remove(header::CONNECTION);
    Ok(answer.map(Body::new))
}

fn page(status: u16, text: &str) -> Response {
    let page = format!("<!DOCTYPE html><html><head><title>{text}</title></head><body><h1>{text}</h1></body></html>");
    response(status, "text/html", page)
}

/// The port of a front door.
struct Entrance {
    listener: TcpListener,
    address: SocketAddr,
    acceptor: TlsAcceptor,
}

impl Listener for Entrance {
    type Io = Line;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Line, SocketAddr) {
        loop {
            match self.listener.accept().await {
                Ok((stream, peer)) => return (Line::new(&self.acceptor, stream), peer),
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }
}
