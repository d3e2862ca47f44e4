//! Which process an instance is, whether it lives, and how it is told to go.
//!
//! A process is a pid and a start time within one boot: pids are used again.

use std::{
    collections::HashSet,
    fmt,
    fs::{self, TryLockError},
    io,
    os::{fd::OwnedFd, unix::fs::MetadataExt},
    time::{Duration, Instant},
};

use provisioner_core::{ErrorKind, types::Usage};
use rustix::{
    io::Errno,
    process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions},
};

use crate::{
    error::{Problem, Result},
    layout::{self, InstanceFolder},
};

/// How long killed processes may take to end.
const STRAYS_END: Duration = Duration::from_secs(2);

/// One process, told apart from every other of this boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Process {
    pid: i32,
    /// Clock ticks since boot: field 22 of `/proc/PID/stat`.
    start: u64,
}

/// `pid start`.
impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.pid, self.start)
    }
}

/// How an exit is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    Code(i32),
    Signal(i32),
    /// It was not our child, or somebody else collected it.
    Unknown,
}

/// Whether anything of an instance lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Life {
    /// Nothing.
    Dead,
    /// Somebody holds the lock but has not said who: it is being started at this moment.
    Starting,
    /// The process that was started.
    Alive(Process),
    /// That one is dead, but descendants live.
    Leftovers(Option<Process>),
}

/// The fields of `/proc/PID/stat` that matter here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stat {
    process: Process,
    state: u8,
    session: i32,
    /// CPU time of its own and of children that it has waited for, in clock ticks.
    cpu_ticks: u64,
    /// Pages of memory that are its own or shared.
    pages: u64,
    /// All of its threads, the one that it began with among them, ended or not.
    threads: u64,
}

impl Stat {
    fn parse(text: &[u8]) -> Option<Self> {
        // The second field is the program's name in parentheses, and may hold anything, parentheses and spaces too.
        let close = text.iter().rposition(|byte| *byte == b')')?;
        let pid = std::str::from_utf8(text.get(..text.iter().position(|byte| *byte == b' ')?)?).ok()?.parse().ok()?;
        let rest = std::str::from_utf8(text.get(close + 2..)?).ok()?;
        let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
        let number = |at: usize| fields.get(at)?.parse::<u64>().ok();
        Some(Self {
            cpu_ticks: (11..=14).filter_map(number).sum(),
            pages: number(21).unwrap_or(0),
            threads: number(17).unwrap_or(1),
            state: *fields.first()?.as_bytes().first()?,
            session: fields.get(3)?.parse().ok()?,
            process: Process { pid, start: fields.get(19)?.parse().ok()? },
        })
    }

    fn of(pid: i32) -> Option<Self> {
        // Unreadable is gone: the file is readable by everybody for as long as the process is there.
        Self::parse(&fs::read(format!("/proc/{pid}/stat")).ok()?)
    }

    /// A zombie runs nothing and holds nothing, unless it is only its first thread that has ended.
    fn lives(&self) -> bool {
        !matches!(self.state, b'Z' | b'X' | b'x') || self.threads > 1
    }
}

impl Process {
    /// Who has this pid now.
    pub(crate) fn of(pid: u32) -> Option<Self> {
        Some(Stat::of(i32::try_from(pid).ok()?)?.process)
    }

    pub(crate) fn pid(self) -> i32 {
        self.pid
    }

    pub(crate) fn is_alive(self) -> bool {
        Stat::of(self.pid).is_some_and(|stat| stat.process == self && stat.lives())
    }

    /// How long ago it was started.
    pub(crate) fn age(self) -> Duration {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        let now = Duration::new(u64::try_from(now.tv_sec).unwrap_or(0), u32::try_from(now.tv_nsec).unwrap_or(0));
        now.saturating_sub(of_ticks(self.start))
    }

