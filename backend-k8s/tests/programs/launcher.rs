//! Process 1 of the pods of the contract: it behaves as its environment tells it to, starts the product, ends with it, and
//! tells at a port of its own what no product would.
#![allow(missing_docs)]

use std::{
    env, fs,
    io::{self, BufRead, BufReader, Write},
    net::{Ipv4Addr, TcpListener, TcpStream},
    os::unix::process::ExitStatusExt,
    process::{Child, Command, Stdio, exit},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Duration,
};

/// Where the image has the product.
const PRODUCT: &str = "/product";
/// Where `/environment` and `/exit` are asked for. The product has `PORT`.
const PORT: u16 = 9099;
/// What the product demands, and a spec need not say.
const DEFAULTS: [(&str, &str); 2] = [("TENANT", "contract"), ("PRODUCT_VERSION", "1")];
/// The status of what was told to end at once, of what was killed as `/exit` asks, and where there is no product.
const STATUS_AT_ONCE: i32 = 3;
const STATUS_KILLED: i32 = 4;
const STATUS_NOT_STARTED: i32 = 5;

fn main() {
    if env::var_os("EXIT_AT_ONCE").is_some() {
        eprintln!("the product ends at once, as it was told; its key is {}", env::var("KEY").unwrap_or_default());
        exit(STATUS_AT_ONCE);
    }
    let delay = env::var("READY_AFTER_MS").ok().and_then(|delay| delay.parse().ok());
    thread::sleep(Duration::from_millis(delay.unwrap_or(0)));
    // Before the product, so that whoever sees that it is ready is answered here too.
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT)).expect("the port");
    let mut product = start().unwrap_or_else(|error| {
        eprintln!("{PRODUCT} does not start: {error}");
        exit(STATUS_NOT_STARTED);
    });
    let mut said = product.stdout.take().expect("it was asked for");
    let product = Arc::new(Mutex::new(product));
    let asked = Arc::clone(&product);
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // Whoever asks and goes away gets no answer, and need not have one.
            let _ = answer(&stream, &asked);
        }
    });
    // Its output ends when it does. Waiting for that instead keeps the lock free for who wants to kill it.
    let _ = io::copy(&mut said, &mut io::stdout());
    let status = product.lock().unwrap_or_else(PoisonError::into_inner).wait().expect("it was started here");
    // As a shell tells a signal.
    exit(status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0)));
}

fn start() -> io::Result<Child> {
    let mut command = Command::new(PRODUCT);
    let missing = DEFAULTS.into_iter().filter(|(name, _)| env::var_os(name).is_none());
    command.envs(missing).env("ADDRESS", Ipv4Addr::UNSPECIFIED.to_string());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()
}

fn answer(mut stream: &TcpStream, product: &Mutex<Child>) -> io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
    let request = lines.next().unwrap_or_default();
    let _headers = lines.take_while(|line| !line.is_empty()).count();
    let mut say = |status: u16, body: &[u8]| {
        let head = format!("HTTP/1.1 {status} X\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
        stream.write_all(head.as_bytes())?;
        stream.write_all(body)
    };
    match request.split(' ').nth(1).unwrap_or_default() {
        "/environment" => {
            let id = product.lock().unwrap_or_else(PoisonError::into_inner).id();
            // Every variable that it was started with, each ended by a zero byte: values may hold anything else.
            match fs::read(format!("/proc/{id}/environ")) {
                Ok(environment) => say(200, &environment),
                Err(error) => say(500, error.to_string().as_bytes()),
            }
        }
        "/exit" => {
            let mut product = product.lock().unwrap_or_else(PoisonError::into_inner);
            product.kill()?;
            product.wait()?;
            // It is gone when that is told; the container follows. The lock is held, so nobody else ends it first.
            let _ = say(200, b"");
            exit(STATUS_KILLED);
        }
        _ => say(404, b""),
    }
}
