//! What this process uses.

use std::time::Duration;

/// Memory in use, by the kernel's account.
///
/// # Panics
/// When it does not tell.
#[must_use]
pub fn resident_mib() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("the kernel tells");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("the kernel tells");
    let kib: f64 = line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).expect("a number");
    kib / 1024.0
}

/// CPU time used so far, by the kernel's account, in clock ticks of 10 ms.
///
/// # Panics
/// When it does not tell.
#[must_use]
pub fn cpu_time() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("the kernel tells");
    let fields: Vec<&str> = stat.rsplit(") ").next().expect("the fields behind the name").split(' ').collect();
    let ticks: u64 = [11, 12].into_iter().filter_map(|field| fields[field].parse::<u64>().ok()).sum();
    Duration::from_millis(ticks * 10)
}
