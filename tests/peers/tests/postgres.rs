//! The PostgreSQL server for tests: it starts, loses nothing when it is killed, and leaves nothing behind.
//!
//! Where PostgreSQL is missing, the tests show as ignored with the reason; with `REQUIRED_PEERS` naming `postgres`, they fail
//! instead.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::{
    env, fs,
    io::{BufRead, BufReader, Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream},
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{self, Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use libtest_mimic::{Arguments, Completion, Trial};
use test_peers::postgres::{self, Durability, Programs, Server};

/// Makes this program one that has a server until it is killed, in the state that this names.
const CHILD: &str = "POSTGRES_TEST_CHILD";
/// How long anything may take, on a machine that is busy with others.
const PATIENCE: Duration = Duration::from_secs(60);
const DELAY: Duration = Duration::from_millis(10);

fn main() {
    if let Some(state) = env::var_os(CHILD) {
        return child(state.to_str().unwrap());
    }
    let trials = vec![
        trial("it_answers_on_loopback_alone_and_is_gone_when_dropped", answers),
        trial("what_a_durable_one_committed_survives_a_kill_and_a_restart", survives),
        trial("a_kill_leaves_no_process", kill_leaves_none),
        trial("two_at_once_have_ports_of_their_own", two_at_once),
        trial("a_start_on_a_port_that_was_taken_tells_of_it_and_may_be_repeated", taken_port),
        trial("a_process_that_is_killed_leaves_no_server", || left_by("running", Program::kill)),
        trial("a_process_that_is_killed_with_its_group_leaves_no_server", || left_by("running", Program::kill_group)),
        trial("a_process_that_is_killed_leaves_nothing_of_a_server_that_was_killed_before", || {
            left_by("killed", Program::kill_group);
        }),
        trial("a_process_that_ends_leaves_no_server_that_it_shared", || left_by("shared", Program::end)),
        trial("a_process_that_is_killed_while_it_makes_a_server_leaves_none", left_while_made),
        trial("a_named_database_is_used_and_no_server_is_started", named),
    ];
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}

/// A test for which PostgreSQL has to be here.
fn trial(name: &str, test: impl FnOnce() + Send + 'static) -> Trial {
    Trial::ignorable_test(name, move || match Programs::find() {
        Ok(_) => {
            test();
            Ok(Completion::Completed)
        }
        Err(reason) if postgres::is_required() => Err(reason.into()),
        Err(reason) => Ok(Completion::ignored_with(reason)),
    })
}

fn fast() -> Server {
    Server::create(Durability::Fast).unwrap()
}

fn answers() {
    let server = fast();
    assert_eq!(server.url(), format!("postgres://postgres@127.0.0.1:{}/provisioner", server.port()));
    assert_eq!(server.ask("SELECT current_database()").unwrap(), ["provisioner"]);
    assert_eq!(server.ask("SHOW max_connections").unwrap(), ["200"]);
    assert_eq!(server.ask("SHOW server_encoding").unwrap(), ["UTF8"]);
    assert_eq!(server.ask("SELECT datcollate FROM pg_database WHERE datname = 'provisioner'").unwrap(), ["C"]);
    assert_eq!(server.ask("SHOW listen_addresses").unwrap(), ["127.0.0.1"]);
    assert_eq!(server.ask("SHOW unix_socket_directories").unwrap(), [""]);
    // Whether it speaks TLS is asked before anything else, and answered with one letter.
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, server.port())).unwrap();
    stream.write_all(&[0, 0, 0, 8, 4, 210, 22, 47]).unwrap();
    let mut answer = [0];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(answer, *b"N");
    assert_eq!(synced(&server), ["off"; 3]);
    let error = server.ask("SELECT nothing").unwrap_err();
    assert!(error.contains("nothing") && error.contains("does not exist"), "{error}");
    let left = Left::of(&server);
    drop(server);
    left.is_nothing();
}

fn synced(server: &Server) -> [String; 3] {
    ["fsync", "synchronous_commit", "full_page_writes"]
        .map(|name| server.ask(&format!("SHOW {name}")).unwrap().remove(0))
}

