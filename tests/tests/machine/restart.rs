//! The service ends and comes back; the machine stays up.

use crate::world::{On, World};

/// What an operator does, and what happens to operators.
const ENDS: [&str; 3] = [
    "systemctl restart provisioner",
    "systemctl kill --kill-whom=main --signal=KILL provisioner",
    // An upgrade that takes a while.
    "systemctl stop provisioner && sleep 1 && systemctl start provisioner",
];

pub(crate) fn instances_outlive() {
    let world = World::new();
    let on = world.boot();
    on.start();
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
    world.hardware.set_unit("provisioner.service.d/kill.conf", "[Service]\nKillMode=control-group\n");
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
