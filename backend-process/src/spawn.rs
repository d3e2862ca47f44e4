//! Starts a process so that it can never be started twice. The one module with `unsafe` code.

#![allow(unsafe_code)]

use std::{
    ffi::{CStr, OsString},
    fs::File,
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::process::CommandExt,
    },
    process::{Child, Command, Stdio},
};

use rustix::{
    fs::{CWD, Mode, OFlags},
    io::{Errno, FdFlags},
    process::{Gid, Resource, Rlimit, Uid},
};
use tokio::io::{Interest, unix::AsyncFd};

/// What the child was doing when it failed before the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    Join = 1,
    Prepare,
    Confine,
}

impl Stage {
    /// Above every number of an error: all that a child can answer is one number.
    const SHIFT: i32 = 16;

    fn failed(self, error: Errno) -> io::Error {
        io::Error::from_raw_os_error((self as i32) << Self::SHIFT | error.raw_os_error())
    }

    /// Takes the answer apart. `None`: it was the program that could not be started.
    pub(crate) fn of(error: &io::Error) -> Option<(Self, io::Error)> {
        let answer = error.raw_os_error()?;
        let stages = [Self::Join, Self::Prepare, Self::Confine];
        let stage = stages.into_iter().find(|stage| *stage as i32 == answer >> Self::SHIFT)?;
        Some((stage, io::Error::from_raw_os_error(answer & ((1 << Self::SHIFT) - 1))))
    }

    /// What could not be done.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Join => "put into its control group",
            Self::Prepare => "given a session, its folder and its data",
            Self::Confine => "held to its limits and given to its user",
        }
    }
}

const STAT: &CStr = c"/proc/self/stat";
const PID: &CStr = c"pid";
const PID_NEW: &CStr = c"pid.new";

/// The first descriptor after input, output and error.
const FIRST_INHERITED: u32 = 3;
/// Where one by one has to do, descriptors are looked for up to here.
const DESCRIPTORS_MAX: u64 = 65_536;

/// All that a start needs, opened and made beforehand: after the fork nothing may be allocated.
#[derive(Debug)]
pub(crate) struct Start<'a> {
    pub(crate) program: &'a str,
    pub(crate) arguments: &'a [String],
    /// The whole environment.
    pub(crate) environment: Vec<(String, OsString)>,
    /// The instance's folder, which gets the `pid` file.
    pub(crate) folder: OwnedFd,
    /// The working directory.
    pub(crate) data: OwnedFd,
    pub(crate) log: File,
    /// The locked lock. The process and its descendants inherit it, so it stays locked while one of them lives.
    pub(crate) life_lock: File,
    /// The first line of the `pid` file, with its line end.
    pub(crate) boot_line: String,
    /// The files by which control groups are joined.
    pub(crate) groups: Vec<File>,
    /// Bounds of each process.
    pub(crate) limits: Vec<(Resource, u64)>,
    /// The user to run as, and the group of the same number; `None`: as this process.
    pub(crate) user: Option<u32>,
}

/// Forks and executes. When this returns, the `pid` file is there, or nothing runs.
///
/// The child itself makes its session and writes who it is before it becomes the program. So whoever kills this process
/// between any two lines leaves either no child, or one that holds the lock and says who it is, or is about to. Until the
/// program begins the child also holds every other lock that this process has, the verb's turn among them.
pub(crate) fn spawn(start: Start<'_>) -> io::Result<Child> {
    let Start { program, arguments, environment, folder, data, log, life_lock, boot_line, groups, limits, user } =
        start;
    let mut command = Command::new(program);
    command.args(arguments).env_clear().envs(environment).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    let lock = OwnedFd::from(life_lock);
    let prepare = move || {
        close_inherited();
        join(&groups).map_err(|error| Stage::Join.failed(error))?;
        prepare(folder.as_fd(), data.as_fd(), lock.as_fd(), boot_line.as_bytes())
            .map_err(|error| Stage::Prepare.failed(error))?;
        confine(&limits, user).map_err(|error| Stage::Confine.failed(error))
    };
    // SAFETY: between fork and exec only async-signal-safe work is allowed. What is called makes plain system calls on a
    // stack buffer, constant names and lists made beforehand; it allocates nothing, takes no lock and cannot panic. An `io::Error` made of an errno
    // allocates nothing either.
    unsafe { command.pre_exec(prepare) };
    command.spawn()
}