fn survives() {
    let server = Server::create(Durability::Durable).unwrap();
    assert_eq!(synced(&server), ["on"; 3]);
    let (url, first) = (server.url(), server.pid().unwrap());
    server.ask("CREATE TABLE note (text text)").unwrap();
    server.ask("INSERT INTO note VALUES ('before the kill')").unwrap();
    // As a test has it that does not notice at once.
    let _open = TcpStream::connect((Ipv4Addr::LOCALHOST, server.port())).unwrap();
    server.kill().unwrap();
    server.kill().unwrap();
    assert_eq!(server.pid(), None);
    server.ask("SELECT text FROM note").unwrap_err();
    server.start().unwrap();
    server.start().unwrap();
    assert_ne!(server.pid().unwrap(), first);
    server.ask("INSERT INTO note VALUES ('before the restart')").unwrap();
    let second = server.pid();
    server.restart().unwrap();
    assert_ne!(server.pid(), second);
    server.stop().unwrap();
    server.stop().unwrap();
    assert_eq!(server.pid(), None);
    server.ask("SELECT text FROM note").unwrap_err();
    server.start().unwrap();
    assert_eq!(server.ask("SELECT text FROM note ORDER BY text").unwrap(), ["before the kill", "before the restart"]);
    assert_eq!(server.url(), url);
    let log = fs::read_to_string(server.folder().join("log")).unwrap();
    assert_eq!(log.matches("database system was not properly shut down").count(), 1, "{log}");
}

fn kill_leaves_none() {
    let server = fast();
    let stays = format!("127.0.0.1:{}", server.port());
    let sleeper = thread::scope(|scope| {
        let sleeper = scope.spawn(|| server.ask("SELECT pg_sleep(600)"));
        let asleep = "SELECT pid FROM pg_stat_activity WHERE wait_event = 'PgSleep'";
        let pid = until("a statement that takes long", || server.ask(asleep).unwrap().pop());
        let all = server.ask("SELECT pid FROM pg_stat_activity").unwrap();
        assert!(all.len() > 2 && all.contains(&pid), "{all:?}");
        server.kill().unwrap();
        let alive: Vec<_> = all.iter().filter(|pid| lives(pid.parse().unwrap())).collect();
        assert_eq!(alive, [""; 0]);
        sleeper.join().unwrap()
    });
    sleeper.unwrap_err();
    TcpStream::connect(stays).unwrap_err();
    // What was in its memory is not in the way of the next one.
    server.start().unwrap();
}

fn two_at_once() {
    let (one, other) = thread::scope(|scope| {
        let one = scope.spawn(fast);
        (fast(), one.join().unwrap())
    });
    assert_ne!(one.port(), other.port());
    one.ask("CREATE TABLE here (text text)").unwrap();
    other.ask("SELECT text FROM here").unwrap_err();
}

fn taken_port() {
    let server = fast();
    server.stop().unwrap();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, server.port())).unwrap();
    let error = server.start().unwrap_err();
    assert!(error.contains("could not bind") && server.pid().is_none(), "{error}");
    drop(listener);
    server.start().unwrap();
    assert_eq!(server.ask("SELECT 1").unwrap(), ["1"]);
}

fn left_by(state: &str, ended: fn(&mut Program)) {
    let mut program = Program::start(state, None);
    let mut line = || program.lines.next().unwrap().unwrap();
    let left = Left { pid: line().parse().unwrap(), folder: line().into(), segment: line() };
    assert!(left.folder.exists());
    ended(&mut program);
    program.process.wait().unwrap();
    left.is_nothing();
}

fn left_while_made() {
    for stage in ["data", "data/postgresql.conf", "data/postmaster.pid"] {
        let parent = tempfile::tempdir().unwrap();
        fs::set_permissions(parent.path(), PermissionsExt::from_mode(0o755)).unwrap();
        let mut program = Program::start("running", Some(parent.path()));
        let folder = until("a folder", || fs::read_dir(parent.path()).unwrap().next()).unwrap().path();
        until(stage, || folder.join(stage).exists().then_some(()));
        program.kill_group();
        program.process.wait().unwrap();
        until("nothing that is left", || (!folder.exists()).then_some(()));
        until("no process", || (mentioning(&folder) == 0).then_some(()));
    }
}

fn named() {
    let program = Command::new(env::current_exe().unwrap())
        .envs([(CHILD, "named"), (postgres::VARIABLE, "postgres://somewhere.else/database")])
        .stdin(Stdio::null())
        .output();
    assert_eq!(String::from_utf8(program.unwrap().stdout).unwrap(), "postgres://somewhere.else/database\n");
}

