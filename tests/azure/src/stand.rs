//! A stand: the resource manager, and what runs of its sites.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, fs,
    io::Write,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use tempfile::TempDir;
use test_reserved::ports::Ports;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::{
    answer::Refusal,
    asynchronous::Writes,
    authority::Authority,
    buckets::Levels,
    door::Door,
    faults::{Faults, Lasting, Once},
    locks::Locks,
    options::Options,
    record::Record,
    server,
    service::Service,
    tokens::Tokens,
    words,
    world::World,
};

/// Where everything is that nobody says a region of.
pub(crate) const REGION: &str = "westeurope";
/// Those where plans and sites may be.
pub(crate) const REGIONS: [&str; 2] = [REGION, "northeurope"];
/// How many addresses a stand has.
const ADDRESSES: u32 = 4096;

/// An Azure of a test's own. A clone is the same; with the last one everything ends that it started.
///
/// There is one subscription with one resource group and one storage account. The image of a site is not pulled: its command
/// is run here, with its settings, `PATH`, `WEBSITE_SITE_NAME`, `WEBSITE_HOSTNAME`, and the `PORT` that it is to listen at
/// on 127.0.0.1. A setting that names a path of a mount gets the folder of the share instead.
#[derive(Clone)]
pub struct Azure {
    held: Arc<Held>,
}

/// What ends with the last handle.
struct Held {
    stand: Arc<Stand>,
    authority_file: PathBuf,
    _keeper: Keeper,
    _folder: TempDir,
    _ports: Ports,
}

/// What the server, the sites and the test share.
#[derive(Debug)]
pub(crate) struct Stand {
    pub(crate) options: Options,
    pub(crate) endpoint: String,
    pub(crate) folder: PathBuf,
    pub(crate) subscription: String,
    pub(crate) group: String,
    pub(crate) account: String,
    /// The two keys of the storage account.
    pub(crate) keys: [String; 2],
    pub(crate) world: Mutex<World>,
    /// What runs of each site. Never locked before the world is.
    pub(crate) services: Mutex<BTreeMap<String, Service>>,
    pub(crate) calls: Mutex<BTreeMap<String, u64>>,
    pub(crate) faults: Faults,
    pub(crate) tokens: Tokens,
    pub(crate) levels: Levels,
    pub(crate) locks: Arc<Locks>,
    pub(crate) writes: Writes,
    pub(crate) record: Record,
    pub(crate) authority: Authority,
    pub(crate) ended: CancellationToken,
    /// The port of every front door.
    pub(crate) front: u16,
    port: u16,
    addresses: Mutex<Addresses>,
    products: Mutex<ProductPorts>,
    me: Weak<Self>,
}

/// The addresses that sites have, and the one that was given last.
#[derive(Debug, Default)]
struct Addresses {
    last: u32,
    used: BTreeSet<u32>,
}

/// Where products may listen.
#[derive(Debug, Default)]
struct ProductPorts {
    free: BTreeSet<u16>,
    ranges: Vec<Ports>,
}

