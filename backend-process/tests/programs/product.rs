//! A small product to host, which behaves as its environment tells it to.
//!
//! | variable | effect |
//! |---|---|
//! | `PRINT` | prints this first |
//! | `EXIT_CODE` | exits at once |
//! | `READY_AFTER_MS` | listens only then |
//! | `LISTEN` | `never`, or another port |
//! | `STATUS` | what the health path answers |
//! | `GRANDCHILD` | starts a process that sleeps for ever |
//! | `FIRST_THREAD_ENDS` | goes on in another thread than the one it began in |
//!
//! It answers `/environment`, `/starts` (one line per start on this data), `/exit`, `/status` (what the kernel says of it),
//! `/read?PATH`, `/write?PATH` and `/kill?PID` (whether it may), `/take?MIB` (memory, for as long as it lives), `/spin?MS`
//! (CPU time), `/fork?NUMBER` (processes that sleep; how many there are) and `/print?LINES`. Two of them on the same data leave
//! a file `doubled`.

use std::{
    env,
    fs::{self, File, OpenOptions},
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    process::{Command, exit},
    thread::sleep,
    time::Duration,
};

fn main() {
    let number = |name: &str| env::var(name).ok().and_then(|value| value.parse::<u64>().ok());
    if env::args().nth(1).as_deref() == Some("sleep") {
        loop {
            sleep(Duration::from_secs(60));
        }
    }
    // Kept open, and so locked, to the end.
    let _only = alone();
    let mut starts = OpenOptions::new().create(true).append(true).open("starts").expect("starts");
    writeln!(starts, "{}", std::process::id()).expect("starts");
    if let Ok(text) = env::var("PRINT") {
        println!("{text}");
    }
    if let Some(code) = number("EXIT_CODE") {
        exit(i32::try_from(code).expect("a status"));
    }
    if env::var_os("GRANDCHILD").is_some() {
        let program = env::current_exe().expect("own path");
        #[expect(clippy::zombie_processes, reason = "it sleeps for ever; whoever hosts this product has to end it")]
        let child = Command::new(program).arg("sleep").spawn().expect("a grandchild");
        fs::write("grandchild", child.id().to_string()).expect("grandchild");
    }
    sleep(Duration::from_millis(number("READY_AFTER_MS").unwrap_or(0)));
    let port = match env::var("LISTEN").as_deref() {
        Ok("never") => loop {
            sleep(Duration::from_secs(60));
        },
        Ok(port) => port.to_owned(),
        Err(_) => env::var("PORT").expect("PORT"),
    };
    let listener = TcpListener::bind(format!("127.0.0.1:{port}")).expect("the port");
    let serve = move || {
        for stream in listener.incoming().flatten() {
            answer(stream);
        }
    };
    if env::var_os("FIRST_THREAD_ENDS").is_none() {
        return serve();
    }
    std::thread::spawn(serve);
    end_this_thread();
}

/// Nothing but this thread: returning from `main` would end them all.
#[allow(unsafe_code)]
fn end_this_thread() {
    // SAFETY: nothing that this thread owns is used by another one, and it needs no cleaning up.
    unsafe { libc::syscall(libc::SYS_exit, 0) };
}

/// Does what a product might do to others or to itself, and tells how it went.
fn attempt(what: &str, argument: &str) -> String {
    let number = || argument.parse::<usize>().unwrap_or(0);
    let told = |result: std::io::Result<()>| result.map_or_else(|error| error.to_string(), |()| "done".into());
    match what {
        "/read" => told(fs::read(argument).map(drop)),
        "/write" => told(OpenOptions::new().append(true).open(argument).map(drop)),
        "/kill" => {
            let killed = Command::new("/bin/kill").args(["-s", "0", argument]).output();
            told(
                killed
                    .and_then(|killed| if killed.status.success() { Ok(()) } else { Err(std::io::Error::other("no")) }),
            )
        }
        "/take" => {
            let taken = vec![1_u8; number() << 20];
            std::hint::black_box(&taken);
            std::mem::forget(taken);
            "done".into()
        }
        "/spin" => {
            let begin = std::time::Instant::now();
            while begin.elapsed() < Duration::from_millis(number() as u64) {}
            "done".into()
        }
        "/fork" => {
            let program = env::current_exe().expect("own path");
            let started = (0..number()).map_while(|_| Command::new(&program).arg("sleep").spawn().ok()).count();
            started.to_string()
        }
        "/print" => {
            for line in 0..number() {
                println!("line {line} {}", "x".repeat(100));
            }
            "done".into()
        }
        _ => String::new(),
    }
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
    let status = env::var("STATUS").unwrap_or_else(|_| "200".into());
    let (status, body) = match path.as_str() {
        "/environment" => ("200".into(), env::vars().map(|(name, value)| format!("{name}={value}\n")).collect()),
        "/folder" => ("200".into(), env::current_dir().map(|path| path.display().to_string()).unwrap_or_default()),
        "/starts" => ("200".into(), fs::read_to_string("starts").unwrap_or_default()),
        "/exit" => exit(3),
        "/status" => ("200".into(), fs::read_to_string("/proc/self/status").unwrap_or_default()),
        _ => match path.split_once('?') {
            Some((what, argument)) => ("200".into(), attempt(what, argument)),
            None => (status, String::new()),
        },
    };
    let _ = write!(stream, "HTTP/1.1 {status} X\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len());
}
