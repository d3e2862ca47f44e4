//! A few connections that read.

use std::sync::{Arc, Mutex, PoisonError};

use rusqlite::Connection;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{super::StoreError, guard::Guard};

/// How many reads run at once; more wait. Each connection has a page cache of its own.
const READERS: usize = 4;

/// The connections that nobody uses, opened as they are needed.
#[derive(Debug)]
pub(super) struct Readers {
    idle: Mutex<Vec<Connection>>,
    permits: Arc<Semaphore>,
    guard: Arc<Guard>,
}

/// One connection, given back when dropped. Keeps the file locked meanwhile.
#[derive(Debug)]
pub(super) struct Reader {
    /// Taken only when dropped.
    connection: Option<Connection>,
    readers: Arc<Readers>,
    _permit: OwnedSemaphorePermit,
}

impl Readers {
    pub(super) fn new(guard: Arc<Guard>) -> Self {
        Self { idle: Mutex::default(), permits: Arc::new(Semaphore::new(READERS)), guard }
    }

    /// Waits for a connection.
    pub(super) async fn take(readers: &Arc<Self>) -> Result<Reader, StoreError> {
        let permit = Arc::clone(&readers.permits).acquire_owned().await;
        let permit = permit.expect("the semaphore is never closed");
        let idle = readers.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let connection = match idle {
            Some(connection) => connection,
            None => readers.guard.open_reader()?,
        };
        Ok(Reader { connection: Some(connection), readers: Arc::clone(readers), _permit: permit })
    }

    /// Closes the connections that nobody uses.
    pub(super) fn close(&self) {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

impl Reader {
    pub(super) fn connection(&self) -> &Connection {
        self.connection.as_ref().expect("taken only when dropped")
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        if let Some(connection) = self.connection.take() {
            self.readers.idle.lock().unwrap_or_else(PoisonError::into_inner).push(connection);
        }
    }
}
