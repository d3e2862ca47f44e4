//! A PostgreSQL server for tests: that of `DATABASE_URL`, or a private one that ends with who started it.
//!
//! Tests that only want a database take [`url()`] and a schema of their own in it. Tests that kill and restart the server make
//! one for themselves:
//!
//! ```no_run
//! use test_peers::postgres::{Durability, Server};
//!
//! let server = Server::create(Durability::Durable)?;
//! server.ask("CREATE TABLE note (text text)")?;
//! server.kill()?;
//! server.start()?; // On the same port, with the same data.
//! assert_eq!(server.ask("SELECT text FROM note")?, [""; 0]);
//! # Ok::<_, String>(())
//! ```
//!
//! Anybody on this machine who may connect to 127.0.0.1 is the superuser of such a server: it is for tests and benchmarks alone.

mod connection;
mod home;
mod processes;
mod programs;
mod user;

use std::{
    env,
    ffi::OsString,
    fmt,
    path::Path,
    process::{Child, Command, ExitStatus},
    sync::{Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use test_reserved::ports::Ports;

pub use self::programs::{Programs, VERSION_MIN};

use self::{
    home::Home,
    processes::{signal, until},
};

/// As in the variable `REQUIRED_PEERS`.
pub const NAME: &str = "postgres";
/// Names the database that tests use, where somebody started a server for them.
pub const VARIABLE: &str = "DATABASE_URL";

const USER: &str = "postgres";
const DATABASE: &str = "provisioner";
/// The database that every server has from the beginning.
const FIRST_DATABASE: &str = "postgres";
const CONNECTIONS_MAX: usize = 200;

/// How long making the data may take, on a machine that is busy with others.
const INIT_MAX: Duration = Duration::from_secs(180);
/// How long a start may take, with the recovery from a crash.
const START_MAX: Duration = Duration::from_secs(120);
/// How long a server may be silent that is asked whether it is the right one. Another program's may be so for ever.
const GREETING_MAX: Duration = Duration::from_secs(5);
/// How long a server may be silent on anything else that it is asked.
const ANSWER_MAX: Duration = Duration::from_secs(60);
/// How long a clean end may take.
const STOP_MAX: Duration = Duration::from_secs(60);
/// How long an end may take that leaves everything to the next start.
const KILL_MAX: Duration = Duration::from_secs(30);

/// What a server promises about what it committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// Nothing is synced to the disk, which is fastest. A clean stop keeps everything; a kill loses what was committed in the last
    /// moments, and a power cut all of it.
    Fast,
    /// What was committed survives a kill and a power cut, as in production. For benchmarks and for tests of crashes.
    Durable,
}

impl Durability {
    fn settings(self) -> &'static str {
        match self {
            Self::Fast => "fsync = off\nsynchronous_commit = off\nfull_page_writes = off\n",
            Self::Durable => "fsync = on\nsynchronous_commit = on\nfull_page_writes = on\n",
        }
    }
}

/// A private server on 127.0.0.1, with the database `provisioner` and the superuser `postgres`, who needs no password.
///
/// It runs as another user where root makes it: PostgreSQL refuses root. It ends when this is dropped, and so it does, with all
/// that it wrote, when this process ends in whatever way.
pub struct Server {
    programs: Programs,
    port: u16,
    postmaster: Mutex<Option<Child>>,
    // After the processes, so that they find their folder until they have ended.
    home: Home,
    /// No other test takes its port, also while it is down.
    _ports: Ports,
}

impl fmt::Debug for Server {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { home, port, .. } = self;
        formatter.debug_struct("Server").field("folder", &home.folder()).field("port", port).finish_non_exhaustive()
    }
}

impl Server {
    /// Makes a server in a new temporary folder, and waits until it answers.
    ///
    /// # Errors
    /// Where PostgreSQL is missing, with what to install: the reason for which tests are ignored. See [`Programs::find`].
    /// Where it fails, with the end of its log.
    pub fn create(durability: Durability) -> Result<Self, String> {
        Self::create_in(&home::parent(durability)?, durability)
    }

    /// Does the same in a new folder within this one, which every user has to be able to enter where root makes it.
    ///
    /// # Errors
    /// As [`create`](Self::create).
    pub fn create_in(parent: &Path, durability: Durability) -> Result<Self, String> {
        let programs = Programs::find()?;
        let home = Home::make(parent)?;
        let mut initdb = home.command(&programs.initdb())?;
        initdb.args(["--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync"]);
        initdb.arg(format!("--username={USER}")).arg("--pgdata").arg(home.data());
        home::done(&mut initdb, INIT_MAX).map_err(|error| home.with_log(&error))?;
        home.configure(&settings(durability))?;
        let server = Self::in_home(programs, home)?;
        connection::ask(server.port, ANSWER_MAX, USER, FIRST_DATABASE, &format!("CREATE DATABASE {DATABASE}"))?;
        Ok(server)
    }

