//! The process backend, set up to be tried.

pub(crate) mod process;
pub(crate) mod product;
