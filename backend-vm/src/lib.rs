#![doc = include_str!("../README.md")]

mod backend;
mod boot;
mod calls;
mod check;
mod config;
mod digest;
mod error;
mod fleet;
mod health;
mod images;
mod launch;
mod names;
mod pace;
mod places;
mod seen;
mod verbs;
mod watch;
mod writes;

pub use backend::VmBackend;
pub use config::{MachineType, Place, VmConfig};
pub use pace::Buckets;
pub use provisioner_account::Bucket;
