//! Instances as local processes.
