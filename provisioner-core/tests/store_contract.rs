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
#[path = "store_contract/sessions.rs"]
mod sessions;
#[path = "store_contract/sharing.rs"]
mod sharing;
#[path = "store_contract/work.rs"]
mod work;

use std::{sync::Arc, time::Duration};

use libtest_mimic::{Arguments, Trial};
use provisioner_core::{
    seams::SystemClock,
    store::{MemoryStore, Store},
};
use tempfile::TempDir;

use fixture::{Rule, control_plane};

/// The stores that the rules are run for.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Memory,
    MemoryShared,
    #[cfg(feature = "sqlite")]
    SqliteGrouped,
    #[cfg(feature = "sqlite")]
    SqliteInline,
}

impl Kind {
    const ALL: &[(&str, Self)] = &[
        ("memory", Self::Memory),
        ("memory_shared", Self::MemoryShared),
        #[cfg(feature = "sqlite")]
        ("sqlite_grouped", Self::SqliteGrouped),
        #[cfg(feature = "sqlite")]
        ("sqlite_inline", Self::SqliteInline),
    ];

    /// Whether several processes share it.
    fn is_shared(self) -> bool {
        matches!(self, Self::MemoryShared)
    }

    /// An empty store, whose sessions lapse after so long if they do, and what must outlive it.
    async fn make(self, lapses_after: Duration) -> (Arc<dyn Store>, Option<TempDir>) {
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
            Self::MemoryShared => (MemoryStore::shared(control_plane(), Arc::new(SystemClock), lapses_after), None),
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
        // So long that none lapses in the middle of a rule that is about something else.
        let long = Duration::from_secs(600);
        let lapses_after = if sharing::LAPSING.contains(&rule.name) { Duration::from_millis(600) } else { long };
        let (store, _folder) = kind.make(lapses_after).await;
        (rule.run)(store).await;
    });
}

fn main() {
    let trials = Kind::ALL.iter().flat_map(|(name, kind)| {
        let by_kind = if kind.is_shared() { sharing::RULES } else { sessions::RULES };
        let rules = [instances::RULES, promises::RULES, work::RULES, log::RULES, by_kind].into_iter().flatten();
        rules.map(move |rule: &'static Rule| {
            let kind = *kind;
            Trial::test(format!("{name}::{}", rule.name), move || {
                run(kind, rule);
                Ok(())
            })
        })
    });
    libtest_mimic::run(&Arguments::from_args(), trials.collect()).exit();
}
