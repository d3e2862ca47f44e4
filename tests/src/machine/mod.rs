//! A machine to boot, to cut off and to boot again: Linux as a process, with real systemd and a real cgroup v2.
//!
//! It needs Debian's package `user-mode-linux` and neither KVM nor a network. Its root is this machine's `/usr`, read-only,
//! in an otherwise empty tree. `/var/lib` is a disk of its own, an image in the test's folder; `/shared` is a folder that
//! both sides see; `/opt/programs` is the folder of the programs that tests start.

use std::{
    fmt,
    fs::{self, File},
    io::{self, PipeWriter, Write},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        LazyLock,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use rustix::{
    fs::{StatVfsMountFlags, statvfs},
    process::{Pid, Signal, kill_process_group},
};

const INIT: &str = include_str!("init.sh");
const AGENT: &str = include_str!("agent.sh");

/// As in the variable `REQUIRED_PEERS`.
const PEER: &str = "user-mode-linux";
/// What has to be here.
const KERNEL: &str = "linux.uml";
const MKFS: &str = "mkfs.ext4";
const SYSTEMD: &str = "/usr/lib/systemd/systemd";

const MEMORY: u64 = 512 << 20;
const DISK: u64 = 256 << 20;
/// How long a boot may take, on a machine that is busy with others.
const BOOT_MAX: Duration = Duration::from_secs(90);
/// How long a command may take, likewise.
const COMMAND_MAX: Duration = Duration::from_secs(60);
/// How long a clean end may take.
const END_MAX: Duration = Duration::from_secs(180);
/// How much of the console a failure shows.
const CONSOLE_LINES: usize = 40;
const DELAY: Duration = Duration::from_millis(5);

/// What is missing for a machine, if anything is.
///
/// # Errors
/// When `REQUIRED_PEERS` names it: then a machine without it does not count.
pub fn missing() -> Result<Option<String>, String> {
    let absent = [KERNEL, MKFS].into_iter().find(|name| program(name).is_none());
    let absent = absent.or_else(|| (!Path::new(SYSTEMD).exists()).then_some(SYSTEMD));
    let Some(absent) = absent else { return Ok(None) };
    let required = std::env::var("REQUIRED_PEERS").unwrap_or_default();
    if required.split(',').any(|peer| peer.trim() == PEER) {
        return Err(format!("{PEER} is required, and {absent} is missing"));
    }
    Ok(Some(format!("{absent} is missing (Debian: user-mode-linux, e2fsprogs, systemd)")))
}

/// What lets the kernel boot on processors with more registers than it has room for; see the source. Made here, as it is for this
/// kernel alone. `None`: there is no compiler, and most processors need none of it.
static PLAIN_REGISTERS: LazyLock<Option<PathBuf>> = LazyLock::new(|| {
    let folder = std::env::temp_dir();
    let (own, library) =
        (format!("plain-registers-{}", std::process::id()), folder.join("provisioner-plain-registers.so"));
    let (source, made) = (folder.join(format!("{own}.c")), folder.join(format!("{own}.so")));
    fs::write(&source, include_str!("plain_registers.c")).ok()?;
    let compiled =
        Command::new("cc").args(["-shared", "-fPIC", "-O1", "-o"]).arg(&made).arg(&source).arg("-ldl").status();
    let _ = fs::remove_file(&source);
    compiled.ok().filter(ExitStatus::success)?;
    // Others may make it at the same moment.
    fs::rename(&made, &library).ok()?;
    Some(library)
});

fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(["/usr/bin", "/usr/sbin"].map(PathBuf::from));
    folders.map(|folder| folder.join(name)).find(|path| path.is_file())
}

/// What is kept of a machine while it is off: its disk, its name, its units.
#[derive(Debug)]
pub struct Hardware {
    folder: PathBuf,
}

impl Hardware {
    /// A new one in this folder, with an empty disk. `programs` shows in the guest as `/opt/programs`.
    ///
    /// # Panics
    /// When it cannot be made.
    #[must_use]
    pub fn new(folder: &Path, programs: &Path) -> Self {
        assert!(!folder.to_str().expect("UTF-8").contains(' '), "the kernel's command line is split at spaces");
        let hardware = Self { folder: folder.to_owned() };
        let shared = hardware.shared();
        for folder in [&shared, &shared.join("units"), &shared.join("commands")] {
            fs::create_dir(folder).expect("a folder");
        }
        let write = |name: &str, text: &str| fs::write(shared.join(name), text).expect("a file");
        write("init", INIT);
        write("agent", AGENT);
        write("programs", programs.to_str().expect("UTF-8"));
        write("machine-id", "0123456789abcdef0123456789abcdef\n");
        let runs = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(shared.join("init"), runs).expect("a mode");
        let disk = hardware.disk();
        File::create(&disk).and_then(|disk| disk.set_len(DISK)).expect("a disk");
        let made = Command::new(program(MKFS).expect("looked for before")).args(["-q", "-F"]).arg(&disk).output();
        let made = made.expect("mkfs.ext4 starts");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        hardware
    }

