//! What the benchmarks share. Each of them prints its figures beside their floor, measured in the same run.

mod bare;
mod bare_postgres;
mod callers;
mod dormant;
mod measured;
mod product;
mod recording;
mod report;
mod root;
mod this_process;

pub use bare::{Bare, empty_copy};
pub use bare_postgres::write_bare;
pub use callers::{CALLERS, by, large_spec, live_all, sign_up_all};
pub use dormant::{AT_REST, FLEET, fill, fleet_cell, fleet_id, fleet_tenant, one_more};
pub use measured::{Measured, cpu_seconds};
pub use product::{ByHand, finish, product, spec, until_answered};
pub use recording::RecordingStore;
pub use report::{Samples, heading, row};
pub use root::Root;
pub use this_process::{cpu_time, resident_mib};
