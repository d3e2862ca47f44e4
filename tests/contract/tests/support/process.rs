//! Local processes, looked at through `/proc` and the files of the backend.

use std::{
    collections::BTreeMap,
    fs::{self, File, Permissions},
    hash::{DefaultHasher, Hash, Hasher},
    io::{self, Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream},
    ops::RangeInclusive,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::{Arc, LazyLock, Mutex, PoisonError},
    time::{Duration, Instant},
};

use backend_process::ProcessConfig;
use provisioner_contract::{Ability, Outsider, Profile, Refusal, Setup, Sight, Told, async_trait};
use provisioner_core::types::{
    Bound, ControlPlaneId, DataId, InstanceSpec, Isolation, SizeMax, Target, VariableName, Workload,
};
use rustix::process::{Pid, Signal, kill_process};

use super::product;

/// How long the slow product takes to be ready.
const SLOW: Duration = Duration::from_secs(3);
/// A port for each of the instances of the longest rule.
const PORTS: RangeInclusive<u16> = 20_000..=20_299;

/// Users for each of them, where there may be such: more than instances, as data is kept when they are gone.
const USERS: u32 = 1_024;

/// This program, where every user may execute it: where programs are built, others may not be let in.
static PROGRAM: LazyLock<PathBuf> = LazyLock::new(|| {
    let built = std::env::current_exe().expect("own path");
    let open = |path: &Path| fs::metadata(path).is_ok_and(|what| what.mode() & 0o001 != 0);
    if !is_root() || built.ancestors().all(open) {
        return built;
    }
    let what = fs::metadata(&built).expect("own program");
    let place = std::env::temp_dir().join(format!("contract-product-{}-{}", what.len(), what.mtime_nsec()));
    if !place.exists() {
        let copy = place.with_extension(std::process::id().to_string());
        fs::copy(&built, &copy).and_then(|_| fs::rename(copy, &place)).expect("a copy of this program");
    }
    place
});

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// The process backend. Run as root, each instance is a user of its own.
#[derive(Debug)]
pub(crate) struct Processes;

impl Setup for Processes {
    fn name(&self) -> String {
        "process".to_owned()
    }

    fn profile(&self) -> Profile {
        let place = Arc::new(Place::new());
        let config = place.config();
        let backend = config.clone().build().expect("a good configuration");
        let address = place.address;
        let spec = move |version: &str| spec(address, version);
        let mut profile = Profile::new(Arc::new(backend), spec).with_outsider(ProcessOutsider {
            root: config.root.clone(),
            address,
            refusing: Mutex::default(),
        });
        profile.reopen = Some(Box::new(move || Arc::new(config.clone().build().expect("a good configuration"))));
        let mut slow = spec("1.0");
        set(&mut slow, "READY_AFTER_MS", &SLOW.as_millis().to_string());
        profile.slow = Some((slow, SLOW));
        let mut broken = spec("1.0");
        set(&mut broken, "EXIT_AT_ONCE", "1");
        profile.broken = Some(broken);
        profile.keep = Some(Box::new(place));
        profile
    }
}

fn set(spec: &mut InstanceSpec, name: &str, value: &str) {
    spec.environment.insert(VariableName::new(name).expect("a name"), value.to_owned());
}

fn spec(address: Ipv4Addr, version: &str) -> InstanceSpec {
    let mut workload = Workload::new(version).with_command([PROGRAM.to_str().expect("a path of ours")]);
    workload.health_path = "/healthz".into();
    workload.start_timeout_seconds = 20;
    workload.stop_grace_seconds = 1;
    let mut spec = InstanceSpec::new(workload);
    set(&mut spec, product::MARK, "1");
    set(&mut spec, "ADDRESS", &address.to_string());
    spec
}

