//! The contract on the provider in memory: instant and consistent, and slow and lagging.
#![allow(missing_docs)]

#[path = "support/memory.rs"]
mod memory;

use std::process::ExitCode;

use memory::Memory;

fn main() -> ExitCode {
    provisioner_contract::Suite::new().with_layers(Memory::instant()).with_layers(Memory::slow()).main()
}
