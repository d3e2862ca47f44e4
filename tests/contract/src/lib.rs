#![doc = include_str!("../README.md")]

mod check;
mod failure;
pub mod layers;
mod logs;
mod outsider;
mod profile;
mod rules;
mod runner;
mod secrets;
mod subject;
mod verb;

pub use async_trait::async_trait;
pub use check::{Verdict, check};
pub use failure::{Failure, Outcome};
pub use outsider::{Ability, Outsider, Refusal, Sight, Told};
pub use profile::{Profile, Setup};
pub use rules::{RULES, Rule};
pub use runner::{Suite, main};
pub use secrets::Vault;
pub use subject::{Subject, random};
pub use verb::Verb;