/// A folder, an address and users of its own. When dropped, whatever still runs there is killed.
struct Place {
    folder: tempfile::TempDir,
    address: Ipv4Addr,
    users: RangeInclusive<u32>,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::Builder::new().prefix("contract-").tempdir().expect("a folder");
        let mut hasher = DefaultHasher::new();
        // Users pass through it to their data.
        fs::set_permissions(folder.path(), Permissions::from_mode(0o711)).expect("a folder of ours");
        folder.path().hash(&mut hasher);
        let [a, b, c, d, e, ..] = hasher.finish().to_be_bytes();
        // Used by nobody, like the backend's own default, but apart from it.
        let first = 1_910_000_000 + u32::from(u16::from_be_bytes([d, e])) * USERS;
        // All of 127/8 is this machine; its first addresses are used by others.
        let address = Ipv4Addr::new(127, a.clamp(1, 254), b, c.clamp(1, 254));
        Self { folder, address, users: first..=first + USERS - 1 }
    }

    fn config(&self) -> ProcessConfig {
        let mut config = ProcessConfig::new(self.folder.path().join("root")).with_ports(PORTS);
        config.cgroup = Some(test_reserved::groups::name(self.folder.path()));
        config.users = is_root().then(|| self.users.clone());
        config.address = self.address.into();
        config.size_max = SizeMax { cpu_millis: 64_000, memory_mib: 65_536, data_mib: 1 << 20 };
        config
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let deadline = Instant::now() + Duration::from_secs(10);
        let mut quiet = 0;
        while quiet < 3 && Instant::now() < deadline {
            let left = processes(self.folder.path());
            quiet = if left.is_empty() { quiet + 1 } else { 0 };
            left.into_iter().for_each(|pid| signal(pid, Signal::KILL));
            std::thread::sleep(Duration::from_millis(2));
        }
        test_reserved::groups::remove(self.folder.path());
    }
}

/// The processes that work below this folder, as products do in their data.
fn processes(below: &Path) -> Vec<i32> {
    let numbers = fs::read_dir("/proc").expect("/proc").flatten();
    let numbers = numbers.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let inside = |pid: &i32| fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|folder| folder.starts_with(below));
    numbers.filter(inside).collect()
}

/// The environment that a process was started with. Empty when it has ended.
fn environment(pid: i32) -> BTreeMap<String, String> {
    let text = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    let variables = text.split(|byte| *byte == 0).filter_map(|variable| {
        let (name, value) = std::str::from_utf8(variable).ok()?.split_once('=')?;
        Some((name.to_owned(), value.to_owned()))
    });
    variables.collect()
}

fn signal(pid: i32, signal: Signal) {
    if let Some(pid) = Pid::from_raw(pid) {
        // It may have ended meanwhile.
        let _ = kill_process(pid, signal);
    }
}

/// Looks through `/proc`, and into the backend's folder.
struct ProcessOutsider {
    root: PathBuf,
    address: Ipv4Addr,
    refusing: Mutex<Refusing>,
}

/// What keeps the machine from serving.
#[derive(Default)]
struct Refusing {
    listeners: Vec<TcpListener>,
    locks: Vec<File>,
}

impl ProcessOutsider {
    fn data(&self, owner: &ControlPlaneId, data: &DataId) -> PathBuf {
        self.root.join(owner.as_str()).join("data").join(data.as_str())
    }

    fn instances(&self, owner: &ControlPlaneId) -> Vec<PathBuf> {
        entries(&self.root.join(owner.as_str()).join("instances"))
    }

    fn folders(&self, owner: &ControlPlaneId, target: &Target) -> Vec<PathBuf> {
        let incarnation = target.incarnation.to_string();
        let mut folders = self.instances(owner);
        folders.retain(|path| path.to_string_lossy().contains(&incarnation));
        folders
    }

    /// The processes on the target's data, but not those whose port another incarnation holds.
    fn pids(&self, owner: &ControlPlaneId, target: &Target) -> Vec<i32> {
        let mut pids = processes(&self.data(owner, target.data.id()));
        let incarnation = target.incarnation.to_string();
        pids.retain(|pid| {
            let port = environment(*pid).remove("PORT").unwrap_or_default();
            let holder = fs::read_to_string(self.root.join(".ports").join(port));
            holder.map_or(true, |holder| holder.contains(&incarnation))
        });
        pids
    }