impl Azure {
    /// Starts one.
    ///
    /// # Errors
    /// When its port, its folder or its certificates cannot be had.
    pub async fn start(options: Options) -> Result<Self, String> {
        let problem = |error: std::io::Error| format!("the stand does not start: {error}");
        let folder = tempfile::Builder::new().prefix("azure-").tempdir().map_err(problem)?;
        for name in ["sites", "shares"] {
            fs::create_dir(folder.path().join(name)).map_err(problem)?;
        }
        let authority = Authority::new().map_err(|error| error.to_string())?;
        let authority_file = folder.path().join("ca.pem");
        fs::write(&authority_file, &authority.pem).map_err(problem)?;
        let ports = Ports::take();
        let [port, front] = [*ports.range().start(), ports.range().start() + 1];
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let keeper = Keeper::spawn(folder.path().to_owned()).map_err(problem)?;
        let key = |number| words::storage_key(&format!("{}{number}", folder.path().display()));
        let stand = Arc::new_cyclic(|me| Stand {
            endpoint: format!("https://{address}"),
            folder: folder.path().to_owned(),
            subscription: "00000000-0000-4000-8000-0000000a0a0a".to_owned(),
            group: "test-group".to_owned(),
            account: "teststorage".to_owned(),
            keys: [key(1), key(2)],
            world: Mutex::new(World::new(options.lag)),
            services: Mutex::default(),
            calls: Mutex::default(),
            faults: Faults::none(),
            tokens: Tokens::new(options.token_lifetime),
            levels: Levels::new(options.buckets),
            locks: Locks::new(options.plan_locks),
            writes: Writes::default(),
            record: Record::new(options.record.clone()),
            authority,
            ended: CancellationToken::new(),
            front,
            port,
            addresses: Mutex::default(),
            products: Mutex::default(),
            me: Weak::clone(me),
            options,
        });
        let acceptor = TlsAcceptor::from(stand.authority.server(IpAddr::V4(Ipv4Addr::LOCALHOST))?);
        let door = Door::open(address, acceptor, stand.faults.lasting.subscribe()).await.map_err(problem)?;
        let held = Held { authority_file, stand: Arc::clone(&stand), _keeper: keeper, _folder: folder, _ports: ports };
        stand.spawn(server::serve(Arc::clone(&stand), door));
        Ok(Self { held: Arc::new(held) })
    }

    pub(crate) fn stand(&self) -> &Arc<Stand> {
        &self.held.stand
    }

    /// Where the resource manager is, with TLS.
    #[must_use]
    pub fn endpoint(&self) -> &str {
        &self.stand().endpoint
    }

    /// The certificate of the authority that the resource manager and every site show theirs of.
    #[must_use]
    pub fn ca_pem(&self) -> &str {
        &self.stand().authority.pem
    }

    /// The same as a file.
    #[must_use]
    pub fn ca_file(&self) -> &Path {
        &self.held.authority_file
    }

    /// The id of the one subscription.
    #[must_use]
    pub fn subscription(&self) -> &str {
        &self.stand().subscription
    }

    /// The name of the one resource group.
    #[must_use]
    pub fn resource_group(&self) -> &str {
        &self.stand().group
    }

    /// The one region.
    #[must_use]
    pub fn region(&self) -> &str {
        REGION
    }

    /// The name of the one storage account.
    #[must_use]
    pub fn storage_account(&self) -> &str {
        &self.stand().account
    }

    /// The first of its keys.
    #[must_use]
    pub fn storage_key(&self) -> &str {
        &self.stand().keys[0]
    }

    /// Gives a bearer token that is good from now on.
    #[must_use]
    pub fn token(&self) -> String {
        self.stand().tokens.give()
    }

    /// Has all tokens that were given expire.
    pub fn expire_tokens(&self) {
        self.stand().tokens.expire();
    }

    /// Counts the requests that reached the resource manager, refused ones and polls too.
    #[must_use]
    pub fn calls(&self) -> u64 {
        locked(&self.stand().calls).values().sum()
    }

    /// Counts the same for each operation, as the contract names it. Polls are `Poll`.
    #[must_use]
    pub fn calls_of(&self) -> BTreeMap<String, u64> {
        locked(&self.stand().calls).clone()
    }

    /// Changes what befalls every request from now on.
    pub fn befall(&self, lasting: Option<Lasting>) {
        self.stand().faults.lasting.send_replace(lasting);
    }

    /// Says what befalls the next request of an operation that none is said for yet.
    pub fn once(&self, operation_id: &str, fault: Once) {
        self.stand().faults.add(operation_id, fault);
    }
}

