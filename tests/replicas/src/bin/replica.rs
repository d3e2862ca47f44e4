//! A control plane process among several over one database.
//!
//! Its argument is [`Options`](test_replicas::command::Options) as JSON. It reads a question per line from its standard input and
//! writes an answer per line, in the order in which they are found; it logs to standard error. It ends gently at SIGTERM, at
//! once when its input ends, and with whoever started it.

use std::{env, error::Error, io};

use rustix::process::{Signal, set_parent_process_death_signal};
use test_replicas::serve::serve;
use tracing_subscriber::EnvFilter;

fn main() -> Result<(), Box<dyn Error>> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    let options = serde_json::from_str(&env::args().nth(1).ok_or("expected one argument: options as JSON")?)?;
    let level = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(level).with_ansi(false).with_writer(io::stderr).init();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(serve(options))
}