    fn only(&self, owner: &ControlPlaneId, target: &Target) -> Told<i32> {
        match self.pids(owner, target)[..] {
            [pid] => Ok(pid),
            ref pids => Err(format!("{} processes of the instance, expected one", pids.len())),
        }
    }

    fn get(&self, owner: &ControlPlaneId, target: &Target, path: &str) -> Told<(u16, String)> {
        let port = environment(self.only(owner, target)?).remove("PORT").ok_or("the process has no port")?;
        get(&format!("{}:{port}", self.address), path).map_err(|error| error.to_string())
    }
}

/// What the kernel tells of a process: whose it is, which control groups it is in, and what it is limited to.
fn isolation_of(pid: i32, incarnation: &str) -> Option<Isolation> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let user = status.lines().find_map(|line| line.strip_prefix("Uid:"))?.split_ascii_whitespace().next()?;
    let users = user != rustix::process::geteuid().as_raw().to_string();
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    let bounded = |controller: &str| {
        groups.lines().filter(|line| line.contains(incarnation)).any(|line| {
            let controllers = line.split(':').nth(1).unwrap_or_default();
            // Version 2 has one group for all of them.
            controllers.is_empty() && controllers_of_two().contains(controller)
                || controllers.split(',').any(|name| name == controller)
        })
    };
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).ok()?;
    let limited = |name: &str| {
        let line = limits.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
        !line.trim_start().starts_with("unlimited")
    };
    let bound = |controller, otherwise| if bounded(controller) { Bound::Instance } else { otherwise };
    Some(Isolation {
        users,
        memory: bound("memory", if limited("Max data size") { Bound::Process } else { Bound::None }),
        cpu: bound("cpu", Bound::None),
        processes: bound("pids", if users { Bound::Instance } else { Bound::None }),
    })
}

/// What is bounded in groups of version 2 on this machine.
fn controllers_of_two() -> String {
    fs::read_to_string("/sys/fs/cgroup/cgroup.subtree_control").unwrap_or_default()
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<_> = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    paths.sort_unstable();
    paths
}

/// All files below a folder, without the customers' data.
fn files(folder: &Path) -> Vec<PathBuf> {
    let below = |path: PathBuf| match path.is_dir() {
        true if path.ends_with("files") => Vec::new(),
        true => files(&path),
        false => vec![path],
    };
    entries(folder).into_iter().flat_map(below).collect()
}

fn get(address: &str, path: &str) -> std::io::Result<(u16, String)> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    write!(stream, "GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or(std::io::ErrorKind::UnexpectedEof)?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    Ok((status.ok_or(std::io::ErrorKind::InvalidData)?, body.to_owned()))
}

fn gone(pids: &[i32]) -> Told<()> {
    wait(pids, "do not end", |pid| environment(pid).is_empty())
}

/// Waits until all of them stand still. A signal takes its time to arrive, and one that comes after it may overtake it: the
/// kernel hands out those of lower numbers first.
fn stopped(pids: &[i32]) -> Told<()> {
    let stands = |task: &PathBuf| {
        let stat = fs::read_to_string(task.join("stat")).unwrap_or_default();
        stat.rsplit(") ").next().is_none_or(|rest| !rest.starts_with(['R', 'S', 'D']))
    };
    wait(pids, "do not stop", |pid| entries(format!("/proc/{pid}/task").as_ref()).iter().all(stands))
}

