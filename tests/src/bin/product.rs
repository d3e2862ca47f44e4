//! A small product to host, which behaves as its environment tells it to.
//!
//! | variable | effect |
//! |---|---|
//! | `PRINT` | prints the value of the variable of this name first |
//! | `EXIT_CODE` | exits at once |
//! | `READY_AFTER_MS` | listens only then |
//! | `LISTEN` | `never`, or another port |
//! | `STATUS` | what the health path answers |
//! | `IGNORE_TERM` | ignores SIGTERM |
//! | `CRASH_AFTER_MS` | exits so long after it was first found ready |
//!
//! It answers `/healthz`, `/version`, `/note`, `/write/TEXT`, `/variable/NAME` and `/take/MIB` (memory,
//! for as long as it lives). Each start leaves a line in the file
//! `starts` of its data; two of them on the same data leave a file `doubled`.

use std::{
    env,
    fs::{self, File, OpenOptions},
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    process::exit,
    thread,
    time::Duration,
};

fn main() {
    if env::var_os("IGNORE_TERM").is_some() && !ignores_term() {
        // Whoever ignores a signal hands that down through exec, and a shell can ask for it.
        let own = env::current_exe().expect("own path");
        let error = std::os::unix::process::CommandExt::exec(
            std::process::Command::new("sh").args(["-c", "trap '' TERM; exec \"$0\""]).arg(own),
        );
        panic!("{error}");
    }
    // Kept open, and so locked, to the end.
    let _only = alone();
    let mut starts = OpenOptions::new().create(true).append(true).open("starts").expect("starts");
    writeln!(starts, "{}", std::process::id()).expect("starts");
    if let Some(value) = env::var("PRINT").ok().and_then(|name| env::var(name).ok()) {
        println!("cannot go on with {value}");
    }
    if let Some(code) = number("EXIT_CODE") {
        exit(i32::try_from(code).expect("a status"));
    }
    thread::sleep(Duration::from_millis(number("READY_AFTER_MS").unwrap_or(0)));
    let port = match env::var("LISTEN").as_deref() {
        Ok("never") => loop {
            thread::sleep(Duration::from_secs(60));
        },
        Ok(port) => port.to_owned(),
        Err(_) => env::var("PORT").expect("PORT"),
    };
    let address = env::var("ADDRESS").expect("ADDRESS");
    let listener = TcpListener::bind(format!("{address}:{port}")).expect("the port");
    let mut crash_after = number("CRASH_AFTER_MS");
    for stream in listener.incoming().flatten() {
        answer(stream);
        if let Some(delay) = crash_after.take() {
            thread::spawn(move || {
                thread::sleep(Duration::from_millis(delay));
                exit(7);
            });
        }
    }
}

fn number(name: &str) -> Option<u64> {
    env::var(name).ok()?.parse().ok()
}

/// Bit 15 of the signals ignored, counted from 1.
fn ignores_term() -> bool {
    let status = fs::read_to_string("/proc/self/status").expect("own status");
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).expect("ignored signals");
    u64::from_str_radix(ignored.trim(), 16).expect("a number") >> 14 & 1 == 1
}

fn alone() -> File {
    let only = File::create("only").expect("only");
    if only.try_lock().is_err() {
        File::create("doubled").expect("doubled");
    }
    only
}

fn answer(mut stream: TcpStream) {
    let mut lines = BufReader::new(&stream).lines().map_while(Result::ok);
    let request = lines.next().unwrap_or_default();
    let path = request.split(' ').nth(1).unwrap_or_default().to_owned();
    let _headers = lines.take_while(|line| !line.is_empty()).count();
    let (status, body) = match path.split_at(path.rfind('/').map_or(0, |slash| slash + 1)) {
        ("/", "healthz") => (env::var("STATUS").unwrap_or_else(|_| "200".into()), String::new()),
        ("/", "version") => ("200".into(), env::var("VERSION").unwrap_or_default()),
        ("/", "note") => ("200".into(), fs::read_to_string("note").unwrap_or_default()),
        ("/variable/", name) => ("200".into(), env::var(name).unwrap_or_default()),
        ("/take/", mib) => {
            let taken = vec![1_u8; mib.parse::<usize>().unwrap_or(0) << 20];
            std::hint::black_box(&taken);
            std::mem::forget(taken);
            ("200".into(), "taken".into())
        }
        ("/write/", text) => {
            let mut note = File::create("note").expect("note");
            note.write_all(text.as_bytes()).and_then(|()| note.sync_all()).expect("note");
            ("200".into(), String::new())
        }
        _ => ("404".into(), String::new()),
    };
    let _ = write!(stream, "HTTP/1.1 {status} X\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len());
}
