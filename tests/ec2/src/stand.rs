//! A stand: moto, the proxy before it, and the machines.

use std::{
    collections::BTreeMap,
    fmt,
    io::Write,
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU32, Ordering},
    },
};

use tempfile::TempDir;
use test_reserved::ports::Ports;
use tokio_util::sync::CancellationToken;

use crate::{
    answer::Refusal,
    buckets::Levels,
    disks,
    door::Door,
    faults::{Faults, Lasting, Once},
    lag::Lag,
    machine::Machine,
    moto::{Client, Moto},
    options::Options,
    pages::Pages,
    proxy,
    query::Form,
    tokens::Tokens,
};

/// An EC2 of a test's own. A clone is the same; with the last one everything ends that it started.
///
/// User data is a script that runs as on a machine, below the folder that `PROVISIONER_ROOT` names, with shims for what
/// concerns the whole machine: `systemctl`, `mount`, `aws` and the like. The service that it starts is
/// `sh $PROVISIONER_ROOT/etc/provisioner/start`, with `PROVISIONER_ROOT`, `PATH` and `ADDRESS`, where it is to listen. A
/// path of the spec does not begin with that folder, so products are to be started by a boot script that says
/// `export DATA_PATH="$PROVISIONER_ROOT$DATA_PATH"` first.
#[derive(Clone)]
pub struct Ec2 {
    held: Arc<Held>,
}

/// What ends with the last handle.
struct Held {
    stand: Arc<Stand>,
    endpoint: String,
    /// What is ended first is named first: products, then what they may ask.
    _keeper: Keeper,
    _moto: Moto,
    _folder: TempDir,
    _ports: Ports,
}

/// What the proxy, the machines and the test share.
#[derive(Debug)]
pub(crate) struct Stand {
    pub(crate) options: Options,
    pub(crate) moto: Client,
    pub(crate) folder: PathBuf,
    /// The subnets of the default network with their zones, in order.
    pub(crate) subnets: Vec<(String, String)>,
    pub(crate) machines: Mutex<BTreeMap<String, Machine>>,
    pub(crate) calls: Mutex<BTreeMap<String, u64>>,
    pub(crate) faults: Faults,
    pub(crate) tokens: Tokens,
    pub(crate) levels: Levels,
    pub(crate) lag: Lag,
    pub(crate) pages: Pages,
    /// Held while machines are counted and launched, and while a volume is looked at and attached.
    pub(crate) one_by_one: tokio::sync::Mutex<()>,
    /// Held by who launches: what is half made is shown to nobody.
    pub(crate) launching: tokio::sync::RwLock<()>,
    pub(crate) ended: CancellationToken,
    /// Looked up once: the server goes through thousands of images each time.
    pub(crate) image: tokio::sync::OnceCell<String>,
    /// The device of the system in each image.
    pub(crate) roots: Mutex<BTreeMap<String, String>>,
    /// What becomes of the next machine that is launched.
    pub(crate) doom: Mutex<Option<(String, String)>>,
    port: u16,
    addresses: AtomicU32,
    me: Weak<Self>,
}

impl Ec2 {
    /// Starts one.
    ///
    /// # Errors
    /// When moto is not here or does not start.
    pub async fn start(options: Options) -> Result<Self, String> {
        let problem = |error: std::io::Error| format!("the stand does not start: {error}");
        let folder = tempfile::Builder::new().prefix("ec2-").tempdir().map_err(problem)?;
        disks::prepare(folder.path()).map_err(problem)?;
        let ports = Ports::take();
        let [port, moto_port] = [*ports.range().start(), ports.range().start() + 1];
        let keeper = Keeper::spawn(folder.path().to_owned()).map_err(problem)?;
        let mut moto = Moto::spawn(moto_port, &folder.path().join("moto.log"), options.indexed_tags)?;
        let client = Client::new(moto_port)?;
        moto.ready(&client).await?;
        let subnets = client.call(&Form::new("DescribeSubnets").with_filter("default-for-az", "true")).await;
        let subnets = subnets.map_err(|refusal| refusal.message)?;
        let subnets = subnets.items("subnetSet").iter();
        let mut subnets: Vec<_> = subnets
            .map(|subnet| (subnet.at(&["subnetId"]).to_owned(), subnet.at(&["availabilityZone"]).to_owned()))
            .collect();
        subnets.sort_by(|a, b| a.1.cmp(&b.1));
        let stand = Arc::new_cyclic(|me| Stand {
            moto: client,
            folder: folder.path().to_owned(),
            subnets,
            machines: Mutex::default(),
            calls: Mutex::default(),
            faults: Faults::none(),
            tokens: Tokens::default(),
            levels: Levels::new(options.buckets),
            lag: Lag::new(options.lag),
            pages: Pages::default(),
            one_by_one: tokio::sync::Mutex::default(),
            launching: tokio::sync::RwLock::default(),
            ended: CancellationToken::new(),
            image: tokio::sync::OnceCell::new(),
            roots: Mutex::default(),
            doom: Mutex::default(),
            port,
            addresses: AtomicU32::new(0),
            me: Weak::clone(me),
            options,
        });
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let door = Door::open(address, stand.faults.lasting.subscribe()).await.map_err(problem)?;
        let held = Held {
            endpoint: format!("http://{address}"),
            stand: Arc::clone(&stand),
            _keeper: keeper,
            _moto: moto,
            _folder: folder,
            _ports: ports,
        };
        stand.spawn(proxy::serve(Arc::clone(&stand), door));
        Ok(Self { held: Arc::new(held) })
    }

