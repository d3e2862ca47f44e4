//! Which store a URL names.

use std::sync::Arc;

use super::{MemoryStore, Store, StoreError};
use crate::types::ControlPlaneId;

const EXPECTED: &str = "sqlite:PATH, postgres://USER:PASSWORD@HOST:PORT/DATABASE or memory:";

/// Opens the store that a URL names: `sqlite:PATH` or `sqlite:///PATH` for a file, `postgres://` or `postgresql://` for a
/// database (see `PostgresConfig::from_url` for its parameters), `memory:` for one that ends with the process.
///
/// # Errors
/// [`StoreError::Refused`] when the URL names no store, or one that this program was built without; else what opening that
/// store can fail with.
///
/// # Cancellation
/// What was begun is finished or leaves nothing behind, as with each store's own `open`.
pub async fn open(url: &str, control_plane: ControlPlaneId) -> Result<Arc<dyn Store>, StoreError> {
    let Some((scheme, rest)) = url.split_once(':') else {
        return Err(StoreError::Refused(format!("the URL of the store has no scheme: expected {EXPECTED}")));
    };
    match scheme {
        "memory" if rest.is_empty() => Ok(MemoryStore::new(control_plane)),
        "memory" => {
            Err(StoreError::Refused("the URL of the store goes on after memory: expected nothing there".into()))
        }
        "sqlite" => open_file(rest.strip_prefix("//").unwrap_or(rest), control_plane).await,
        "postgres" | "postgresql" => open_database(url, control_plane).await,
        // Not quoted: what is before the first colon may be anything, a password too.
        _ => Err(StoreError::Refused(format!("the URL of the store has an unknown scheme: expected {EXPECTED}"))),
    }
}

#[cfg(feature = "sqlite")]
async fn open_file(path: &str, control_plane: ControlPlaneId) -> Result<Arc<dyn Store>, StoreError> {
    use super::{CommitMode, SqliteStore};
    if path.is_empty() {
        return Err(StoreError::Refused("the URL of the store names no file: expected sqlite:PATH".into()));
    }
    Ok(SqliteStore::open(path, control_plane, CommitMode::Grouped).await?)
}

#[cfg(not(feature = "sqlite"))]
async fn open_file(_: &str, _: ControlPlaneId) -> Result<Arc<dyn Store>, StoreError> {
    Err(built_without("sqlite"))
}

#[cfg(feature = "postgres")]
async fn open_database(url: &str, control_plane: ControlPlaneId) -> Result<Arc<dyn Store>, StoreError> {
    use super::{PostgresConfig, PostgresStore};
    Ok(PostgresStore::open(PostgresConfig::from_url(url)?, control_plane).await?)
}

#[cfg(not(feature = "postgres"))]
async fn open_database(_: &str, _: ControlPlaneId) -> Result<Arc<dyn Store>, StoreError> {
    Err(built_without("postgres"))
}

#[cfg(not(all(feature = "sqlite", feature = "postgres")))]
fn built_without(feature: &str) -> StoreError {
    StoreError::Refused(format!("this program was built without {feature}: expected a build with that feature"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_url_names_a_store_or_is_refused_with_what_was_expected() {
        let control_plane = || ControlPlaneId::new("test").unwrap();
        open("memory:", control_plane()).await.unwrap();
        #[cfg(feature = "sqlite")]
        {
            let folder = tempfile::tempdir().unwrap();
            for (number, prefix) in ["sqlite:", "sqlite://"].into_iter().enumerate() {
                let path = folder.path().join(number.to_string());
                open(&format!("{prefix}{}", path.display()), control_plane()).await.unwrap();
                assert!(path.is_file());
            }
        }
        for bad in ["", "store.db", "mysql://u:secret@h/d", "memory:x", "sqlite:", "secret", "secret:x"] {
            match open(bad, control_plane()).await {
                Err(StoreError::Refused(why)) => {
                    assert!(why.contains("expected") && !why.contains("secret"), "{bad}: {why}");
                }
                other => panic!("{bad}: {other:?}"),
            }
        }
    }
}
