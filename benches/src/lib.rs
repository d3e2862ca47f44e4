//! What the benchmarks share. Each of them prints its figures beside their floor, measured in the same run.

mod bare;
mod recording;
mod report;

pub use bare::Bare;
pub use recording::RecordingStore;
pub use report::{Samples, heading, row};
