//! A shared notebook: a small product that is worth hosting.
//!
//! It knows nothing of control planes. It is configured by its environment alone (see [`config`]), keeps its pages in
//! one SQLite file, answers on the loopback address unless it is told another, and stops when it is asked to.

mod config;
mod html;
mod notebook;
mod web;

use std::{future::Future, net::SocketAddr, process::ExitCode, sync::Arc, time::Duration};

use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    sync::oneshot,
};

use crate::{
    config::{Config, Fault},
    notebook::Notebook,
    web::App,
};

/// How long requests may go on after the signal to stop.
const DRAIN: Duration = Duration::from_secs(5);
/// A missing or wrong variable: starting again changes nothing.
const EXIT_CONFIGURATION: u8 = 2;
/// As [`Fault::Exit`] asks.
const EXIT_FAULT: u8 = 3;

fn main() -> ExitCode {
    let config = match Config::from_environment(std::env::var_os) {
        Ok(config) => config,
        Err(error) => {
            eprintln!("product: {error}");
            return ExitCode::from(EXIT_CONFIGURATION);
        }
    };
    if config.fault == Some(Fault::Exit) {
        eprintln!("product: stopped at once, as PRODUCT_FAULT=exit asks");
        return ExitCode::from(EXIT_FAULT);
    }
    // One thread and few helpers: many of these share a machine, and each is mostly idle.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(2).build();
    let served = runtime.map_err(|error| format!("the runtime does not start: {error}")).and_then(|runtime| {
        let served = runtime.block_on(serve(config));
        runtime.shutdown_timeout(Duration::from_secs(1));
        served
    });
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("product: {problem}");
            ExitCode::FAILURE
        }
    }
}

/// Serves until a signal asks to stop.
async fn serve(config: Config) -> Result<(), String> {
    // Before anything else, so that a signal that comes early is not lost.
    let stop = stop_signal().map_err(|error| format!("signals cannot be watched: {error}"))?;
    let notebook = Notebook::open(&config.data_path)
        .map_err(|error| format!("the notebook in {} cannot be opened: {error}", config.data_path.display()))?;
    let port = match config.fault {
        Some(Fault::NeverListen) => {
            stop.await;
            return Ok(());
        }
        Some(Fault::OtherPort) => 0,
        _ => config.port,
    };
    let address = SocketAddr::from((config.address, port));
    let listener =
        TcpListener::bind(address).await.map_err(|error| format!("cannot listen on {address} (PORT): {error}"))?;
    let address = listener.local_addr().map_err(|error| error.to_string())?;
    println!("product {} of {} is at http://{address}", config.version, config.tenant);

    let app = web::router(Arc::new(App { config, notebook }));
    let (drain, drained) = oneshot::channel();
    let serving = axum::serve(listener, app).with_graceful_shutdown(async move {
        stop.await;
        let _ = drain.send(());
    });
    tokio::select! {
        served = serving => served.map_err(|error| error.to_string()),
        // A client that never ends its request must not keep the product from stopping.
        () = async { let _ = drained.await; tokio::time::sleep(DRAIN).await } => Ok(()),
    }
}

/// Resolves at the first SIGTERM or SIGINT from now on.
fn stop_signal() -> std::io::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}
