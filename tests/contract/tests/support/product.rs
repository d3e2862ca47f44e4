//! A small product that behaves as its environment tells it to.

use std::{
    env, fs,
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    process::exit,
    thread,
    time::Duration,
};

/// Set where this program is the product.
pub(crate) const MARK: &str = "CONTRACT_PRODUCT";

/// Whether this process was started as the product.
pub(crate) fn is_asked_for() -> bool {
    env::var_os(MARK).is_some()
}

/// Serves until it is killed. It works in its data folder.
pub(crate) fn run() -> ! {
    if env::var_os("EXIT_AT_ONCE").is_some() {
        exit(3);
    }
    let delay = env::var("READY_AFTER_MS").ok().and_then(|delay| delay.parse().ok());
    thread::sleep(Duration::from_millis(delay.unwrap_or(0)));
    let address = format!("{}:{}", variable("ADDRESS"), variable("PORT"));
    let listener = TcpListener::bind(&address).unwrap_or_else(|error| panic!("{address}: {error}"));
    for stream in listener.incoming().flatten() {
        answer(stream);
    }
    exit(1)
}

fn variable(name: &str) -> String {
    env::var(name).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn answer(mut stream: TcpStream) {
    let mut lines = BufReader::new(&stream).lines().map_while(Result::ok);
    let request = lines.next().unwrap_or_default();
    let path = request.split(' ').nth(1).unwrap_or_default().to_owned();
    let _headers = lines.take_while(|line| !line.is_empty()).count();
    let (status, body) = match path.strip_prefix("/write/") {
        Some(note) => (if fs::write("note", note).is_ok() { 200 } else { 500 }, String::new()),
        None if path == "/note" => match fs::read_to_string("note") {
            Ok(note) => (200, note),
            Err(_) => (404, String::new()),
        },
        None => (if path == "/healthz" { 200 } else { 404 }, String::new()),
    };
    let _ = write!(stream, "HTTP/1.1 {status} X\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len());
}