    /// What this one process uses, and has used together with children that have ended. Those that live are not counted.
    pub(crate) fn usage(self) -> Option<Usage> {
        let stat = Stat::of(self.pid).filter(|stat| stat.process == self)?;
        let page = u64::try_from(rustix::param::page_size()).unwrap_or(4096);
        Some(Usage { cpu: of_ticks(stat.cpu_ticks), memory_bytes: stat.pages * page })
    }

    /// A descriptor that becomes readable when it exits, with its last thread. `None`: it is gone already.
    pub(crate) fn pidfd(self) -> io::Result<Option<OwnedFd>> {
        let Some(pid) = Pid::from_raw(self.pid) else {
            return Ok(None);
        };
        match rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
            // Only now: the descriptor is of whoever has the pid, and stays with that one.
            Ok(pidfd) => Ok(self.is_alive().then_some(pidfd)),
            Err(Errno::SRCH) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Collects its status if it is a child of ours that has exited.
    pub(crate) fn reap(self) -> Exit {
        let is_this = || Stat::of(self.pid).is_some_and(|stat| stat.process == self);
        let Some(pid) = Pid::from_raw(self.pid).filter(|_| is_this()) else {
            return Exit::Unknown;
        };
        match rustix::process::waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOHANG) {
            Ok(Some(status)) => match (status.exit_status(), status.terminating_signal()) {
                (Some(code), _) => Exit::Code(code),
                (None, Some(signal)) => Exit::Signal(signal),
                (None, None) => Exit::Unknown,
            },
            Ok(None) | Err(_) => Exit::Unknown,
        }
    }

    /// Asks it and its group to stop.
    pub(crate) fn terminate(self) {
        // A group's number is free again only when its last member is gone, and the leader was seen alive just now.
        if self.is_alive()
            && let Some(group) = Pid::from_raw(self.pid)
            && let Err(error) = rustix::process::kill_process_group(group, Signal::TERM)
        {
            tracing::debug!(pid = self.pid, %error, "not signalled");
        }
    }

    /// Kills this one process, whatever it is doing.
    pub(crate) fn kill(self) {
        let killed = match self.pidfd() {
            Ok(Some(pidfd)) => rustix::process::pidfd_send_signal(&pidfd, Signal::KILL).map_err(io::Error::from),
            Ok(None) => return,
            // Out of descriptors, or a kernel without them: then between the look and the signal its number could be given out
            // again, which takes as long as all numbers do.
            Err(_) if self.is_alive() => Pid::from_raw(self.pid)
                .map_or(Ok(()), |pid| rustix::process::kill_process(pid, Signal::KILL).map_err(io::Error::from)),
            Err(_) => return,
        };
        if let Err(error) = killed {
            tracing::warn!(pid = self.pid, %error, "not killed");
        }
    }
}

fn of_ticks(ticks: u64) -> Duration {
    Duration::from_millis(ticks.saturating_mul(1000) / rustix::param::clock_ticks_per_second().max(1))
}

/// The id of this boot: pids and start times mean nothing in another one.
pub(crate) fn boot_id() -> Result<String> {
    let path = std::path::Path::new("/proc/sys/kernel/random/boot_id");
    let id = fs::read_to_string(path).map_err(|error| Problem::io("read", path, error))?;
    Ok(id.trim().to_owned())
}

/// What the `pid` file says: the process that was started last, if that was in this boot.
pub(crate) fn started_last(folder: &InstanceFolder) -> Result<Option<Process>> {
    let Some(text) = layout::read(&folder.pid())? else {
        return Ok(None);
    };
    let Some(line_end) = text.iter().position(|byte| *byte == b'\n') else {
        return Ok(None);
    };
    let (boot, stat) = text.split_at(line_end);
    if boot != boot_id()?.as_bytes() {
        return Ok(None);
    }
    Ok(Stat::parse(&stat[1..]).map(|stat| stat.process))
}

/// What tells the processes of an instance from others.
#[derive(Debug)]
pub(crate) struct Signs<'a> {
    /// What they were given as `DATA_PATH`.
    pub(crate) data_path: Option<&'a str>,
    /// The user that nothing else runs as.
    pub(crate) user: Option<u32>,
    /// Who is in its control group, if it has one.
    pub(crate) grouped: Option<Vec<i32>>,
}