fn wait(pids: &[i32], otherwise: &str, done: impl Fn(i32) -> bool) -> Told<()> {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !pids.iter().all(|pid| done(*pid)) {
        if Instant::now() > deadline {
            return Err(format!("{pids:?} {otherwise}"));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

#[async_trait]
impl Outsider for ProcessOutsider {
    fn abilities(&self) -> &[Ability] {
        use Ability::*;
        &[
            Sight,
            Inventory,
            Notes,
            Ask,
            Environment,
            Secrets,
            Name,
            Search,
            Kill,
            Stop,
            Delete,
            DeleteData,
            Block,
            Capacity,
            Hang,
            Unreachable,
            Isolation,
        ]
    }

    async fn isolation(&self, owner: &ControlPlaneId, target: &Target) -> Told<Isolation> {
        isolation_of(self.only(owner, target)?, &target.incarnation.to_string())
            .ok_or_else(|| "it has ended".to_owned())
    }

    async fn sight(&self, owner: &ControlPlaneId, target: &Target) -> Told<Sight> {
        Ok(Sight { made: self.folders(owner, target).len(), awake: self.pids(owner, target).len() })
    }

    async fn inventory(&self, owner: &ControlPlaneId) -> Told<Vec<String>> {
        let own = self.root.join(owner.as_str());
        let mut all: Vec<_> =
            ["instances", "data", "removed"].iter().flat_map(|name| entries(&own.join(name))).collect();
        let ports = entries(&self.root.join(".ports"));
        let held = |port: &PathBuf| fs::read_to_string(port).is_ok_and(|held| held.contains(owner.as_str()));
        all.extend(ports.into_iter().filter(held));
        let shown = |path: PathBuf| path.strip_prefix(&self.root).unwrap_or(&path).display().to_string();
        let mut all: Vec<_> = all.into_iter().map(shown).collect();
        all.extend(processes(&own).into_iter().map(|pid| format!("process {pid}")));
        Ok(all)
    }

    async fn write_note(&self, owner: &ControlPlaneId, target: &Target, note: &str) -> Told<()> {
        // A path has no spaces.
        let note = note.replace(' ', "+");
        match self.get(owner, target, &format!("/write/{note}"))? {
            (200, _) => Ok(()),
            (status, _) => Err(format!("the product does not write: {status}")),
        }
    }

    async fn read_note(&self, owner: &ControlPlaneId, target: &Target) -> Told<Option<String>> {
        match self.get(owner, target, "/note")? {
            (200, note) => Ok(Some(note.replace('+', " "))),
            _ => Ok(None),
        }
    }

    async fn ask(&self, endpoint: &str) -> Told<()> {
        let address = endpoint.strip_prefix("http://").ok_or("not http")?;
        match get(address, "/healthz").map_err(|error| error.to_string())? {
            (200, _) => Ok(()),
            (status, _) => Err(format!("answers {status}")),
        }
    }

    async fn environment(&self, owner: &ControlPlaneId, target: &Target) -> Told<BTreeMap<String, String>> {
        Ok(environment(self.only(owner, target)?))
    }

    async fn name(&self, owner: &ControlPlaneId, target: &Target) -> Told<String> {
        let folders = self.folders(owner, target);
        let folder = folders.first().ok_or("no folder of the instance")?;
        let port = entries(&self.root.join(".ports")).into_iter().find(|port| {
            let held = fs::read_to_string(port).unwrap_or_default();
            held.contains(&target.incarnation.to_string()) && held.contains(owner.as_str())
        });
        Ok(format!("{} with {}", folder.display(), port.map_or("no port", |_| "a port")))
    }

    async fn search(&self, text: &str) -> Told<Vec<String>> {
        let holds = |path: &PathBuf| {
            let content = fs::read(path).unwrap_or_default();
            path.to_string_lossy().contains(text) || content.windows(text.len()).any(|part| part == text.as_bytes())
        };
        let mut found: Vec<_> =
            files(&self.root).into_iter().filter(holds).map(|path| path.display().to_string()).collect();
        for pid in processes(&self.root) {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            if line.windows(text.len()).any(|part| part == text.as_bytes()) {
                found.push(format!("the command line of {pid}"));
            }
        }
        Ok(found)
    }

    async fn kill(&self, owner: &ControlPlaneId, target: &Target) -> Told<()> {
        let pids = self.pids(owner, target);
        pids.iter().for_each(|pid| signal(*pid, Signal::KILL));
        gone(&pids)
    }

    async fn stop(&self, owner: &ControlPlaneId, target: &Target) -> Told<()> {
        let pids = self.pids(owner, target);
        pids.iter().for_each(|pid| signal(*pid, Signal::TERM));
        gone(&pids)
    }

    async fn delete(&self, owner: &ControlPlaneId, target: &Target) -> Told<()> {
        self.kill(owner, target).await?;
        // Out of the way first: the backend may be writing into it at this moment.
        let gone = self.root.with_extension(format!("gone-{}", target.incarnation));
        let removed = self.folders(owner, target).into_iter().try_for_each(|folder| {
            fs::rename(folder, &gone)?;
            remove_with_all(&gone)
        });
        removed.map_err(|error| error.to_string())
    }

    async fn delete_data(&self, owner: &ControlPlaneId, data: &DataId) -> Told<()> {
        fs::remove_dir_all(self.data(owner, data)).map_err(|error| error.to_string())
    }

    async fn block(&self, owner: &ControlPlaneId, target: &Target, blocked: bool) -> Told<()> {
        // Who is stopped hears of no other signal than KILL, and that comes when the grace is over.
        let way = if blocked { Signal::STOP } else { Signal::CONT };
        let pids = self.pids(owner, target);
        pids.iter().for_each(|pid| signal(*pid, way));
        if blocked { stopped(&pids) } else { Ok(()) }
    }

    async fn refuse(&self, refusal: Option<Refusal>) -> Told<()> {
        let mut refusing = Refusing::default();
        let away = self.root.with_extension("away");
        if away.exists() {
            fs::remove_file(&self.root)
                .and_then(|()| fs::rename(&away, &self.root))
                .map_err(|error| error.to_string())?;
        }
        match refusal {
            None => {}
            // As when the disk is not mounted, but no folder is in its place.
            Some(Refusal::Unreachable) => {
                fs::create_dir_all(&self.root).map_err(|error| error.to_string())?;
                let cut_off = fs::rename(&self.root, &away).and_then(|()| fs::write(&self.root, ""));
                cut_off.map_err(|error| error.to_string())?;
            }
            Some(Refusal::Capacity) => {
                // Not those of instances that sleep: they have theirs.
                let free = PORTS.filter(|port| !self.root.join(".ports").join(port.to_string()).exists());
                refusing.listeners = free.filter_map(|port| TcpListener::bind((self.address, port)).ok()).collect();
            }
            Some(Refusal::Hang) => refusing.locks = self.lock_all()?,
            Some(other) => return Err(format!("this machine cannot refuse by {other:?}")),
        }
        *self.refusing.lock().unwrap_or_else(PoisonError::into_inner) = refusing;
        Ok(())
    }
}

impl ProcessOutsider {
    /// Takes every lock that the backend waits for.
    fn lock_all(&self) -> Told<Vec<File>> {
        let planes = entries(&self.root).into_iter().filter(|path| path.is_dir());
        let turns = planes.flat_map(|plane| entries(&plane.join("instances"))).map(|folder| folder.join("turn"));
        let locks = [self.root.join(".lock")].into_iter().chain(turns).filter(|path| path.exists());
        let locked = locks.map(|path| {
            let file = File::open(&path)?;
            file.lock()?;
            Ok(file)
        });
        locked.collect::<std::io::Result<_>>().map_err(|error| error.to_string())
    }
}

/// Removes a folder that somebody who has it open may still be writing into.
fn remove_with_all(folder: &Path) -> io::Result<()> {
    for _ in 0..100 {
        match fs::remove_dir_all(folder) {
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {}
            done => return done,
        }
    }
    fs::remove_dir_all(folder)
}
