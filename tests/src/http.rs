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
    ask(endpoint, "GET", path, &[], "").await
}

/// The status and body of any request, of HTTP/1.0, so that the body ends with the connection.
///
/// # Errors
/// When nobody answers in HTTP.
pub async fn ask(
    endpoint: &str,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> io::Result<(u16, String)> {
    let address = endpoint.strip_prefix("http://").ok_or_else(|| io::Error::other("not http"))?;
    let mut stream = TcpStream::connect(address).await?;
    let headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let request =
        format!("{method} {path} HTTP/1.0\r\nhost: {address}\r\ncontent-length: {}\r\n{headers}\r\n{body}", body.len());
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