    /// Sets a unit of the machine, or a drop-in: `provisioner.service`, `provisioner.service.d/here.conf`. It is there
    /// from the next boot on.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn set_unit(&self, name: &str, text: &str) {
        let path = self.shared().join("units").join(name);
        fs::create_dir_all(path.parent().expect("a folder above")).expect("a folder");
        fs::write(path, text).expect("a unit");
    }

    /// The folder that the guest sees as `/shared`.
    #[must_use]
    pub fn shared(&self) -> PathBuf {
        self.folder.join("shared")
    }

    /// Switches it on and waits until it takes commands.
    ///
    /// # Panics
    /// With what is on its console when it does not come up.
    #[must_use]
    pub fn boot(&self) -> Machine {
        let began = Instant::now();
        let booted = self.shared().join("booted");
        let _ = fs::remove_file(&booted);
        let console = self.folder.join("console");
        let (input, bell) = io::pipe().expect("a pipe");
        let child = self.kernel().stdin(input).stdout(File::create(&console).expect("a file")).spawn();
        let mut machine = Machine {
            group: None,
            child: child.expect("the kernel starts"),
            bell,
            shared: self.shared(),
            console,
            boot_id: String::new(),
            boot_time: Duration::ZERO,
            commands: AtomicU64::new(0),
        };
        machine.group = Pid::from_raw(machine.child.id().cast_signed());
        machine.until("it boots", BOOT_MAX, || booted.exists());
        machine.boot_id = fs::read_to_string(&booted).expect("a boot id").trim().to_owned();
        machine.boot_time = began.elapsed();
        machine
    }

    fn disk(&self) -> PathBuf {
        self.folder.join("disk")
    }

    fn kernel(&self) -> Command {
        let path = |path: PathBuf| path.to_str().expect("UTF-8").to_owned();
        let mut command = Command::new(program(KERNEL).expect("looked for before"));
        if let Some(library) = &*PLAIN_REGISTERS {
            command.env("LD_PRELOAD", library);
        }
        command
            .arg(format!("mem={}M", MEMORY >> 20))
            .arg(format!("ubd0={}", path(self.disk())))
            .args(["root=/dev/root", "rootfstype=hostfs", "rootflags=/", "ro"])
            .arg(format!("init={}", path(self.shared().join("init"))))
            // What the kernel does not know goes into the environment of `init`.
            .arg(format!("shared={}", path(self.shared())))
            .args(["con=null", "con0=null,fd:1", "ssl=null", "ssl0=fd:0,null"])
            // Or it would leave a folder in the home folder.
            .arg(format!("uml_dir={}", path(self.folder.join("uml"))))
            .args(["quiet", "selinux=0"])
            .args(["systemd.unit=multi-user.target", "systemd.log_target=console", "systemd.log_color=0"])
            // Its memory is a file there.
            .env("TMPDIR", memory_folder(&self.folder))
            .stderr(Stdio::null())
            // It is many processes of this machine. So they can be ended at once.
            .process_group(0);
        command
    }
}

/// Where a machine's memory goes: into memory, if there is as much and code may run there, as in small containers there
/// is and may not.
fn memory_folder(otherwise: &Path) -> PathBuf {
    let shm = Path::new("/dev/shm");
    let fits = statvfs(shm)
        .is_ok_and(|shm| shm.f_bavail * shm.f_frsize > 2 * MEMORY && !shm.f_flag.contains(StatVfsMountFlags::NOEXEC));
    if fits { shm.to_owned() } else { otherwise.to_owned() }
}

/// What came of a command in the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ran {
    /// Its exit code, as a shell tells it.
    pub code: i32,
    /// What it printed, on either stream.
    pub output: String,
}

/// A machine that is on. When dropped, its power is cut.
pub struct Machine {
    group: Option<Pid>,
    child: Child,
    bell: PipeWriter,
    shared: PathBuf,
    console: PathBuf,
    boot_id: String,
    boot_time: Duration,
    commands: AtomicU64,
}

impl fmt::Debug for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "machine {} with\n{}", self.boot_id, self.console())
    }
}

impl Machine {
    /// The kernel's id of this boot.
    #[must_use]
    pub fn boot_id(&self) -> &str {
        &self.boot_id
    }

    /// How long it took to boot.
    #[must_use]
    pub fn boot_time(&self) -> Duration {
        self.boot_time
    }

