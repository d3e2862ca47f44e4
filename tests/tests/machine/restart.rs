//! The service ends and comes back; the machine stays up.

use crate::world::{On, World};

/// What an operator does, and what happens to operators.
const ENDS: [&str; 3] = [
    "systemctl restart provisioner",
    "systemctl kill --kill-whom=main --signal=KILL provisioner",
    // An upgrade that takes a while.
    "systemctl stop provisioner && sleep 1 && systemctl start provisioner",
];

/// In the group of the service, which the unit that the project ships spares.
pub(crate) fn instances_outlive_by_the_unit() {
    instances_outlive("Environment=GROUPS=none");
}

/// Though the service is stopped with all that is in its group.
pub(crate) fn instances_outlive_by_their_groups() {
    instances_outlive("KillMode=control-group");
}

fn instances_outlive(unit: &str) {
    let world = World::new();
    world.hardware.set_unit("provisioner.service.d/how.conf", &format!("[Service]\n{unit}\n"));
    let on = world.boot();
    on.start();
    let by_groups = !unit.contains("GROUPS");
    let told = on.ask("capabilities");
    assert!(told.contains(&format!("survives {by_groups}")) && told.contains("users true"), "{unit}: {told}");
    let product = on.create();
    let mut service = on.ready();
    for end in ENDS {
        on.machine.done(end);
        service = another(&on, service);
        on.until_running();
        assert_eq!(on.assert_one(), product, "{end}");
        assert_eq!(on.starts().len(), 1, "{end}");
        assert!(!on.ask("events").contains("Failed"), "{end}: nobody noticed anything");
    }
    // The new one is as good as the old one: it can end what it did not start.
    assert_eq!(on.ask("Sleep"), "ended done");
    assert_eq!(on.products(), []);
    assert_eq!(on.ask("Wake"), "ended done");
    on.assert_one();
    assert_eq!(on.starts().len(), 2);
    on.machine.shut_down();
}

pub(crate) fn instances_die() {
    let world = World::new();
    world
        .hardware
        .set_unit("provisioner.service.d/kill.conf", "[Service]\nKillMode=control-group\nEnvironment=GROUPS=none\n");
    let on = world.boot();
    on.start();
    let product = on.create();
    let mut service = on.ready();
    // Not all three: the engine of tests gives up what fails three times in a row.
    for (end, starts) in ENDS.into_iter().take(2).zip(2..) {
        on.machine.done(end);
        service = another(&on, service);
        on.until_running();
        assert_ne!(on.assert_one(), product, "{end}");
        assert_eq!(on.starts().len(), starts, "{end}");
        on.assert_reported_gone();
    }
    on.machine.shut_down();
}

/// The pid of the service, once it is another one than before.
fn another(on: &On, before: i32) -> i32 {
    let is_another = format!(
        "pid=$(systemctl show --property=MainPID --value provisioner); \
        [ $pid != 0 ] && [ $pid != {before} ]"
    );
    let _ = on.machine.until_output(&is_another);
    on.ready()
}
