//! The wrappers that every backend is tried behind.

use std::{sync::Arc, time::Duration};

use provisioner_core::{
    Provisioner,
    layers::{Chaos, Limited, Measured, Timed, Traced},
    types::CellName,
};

/// Fewer than the rules call at once, so that some wait.
const CALLS_MAX: usize = 4;
/// Longer than any call may take.
const LIMIT: Duration = Duration::from_secs(120);

/// A wrapper: its name in the table, and how it goes around a backend.
pub type Layer = (&'static str, fn(Arc<dyn Provisioner>) -> Arc<dyn Provisioner>);

/// Every wrapper of `provisioner-core`. They pass the contract on.
pub const LAYERS: &[Layer] = &[
    ("arc", |backend| Arc::new(backend)),
    ("box", |backend| Arc::new(Box::new(backend))),
    ("chaos", |backend| Arc::new(Chaos::new(backend))),
    ("limited", |backend| Arc::new(Limited::new(backend, CALLS_MAX))),
    ("timed", |backend| Arc::new(Timed::new(backend, LIMIT))),
    ("traced", |backend| Arc::new(Traced::new(backend))),
    ("measured", |backend| Arc::new(Measured::new(backend, &cell()))),
    ("all", |backend| {
        let limited = Limited::new(Timed::new(backend, LIMIT), CALLS_MAX);
        Arc::new(Measured::new(Traced::new(limited), &cell()))
    }),
];

fn cell() -> CellName {
    CellName::new("contract").expect("a name")
}
