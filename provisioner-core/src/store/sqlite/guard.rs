//! The file: who may open it, what it must be, and how it is made.
//!
//! Everything is checked before the first write, so that a file that is refused stays as it was.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Read, Write},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use rusqlite::{Connection, OpenFlags, config::DbConfig};

use super::{
    super::StoreError,
    log, read,
    schema::{self, APPLICATION_ID, SCHEMA_VERSION},
};
use crate::types::ControlPlaneId;

const MAGIC: &[u8; 16] = b"SQLite format 3\0";
const HEADER_BYTES: usize = 100;
/// More statements than the store has.
const STATEMENTS_CACHED: usize = 128;
/// How long a lock that is held is waited for: a control plane that was killed this moment may not have ended yet, and a
/// program that it was about to start holds a copy of the lock until it begins.
const LOCK_WAIT: Duration = Duration::from_secs(1);
const LOCK_PAUSE: Duration = Duration::from_millis(10);
/// How long an operator's shell on the same file may hold things up.
pub(super) const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// A store's file, locked for this process for as long as the value lives.
#[derive(Debug)]
pub(super) struct Guard {
    path: PathBuf,
    lock: File,
}

impl Guard {
    /// Takes the file for this process.
    pub(super) fn lock(path: &Path) -> Result<Self, StoreError> {
        let path = resolve(path)?;
        let lock_path = beside(&path, ".lock");
        let failed = |error| failed(format!("the lock file {} cannot be opened", lock_path.display()), error);
        let lock = private().truncate(false).open(&lock_path).map_err(failed)?;
        let deadline = Instant::now() + LOCK_WAIT;
        loop {
            match lock.try_lock() {
                Ok(()) => return Ok(Self { path, lock }),
                Err(TryLockError::WouldBlock) if Instant::now() < deadline => thread::sleep(LOCK_PAUSE),
                Err(TryLockError::WouldBlock) => {
                    return Err(StoreError::Refused(format!(
                        "{} is in use: another control plane process holds {}",
                        path.display(),
                        lock_path.display()
                    )));
                }
                Err(TryLockError::Error(error)) => return Err(failed(error)),
            }
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Makes the file if there is none, refuses it if it is not what it must be, and opens it for writing.
    pub(super) fn open(&self, control_plane: &ControlPlaneId) -> Result<Connection, StoreError> {
        if self.is_new()? {
            self.make(control_plane)?;
        } else {
            self.check_header()?;
            self.check_log()?;
            self.check_content(control_plane)?;
        }
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let mut connection = Connection::open_with_flags(&self.path, flags)?;
        prepare_writer(&connection)?;
        schema::migrate(&mut connection)?;
        Ok(connection)
    }

    /// Opens the file for reading.
    pub(super) fn open_reader(&self) -> Result<Connection, StoreError> {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(&self.path, flags)?;
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
        connection.busy_timeout(BUSY_TIMEOUT)?;
        connection.set_prepared_statement_cache_capacity(STATEMENTS_CACHED);
        connection.pragma_update(None, "temp_store", "memory")?;
        connection.pragma_update(None, "cache_size", -2_000)?;
        Ok(connection)
    }

    /// Whether the disk takes a few pages more.
    pub(super) fn has_room(&self) -> bool {
        static PROBE: [u8; 64 * 1024] = [0; 64 * 1024];
        let written = (&self.lock).write_all(&PROBE).and_then(|()| self.lock.sync_data());
        let emptied = self.lock.set_len(0).and_then(|()| io::Seek::rewind(&mut &self.lock));
        let is_full = |error: &io::Error| {
            use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
            matches!(error.kind(), StorageFull | QuotaExceeded | FileTooLarge)
        };
        !written.and(emptied).is_err_and(|error| is_full(&error))
    }

    /// Cuts the write-ahead log after its last commit. What a commit that failed left behind it could be taken for a
    /// commit by the next start after a crash, though its caller was told that nothing was written.
    pub(super) fn cut_log(&self, connection: &Connection) -> Result<(), StoreError> {
        const LOG_HEADER_BYTES: u64 = 32;
        const FRAME_HEADER_BYTES: u64 = 24;
        let page: u64 = connection.query_row("PRAGMA page_size", [], |row| row.get(0))?;
        let frames: i64 = connection.query_row("PRAGMA wal_checkpoint(NOOP)", [], |row| row.get(1))?;
        let Ok(frames) = u64::try_from(frames) else { return Ok(()) };
        let end = LOG_HEADER_BYTES + frames * (FRAME_HEADER_BYTES + page);
        let cut = |path: &Path| {
            let log = OpenOptions::new().write(true).open(path)?;
            if log.metadata()?.len() > end {
                log.set_len(end)?;
            }
            log.sync_all()
        };
        let log_path = beside(&self.path, "-wal");
        cut(&log_path).map_err(|error| failed(format!("{} cannot be cut", log_path.display()), error))
    }

    /// Whether there is nothing to keep here. An empty file counts, as temporary-file helpers make them.
    fn is_new(&self) -> Result<bool, StoreError> {
        let length = match fs::metadata(&self.path) {
            Ok(metadata) if metadata.is_file() => metadata.len(),
            Ok(_) => return Err(StoreError::Refused(format!("{} is not a file", self.path.display()))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
            Err(error) => return Err(failed(format!("{} cannot be looked at", self.path.display()), error)),
        };
        let log = beside(&self.path, "-wal");
        if length == 0 && fs::metadata(&log).is_ok_and(|log| log.len() > 0) {
            return Err(StoreError::Refused(format!(
                "{} is missing or empty, but its write-ahead log {} is there: expected both or none",
                self.path.display(),
                log.display()
            )));
        }
        Ok(length == 0)
    }

    /// Makes the file under another name and renames it, so that it is whole from its first moment.
    fn make(&self, control_plane: &ControlPlaneId) -> Result<(), StoreError> {
        let unfinished = beside(&self.path, ".new");
        let failed = |error| failed(format!("{} cannot be made", self.path.display()), error);
        for suffix in ["", "-wal", "-shm", "-journal"] {
            match fs::remove_file(beside(&unfinished, suffix)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
                _ => {}
            }
        }
        let file = private().create_new(true).open(&unfinished).map_err(failed)?;
        let mut connection = Connection::open(&unfinished)?;
        prepare_writer(&connection)?;
        connection.pragma_update(None, "application_id", APPLICATION_ID)?;
        schema::migrate(&mut connection)?;
        connection.execute(
            "INSERT INTO meta (key, value) VALUES ('control_plane', ?1), ('frozen', 0)",
            [control_plane.as_str()],
        )?;
        connection.close().map_err(|(_, error)| error)?;
        file.sync_all().map_err(failed)?;
        fs::rename(&unfinished, &self.path).map_err(failed)?;
        sync_folder(&self.path).map_err(failed)
    }

    /// Looks at the file before SQLite does: a foreign file must not even be opened, as opening may recover it.
    fn check_header(&self) -> Result<(), StoreError> {
        let mut header = Vec::with_capacity(HEADER_BYTES);
        let mut read = || File::open(&self.path)?.take(HEADER_BYTES as u64).read_to_end(&mut header);
        read().map_err(|error| failed(format!("{} cannot be read", self.path.display()), error))?;
        let path = self.path.display();
        if header.len() < HEADER_BYTES || !header.starts_with(MAGIC) {
            let shown = header[..header.len().min(MAGIC.len())].escape_ascii();
            return Err(StoreError::Refused(format!(
                "{path} is not a SQLite file, or its beginning is damaged: it begins with \"{shown}\", expected \
                 \"SQLite format 3\\x00\""
            )));
        }
        let found = i32::from_be_bytes(header[68..72].try_into().expect("four bytes"));
        if found != APPLICATION_ID {
            return Err(StoreError::Refused(format!(
                "{path} belongs to another application: found application id {found:#010x}, expected \
                 {APPLICATION_ID:#010x}"
            )));
        }
        Ok(())
    }

    /// Looks at the log before SQLite does: what it takes of a damaged one, it keeps, and the rest is gone.
    fn check_log(&self) -> Result<(), StoreError> {
        let path = beside(&self.path, "-wal");
        let shown = path.display();
        match log::find_damage(&path) {
            Ok(None) => Ok(()),
            Ok(Some(frame)) => Err(StoreError::Refused(format!(
                "{shown} is damaged: frame {frame} is bad, and whole commits follow it; expected what is bad at its end only"
            ))),
            Err(error) => Err(failed(format!("{shown} cannot be read"), error)),
        }
    }

    /// Lets SQLite look, without the right to write.
    fn check_content(&self, control_plane: &ControlPlaneId) -> Result<(), StoreError> {
        let path = self.path.display();
        let damaged = |found: &dyn std::fmt::Display| StoreError::Refused(format!("{path} is damaged: {found}"));
        let connection = self.open_reader().map_err(|error| match error {
            StoreError::Refused(_) => damaged(&"it cannot be opened as a database"),
            other => other,
        })?;
        let unreadable = |error: rusqlite::Error| match StoreError::from(error) {
            StoreError::Refused(found) => damaged(&found),
            StoreError::Failed(error) => damaged(&error),
            other => other,
        };
        let version = schema::version(&connection).map_err(unreadable)?;
        if version > SCHEMA_VERSION {
            return Err(StoreError::Refused(format!(
                "{path} was written by a newer release: found schema {version}, expected up to {SCHEMA_VERSION}"
            )));
        }
        let owner = read::control_plane(&connection).map_err(unreadable)?;
        if owner.as_deref() != Some(control_plane.as_str()) {
            let owner = owner.unwrap_or_else(|| "nobody".into());
            return Err(StoreError::Refused(format!(
                "{path} belongs to another control plane: found {owner}, expected {control_plane}"
            )));
        }
        // From its beginning to its end first: SQLite's own order would be many small reads of a cold disk.
        let mut file = File::open(&self.path).map_err(|error| failed(format!("{path} cannot be read"), error))?;
        io::copy(&mut file, &mut io::sink()).map_err(|error| failed(format!("{path} cannot be read"), error))?;
        let found: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0)).map_err(unreadable)?;
        if found == "ok" { Ok(()) } else { Err(damaged(&found.trim())) }
    }
}

/// What the writing connection needs. The journal mode is in the file from its making on, so that this is no write.
fn prepare_writer(connection: &Connection) -> rusqlite::Result<()> {
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS_CACHED);
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true)?;
    connection.pragma_update(None, "journal_mode", "wal")?;
    connection.pragma_update(None, "synchronous", "full")?;
    connection.pragma_update(None, "temp_store", "memory")?;
    connection.pragma_update(None, "cache_size", -32_000)?;
    connection.pragma_update(None, "cell_size_check", true)?;
    // The log shrinks to this after a rush.
    connection.pragma_update(None, "journal_size_limit", 64 << 20)?;
    // A net only: the writer checkpoints by itself, after it has answered.
    connection.pragma_update(None, "wal_autocheckpoint", 64_000)
}

/// The path that names the file whichever way it was given, so that one file has one lock.
fn resolve(path: &Path) -> Result<PathBuf, StoreError> {
    if let Ok(path) = fs::canonicalize(path) {
        return Ok(path);
    }
    let name =
        path.file_name().ok_or_else(|| StoreError::Refused(format!("{} does not name a file", path.display())))?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let folder = fs::canonicalize(folder)
        .map_err(|error| StoreError::Refused(format!("the folder of {} cannot be used: {error}", path.display())))?;
    Ok(folder.join(name))
}

pub(super) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// How files are made here: for their owner alone.
pub(super) fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options
}

/// Makes a new name in the file's folder durable.
pub(super) fn sync_folder(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
}

#[derive(Debug, thiserror::Error)]
#[error("{problem}")]
struct FileFailure {
    problem: String,
    #[source]
    source: io::Error,
}

pub(super) fn failed(problem: String, source: io::Error) -> StoreError {
    let full = matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
    let failure = Box::new(FileFailure { problem, source });
    if full { StoreError::Full(failure) } else { StoreError::Failed(failure) }
}
