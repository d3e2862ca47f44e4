//! The embedded store.

/// How commits are carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CommitMode {
    /// By a thread of its own that takes whatever waits into one transaction.
    Grouped,
    /// On the caller's thread, one by one: for simulation.
    Inline,
}

/// A store in one SQLite file.
#[derive(Debug)]
pub struct SqliteStore {}

impl SqliteStore {
    /// Opens the store of a control plane, and makes it when there is none.
    pub async fn open(
        _path: impl AsRef<std::path::Path> + Send,
        _control_plane: crate::types::ControlPlaneId,
        _mode: CommitMode,
    ) -> Result<std::sync::Arc<Self>, super::StoreError> {
        unimplemented!()
    }
}