    pub(crate) fn stand(&self) -> &Arc<Stand> {
        &self.held.stand
    }

    /// Where the proxy is.
    #[must_use]
    pub fn endpoint(&self) -> &str {
        &self.held.endpoint
    }

    /// Where the bare server is.
    #[must_use]
    pub fn moto(&self) -> &str {
        &self.stand().moto.url
    }

    /// Counts the requests that reached the proxy, refused ones too.
    #[must_use]
    pub fn calls(&self) -> u64 {
        locked(&self.stand().calls).values().sum()
    }

    /// Counts the same for each action.
    #[must_use]
    pub fn calls_by_action(&self) -> BTreeMap<String, u64> {
        locked(&self.stand().calls).clone()
    }

    /// Lists the subnets of the default network with their zones, in order.
    #[must_use]
    pub fn subnets(&self) -> Vec<(String, String)> {
        self.stand().subnets.clone()
    }

    /// Changes what befalls every request from now on.
    pub fn befall(&self, fault: Option<Lasting>) {
        self.stand().faults.lasting.send_replace(fault);
    }

    /// Says what befalls the next request of an action that none is said for yet.
    pub fn once(&self, action: &str, fault: Once) {
        self.stand().faults.add(action, fault);
    }
}

impl fmt::Debug for Ec2 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ec2").field("endpoint", &self.endpoint()).finish_non_exhaustive()
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.stand.ended.cancel();
    }
}

impl Stand {
    /// Runs something until it is done or the stand ends.
    pub(crate) fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        let ended = self.ended.clone();
        tokio::spawn(async move { ended.run_until_cancelled_owned(work).await });
    }

    /// For work that goes on by itself.
    pub(crate) fn shared(&self) -> Arc<Self> {
        self.me.upgrade().expect("whoever asks has one")
    }

    /// An address that nobody else has, on this stand or another: each has 4096, by its range of ports.
    pub(crate) fn new_address(&self) -> Result<Ipv4Addr, Refusal> {
        const EACH: u32 = 4096;
        let at = self.addresses.fetch_add(1, Ordering::SeqCst) + 1;
        if at >= EACH {
            let message = "The stand has no address left for this machine.";
            return Err(Refusal::new("InsufficientFreeAddressesInSubnet", message));
        }
        let first = u32::from(Ipv4Addr::new(127, 64, 0, 0));
        // Ranges of ports are 16 wide, and there are fewer than 1024.
        let network = u32::from(self.port / 16) % 1024;
        Ok(Ipv4Addr::from(first + network * EACH + at))
    }
}

/// Ends the products and removes the folder, also when the test is killed: then nobody else does.
struct Keeper(Child);

impl Keeper {
    /// Waits for its input to end.
    const SCRIPT: &str = r#"
        read -r _
        for group in "$1"/machines/*/group; do
            if [ -e "$group" ]; then kill -s KILL -- "-$(cat "$group")"; fi
        done
        rm -rf -- "$1"
    "#;

    fn spawn(folder: PathBuf) -> std::io::Result<Self> {
        use std::os::unix::process::CommandExt as _;

        let mut command = Command::new("/bin/sh");
        command.args(["-c", Self::SCRIPT, "keeper"]).arg(folder).process_group(0);
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().map(Self)
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        if let Some(mut input) = self.0.stdin.take() {
            // It may be gone.
            let _ = input.write_all(b"\n");
        }
        let _ = self.0.wait();
    }
}

/// Locks it. What is under it is whole at any time, so a panic elsewhere does not matter.
pub(crate) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
