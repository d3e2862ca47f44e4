#![doc = include_str!("../README.md")]

mod backend;
mod folder;

pub use backend::Sites;