    /// Starts a server on the data in this folder.
    fn in_home(programs: Programs, home: Home) -> Result<Self, String> {
        let ports = Ports::take();
        let range = ports.range();
        let server = Self { programs, port: *range.start(), postmaster: Mutex::new(None), home, _ports: ports };
        server.started_on_one_of(range)
    }

    /// Makes a standby of this server, which takes no writes until it is [promoted](Self::promote), and waits until it has all that
    /// this one has. From then on this one answers no commit before the standby has it as well: what was answered outlives this
    /// server. So it answers none any more once the standby is gone, and has one standby at most.
    ///
    /// # Errors
    /// Where [`Programs::base_backup`] is missing, and as [`create`](Self::create).
    pub fn standby(&self) -> Result<Self, String> {
        let programs = self.programs.clone();
        let parent = self.home.folder().parent().ok_or("the server's folder is in none")?;
        let home = Home::make(parent)?;
        let mut copy = home.command(&programs.base_backup()?)?;
        copy.args(["--write-recovery-conf", "--checkpoint=fast", "--no-sync", "--no-password", "--host=127.0.0.1"]);
        copy.arg(format!("--port={}", self.port)).arg(format!("--username={USER}")).arg("--pgdata").arg(home.data());
        home::done(&mut copy, INIT_MAX).map_err(|error| home.with_log(&error))?;
        let standby = Self::in_home(programs, home)?;
        self.set("synchronous_standby_names", "'*'")?;
        let follows =
            "SELECT 1 FROM pg_stat_replication WHERE sync_state = 'sync' AND replay_lsn = pg_current_wal_lsn()";
        let is_there = until(START_MAX, || self.ask(follows).is_ok_and(|found| !found.is_empty()).then_some(()));
        if is_there.is_none() {
            self.set("synchronous_standby_names", "''")?;
            return Err(standby.home.with_log("the standby does not follow"));
        }
        Ok(standby)
    }

    /// Has a standby take writes, as the server that it follows is gone.
    ///
    /// # Errors
    /// What the server says; that it does not follow one.
    pub fn promote(&self) -> Result<(), String> {
        match self.ask("SELECT pg_promote()")?.first().map(String::as_str) {
            Some("t") => Ok(()),
            _ => Err(self.home.with_log("the standby is not promoted")),
        }
    }

    /// Has it show this certificate, with the key in PEM, to whoever asks for TLS.
    ///
    /// # Errors
    /// What the server says, and where it does not take it.
    pub fn use_certificate(&self, certificate: &str, key: &str) -> Result<(), String> {
        for (setting, name, content) in
            [("ssl_cert_file", "server.crt", certificate), ("ssl_key_file", "server.key", key)]
        {
            let file = self.home.keep_private(name, content)?;
            self.set(setting, &format!("'{}'", file.display()))?;
        }
        self.set("ssl", "on")?;
        let has_it = until(ANSWER_MAX, || self.ask("SHOW ssl").is_ok_and(|shown| shown == ["on"]).then_some(()));
        has_it.ok_or_else(|| self.home.with_log("the server does not take its certificate"))
    }

    /// Changes a setting for good. It is in force for connections that are made a moment later.
    fn set(&self, name: &str, value: &str) -> Result<(), String> {
        self.ask(&format!("ALTER SYSTEM SET {name} = {value}"))?;
        self.ask("SELECT pg_reload_conf()").map(drop)
    }

    /// Starts it on the first port of these that nothing else has: only by listening can a port be had.
    fn started_on_one_of(mut self, ports: impl Iterator<Item = u16>) -> Result<Self, String> {
        let mut last = "there is no port to try".to_owned();
        for port in ports {
            self.port = port;
            match self.try_start() {
                Ok(()) => return Ok(self),
                Err(NotStarted::PortTaken(error)) => last = error,
                Err(NotStarted::Other(error)) => return Err(error),
            }
        }
        Err(last)
    }

    /// Where clients connect to: the database, by its superuser.
    #[must_use]
    pub fn url(&self) -> String {
        format!("postgres://{USER}@127.0.0.1:{}/{DATABASE}", self.port)
    }

