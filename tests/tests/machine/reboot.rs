//! The machine ends and comes back.

use crate::world::World;

/// Leaves a hundred pids, which all boots use: after the last one they go on at 300.
const FEW_PIDS: &str = "sysctl -q kernel.pid_max=400; while :; do : & [ $! -ge 300 ] && break; done";

/// Starts a process that has this pid, as leader of a session and a group. A thread of the kernel may have it for good:
/// that is somebody else too.
fn bystander(pid: i32) -> String {
    format!(
        "tries=0
         while [ $tries -lt 300 ] || ! [ -e /proc/{pid} ]; do
             (read own rest </proc/self/stat; [ $own = {pid} ] && exec setsid sleep infinity >/dev/null 2>&1) &
             [ $! = {pid} ] && exit
             wait $!
             tries=$((tries + 1))
         done"
    )
}

pub(crate) fn instances_are_made_again() {
    let world = World::new();
    let on = world.boot();
    on.machine.done(FEW_PIDS);
    on.start();
    let product = on.create();
    let (boot, incarnation) = (on.machine.boot_id().to_owned(), on.fact("incarnation"));
    on.machine.power_cut();

    let on = world.boot();
    assert_ne!(on.machine.boot_id(), boot);
    // Somebody else gets its number, as leader of a group and a session, before the service is back.
    on.machine.done(FEW_PIDS);
    on.machine.done(&bystander(product.pid));
    // It was a shell at first.
    let _ = on.machine.until_output(&format!("grep -v '^{0} (sh)' /proc/{0}/stat", product.pid));
    let look = format!("cut -d' ' -f6,22 /proc/{}/stat", product.pid);
    let before = on.machine.output(&look);
    on.start();
    on.until_running();
    assert_ne!(on.assert_one(), product);
    on.assert_reported_gone();
    assert_eq!(on.fact("incarnation"), incarnation, "the same making, started again");
    assert_eq!(on.ask("Sleep"), "ended done");
    assert_eq!(on.machine.output(&look), before, "nothing foreign was signalled");
    on.machine.shut_down();
}