    /// Runs a shell command in the guest, as root.
    ///
    /// # Panics
    /// When it does not end in time.
    #[must_use]
    pub fn run(&self, command: &str) -> Ran {
        // Not the names of an earlier boot: a stale answer would be taken for this one's.
        let name = format!("{}-{}", self.boot_id, self.commands.fetch_add(1, Ordering::Relaxed));
        let file = |end: &str| self.shared.join("commands").join(format!("{name}{end}"));
        fs::write(file(""), command).expect("a command");
        self.ring(&name);
        let read = |end| String::from_utf8_lossy(&fs::read(file(end)).unwrap_or_default()).into_owned();
        self.until(command, COMMAND_MAX, || read(".code").ends_with('\n'));
        let ran = Ran { code: read(".code").trim().parse().expect("a code"), output: read(".output") };
        for end in ["", ".code", ".output"] {
            fs::remove_file(file(end)).expect("a file of ours");
        }
        ran
    }

    /// The same for a command that must succeed: what it printed.
    ///
    /// # Panics
    /// When it fails.
    #[must_use]
    pub fn output(&self, command: &str) -> String {
        let ran = self.run(command);
        assert_eq!(ran.code, 0, "{command}: {}{}", ran.output, self.told());
        ran.output.trim_end().to_owned()
    }

    /// The same when what it prints does not matter.
    ///
    /// # Panics
    /// When it fails.
    pub fn done(&self, command: &str) {
        let _ = self.output(command);
    }

    /// A file of the guest, if it is there.
    ///
    /// # Panics
    /// When it is there and cannot be read.
    #[must_use]
    pub fn file(&self, path: &str) -> Option<String> {
        let ran = self.run(&format!("test -e '{path}' || exit 44; cat '{path}'"));
        match ran.code {
            0 => Some(ran.output),
            44 => None,
            code => panic!("{path}: {code}: {}", ran.output),
        }
    }

    /// Asks again and again until a command succeeds: what it printed then.
    ///
    /// # Panics
    /// With what it printed last when it never does.
    #[must_use]
    pub fn until_output(&self, command: &str) -> String {
        let deadline = Instant::now() + COMMAND_MAX;
        loop {
            let ran = self.run(command);
            if ran.code == 0 {
                return ran.output.trim_end().to_owned();
            }
            assert!(Instant::now() < deadline, "{command}: {}{}", ran.output, self.told());
            thread::sleep(DELAY);
        }
    }

    /// Cuts its power: what the guest had not written to its disk is lost.
    pub fn power_cut(mut self) {
        self.kill();
    }

    /// Shuts it down as an operator would.
    ///
    /// # Panics
    /// When it does not end in time, or leaves something running here.
    pub fn shut_down(mut self) {
        // No answer is waited for: the one who would give it is stopped.
        self.ring("off");
        let deadline = Instant::now() + END_MAX;
        while self.ended().is_none() || !self.processes().is_empty() {
            assert!(Instant::now() < deadline, "not off within {END_MAX:?}{}", self.told());
            thread::sleep(DELAY);
        }
        self.group = None;
    }

    /// The last lines on its console.
    #[must_use]
    pub fn console(&self) -> String {
        let text = String::from_utf8_lossy(&fs::read(&self.console).unwrap_or_default()).into_owned();
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(CONSOLE_LINES)..].join("\n")
    }

    /// The processes of the host that it consists of.
    #[must_use]
    pub fn processes(&self) -> Vec<i32> {
        self.group.map(members).unwrap_or_default()
    }

    fn ring(&self, line: &str) {
        let rung = (&self.bell).write_all(format!("{line}\n").as_bytes());
        rung.unwrap_or_else(|error| panic!("{line}: nobody listens: {error}{}", self.told()));
    }

    fn told(&self) -> String {
        format!("\nlast on the console:\n{}", self.console())
    }

    /// Waits for the host's side of something.
    fn until(&self, what: &str, most: Duration, is: impl Fn() -> bool) {
        let deadline = Instant::now() + most;
        while !is() {
            // A panic of its kernel ends it too.
            let lives = group_of_living(self.child.id().cast_signed()).is_some();
            assert!(lives || is(), "the machine ended before: {what}{}", self.told());
            assert!(Instant::now() < deadline, "not within {most:?}: {what}{}", self.told());
            thread::sleep(DELAY);
        }
    }

    fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("a child of ours")
    }

    /// Ends every process of it. What its first process started is killed along with it: left to themselves they would
    /// stay, stopped in the middle of a system call.
    fn kill(&mut self) {
        let Some(group) = self.group.take() else { return };
        let deadline = Instant::now() + Duration::from_secs(10);
        // As long as one of them is there, nobody else can have the group's number.
        while self.ended().is_none() || !members(group).is_empty() {
            let _ = kill_process_group(group, Signal::KILL);
            if Instant::now() > deadline {
                break;
            }
            thread::sleep(DELAY);
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The processes of this group that have not ended.
fn members(group: Pid) -> Vec<i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid| group_of_living(*pid) == Some(group.as_raw_nonzero().get())).collect()
}

/// The process group of a process that has not ended.
fn group_of_living(pid: i32) -> Option<i32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    let state = fields.next()?;
    let group = fields.nth(1)?.parse().ok()?;
    (!matches!(state, "Z" | "X")).then_some(group)
}