    /// The port of 127.0.0.1 that it listens on, or will again.
    #[must_use]
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// The folder with all that it writes; the log is `log` in it.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.home.folder()
    }

    /// The process that all others of the server come from. `None`: it is down.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.postmaster().as_mut().and_then(running).map(|child| child.id())
    }

    /// Sends a statement to the database, over a connection of its own, and answers with the first column of every row. A null is
    /// an empty text.
    ///
    /// # Errors
    /// What the server says, and where it does not answer.
    pub fn ask(&self, sql: &str) -> Result<Vec<String>, String> {
        connection::ask(self.port, ANSWER_MAX, USER, DATABASE, sql)
    }

    /// Kills every process of the server at once, as the end of a machine would. Of one that is down, nothing.
    ///
    /// # Errors
    /// When a process outlives that.
    pub fn kill(&self) -> Result<(), String> {
        let mut postmaster = self.postmaster();
        let Some(mut child) = postmaster.take() else { return Ok(()) };
        let pid = child.id();
        // While it is stopped it starts no other process that would be missed.
        signal("STOP", &[pid])?;
        until(KILL_MAX, || processes::rests(pid).then_some(()));
        let children = processes::children(pid);
        signal("KILL", &[&[pid][..], &children[..]].concat())?;
        let over = until(KILL_MAX, || {
            let has_ended = child.try_wait().is_ok_and(|ended| ended.is_some());
            (has_ended && !processes::any_lives(&children)).then_some(())
        });
        over.ok_or_else(|| format!("PostgreSQL (process {pid}) is not over {KILL_MAX:?} after it was killed"))
    }

    /// Ends it cleanly, whoever is connected, and waits for that. Of one that is down, nothing.
    ///
    /// # Errors
    /// When it takes too long. Then it runs on.
    pub fn stop(&self) -> Result<(), String> {
        let mut postmaster = self.postmaster();
        let Some(child) = postmaster.as_mut() else { return Ok(()) };
        end(child, "INT", STOP_MAX).map_err(|error| self.home.with_log(&error))?;
        *postmaster = None;
        Ok(())
    }

    /// Starts it again, on the same port with the same data, and waits until it answers. Of one that runs, nothing.
    ///
    /// # Errors
    /// Where it fails, with the end of its log.
    pub fn start(&self) -> Result<(), String> {
        self.try_start().map_err(|error| match error {
            NotStarted::PortTaken(error) | NotStarted::Other(error) => error,
        })
    }

    /// Ends it cleanly and starts it again.
    ///
    /// # Errors
    /// As [`stop`](Self::stop) and [`start`](Self::start).
    pub fn restart(&self) -> Result<(), String> {
        self.stop()?;
        self.start()
    }

    fn try_start(&self) -> Result<(), NotStarted> {
        let mut postmaster = self.postmaster();
        if postmaster.as_mut().and_then(running).is_some() {
            return Ok(());
        }
        let logged = self.home.log_length();
        let mut command = self.command().map_err(NotStarted::Other)?;
        let child =
            command.spawn().map_err(|error| NotStarted::Other(format!("PostgreSQL does not start: {error}")))?;
        let child = postmaster.insert(child);
        let failed = match self.answered(child) {
            Ok(()) => return Ok(()),
            Err(failed) => failed,
        };
        // Not half started, or a later start would take it for one that runs.
        let ended = end(child, "QUIT", KILL_MAX);
        *postmaster = None;
        let log = self.home.log_since(logged);
        let failed =
            self.home.with_log(&ended.err().map_or_else(|| failed.clone(), |left| format!("{failed}; {left}")));
        Err(if tells_of_a_taken_port(&log) { NotStarted::PortTaken(failed) } else { NotStarted::Other(failed) })
    }

    fn command(&self) -> Result<Command, String> {
        let mut command = self.home.command(&self.programs.postgres())?;
        command.arg("-D").arg(self.home.data()).args(["-p", &self.port.to_string()]);
        Ok(command)
    }

    /// Waits until it is this server that answers on its port, and not one that was there before.
    fn answered(&self, child: &mut Child) -> Result<(), String> {
        let data = self.home.data();
        let mut said = String::new();
        let answer = until(START_MAX, || {
            if let Some(status) = child.try_wait().ok().flatten() {
                return Some(Err(format!("PostgreSQL ended while it was started: {status}")));
            }
            match connection::ask(self.port, GREETING_MAX, USER, FIRST_DATABASE, "SHOW data_directory") {
                Ok(folders) if folders.first().is_some_and(|folder| Path::new(folder) == data) => return Some(Ok(())),
                Ok(_) => said = format!("another server answers on port {}", self.port),
                Err(error) => said = error,
            }
            None
        });
        answer.unwrap_or_else(|| Err(format!("PostgreSQL does not answer {START_MAX:?} after it was started ({said})")))
    }

    fn postmaster(&self) -> MutexGuard<'_, Option<Child>> {
        self.postmaster.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let ended = match self.postmaster().as_mut() {
            Some(child) => end(child, "QUIT", KILL_MAX).map(drop),
            None => Ok(()),
        };
        if ended.is_err()
            && let Err(error) = self.kill()
        {
            eprintln!("{error}");
        }
    }
}

