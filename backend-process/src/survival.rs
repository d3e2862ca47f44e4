//! Whether instances go on when the control plane's process ends: what is known of who else would end them.

use std::fs;

use crate::cgroup::Groups;

/// What runs one program and ends with it, and is the first process of many containers. When the first process of a
/// container ends, the kernel kills all others.
const SMALL_INITS: [&str; 10] =
    ["tini", "docker-init", "podman-init", "catatonit", "dumb-init", "pause", "sh", "bash", "dash", "ash"];

/// Whether instances outlive this process. `spared`: the configuration says that its service manager spares its children.
pub(crate) fn of_instances(groups: &Groups, spared: bool) -> bool {
    // Readable by everybody. Where it is hidden, there is a system around that hides it.
    let init = fs::read("/proc/1/cmdline").unwrap_or_default();
    !ends_with_all(std::process::id(), &init) && (spared || groups.are_apart())
}

/// Whether the end of this process is the end of all processes that it can start. `init`: the command line of process 1.
fn ends_with_all(own_pid: u32, init: &[u8]) -> bool {
    let program = init.split(|byte| *byte == 0).next().unwrap_or_default();
    let name = program.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
    // As the number 1 in its own namespace it is the first process of a container, whatever it is called.
    own_pid == 1 || SMALL_INITS.iter().any(|small| small.as_bytes() == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_outlives_the_first_process_of_a_container() {
        let ends = |pid, init: &str| ends_with_all(pid, init.as_bytes());
        assert!(ends(1, "/usr/bin/control-plane\0--config\0/etc/config.toml\0"));
        for init in ["/sbin/docker-init\0--\0/control-plane\0", "tini\0--\0", "/bin/sh\0/entrypoint.sh\0", "/pause\0"] {
            assert!(ends(7, init), "{init}");
        }
        for init in ["/sbin/init\0splash\0", "/usr/lib/systemd/systemd\0--system\0", "/bin/s6-svscan\0", ""] {
            assert!(!ends(7, init), "{init}");
        }
    }
}
