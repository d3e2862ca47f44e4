//! A signup service that embeds the control plane: every customer who signs up gets an own instance of the product.
//!
//! It shows all that a vendor's service needs: a JSON API, a web page, and a control plane with one backend inside the
//! same process. It is an example without login, so it listens on the loopback address alone.

mod api;
mod args;
mod backend;
mod cargo;
mod catalog;
mod events;
mod extract;
mod guard;
mod page;
mod problem;
mod service;
#[cfg(feature = "appservice")]
mod token;
mod view;

use std::process::ExitCode;

use clap::Parser;
use tracing_subscriber::EnvFilter;

use crate::args::Args;

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    match service::run(args).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // One line, whatever the causes have to say.
            eprintln!("signup: {}", format!("{error:#}").split_whitespace().collect::<Vec<_>>().join(" "));
            ExitCode::FAILURE
        }
    }
}