/// What lives of the instance in this folder. `members` tells its processes, and is asked only where the one that was
/// started last is dead.
pub(crate) fn life(
    folder: &InstanceFolder,
    members: impl FnOnce(Option<Process>) -> Result<Vec<Process>>,
) -> Result<Life> {
    let leader = started_last(folder)?;
    if let Some(process) = leader
        && process.is_alive()
    {
        return Ok(Life::Alive(process));
    }
    let locked = is_locked(folder)?;
    // Nothing was started, or the last stop saw everything gone.
    if leader.is_none() && !locked {
        return Ok(Life::Dead);
    }
    if !members(leader)?.is_empty() {
        return Ok(Life::Leftovers(leader));
    }
    Ok(if locked { Life::Starting } else { Life::Dead })
}

/// Whether somebody holds the lock that the process and its descendants inherit.
pub(crate) fn is_locked(folder: &InstanceFolder) -> Result<bool> {
    let path = folder.life_lock();
    if !path.try_exists().map_err(|error| Problem::io("look for", &path, error))? {
        return Ok(false);
    }
    // Shared, so that two who only look do not take each other for a holder.
    let file = match layout::open_private(&path) {
        Ok(file) => file,
        // Removed between the two: nobody holds it.
        Err(problem) => return if path.exists() { Err(problem) } else { Ok(false) },
    };
    match file.try_lock_shared() {
        Ok(()) => Ok(false),
        Err(TryLockError::WouldBlock) => Ok(true),
        Err(TryLockError::Error(error)) => Err(Problem::io("lock", &path, error)),
    }
}

/// Every living process of the instance: those of its control group, as nobody but us puts anything there, and nothing in
/// there gets out. Without one, all processes of the machine are looked through: for those of the leader's session, those
/// that left it but hold the lock, and those of its user, which no process can get rid of.
///
/// A number alone proves nothing once the leader is dead, and a holder of the lock may be a control plane that is just
/// starting a process. So, but for the user, a process counts when two things say so: the session with its leader alive, or two of the
/// session, the lock and the environment it was started with.
pub(crate) fn members(folder: &InstanceFolder, leader: Option<Process>, signs: &Signs<'_>) -> Result<Vec<Process>> {
    if let Some(grouped) = &signs.grouped {
        let living = grouped.iter().filter_map(|pid| Stat::of(*pid)).filter(Stat::lives);
        return Ok(living.map(|stat| stat.process).collect());
    }
    let entries = fs::read_dir("/proc").map_err(|error| Problem::io("read", "/proc".as_ref(), error))?;
    let stats: Vec<Stat> = entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter_map(Stat::of)
        .filter(Stat::lives)
        .collect();
    let leader_lives = leader.is_some_and(|leader| stats.iter().any(|stat| stat.process == leader));
    // The number is given out again only when the session is empty.
    let recycled =
        leader.is_some_and(|leader| !leader_lives && stats.iter().any(|stat| stat.process.pid == leader.pid));
    let locked = is_locked(folder)?;
    let own = i32::try_from(std::process::id()).unwrap_or(0);
    let mut members = Vec::new();
    for stat in stats.iter().filter(|stat| stat.process.pid != own) {
        let in_session =
            !recycled && leader.is_some_and(|leader| stat.session == leader.pid && stat.process.start >= leader.start);
        if signs.user.is_some_and(|user| user_of(stat.process.pid) == Some(user)) {
            members.push(stat.process);
            continue;
        }
        if !in_session && !locked {
            continue;
        }
        let holds = || locked && holds_lock(stat.process.pid, folder);
        let named = || signs.data_path.is_some_and(|path| has_variable(stat.process.pid, "DATA_PATH", path));
        let counts = if in_session { leader_lives || holds() || named() } else { holds() && named() };
        if counts {
            members.push(stat.process);
        }
    }
    Ok(members)
}

