//! What every store promises: one list of rules, run for each of them.

// All of it is test code, without the harness by which clippy would know.
#![allow(clippy::unwrap_used)]

#[path = "store_contract/clock.rs"]
mod clock;
#[path = "store_contract/fixture.rs"]
mod fixture;
#[path = "store_contract/inbox.rs"]
mod inbox;
#[path = "store_contract/instances.rs"]
mod instances;
#[path = "store_contract/log.rs"]
mod log;
#[cfg(feature = "postgres")]
#[path = "store_contract/postgres.rs"]
mod postgres;
#[path = "store_contract/promises.rs"]
mod promises;
#[path = "store_contract/sessions.rs"]
mod sessions;
#[path = "store_contract/sharing.rs"]
mod sharing;
#[path = "store_contract/work.rs"]
mod work;

use std::{any::Any, sync::Arc, time::Duration};

use libtest_mimic::{Arguments, Trial};
use provisioner_core::{
    seams::{Clock, SettableClock},
    store::{MemoryStore, Store},
};

use fixture::{Inbox, Rule, Run, control_plane};

/// The stores that the rules are run for.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Memory,
    MemoryShared,
    #[cfg(feature = "sqlite")]
    SqliteGrouped,
    #[cfg(feature = "sqlite")]
    SqliteInline,
    #[cfg(feature = "postgres")]
    Postgres,
}

impl Kind {
    const ALL: &[(&str, Self)] = &[
        ("memory", Self::Memory),
        ("memory_shared", Self::MemoryShared),
        #[cfg(feature = "sqlite")]
        ("sqlite_grouped", Self::SqliteGrouped),
        #[cfg(feature = "sqlite")]
        ("sqlite_inline", Self::SqliteInline),
        #[cfg(feature = "postgres")]
        ("postgres", Self::Postgres),
    ];

    /// Whether several processes share it.
    fn is_shared(self) -> bool {
        match self {
            Self::MemoryShared => true,
            #[cfg(feature = "postgres")]
            Self::Postgres => true,
            _ => false,
        }
    }

    /// Why it cannot be tried here.
    fn is_missing(self) -> Option<String> {
        match self {
            #[cfg(feature = "postgres")]
            Self::Postgres => postgres::missing(),
            _ => None,
        }
    }

    /// An empty store, whose sessions lapse after so long if they do, with a way into its inbox if it has one, and what must
    /// outlive it.
    async fn make(self, lapses_after: Duration) -> (Arc<dyn Store>, Option<Inbox>, Box<dyn Any>) {
        #[cfg(feature = "postgres")]
        use provisioner_core::store::PostgresStore;
        #[cfg(feature = "sqlite")]
        use provisioner_core::store::{CommitMode, SqliteStore};
        #[cfg(feature = "sqlite")]
        let sqlite = async |mode| {
            let folder = tempfile::tempdir().unwrap();
            let store = SqliteStore::open(folder.path().join("store"), control_plane(), mode).await.unwrap();
            (store as Arc<dyn Store>, None, Box::new(folder) as Box<dyn Any>)
        };
        match self {
            Self::Memory => (MemoryStore::new(control_plane()), None, Box::new(())),
            Self::MemoryShared => {
                let clock = Arc::new(SettableClock::starting_at(fixture::at(0)));
                let store = MemoryStore::shared(control_plane(), Arc::clone(&clock) as Arc<dyn Clock>, lapses_after);
                let inbox = Inbox::Memory(Arc::clone(&store), clock);
                (store, Some(inbox), Box::new(()))
            }
            #[cfg(feature = "sqlite")]
            Self::SqliteGrouped => sqlite(CommitMode::Grouped).await,
            #[cfg(feature = "sqlite")]
            Self::SqliteInline => sqlite(CommitMode::Inline).await,
            #[cfg(feature = "postgres")]
            Self::Postgres => {
                let schema = postgres::TestSchema::new();
                let config = schema.config().with_lapses_after(lapses_after).unwrap();
                let store = PostgresStore::open(config, control_plane()).await.unwrap();
                let inbox = Inbox::Postgres(schema.client().await);
                (store, Some(inbox), Box::new(schema))
            }
        }
    }
}

fn run(kind: Kind, rule: &Rule) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        // So long that none lapses by itself: the rules about that set the clock.
        let (store, inbox, outlives) = kind.make(Duration::from_secs(600)).await;
        match rule.run {
            Run::Store(run) => run(store).await,
            Run::Inbox(run) => run(store, inbox.expect("whoever shares it has an inbox")).await,
        }
        drop(outlives);
    });
}

fn main() {
    let trials = Kind::ALL.iter().flat_map(|(name, kind)| {
        let by_kind = match kind.is_shared() {
            true => [sharing::RULES, inbox::RULES, clock::RULES],
            false => [sessions::RULES, &[], &[]],
        };
        let rules = [instances::RULES, promises::RULES, work::RULES, log::RULES].into_iter().chain(by_kind).flatten();
        let missing = kind.is_missing();
        rules.map(move |rule: &'static Rule| {
            let kind = *kind;
            let trial = Trial::test(format!("{name}::{}", rule.name), move || {
                run(kind, rule);
                Ok(())
            });
            match &missing {
                Some(reason) => trial.with_kind(reason).with_ignored_flag(true),
                None => trial,
            }
        })
    });
    libtest_mimic::run(&Arguments::from_args(), trials.collect()).exit();
}
