//! As much of PostgreSQL's protocol as it takes to ask something:
//! <https://www.postgresql.org/docs/current/protocol-flow.html>.

use std::{
    io::{self, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    time::Duration,
};

const CONNECT_MAX: Duration = Duration::from_secs(5);
/// No answer to what tests ask is as long.
const MESSAGE_MAX: usize = 1 << 24;
/// Version 3.0.
const PROTOCOL: u32 = 3 << 16;

/// Connects to a server on 127.0.0.1, sends a statement, and answers with the first column of every row. `silence_max` is the time
/// between two parts of what the server says.
pub(super) fn ask(
    port: u16,
    silence_max: Duration,
    user: &str,
    database: &str,
    sql: &str,
) -> Result<Vec<String>, String> {
    let mut connection =
        Connection::open(port, silence_max).map_err(|error| format!("port {port} does not answer: {error}"))?;
    let settings = ["user", user, "database", database, "client_encoding", "UTF8"];
    let settings: Vec<u8> = settings.iter().flat_map(|text| text.bytes().chain([0])).chain([0]).collect();
    connection.send(None, &[&PROTOCOL.to_be_bytes()[..], &settings].concat())?;
    connection.answer()?;
    connection.send(Some(b'Q'), &[sql.as_bytes(), &[0]].concat())?;
    let rows = connection.answer()?;
    // It notices the end by itself, and would note that as one.
    let _ = connection.send(Some(b'X'), &[]);
    Ok(rows)
}

struct Connection(TcpStream);

impl Connection {
    fn open(port: u16, silence_max: Duration) -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(&SocketAddr::from((Ipv4Addr::LOCALHOST, port)), CONNECT_MAX)?;
        stream.set_read_timeout(Some(silence_max))?;
        stream.set_write_timeout(Some(silence_max))?;
        Ok(Self(stream))
    }

    /// Sends a message, whose kind only the first one lacks.
    fn send(&mut self, kind: Option<u8>, body: &[u8]) -> Result<(), String> {
        let length = u32::try_from(body.len() + 4).map_err(|error| error.to_string())?;
        let kind = kind.as_slice();
        self.0.write_all(&[kind, &length.to_be_bytes(), body].concat()).map_err(|error| format!("the server: {error}"))
    }

    /// Reads up to where the server is ready for the next statement.
    fn answer(&mut self) -> Result<Vec<String>, String> {
        let mut rows = Vec::new();
        let mut refusal = None;
        loop {
            let (kind, body) = self.message().map_err(|error| {
                // It ends the connection after some refusals.
                refusal.take().unwrap_or_else(|| format!("the server does not answer: {error}"))
            })?;
            match kind {
                b'D' => rows.push(first_column(&body).ok_or("the server sends a row that cannot be read")?),
                b'E' => refusal = Some(message_of(&body)),
                b'R' if body != [0; 4] => return Err("the server asks for a password".to_owned()),
                b'Z' => return refusal.map_or(Ok(rows), Err),
                _ => {}
            }
        }
    }

    fn message(&mut self) -> io::Result<(u8, Vec<u8>)> {
        let mut head = [0; 5];
        self.0.read_exact(&mut head)?;
        let [kind, length @ ..] = head;
        let length = usize::try_from(u32::from_be_bytes(length)).ok().and_then(|length| length.checked_sub(4));
        let length = length.filter(|length| *length <= MESSAGE_MAX).ok_or(io::ErrorKind::InvalidData)?;
        let mut body = vec![0; length];
        self.0.read_exact(&mut body)?;
        Ok((kind, body))
    }
}

/// Of a row: how many columns, and each with its length, negative for a null.
fn first_column(row: &[u8]) -> Option<String> {
    let (columns, rest) = row.split_first_chunk()?;
    if u16::from_be_bytes(*columns) == 0 {
        return Some(String::new());
    }
    let (length, rest) = rest.split_first_chunk()?;
    let length = usize::try_from(i32::from_be_bytes(*length)).unwrap_or(0);
    Some(String::from_utf8_lossy(rest.get(..length)?).into_owned())
}

/// Of a refusal, whose fields each begin with a letter: severity and message.
fn message_of(fields: &[u8]) -> String {
    let field = |letter: u8| {
        let fields = fields.split(|byte| *byte == 0);
        let field = fields.filter_map(|field| field.strip_prefix(&[letter])).next();
        String::from_utf8_lossy(field.unwrap_or_default()).into_owned()
    };
    format!("{}: {}", field(b'S'), field(b'M'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_row_the_first_column_is_read() {
        assert_eq!(first_column(b"\0\x02\0\0\0\x01a\0\0\0\x02bc").as_deref(), Some("a"));
        assert_eq!(first_column(b"\0\x01\xff\xff\xff\xff").as_deref(), Some(""));
        assert_eq!(first_column(b"\0\0").as_deref(), Some(""));
        assert_eq!(first_column(b"\0\x01\0\0\0\x09a"), None);
    }

    #[test]
    fn a_refusal_is_told_with_its_message() {
        let text = message_of(b"SFATAL\0VFATAL\0C57P03\0Mthe database system is starting up\0\0");
        assert_eq!(text, "FATAL: the database system is starting up");
    }
}
