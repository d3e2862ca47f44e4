//! A store in memory, for tests.

/// A store in memory.
#[derive(Debug)]
pub struct MemoryStore {}