/// Why a server did not start.
enum NotStarted {
    /// Something else listens there.
    PortTaken(String),
    Other(String),
}

fn tells_of_a_taken_port(log: &str) -> bool {
    ["could not bind", "could not create any TCP/IP sockets"].iter().any(|text| log.contains(text))
}

/// The process, if it has not ended, be it by itself.
fn running(child: &mut Child) -> Option<&mut Child> {
    matches!(child.try_wait(), Ok(None)).then_some(child)
}

/// Ends a server by this signal and waits.
fn end(child: &mut Child, name: &str, max: Duration) -> Result<ExitStatus, String> {
    let pid = child.id();
    // It may have ended by itself, and another process may have its number as soon as that is known.
    if let Ok(Some(status)) = child.try_wait() {
        return Ok(status);
    }
    signal(name, &[pid])?;
    let ended = until(max, || child.try_wait().ok().flatten());
    ended.ok_or_else(|| format!("PostgreSQL (process {pid}) is not over {max:?} after SIG{name}"))
}

fn settings(durability: Durability) -> String {
    format!(
        "listen_addresses = '127.0.0.1'\n\
         unix_socket_directories = ''\n\
         max_connections = {CONNECTIONS_MAX}\n\
         # In the folder of the data, so that it goes with it also when the server was killed.\n\
         dynamic_shared_memory_type = mmap\n\
         {}",
        durability.settings()
    )
}

/// Whether a run does not count without a server: `REQUIRED_PEERS` names `postgres`.
#[must_use]
pub fn is_required() -> bool {
    crate::is_required(NAME)
}

/// Finds the database that tests use: that of `DATABASE_URL` if it is set, else that of a [fast](Durability::Fast) server
/// that all of this process shares. That one is started by the first call, and ended, by its keeper, when the process ends.
///
/// Others use the database at the same time, so a test makes a schema of its own in it.
///
/// # Errors
/// The reason for which tests are ignored, where PostgreSQL is missing or does not start: the same for every call.
pub fn url() -> Result<&'static str, String> {
    static SHARED: OnceLock<Result<(String, Option<Server>), String>> = OnceLock::new();
    let shared = SHARED.get_or_init(|| match named(env::var_os(VARIABLE))? {
        Some(url) => Ok((url, None)),
        None => Server::create(Durability::Fast).map(|server| (server.url(), Some(server))),
    });
    shared.as_ref().map(|(url, _)| url.as_str()).map_err(Clone::clone)
}

/// The database that this variable names.
fn named(value: Option<OsString>) -> Result<Option<String>, String> {
    let value = value.filter(|value| !value.is_empty());
    value.map(OsString::into_string).transpose().map_err(|value| format!("{VARIABLE} is no text: {}", value.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variable_that_is_empty_names_nothing() {
        assert_eq!(named(None), Ok(None));
        assert_eq!(named(Some("".into())), Ok(None));
        assert_eq!(named(Some("postgres://else".into())), Ok(Some("postgres://else".to_owned())));
    }

    #[test]
    fn a_taken_port_is_told_from_the_log() {
        // Of PostgreSQL 15.
        let log = "LOG:  could not bind IPv4 address \"127.0.0.1\": Address already in use\n\
                   HINT:  Is another postmaster already running on port 20000? If not, wait a few seconds and retry.\n\
                   WARNING:  could not create listen socket for \"127.0.0.1\"\n\
                   FATAL:  could not create any TCP/IP sockets\n";
        assert!(tells_of_a_taken_port(log));
        assert!(!tells_of_a_taken_port("LOG:  database system is ready to accept connections\n"));
    }

    #[test]
    fn only_a_durable_server_syncs() {
        assert!(settings(Durability::Durable).contains("\nfsync = on\n"));
        assert!(settings(Durability::Fast).contains("\nfsync = off\n"));
    }
}