/// Ends what still runs on data that nobody has: an outsider deleted the folder that named it. Two processes on one data
/// set would be worse than one that is killed.
pub(crate) fn end_strays(data_path: &str) -> Result<()> {
    let tell = |pid| tracing::warn!(pid, data_path, "killed: it ran on data whose instance's folder is gone");
    end_all(|| started_on(data_path), tell)
}

fn end_all(look: impl Fn() -> Result<Vec<Process>>, tell: impl Fn(i32)) -> Result<()> {
    let begin = Instant::now();
    loop {
        let strays = look()?;
        let Some(stray) = strays.first() else { return Ok(()) };
        if begin.elapsed() > STRAYS_END {
            let message = format!("process {} has the data and does not end, although killed", stray.pid());
            return Err(Problem::new(ErrorKind::Unavailable, message));
        }
        for stray in strays {
            tell(stray.pid());
            stray.kill();
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Ends all that runs as this user.
pub(crate) fn end_user(user: u32) -> Result<()> {
    end_all(|| with_user(user), |pid| tracing::warn!(pid, user, "killed: it ran as the user of data that is given up"))
}

fn with_user(user: u32) -> Result<Vec<Process>> {
    let entries = fs::read_dir("/proc").map_err(|error| Problem::io("read", "/proc".as_ref(), error))?;
    Ok(entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter_map(|pid| Some((Stat::of(pid)?, user_of(pid)?)))
        .filter(|(stat, of)| stat.lives() && *of == user)
        .map(|(stat, _)| stat.process)
        .collect())
}

/// Living processes that were started on this data folder, whoever started them.
fn started_on(data_path: &str) -> Result<Vec<Process>> {
    let entries = fs::read_dir("/proc").map_err(|error| Problem::io("read", "/proc".as_ref(), error))?;
    let own = i32::try_from(std::process::id()).unwrap_or(0);
    Ok(entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|pid| *pid != own && has_variable(*pid, "DATA_PATH", data_path))
        .filter_map(Stat::of)
        .filter(Stat::lives)
        .map(|stat| stat.process)
        .collect())
}

/// The users that living processes of this machine run as.
pub(crate) fn users() -> Result<HashSet<u32>> {
    let entries = fs::read_dir("/proc").map_err(|error| Problem::io("read", "/proc".as_ref(), error))?;
    Ok(entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok()).filter_map(user_of).collect())
}

/// The real user of a living process.
fn user_of(pid: i32) -> Option<u32> {
    // Unreadable is gone.
    user_in_status(&fs::read(format!("/proc/{pid}/status")).ok()?)
}

/// The real user of a process, unless it is a zombie with no thread left, which runs nothing.
fn user_in_status(status: &[u8]) -> Option<u32> {
    let field = |name: &str| {
        let value = status.split(|byte| *byte == b'\n').find_map(|line| line.strip_prefix(name.as_bytes()))?;
        std::str::from_utf8(value).ok()?.split_ascii_whitespace().next()
    };
    let threads = field("Threads:").and_then(|threads| threads.parse().ok()).unwrap_or(1);
    let lives = !matches!(field("State:"), Some("Z" | "X" | "x")) || threads > 1_u32;
    field("Uid:").filter(|_| lives)?.parse().ok()
}

/// Who holds the lock, for a message.
pub(crate) fn holders(folder: &InstanceFolder) -> Vec<i32> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|pid| holds_lock(*pid, folder))
        .collect()
}

fn holds_lock(pid: i32, folder: &InstanceFolder) -> bool {
    let file = |path: &std::path::Path| fs::metadata(path).ok().map(|file| (file.dev(), file.ino()));
    let (Some(lock), Ok(descriptors)) = (file(&folder.life_lock()), fs::read_dir(format!("/proc/{pid}/fd"))) else {
        return false;
    };
    descriptors.filter_map(io::Result::ok).any(|entry| file(&entry.path()) == Some(lock))
}