/// This program as another process, in a group of its own.
struct Program {
    process: Child,
    lines: std::io::Lines<BufReader<process::ChildStdout>>,
}

impl Program {
    fn start(state: &str, parent: Option<&Path>) -> Self {
        let mut command = Command::new(env::current_exe().unwrap());
        command.args(parent).env(CHILD, state).env_remove(postgres::VARIABLE).process_group(0);
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(process.stdout.take().unwrap()).lines();
        Self { process, lines }
    }

    /// As the kernel does where memory is short.
    fn kill(&mut self) {
        self.process.kill().unwrap();
    }

    /// As runners do where a test takes too long.
    fn kill_group(&mut self) {
        let kill = format!("kill -s KILL -- -{}", self.process.id());
        assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
    }

    /// Has it end by itself.
    fn end(&mut self) {
        drop(self.process.stdin.take());
    }
}

/// What that process does: it tells of its server, and waits until it is killed or its input ends.
fn child(state: &str) {
    let parent = env::args_os().nth(1);
    match state {
        "named" => println!("{}", postgres::url().unwrap()),
        "shared" => {
            let url = postgres::url().unwrap();
            assert_eq!(postgres::url().unwrap(), url);
            let port: u16 = url.rsplit_once(':').unwrap().1.split_once('/').unwrap().0.parse().unwrap();
            let folder = format!("provisioner-postgres-{}-", process::id());
            let folders =
                ["/tmp", "/var/tmp", env::temp_dir().to_str().unwrap()].map(|parent| fs::read_dir(parent).unwrap());
            let mut entries = folders.into_iter().flatten().flatten();
            let folder = entries.find(|entry| entry.file_name().to_str().unwrap().starts_with(&folder)).unwrap().path();
            TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
            let lock = fs::read_to_string(folder.join("data/postmaster.pid")).unwrap();
            println!("{}\n{}\n{}", lock.lines().next().unwrap(), folder.display(), segment(&folder));
            std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
        }
        _ => {
            let server = match parent {
                Some(parent) => Server::create_in(parent.as_ref(), Durability::Fast).unwrap(),
                None => fast(),
            };
            let left = Left::of(&server);
            if state == "killed" {
                server.kill().unwrap();
            }
            println!("{}\n{}\n{}", left.pid, left.folder.display(), left.segment);
            std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
        }
    }
}

/// What there may be of a server when it should be gone.
struct Left {
    pid: u32,
    folder: PathBuf,
    /// The number of its shared memory.
    segment: String,
}

impl Left {
    fn of(server: &Server) -> Self {
        let folder = server.folder().to_owned();
        Self { pid: server.pid().unwrap(), segment: segment(&folder), folder }
    }

    fn is_nothing(&self) {
        until("a postmaster that is over", || (!lives(self.pid)).then_some(()));
        until("a folder that is removed", || (!self.folder.exists()).then_some(()));
        until("no process that mentions it", || (mentioning(&self.folder) == 0).then_some(()));
        // Of Linux: key, number, and more.
        let segments = fs::read_to_string("/proc/sysvipc/shm").unwrap_or_default();
        let is_there = segments.lines().any(|line| line.split_whitespace().nth(1) == Some(&self.segment));
        assert!(!is_there, "{} in {segments}", self.segment);
    }
}

/// The number of the shared memory that the server of this folder keeps others away with.
fn segment(folder: &Path) -> String {
    let lock = fs::read_to_string(folder.join("data/postmaster.pid")).unwrap();
    lock.lines().nth(6).unwrap().split_whitespace().nth(1).unwrap().to_owned()
}

/// Whether a process is not over.
fn lives(pid: u32) -> bool {
    let state = Command::new("ps").args(["-o", "state=", "-p", &pid.to_string()]).output().unwrap();
    !matches!(state.stdout.first(), None | Some(b'Z'))
}

/// How many processes have this folder in their command line.
fn mentioning(folder: &Path) -> usize {
    let all = Command::new("ps").args(["-A", "-o", "args="]).output().unwrap();
    let all = String::from_utf8_lossy(&all.stdout).into_owned();
    all.lines().filter(|line| line.contains(folder.to_str().unwrap())).count()
}

fn until<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < deadline, "there is not: {what}");
        thread::sleep(DELAY);
    }
}