impl fmt::Debug for Azure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Azure").field("endpoint", &self.endpoint()).finish_non_exhaustive()
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

    /// The id of a resource of the group. `kind` is as in `Microsoft.Web/sites`.
    pub(crate) fn id(&self, kind: &str, name: &str) -> String {
        format!("/subscriptions/{}/resourceGroups/{}/providers/{kind}/{name}", self.subscription, self.group)
    }

    /// Has what runs of a site be what is said of it.
    pub(crate) fn follow(&self, name: &str) {
        let world = locked(&self.world);
        let Some(site) = world.sites.get(name).filter(|_| self.options.boots) else { return };
        let mut services = locked(&self.services);
        if let Some(service) = services.get(&name.to_lowercase()) {
            return service.follow(site);
        }
        match Service::start(self, site) {
            Ok(service) => drop(services.insert(name.to_lowercase(), service)),
            Err(error) => tracing::error!(error, name, "a site has no front door"),
        }
    }

    /// Whether something may be deleted.
    pub(crate) fn check_kept(&self, kind: &str, name: &str) -> Result<(), Refusal> {
        if !locked(&self.world).kept.contains(&name.to_lowercase()) {
            return Ok(());
        }
        let scope = self.id(kind, name);
        let message = format!(
            "The scope '{scope}' cannot perform delete operation because following scope(s) are locked: '{scope}'. Please remove the lock and try again."
        );
        Err(Refusal::new(409, "ScopeLocked", message))
    }

    /// Whether callers have a right.
    pub(crate) fn check_right(&self, action: &str, code: &str, scope: &str) -> Result<(), Refusal> {
        let has = |actions: &BTreeSet<String>| actions.iter().any(|it| it.eq_ignore_ascii_case(action));
        if action.is_empty() || self.options.actions.as_ref().is_none_or(has) {
            return Ok(());
        }
        Err(no_right(action, code, scope))
    }

    /// An address that nobody else has, on this stand or another.
    pub(crate) fn new_address(&self) -> Result<Ipv4Addr, Refusal> {
        let mut addresses = locked(&self.addresses);
        let last = addresses.last;
        let at =
            (1..ADDRESSES).map(|next| (last + next) % ADDRESSES).find(|at| *at != 0 && !addresses.used.contains(at));
        let at =
            at.ok_or_else(|| Refusal::new(500, "InternalError", "The stand has no address left for this site."))?;
        addresses.last = at;
        addresses.used.insert(at);
        Ok(Ipv4Addr::from(self.network() + at))
    }

    pub(crate) fn free_address(&self, address: Ipv4Addr) {
        locked(&self.addresses).used.remove(&(u32::from(address) - self.network()));
    }

    /// Each stand has a network, by its range of ports: they are 16 wide, and there are fewer than 1024.
    fn network(&self) -> u32 {
        u32::from(Ipv4Addr::new(127, 64, 0, 0)) + u32::from(self.port / 16) % 1024 * ADDRESSES
    }

    /// A port for a product.
    pub(crate) fn take_port(&self) -> u16 {
        let mut products = locked(&self.products);
        loop {
            if let Some(port) = products.free.pop_first() {
                return port;
            }
            let more = Ports::take();
            products.free.extend(more.range());
            products.ranges.push(more);
        }
    }

    pub(crate) fn free_port(&self, port: u16) {
        locked(&self.products).free.insert(port);
    }

    /// What there is of a site beside its shares. A site of the same name at another time has another one.
    pub(crate) fn site_folder(&self, name: &str, address: Ipv4Addr) -> PathBuf {
        self.folder.join("sites").join(format!("{}-{address}", name.to_lowercase()))
    }
}

pub(crate) fn no_right(action: &str, code: &str, scope: &str) -> Refusal {
    let message = format!(
        "The client 'test' with object id 'test' does not have authorization to perform action '{action}' over scope '{scope}' or the scope is invalid. If access was recently granted, please refresh your credentials."
    );
    Refusal::new(403, code, message)
}

/// Ends the products and removes the folder, also when the test is killed: then nobody else does.
struct Keeper(Child);

impl Keeper {
    /// Waits for its input to end.
    const SCRIPT: &str = r#"
        read -r _
        for group in "$1"/sites/*/group; do
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
