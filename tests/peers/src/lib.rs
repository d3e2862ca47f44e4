//! Where tests find the software that nobody here wrote, once `cargo xtask peers` has prepared it.

pub mod kubernetes;