/// Whether a process has this socket open. One that may not be looked into is believed to.
pub(crate) fn holds_socket(pid: i32, inode: u64) -> bool {
    let socket = format!("socket:[{inode}]");
    match fs::read_dir(format!("/proc/{pid}/fd")) {
        Ok(descriptors) => descriptors
            .filter_map(io::Result::ok)
            .any(|entry| fs::read_link(entry.path()).is_ok_and(|file| file.as_os_str() == socket.as_str())),
        Err(error) => error.kind() == io::ErrorKind::PermissionDenied,
    }
}

/// Whether somebody who has this socket open was started on this data; `None`: nobody is seen to have it.
pub(crate) fn holder_of_socket(inode: u64, data_path: &str) -> Result<Option<bool>> {
    let entries = fs::read_dir("/proc").map_err(|error| Problem::io("read", "/proc".as_ref(), error))?;
    let mut found = None;
    for pid in entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()) {
        let may_be_seen = fs::read_dir(format!("/proc/{pid}/fd")).is_ok();
        // What is ending lets go of its memory before its sockets: whose it was cannot be seen any more, and soon does not matter.
        if may_be_seen && holds_socket(pid, inode) && !is_ending(pid) {
            found = Some(has_variable(pid, "DATA_PATH", data_path));
            if found == Some(true) {
                break;
            }
        }
    }
    Ok(found)
}

/// Whether a process has no memory any more; then neither its command line nor its environment can be read.
fn is_ending(pid: i32) -> bool {
    fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.is_empty())
}

fn has_variable(pid: i32, name: &str, value: &str) -> bool {
    let Ok(environment) = fs::read(format!("/proc/{pid}/environ")) else {
        return false;
    };
    let wanted = format!("{name}={value}");
    environment.split(|byte| *byte == 0).any(|variable| variable == wanted.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stat_is_read_whatever_the_program_is_called() {
        let fields = "S 1 42 43 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 98765 1 2";
        for name in ["product", "a b", ") S 1 (", "((", ""] {
            let stat = Stat::parse(format!("42 ({name}) {fields}\n").as_bytes()).unwrap();
            let process = Process { pid: 42, start: 98765 };
            let cpu_ticks = 5 + 6 + 7 + 8;
            let expected = Stat { process, state: b'S', session: 43, cpu_ticks, pages: 2, threads: 1 };
            assert_eq!(stat, expected, "{name}");
        }
        for garbage in ["", "42", "42 (a", "42 (a)", "x (a) S 1"] {
            assert_eq!(Stat::parse(garbage.as_bytes()), None, "{garbage}");
        }
    }

    #[test]
    fn what_has_ended_is_told_from_what_runs() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let ended = || std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap().contains(") Z ");
        while !ended() {
            std::thread::yield_now();
        }
        assert!(is_ending(pid), "nobody has waited for it yet");
        child.wait().unwrap();
        assert!(!is_ending(i32::try_from(std::process::id()).unwrap()));
    }

    #[test]
    fn the_users_of_what_lives() {
        let status = |state: &str| format!("Name:\tUid: 7\nState:\t{state}\nUid:\t5\t6\t7\t8\n");
        assert_eq!(user_in_status(status("S (sleeping)").as_bytes()), Some(5));
        assert_eq!(user_in_status(status("Z (zombie)").as_bytes()), None);
        assert_eq!(user_in_status(format!("{}Threads:\t2\n", status("Z (zombie)")).as_bytes()), Some(5));
        assert_eq!(user_in_status(b""), None);
        assert!(users().unwrap().contains(&rustix::process::getuid().as_raw()));
    }

    #[test]
    fn this_process_lives_and_one_with_its_pid_but_another_start_does_not() {
        let own = Stat::of(i32::try_from(std::process::id()).unwrap()).unwrap().process;
        assert!(own.is_alive());
        assert!(own.age() < Duration::from_secs(3600));
        assert!(own.usage().unwrap().memory_bytes > 0);
        let recycled = Process { start: own.start + 1, ..own };
        assert!(!recycled.is_alive());
        assert!(recycled.pidfd().unwrap().is_none());
        assert_eq!((recycled.reap(), recycled.usage()), (Exit::Unknown, None));
    }
}