/// Runs in the child, first of all: whatever this process has open beyond input, output and error ends where the program
/// begins, also what it inherited itself and knows nothing of. Until then everything stays open, as it is still needed.
fn close_inherited() {
    // SAFETY: plain system calls on numbers. Marking a descriptor changes nothing for those who use it in the child, and
    // nothing at all in the parent: after a fork the table of descriptors is the child's own.
    let marked =
        unsafe { libc::syscall(libc::SYS_close_range, FIRST_INHERITED, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    if marked == 0 {
        return;
    }
    // A kernel before 5.11, or a filter that does not know the call.
    let bound = rustix::process::getrlimit(Resource::Nofile).current.unwrap_or(DESCRIPTORS_MAX).min(DESCRIPTORS_MAX);
    for descriptor in FIRST_INHERITED..u32::try_from(bound).unwrap_or(0) {
        mark_to_close(descriptor);
    }
}

/// Has a descriptor closed where the program begins. One that is not open is left alone.
fn mark_to_close(descriptor: u32) {
    // SAFETY: as above.
    unsafe { libc::fcntl(descriptor.cast_signed(), libc::F_SETFD, libc::FD_CLOEXEC) };
}

/// Runs in the child, next: what it does from here on counts for the instance.
fn join(groups: &[File]) -> Result<(), Errno> {
    for group in groups {
        // Whoever writes it is meant.
        rustix::io::write(group, b"0")?;
    }
    Ok(())
}

/// Runs in the child, last of all: from here on it may do only what the product may.
fn confine(limits: &[(Resource, u64)], user: Option<u32>) -> Result<(), Errno> {
    for (resource, limit) in limits {
        rustix::process::setrlimit(*resource, Rlimit { current: Some(*limit), maximum: Some(*limit) })?;
    }
    if let Some(user) = user {
        // In this order: without its user it may change neither of the others. One thread is all there is after a fork.
        let (uid, gid) = (Uid::from_raw(user), Gid::from_raw(user));
        rustix::thread::set_thread_groups(&[])?;
        rustix::thread::set_thread_res_gid(gid, gid, gid)?;
        rustix::thread::set_thread_res_uid(uid, uid, uid)?;
    }
    rustix::thread::set_no_new_privs(true)
}

/// Runs in the child, after the fork and before the program.
fn prepare(folder: BorrowedFd<'_>, data: BorrowedFd<'_>, lock: BorrowedFd<'_>, boot_line: &[u8]) -> Result<(), Errno> {
    // A session of its own: no terminal, no signal meant for the control plane's group, and one group to signal.
    rustix::process::setsid()?;
    // In the child alone: had the parent cleared it, any other program that it starts meanwhile would hold the lock too.
    rustix::io::fcntl_setfd(lock, FdFlags::empty())?;

    let mut buffer = [0_u8; 1024];
    let stat = rustix::fs::open(STAT, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let length = rustix::io::read(&stat, &mut buffer)?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC;
    let file = rustix::fs::openat(folder, PID_NEW, flags, Mode::RUSR | Mode::WUSR)?;
    for part in [boot_line, buffer.get(..length).ok_or(Errno::IO)?] {
        if rustix::io::write(&file, part)? != part.len() {
            return Err(Errno::NOSPC);
        }
    }
    // Not synced: after a crash of the machine the boot id tells that it is stale.
    rustix::fs::renameat(folder, PID_NEW, folder, PID)?;
    rustix::process::fchdir(data)
}

/// Opens a folder for [`Start`].
pub(crate) fn open_folder(path: &std::path::Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(CWD, path, flags, Mode::empty())?)
}

/// Registers a pidfd, to be told when its process exits.
///
/// # Panics
/// Outside a tokio runtime with I/O.
pub(crate) fn register(pidfd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the descriptor must be open, and stay the same one, for as long as it is registered. An `OwnedFd` is open,
    // always names the same descriptor, and is owned by what is returned.
    Ok(unsafe { AsyncFd::register_with_interest(pidfd, Interest::READABLE) }?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_tells_what_it_was_doing_and_why_that_failed() {
        for stage in [Stage::Join, Stage::Prepare, Stage::Confine] {
            let (of, why) = Stage::of(&stage.failed(Errno::NOSPC)).unwrap();
            assert_eq!((of, why.kind()), (stage, io::ErrorKind::StorageFull));
        }
        assert!(Stage::of(&Errno::NOENT.into()).is_none());
        assert!(Stage::of(&io::Error::other("no number")).is_none());
    }
}
