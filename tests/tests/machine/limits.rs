//! What an instance may use, on a machine whose control groups are those of version 2 and belong to systemd.

use crate::world::{On, World};

/// The size of an instance whose spec says nothing of it.
const MEMORY: u64 = 256 << 20;

pub(crate) fn instances_are_held() {
    let world = World::new();
    let on = world.boot();
    on.start();
    assert!(on.ask("capabilities").contains("memory Instance"));
    let product = on.create();
    let group = |file: &str| value(&on, product.pid, file);
    assert_eq!(group("memory.max"), MEMORY.to_string());
    assert_eq!(group("memory.swap.max"), "0");
    assert_eq!(group("memory.oom.group"), "1");
    assert_eq!(group("pids.max"), "1024");
    assert_eq!(group("cpu.max"), "25000 100000");
    // They stay when systemd goes over its own.
    on.machine.done("systemctl daemon-reload && systemctl restart provisioner");
    let _ = on.ready();
    assert_eq!((group("memory.max"), group("cpu.max")), (MEMORY.to_string(), "25000 100000".into()));
    // Nobody may have noticed the restart.
    on.until_running();
    assert_eq!(on.assert_one(), product);

    on.ask_for_what_fails("get /take/400");
    on.until_running();
    let events = on.ask("events");
    assert!(events.contains("out-of-memory") && events.contains("256 MiB"), "{events}");
    let after = on.assert_one();
    assert_ne!(after, product);
    assert_eq!(value(&on, after.pid, "memory.max"), MEMORY.to_string());
    assert_eq!(on.ask("Sleep"), "ended done");
    assert_eq!(on.machine.output("ls -d /sys/fs/cgroup/provisioner/*/ 2>&- || true"), "", "asleep it has no group");
    on.machine.shut_down();
}

/// A file of the group that a process is in.
fn value(on: &On, pid: i32, file: &str) -> String {
    let read = format!("cat /sys/fs/cgroup$(sed -n 's/^0:://p' /proc/{pid}/cgroup)/{file}");
    on.machine.output(&read).trim().to_owned()
}
