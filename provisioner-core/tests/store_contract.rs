//! What every store promises: one list of rules, run for each of them.

// All of it is test code, without the harness by which clippy would know.
#![allow(clippy::unwrap_used)]

#[path = "store_contract/fixture.rs"]
mod fixture;
#[path = "store_contract/instances.rs"]
mod instances;
#[path = "store_contract/log.rs"]
mod log;
#[path = "store_contract/promises.rs"]
mod promises;
#[path = "store_contract/work.rs"]
mod work;

use std::sync::Arc;

use libtest_mimic::{Arguments, Trial};
use provisioner_core::store::{MemoryStore, Store};
use tempfile::TempDir;

use fixture::{Rule, control_plane};

/// The stores that the rules are run for.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Memory,
    #[cfg(feature = "sqlite")]
    SqliteGrouped,
    #[cfg(feature = "sqlite")]
    SqliteInline,
}

impl Kind {
    const ALL: &[(&str, Self)] = &[
        ("memory", Self::Memory),
        #[cfg(feature = "sqlite")]
        ("sqlite_grouped", Self::SqliteGrouped),
        #[cfg(feature = "sqlite")]
        ("sqlite_inline", Self::SqliteInline),
    ];

    /// An empty store, and what must outlive it.
    async fn make(self) -> (Arc<dyn Store>, Option<TempDir>) {
        #[cfg(feature = "sqlite")]
        use provisioner_core::store::{CommitMode, SqliteStore};
        #[cfg(feature = "sqlite")]
        let sqlite = async |mode| {
            let folder = tempfile::tempdir().unwrap();
            let store = SqliteStore::open(folder.path().join("store"), control_plane(), mode).await.unwrap();
            (store as Arc<dyn Store>, Some(folder))
        };
        match self {
            Self::Memory => (MemoryStore::new(control_plane()), None),
            #[cfg(feature = "sqlite")]
            Self::SqliteGrouped => sqlite(CommitMode::Grouped).await,
            #[cfg(feature = "sqlite")]
            Self::SqliteInline => sqlite(CommitMode::Inline).await,
        }
    }
}

fn run(kind: Kind, rule: &Rule) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let (store, _folder) = kind.make().await;
        (rule.run)(store).await;
    });
}

fn main() {
    let rules: Vec<&'static Rule> =
        [instances::RULES, promises::RULES, work::RULES, log::RULES].into_iter().flatten().collect();
    let trials = Kind::ALL.iter().flat_map(|(name, kind)| {
        rules.iter().map(move |rule| {
            let (kind, rule) = (*kind, *rule);
            Trial::test(format!("{name}::{}", rule.name), move || {
                run(kind, rule);
                Ok(())
            })
        })
    });
    libtest_mimic::run(&Arguments::from_args(), trials.collect()).exit();
}
