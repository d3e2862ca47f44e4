//! See the targets.
