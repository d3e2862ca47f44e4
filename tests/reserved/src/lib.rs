//! What a test has for itself, whatever other test runs beside it: control groups and ports.

pub mod groups;
pub mod ports;
