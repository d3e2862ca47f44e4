//! The backends of this workspace, set up to be tried.

pub(crate) mod memory;
