//! What PostgreSQL's errors mean to a caller. <https://www.postgresql.org/docs/current/errcodes-appendix.html>

use std::{error::Error as StdError, fmt, sync::Arc, time::Duration};

use tokio_postgres::{Error, error::SqlState};

use super::super::StoreError;

/// Why something was not done, told to all who waited for it.
#[derive(Debug, Clone)]
pub(super) struct Cause(Arc<dyn StdError + Send + Sync>);

impl Cause {
    pub(super) fn new(error: impl StdError + Send + Sync + 'static) -> Self {
        Self(Arc::new(error))
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl StdError for Cause {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source()
    }
}

/// The database did not answer in time.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("the database did not answer within {0:?}")]
pub(super) struct TimedOut(pub(super) Duration);

/// It is not known whether it was written.
#[derive(Debug, Clone, thiserror::Error)]
#[error("it is not known whether it was written, as the database cannot be asked")]
pub(super) struct Unknown(#[source] pub(super) Cause);

/// What an error of a transaction that was not committed asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Remedy {
    /// Another process won a race: the same again finds what it wrote.
    Again,
    /// Something in one of the changes: the others need not fail for it.
    Apart,
    /// The connection is gone, or must not be used again.
    Reconnect,
    /// The database has no room, or somebody holds what is needed: the others would fail likewise.
    Fail,
}

/// Whether the connection ended, or must be thrown away.
pub(super) fn is_lost(error: &Error) -> bool {
    let Some(code) = error.code() else { return true };
    // A server that takes no writes any more became a standby: the one that does is elsewhere.
    *code == SqlState::READ_ONLY_SQL_TRANSACTION
        || [
            SqlState::ADMIN_SHUTDOWN,
            SqlState::CRASH_SHUTDOWN,
            SqlState::CANNOT_CONNECT_NOW,
            SqlState::DATABASE_DROPPED,
            SqlState::IDLE_IN_TRANSACTION_SESSION_TIMEOUT,
        ]
        .contains(code)
        || code.code().starts_with("08")
}

pub(super) fn remedy(error: &Error) -> Remedy {
    let Some(code) = error.code() else {
        // A value that cannot be told to the server is the change's; everything else is the connection's.
        let is_value = error.to_string().starts_with("error serializing parameter");
        return if is_value { Remedy::Apart } else { Remedy::Reconnect };
    };
    match code {
        code if is_lost(error) && code.code() != "" => Remedy::Reconnect,
        code if *code == SqlState::UNIQUE_VIOLATION
            || *code == SqlState::T_R_DEADLOCK_DETECTED
            || *code == SqlState::T_R_SERIALIZATION_FAILURE =>
        {
            Remedy::Again
        }
        // Out of resources, canceled for its time, locked: whatever the change is.
        code if code.code().starts_with("53") || code.code().starts_with("57") || code.code().starts_with("55") => {
            Remedy::Fail
        }
        _ => Remedy::Apart,
    }
}

/// What a transaction that was not committed is answered with.
pub(super) fn not_written(cause: &Cause, full: bool) -> StoreError {
    let cause = Box::new(cause.clone());
    if full { StoreError::Full(cause) } else { StoreError::NotWritten(cause) }
}

/// Whether there was no room.
pub(super) fn is_full(error: &Error) -> bool {
    error.code() == Some(&SqlState::DISK_FULL)
}

/// Of reads, and of single statements that the server refused.
impl From<Error> for StoreError {
    fn from(error: Error) -> Self {
        match is_full(&error) {
            true => Self::Full(Box::new(error)),
            false => Self::Failed(Box::new(error)),
        }
    }
}

/// Whether a transaction was given up for others: it had waited for a lock for long, or one of them waited for it as well.
pub(super) fn is_contended(error: &StoreError) -> bool {
    let StoreError::Failed(cause) = error else { return false };
    let code = cause.downcast_ref::<Error>().and_then(Error::code);
    code.is_some_and(|code| [SqlState::LOCK_NOT_AVAILABLE, SqlState::T_R_DEADLOCK_DETECTED].contains(code))
}

/// Of opening: what only a person can mend is told in words.
pub(super) fn refused(error: Error) -> StoreError {
    let class = error.code().map_or("", |code| &code.code()[..2]).to_owned();
    match error.as_db_error() {
        // Not allowed, not there, wrong password.
        Some(told) if ["42", "3D", "3F", "28", "0L", "22"].contains(&class.as_str()) => {
            StoreError::Refused(format!("the database refuses: {}", told.message()))
        }
        _ => error.into(),
    }
}
