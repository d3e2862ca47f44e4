//! Asks a product whether it is ready.

use std::{fmt, net::SocketAddr, time::Duration};

use hyper::{Request, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// What was seen at the health path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Seen {
    /// Nobody has looked yet.
    Nothing,
    /// A status of success, or a redirect: something answers and does not complain.
    Ready,
    /// Nobody listens.
    Refused(SocketAddr),
    /// Another status.
    Status(u16, String),
    /// No answer in time.
    Silence(SocketAddr),
    /// Something that is not HTTP.
    Broken(SocketAddr),
    /// An answer, but of somebody else.
    Stranger(SocketAddr),
    /// An answer, and it could not be found out whose.
    Unclear(String),
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nothing => f.write_str("nobody has looked yet"),
            Self::Ready => f.write_str("ready"),
            Self::Refused(address) => write!(f, "connection refused on port {}", address.port()),
            Self::Status(status, path) => write!(f, "status {status} on {path}"),
            Self::Silence(address) => write!(f, "no answer on port {}", address.port()),
            Self::Broken(address) => write!(f, "no HTTP answer on port {}", address.port()),
            Self::Stranger(address) => {
                write!(f, "somebody else listens on port {}, which is this instance's", address.port())
            }
            Self::Unclear(problem) => write!(f, "whose answer it is was not found out: {problem}"),
        }
    }
}

/// Asks once. Follows no redirect, uses no proxy and keeps no connection.
pub(crate) async fn probe(address: SocketAddr, path: &str, limit: Duration) -> Seen {
    match tokio::time::timeout(limit, ask(address, path)).await {
        Ok(Ok(status)) if (200..400).contains(&status) => Seen::Ready,
        Ok(Ok(status)) => Seen::Status(status, path.to_owned()),
        Ok(Err(Failure::Connect)) => Seen::Refused(address),
        Ok(Err(Failure::Http)) => Seen::Broken(address),
        Err(_) => Seen::Silence(address),
    }
}

enum Failure {
    Connect,
    Http,
}

async fn ask(address: SocketAddr, path: &str) -> Result<u16, Failure> {
    let stream = TcpStream::connect(address).await.map_err(|_| Failure::Connect)?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|_| Failure::Http)?;
    let request = Request::get(path)
        .header(header::HOST, address.to_string())
        .header(header::CONNECTION, "close")
        .header(header::USER_AGENT, "provisioner-health")
        .body(String::new())
        .map_err(|_| Failure::Http)?;
    let answer = async {
        let response = sender.send_request(request).await.map_err(|_| Failure::Http)?;
        Ok(response.status().as_u16())
    };
    // The connection is driven here and dies with this future: a probe leaves nothing behind.
    tokio::pin!(answer, connection);
    tokio::select! {
        biased;
        answer = &mut answer => answer,
        _ = &mut connection => answer.await,
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    use super::*;

    const LIMIT: Duration = Duration::from_millis(500);

    async fn answering(answer: &'static str) -> Seen {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let _ = stream.read(&mut [0; 1024]).await;
            let _ = stream.write_all(answer.as_bytes()).await;
            if answer.is_empty() {
                std::future::pending::<()>().await;
            }
        });
        match probe(address, "/healthz", LIMIT).await {
            Seen::Silence(_) => Seen::Silence(([0, 0, 0, 0], 0).into()),
            Seen::Broken(_) => Seen::Broken(([0, 0, 0, 0], 0).into()),
            seen => seen,
        }
    }

    #[tokio::test]
    async fn every_answer_is_told_apart() {
        let nobody: SocketAddr = ([0, 0, 0, 0], 0).into();
        for (answer, seen) in [
            ("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", Seen::Ready),
            ("HTTP/1.0 204 No Content\r\n\r\n", Seen::Ready),
            ("HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/\r\n\r\n", Seen::Ready),
            ("HTTP/1.1 400 Bad Request\r\n\r\n", Seen::Status(400, "/healthz".into())),
            ("HTTP/1.1 503 Service Unavailable\r\n\r\n", Seen::Status(503, "/healthz".into())),
            ("SSH-2.0-x\r\n", Seen::Broken(nobody)),
            ("", Seen::Silence(nobody)),
        ] {
            assert_eq!(answering(answer).await, seen, "{answer:?}");
        }
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let seen = probe(address, "/", LIMIT).await;
        assert_eq!(seen.to_string(), format!("connection refused on port {}", address.port()));
    }
}
