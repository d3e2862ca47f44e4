//! EC2 for tests: an API server that nobody here wrote, behind a proxy that adds what real EC2 does and it lacks.
//!
//! The server is unmodified moto. The proxy before it remembers client tokens, lets machines take their time from state to
//! state and boots them for real: user data runs as a script, the product as a process that listens on the machine's own
//! address, and a volume is a folder that outlives machines. It injects faults, too.

mod actions;
mod answer;
mod behind;
mod buckets;
mod disks;
mod door;
mod faults;
mod lag;
mod launch;
mod machine;
mod moto;
mod options;
mod pages;
mod proxy;
mod query;
mod reads;
mod service;
mod stand;
mod states;
mod tokens;
mod xml;

pub use crate::{
    behind::Seen,
    buckets::{Bucket, Buckets},
    faults::{Lasting, Once},
    machine::State,
    moto::{REGION, is_here, missing, python},
    options::Options,
    stand::Ec2,
};
