//! What the store in a database promises beyond the contract: about opening, faults, the inbox's function and speed.
//!
//! `DATABASE_URL` names the database; without it a private server is started. One that is to crash is private in any case.

// All of it is test code, without the harness by which clippy would know.
#![allow(clippy::unwrap_used)]

#[path = "postgres_store/faults.rs"]
mod faults;
// Shared with the contract, which uses all of it.
#[allow(dead_code, unused_imports, unused_macros)]
#[path = "store_contract/fixture.rs"]
mod fixture;
#[path = "postgres_store/open.rs"]
mod open;
#[path = "postgres_store/plans.rs"]
mod plans;
#[path = "store_contract/postgres.rs"]
mod postgres;
#[path = "postgres_store/proxy.rs"]
mod proxy;
#[path = "postgres_store/several.rs"]
mod several;
#[path = "postgres_store/submit.rs"]
mod submit;
#[path = "postgres_store/tls.rs"]
mod tls;

use std::{
    sync::{PoisonError, RwLock},
    time::Duration,
};

use libtest_mimic::{Arguments, Trial};
use test_peers::postgres::Programs;

/// One test, on a schema of its own.
type Test = fn(&postgres::TestSchema) -> futures::future::LocalBoxFuture<'_, ()>;

/// A server that crashes takes everybody's connections with it.
static SERVER: RwLock<()> = RwLock::new(());

fn main() {
    let tests = [open::TESTS, several::TESTS, faults::TESTS, submit::TESTS, plans::TESTS];
    let missing = postgres::missing();
    let mut trials: Vec<Trial> = tests
        .into_iter()
        .flatten()
        .map(|(name, test)| {
            let run = move || {
                let _shared = SERVER.read().unwrap_or_else(PoisonError::into_inner);
                run(*test);
                Ok(())
            };
            trial(name, missing.clone(), run)
        })
        .collect();
    // They start a server of their own, also where the environment names a database.
    let missing = if test_peers::postgres::is_required() { None } else { Programs::find().err() };
    for (name, test) in tls::TESTS {
        trials.push(trial(name, missing.clone(), || {
            run(*test);
            Ok(())
        }));
    }
    for (name, test) in faults::CRASHES {
        let run = move || {
            let _alone = SERVER.write().unwrap_or_else(PoisonError::into_inner);
            postgres::use_own_server();
            run(*test);
            Ok(())
        };
        trials.push(trial(name, missing.clone(), run));
    }
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}

fn trial(
    name: &str,
    missing: Option<String>,
    run: impl FnOnce() -> Result<(), libtest_mimic::Failed> + Send + 'static,
) -> Trial {
    match missing {
        Some(reason) => Trial::test(name, run).with_kind(reason).with_ignored_flag(true),
        None => Trial::test(name, run),
    }
}

fn run(test: Test) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let schema = postgres::TestSchema::new();
    let whole = async { tokio::time::timeout(Duration::from_secs(300), test(&schema)).await };
    runtime.block_on(whole).expect("nothing waits for ever");
}

/// Lists functions as tests under their own names.
macro_rules! tests {
    ($list:ident: $($test:ident),* $(,)?) => {
        pub(crate) const $list: &[(&str, crate::Test)] =
            &[$((stringify!($test), |schema| Box::pin($test(schema)))),*];
    };
}
pub(crate) use tests;
