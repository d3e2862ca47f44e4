#![doc = include_str!("../README.md")]

mod backend;
mod cgroup;
mod config;
mod convert;
mod data;
mod error;
mod health;
mod instance;
mod layout;
mod listener;
mod log_tail;
mod ports;
mod process;
mod records;
mod remove;
mod reservations;
mod spawn;
mod start;
mod stop;
mod supervise;
mod survival;
mod turn_over;
mod upkeep;
mod users;

pub use backend::ProcessBackend;
pub use config::ProcessConfig;
