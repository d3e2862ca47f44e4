//! Asks products something, without a client library in between.

use std::io;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// The status and body of `GET path`.
///
/// # Errors
/// When nobody answers in HTTP.
pub async fn get(endpoint: &str, path: &str) -> io::Result<(u16, String)> {
    let address = endpoint.strip_prefix("http://").ok_or_else(|| io::Error::other("not http"))?;
    let mut stream = TcpStream::connect(address).await?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or(io::ErrorKind::UnexpectedEof)?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    Ok((status.ok_or(io::ErrorKind::InvalidData)?, body.to_owned()))
}

/// The body of `GET path`.
///
/// # Panics
/// When it is not answered with 200.
pub async fn text(endpoint: &str, path: &str) -> String {
    let (status, body) = get(endpoint, path).await.unwrap_or_else(|error| panic!("{endpoint}{path}: {error}"));
    assert_eq!(status, 200, "{endpoint}{path}: {body}");
    body
}
