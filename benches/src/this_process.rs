//! What this process uses.

use std::time::Duration;

use crate::cpu_seconds;

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

/// CPU time used so far, by the kernel's account, which is kept in hundredths of a second.
///
/// # Panics
/// When it does not tell.
#[must_use]
pub fn cpu_time() -> Duration {
    Duration::from_secs_f64(cpu_seconds())
}
