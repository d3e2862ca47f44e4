//! Which processes there are, by what `/proc` says of them.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};

/// The processes that have this path in their arguments or environment, or work in it. Not this one, and none that has
/// ended: of those nothing can be read.
#[must_use]
pub fn mentioning(path: &Path) -> Vec<i32> {
    let text = path.to_str().expect("a path of ours");
    let own = std::process::id().cast_signed();
    let numbers = fs::read_dir("/proc").expect("/proc").flatten();
    let mut found: Vec<i32> = numbers
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid| *pid != own)
        .filter(|pid| {
            let folder = fs::read_link(format!("/proc/{pid}/cwd")).unwrap_or_default();
            folder.starts_with(path) || ["cmdline", "environ"].iter().any(|name| file(*pid, name).contains(text))
        })
        .collect();
    found.sort_unstable();
    found
}

/// A variable of a process' environment, as it was started.
#[must_use]
pub fn variable(pid: i32, name: &str) -> Option<String> {
    let environment = file(pid, "environ");
    environment.split('\0').find_map(|variable| variable.strip_prefix(name)?.strip_prefix('=')).map(str::to_owned)
}

/// Kills every process that mentions this path, one by one, until none is left and none comes any more: what was being
/// started may turn up a moment later.
pub fn kill_all_mentioning(path: &Path) {
    let deadline = Instant::now() + Duration::from_secs(10);
    let mut quiet = 0;
    while quiet < 3 && Instant::now() < deadline {
        let left = mentioning(path);
        quiet = if left.is_empty() { quiet + 1 } else { 0 };
        for pid in left.into_iter().filter_map(Pid::from_raw) {
            let _ = kill_process(pid, Signal::KILL);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn file(pid: i32, name: &str) -> String {
    String::from_utf8_lossy(&fs::read(format!("/proc/{pid}/{name}")).unwrap_or_default()).into_owned()
}
