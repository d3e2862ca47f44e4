//! The wrappers that every backend is tried behind.

use std::sync::Arc;

use provisioner_core::{Provisioner, layers::Chaos};

/// A wrapper: its name in the table, and how it goes around a backend.
pub type Layer = (&'static str, fn(Arc<dyn Provisioner>) -> Arc<dyn Provisioner>);

/// Every wrapper of `provisioner-core`. They pass the contract on.
pub const LAYERS: &[Layer] = &[
    ("arc", |backend| Arc::new(backend)),
    ("box", |backend| Arc::new(Box::new(backend))),
    ("chaos", |backend| Arc::new(Chaos::new(backend))),
];
