//! What the benchmarks share. Each of them prints its figures beside their floor, measured in the same run.

mod bare;
mod measured;
mod recording;
mod report;

pub use bare::{Bare, empty_copy};
pub use measured::{Measured, cpu_seconds};
pub use recording::RecordingStore;
pub use report::{Samples, heading, row};
