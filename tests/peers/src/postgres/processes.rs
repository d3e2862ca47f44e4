//! Processes of the machine: who is whose child, and how they are.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

const DELAY: Duration = Duration::from_millis(10);

/// Asks again and again until there is an answer, for so long.
pub(super) fn until<T>(max: Duration, mut ask: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + max;
    loop {
        if let Some(answer) = ask() {
            return Some(answer);
        }
        if Instant::now() >= deadline {
            return None;
        }
        thread::sleep(DELAY);
    }
}

/// Sends a signal to processes. One that has ended meanwhile is no problem.
pub(super) fn signal(name: &str, pids: &[u32]) -> Result<(), String> {
    // A shell has it built in, and the program of that name is not on every machine.
    let mut command = Command::new("/bin/sh");
    command.args(["-c", "for pid; do kill -s \"$signal\" \"$pid\"; done"]).arg("kill").env("signal", name);
    command.args(pids.iter().map(u32::to_string));
    let sent = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
    sent.map(drop).map_err(|error| format!("/bin/sh does not start: {error}"))
}

/// Whether a process does nothing more for now: it is stopped, or has ended.
pub(super) fn rests(pid: u32) -> bool {
    table().iter().find(|process| process.pid == pid).is_none_or(|process| process.is_stopped() || !process.lives())
}

/// The processes that this one started and that are not over.
pub(super) fn children(pid: u32) -> Vec<u32> {
    table().iter().filter(|process| process.parent == pid && process.lives()).map(|process| process.pid).collect()
}

/// Whether any of these is not over.
pub(super) fn any_lives(pids: &[u32]) -> bool {
    !pids.is_empty() && table().iter().any(|process| pids.contains(&process.pid) && process.lives())
}

#[derive(Debug, PartialEq, Eq)]
struct Process {
    pid: u32,
    parent: u32,
    /// As `ps` tells it.
    state: char,
}

impl Process {
    const fn lives(&self) -> bool {
        // Nobody may ever read how it ended, as where nothing takes in orphans.
        !matches!(self.state, 'Z' | 'X')
    }

    const fn is_stopped(&self) -> bool {
        matches!(self.state, 'T' | 't')
    }

    /// Of `PID (NAME) STATE PARENT ...`, where the name may contain anything.
    fn of_stat(text: &str) -> Option<Self> {
        let (pid, rest) = text.split_once(" (")?;
        let mut rest = rest.rsplit_once(") ")?.1.split(' ');
        let state = rest.next()?.chars().next()?;
        Some(Self { pid: pid.parse().ok()?, parent: rest.next()?.parse().ok()?, state })
    }

    /// Of `PID PARENT STATE`.
    fn of_ps(line: &str) -> Option<Self> {
        let mut words = line.split_whitespace();
        let mut number = || words.next()?.parse().ok();
        let (pid, parent) = (number()?, number()?);
        Some(Self { pid, parent, state: words.next()?.chars().next()? })
    }
}

/// Every process.
fn table() -> Vec<Process> {
    if Path::new("/proc/self/stat").exists() {
        let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
        let is_process = |name: &std::ffi::OsStr| name.to_str().is_some_and(|name| name.parse::<u32>().is_ok());
        let processes = entries.filter(|entry| is_process(&entry.file_name()));
        return processes
            .filter_map(|it| Process::of_stat(&fs::read_to_string(it.path().join("stat")).ok()?))
            .collect();
    }
    let listed = Command::new("ps").args(["-A", "-o", "pid=,ppid=,state="]).stdin(Stdio::null()).output();
    let listed = listed.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    listed.lines().filter_map(Process::of_ps).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_may_contain_what_surrounds_it() {
        let process = Process::of_stat("7 (a) Z 1 (b) S 5 7 7 0 -1 4194304").unwrap();
        assert_eq!(process, Process { pid: 7, parent: 5, state: 'S' });
        assert_eq!(Process::of_ps("  7     5 Ss+"), Some(process));
    }

    #[test]
    fn a_child_is_seen_to_stop_and_to_end() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let pid = child.id();
        assert!(children(std::process::id()).contains(&pid) && any_lives(&[pid]) && !rests(pid));
        signal("STOP", &[pid]).unwrap();
        until(Duration::from_secs(10), || rests(pid).then_some(())).unwrap();
        assert!(any_lives(&[pid]));
        signal("KILL", &[pid]).unwrap();
        // Not waited for, it is over all the same.
        until(Duration::from_secs(10), || (!any_lives(&[pid])).then_some(())).unwrap();
        child.wait().unwrap();
    }
}
