//! Starts the service, and stops it.

use std::{
    future::Future,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, anyhow, bail};
use provisioner_core::{
    Cell, Chain, ControlPlane,
    engine::EngineConfig,
    seams::{KillAt, Seams},
    store::{self, CommitMode, SqliteStore, Store, StoreError},
    types::{CellName, ControlPlaneId},
};
use rustix::process::{Signal, getpid, kill_process};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
};
use tokio_util::sync::CancellationToken;

use crate::{
    api::{self, App},
    args::{Args, BackendKind},
    backend::backend,
    cargo,
    catalog::{Catalog, Product},
};

/// How long requests may go on after the signal to stop.
const DRAIN: Duration = Duration::from_secs(10);

/// Checks everything, starts, and serves until a signal asks to stop. Instances go on without this process, and are
/// found again at the next start.
pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let stop = CancellationToken::new();
    let stopped = stop_signal().context("signals cannot be watched")?;
    let signalled = stop.clone();
    tokio::spawn(async move {
        stopped.await;
        signalled.cancel();
    });

    // Cheap and likely to fail first; nothing is started before all of it is known to be good.
    let state = state_folder(&args.state)?;
    let listener = TcpListener::bind(args.listen).await.with_context(|| {
        format!("cannot listen on {}: stop what listens there, or choose another address with --listen", args.listen)
    })?;
    let address = listener.local_addr().context("the listener has no address")?;
    let store: Arc<dyn Store> = match &args.store {
        Some(url) => open_shared(url, args.control_plane.clone()).await?,
        None => open_file(&state, args.control_plane.clone()).await?,
    };
    let (cell, provisioner) = backend(&args, &state.join("instances"))?;
    let product = tokio::select! {
        product = product(&args) => product?,
        () = stop.cancelled() => return Ok(()),
    };
    let catalog = Catalog::new(product, args.demo_faults);

    let mut config = EngineConfig::default();
    if let Some(seconds) = args.move_deadline_seconds {
        config.move_deadline = Duration::from_secs(seconds);
    }
    let mut builder = ControlPlane::builder(store)
        .cell(Cell::new(CellName::new(cell).expect("it is one"), provisioner))
        .config(config);
    if let Some(at) = args.kill_at {
        builder = builder.seams(Seams { kill_points: Arc::new(KillAt::new(at, kill_this)), ..Seams::default() });
    }
    let control_plane =
        builder.start().await.map_err(|error| anyhow!("the control plane does not start: {}", Chain(&error)))?;

    let router = api::router(Arc::new(App::new(control_plane.clone(), catalog, stop.clone())));
    let serving = axum::serve(listener, router).with_graceful_shutdown(stop.clone().cancelled_owned());
    // The listener has been taking connections since it was bound, and from here on they are answered.
    println!("signup is ready at http://{address}");
    let served = tokio::select! {
        served = serving => served.context("serving failed"),
        // A client that never ends its request must not keep the service from stopping.
        () = async { stop.cancelled().await; tokio::time::sleep(DRAIN).await } => Ok(()),
    };
    let shut_down = control_plane.shutdown().await;
    shut_down.map_err(|error| anyhow!("the control plane did not stop cleanly: {}", Chain(&error)))?;
    served
}

/// Ends this process as a SIGKILL from outside would, for crash tests.
fn kill_this() {
    let _ = kill_process(getpid(), Signal::KILL);
}

/// Makes sure that the folder is there and can be written to; its absolute path.
fn state_folder(folder: &Path) -> anyhow::Result<PathBuf> {
    const ADVICE: &str = "name a folder that can be written to with --state";
    let failed = || format!("the state folder {} cannot be used: {ADVICE}", folder.display());
    if folder.exists() && !folder.is_dir() {
        bail!("the state folder {} is a file: {ADVICE}", folder.display());
    }
    std::fs::create_dir_all(folder).with_context(failed)?;
    let folder = folder.canonicalize().with_context(failed)?;
    let probe = folder.join(format!(".writable-{}", std::process::id()));
    std::fs::write(&probe, "").and_then(|()| std::fs::remove_file(&probe)).with_context(failed)?;
    Ok(folder)
}

/// Not quoted in errors: there may be a password in it.
async fn open_shared(url: &str, id: ControlPlaneId) -> anyhow::Result<Arc<dyn Store>> {
    let opened = store::open(url, id).await;
    opened.map_err(|error| anyhow!("the store that --store names cannot be opened: {}", Chain(&error)))
}

async fn open_file(state: &Path, id: ControlPlaneId) -> anyhow::Result<Arc<SqliteStore>> {
    let path = state.join("store.db");
    SqliteStore::open(&path, id, CommitMode::Grouped).await.map_err(|error| match error {
        // In use, damaged, foreign or newer: the store's own words say which.
        StoreError::Refused(why) => anyhow!(
            "the store {} is refused: {why} (stop the other copy if there is one, restore the file from a backup, or \
             choose another folder with --state)",
            path.display()
        ),
        error => anyhow!("the store {} cannot be opened: {}", path.display(), Chain(&error)),
    })
}

/// The product: the image that is named, the binary that is named, or one that is built now.
async fn product(args: &Args) -> anyhow::Result<Product> {
    if matches!(args.backend, BackendKind::K8s | BackendKind::Appservice) {
        let image = args.image.clone().context("name the product's image with --image")?;
        let is_cluster = args.backend == BackendKind::K8s;
        let domain = args.cluster.ingress_class.is_some().then(|| args.cluster.domain.clone()).filter(|_| is_cluster);
        let command = if is_cluster { Vec::new() } else { args.group.command.clone() };
        return Ok(Product::Image { image, command, domain });
    }
    if args.backend == BackendKind::Vm {
        let image = args.account.vm_image.clone().context("name the machine image with --vm-image")?;
        return Ok(Product::Machine { image, program: args.account.vm_product.clone() });
    }
    let binary = binary(args.product.as_deref()).await?.into_os_string().into_string();
    let binary = binary
        .map_err(|path| anyhow!("the product's path {} is not UTF-8: move it elsewhere", path.to_string_lossy()))?;
    Ok(Product::Binary(binary))
}

async fn binary(named: Option<&Path>) -> anyhow::Result<PathBuf> {
    const ADVICE: &str = "name the product's binary with --product";
    let product = match named {
        Some(path) => path.to_owned(),
        None => {
            println!("building the product (cargo build --release -p product), which takes a moment the first time");
            let built = cargo::build(&["--release", "-p", "product"]).await;
            let built = built.with_context(|| format!("the product cannot be built; repair that, or {ADVICE}"))?;
            let binary = built.into_iter().find(|(name, _)| name == "product");
            binary.with_context(|| format!("Cargo built no binary named product: {ADVICE}"))?.1
        }
    };
    let failed = || format!("the product {} cannot be used: {ADVICE}", product.display());
    let product = product.canonicalize().with_context(failed)?;
    if !is_program(&product).with_context(failed)? {
        bail!("the product {} is not a program: {ADVICE}", product.display());
    }
    Ok(product)
}

fn is_program(path: &Path) -> std::io::Result<bool> {
    use std::os::unix::fs::PermissionsExt;
    let metadata = path.metadata()?;
    Ok(metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}

/// Resolves at the first SIGTERM or SIGINT from now on.
fn stop_signal() -> std::io::Result<impl Future<Output = ()> + Send + 'static> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}
