//! What the store in a file promises beyond the contract: about the file, the process and the disk.

// All of it is test code, without the harness by which clippy would know.
#![allow(clippy::unwrap_used)]

#[path = "sqlite_store/crash.rs"]
mod crash;
#[path = "sqlite_store/disk.rs"]
mod disk;
#[path = "sqlite_store/file.rs"]
mod file;
// Shared with the contract, which uses all of it.
#[allow(dead_code, unused_imports, unused_macros)]
#[path = "store_contract/fixture.rs"]
mod fixture;

use libtest_mimic::{Arguments, Trial};

fn main() {
    // Parts of the tests run in processes of their own: to be killed, and to have a disk of their own.
    if let Some(path) = std::env::var_os(crash::CHILD) {
        return crash::child(path.as_ref());
    }
    if let Some(folder) = std::env::var_os(disk::CHILD) {
        return disk::child(folder.as_ref());
    }
    let mut trials: Vec<Trial> =
        file::TESTS.iter().chain(crash::TESTS).map(|(name, test)| trial(name, *test)).collect();
    trials.push(disk::trial());
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}

fn trial(name: &str, test: fn()) -> Trial {
    Trial::test(name, move || {
        test();
        Ok(())
    })
}

/// Runs what is asynchronous on two threads.
fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(future)
}

/// Lists functions as tests under their own names.
macro_rules! tests {
    ($($test:ident),* $(,)?) => {
        pub(crate) const TESTS: &[(&str, fn())] = &[$((stringify!($test), $test)),*];
    };
}
pub(crate) use tests;
