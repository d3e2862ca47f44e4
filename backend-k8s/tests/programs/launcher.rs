//! A small product that behaves as its environment tells it to, and tells what it was started with.
#![allow(missing_docs)]

use std::{
    env, fs,
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    path::PathBuf,
    process::exit,
    thread,
    time::Duration,
};

fn main() {
    if env::var_os("EXIT_AT_ONCE").is_some() {
        eprintln!("the product ends at once, as it was told; its key is {}", env::var("KEY").unwrap_or_default());
        exit(3);
    }
    let delay = env::var("READY_AFTER_MS").ok().and_then(|delay| delay.parse().ok());
    thread::sleep(Duration::from_millis(delay.unwrap_or(0)));
    let listener = TcpListener::bind(format!("0.0.0.0:{}", variable("PORT"))).expect("the port");
    for stream in listener.incoming().flatten() {
        thread::spawn(|| answer(stream));
    }
}

fn variable(name: &str) -> String {
    env::var(name).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn note() -> PathBuf {
    PathBuf::from(variable("DATA_PATH")).join("note")
}

/// Every variable, each ended by a zero byte: values may hold anything else.
fn environment() -> Vec<u8> {
    use std::os::unix::ffi::OsStrExt;
    let mut all = Vec::new();
    for (name, value) in env::vars_os() {
        all.extend_from_slice(name.as_bytes());
        all.push(b'=');
        all.extend_from_slice(value.as_bytes());
        all.push(0);
    }
    all
}

fn answer(mut stream: TcpStream) {
    let mut lines = BufReader::new(&stream).lines().map_while(Result::ok);
    let request = lines.next().unwrap_or_default();
    let path = request.split(' ').nth(1).unwrap_or_default().to_owned();
    let _headers = lines.take_while(|line| !line.is_empty()).count();
    let (status, body) = match path.strip_prefix("/write/") {
        Some(text) => (if fs::write(note(), text).is_ok() { 200 } else { 500 }, Vec::new()),
        None => match path.as_str() {
            "/note" => fs::read(note()).map_or((404, Vec::new()), |note| (200, note)),
            "/environment" => (200, environment()),
            "/healthz" => (200, Vec::new()),
            "/exit" => exit(4),
            _ => (404, Vec::new()),
        },
    };
    let head = format!("HTTP/1.1 {status} X\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
    let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&body));
}
