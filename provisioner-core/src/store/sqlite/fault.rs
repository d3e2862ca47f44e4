//! What SQLite's errors mean to a caller.

use rusqlite::{ErrorCode, ffi};

use super::super::StoreError;

/// The wal-index could not grow: on any ordinary disk that is lack of room.
const IOERR_SHMSIZE: i32 = ffi::SQLITE_IOERR_SHMSIZE;

/// Why one piece of work was not done.
#[derive(Debug)]
pub(super) enum Fault {
    /// Its conditions do not hold. Nothing of it was written; the transaction is as before.
    Refused(StoreError),
    /// SQLite failed. The transaction must not be committed.
    Sqlite(rusqlite::Error),
}

impl From<StoreError> for Fault {
    fn from(error: StoreError) -> Self {
        Self::Refused(error)
    }
}

impl From<rusqlite::Error> for Fault {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sqlite(error)
    }
}

/// Of reads and of writes that were rolled back.
impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        match &error {
            rusqlite::Error::SqliteFailure(failure, _) => match failure.code {
                ErrorCode::DiskFull => Self::Full(Box::new(error)),
                _ if failure.extended_code == IOERR_SHMSIZE => Self::Full(Box::new(error)),
                ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase => {
                    Self::Refused(format!("the store's file is damaged: {error}"))
                }
                _ => Self::Failed(Box::new(error)),
            },
            _ => Self::Failed(Box::new(error)),
        }
    }
}

/// Whether SQLite said only that input or output failed, which may or may not be lack of room.
pub(super) fn is_io(error: &rusqlite::Error) -> bool {
    matches!(error, rusqlite::Error::SqliteFailure(failure, _) if failure.code == ErrorCode::SystemIoFailure)
}
