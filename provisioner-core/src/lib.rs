#![doc = include_str!("../README.md")]

pub mod context;
pub mod control_plane;
pub mod engine;
pub mod error;
pub mod layers;
pub mod memory;
pub mod placement;
mod provisioner;
pub mod seams;
pub mod secret;
pub mod store;
pub mod types;

pub use context::{OpContext, Priority};
pub use control_plane::{ControlPlane, ControlPlaneBuilder};
pub use error::{Chain, Effect, Error, ErrorKind, Result, Retry};
pub use placement::Cell;
pub use provisioner::{Provisioner, ProvisionerExt};
