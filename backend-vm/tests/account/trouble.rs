//! What befalls machines that nobody here has called for.

use std::time::Duration;

use test_ec2::{Lasting, Options};

use crate::stage::{Stage, by, create, done, id, until};

pub(crate) async fn stopped() {
    let stage = Stage::new().await;
    let first = stage.running(1).await;
    let machine = stage.machine(1).await;
    stage.stand.stop_behind(&machine.id).await.unwrap();
    until("it was told", || async { stage.reasons(1).await.contains(&"stopped".to_owned()).then_some(()) }).await;
    until("it runs again", || async { stage.plane.get(&id(1)).await.unwrap().settled.then_some(()) }).await;
    assert_eq!(stage.machine(1).await.id, machine.id);
    assert_eq!(stage.plane.get(&id(1)).await.unwrap().incarnation, first.incarnation, "the same making");
}

pub(crate) async fn ended() {
    let stage = Stage::new().await;
    let first = stage.running(1).await;
    let machine = stage.machine(1).await;
    stage.stand.terminate_behind(&machine.id).await.unwrap();
    let other = stage.runs_on_other_than(1, &machine).await;
    assert_eq!(other.volumes, machine.volumes, "its data");
    assert_ne!(stage.plane.get(&id(1)).await.unwrap().incarnation, first.incarnation, "another making");
}

pub(crate) async fn impaired() {
    let patient = Stage::new().await;
    patient.running(1).await;
    let machine = patient.machine(1).await;
    patient.stand.impair(&machine.id, true).unwrap();
    let is_told = || async {
        let reason = patient.plane.get(&id(1)).await.unwrap().reason?;
        (&*reason.code == "status-check").then_some(())
    };
    until("it was told", is_told).await;
    // Many come back by themselves, and the first minutes are theirs.
    patient.stand.impair(&machine.id, false).unwrap();
    until("it runs again", || async { patient.plane.get(&id(1)).await.unwrap().settled.then_some(()) }).await;
    assert_eq!(patient.machine(1).await.id, machine.id);

    let options = Options { boots: false, ..Options::default() };
    let stage = Stage::with(options, |config| config.impaired_for = Duration::from_secs(1)).await;
    stage.running(1).await;
    let machine = stage.machine(1).await;
    stage.stand.impair(&machine.id, true).unwrap();
    let other = stage.runs_on_other_than(1, &machine).await;
    assert_eq!(other.volumes, machine.volumes, "its data");
    let reasons = stage.reasons(1).await;
    assert!(reasons.contains(&"status-check".to_owned()), "{reasons:?}");
}

pub(crate) async fn retiring() {
    let stage = Stage::new().await;
    stage.running(1).await;
    stage.running(2).await;
    let (soon, later) = (stage.machine(1).await, stage.machine(2).await);
    stage.stand.retire(&later.id, "2099-01-01T00:00:00.000Z").unwrap();
    stage.stand.retire(&soon.id, "2020-01-01T00:00:00.000Z").unwrap();
    let other = stage.runs_on_other_than(1, &soon).await;
    assert_eq!(other.volumes, soon.volumes, "its data");
    let reasons = stage.reasons(1).await;
    assert!(reasons.contains(&"retirement".to_owned()), "{reasons:?}");
    assert_eq!(stage.machine(2).await.id, later.id, "it is left alone until shortly before");
}

pub(crate) async fn doomed() {
    let stage = Stage::new().await;
    stage.stand.doom("Client.InternalError", "Client.InternalError: Client error on launch");
    done(create(&stage.plane, 1, stage.spec()).await).await;
    stage.machine(1).await;
    let reasons = stage.reasons(1).await;
    assert!(reasons.contains(&"launch-failed".to_owned()), "{reasons:?}");
    done(crate::stage::destroy(&stage.plane, 1).await).await;
    assert_eq!(stage.stand.left((crate::stage::OWNER, "stage")).await, Vec::<String>::new());
}

pub(crate) async fn full_zone() {
    let stage = Stage::new().await;
    let zones: Vec<_> = stage.stand.subnets().into_iter().map(|(_, zone)| zone).collect();
    stage.stand.befall(Some(Lasting::NoCapacityIn(vec![zones[0].clone()])));
    stage.running(1).await;
    let machine = stage.machine(1).await;
    assert_eq!((machine.zone.as_str(), machine.kind.as_str()), (zones[1].as_str(), "t3.micro"));
    // Each place by a making of its own.
    assert_eq!(stage.makings(1).await, 2);
}

pub(crate) async fn full_type() {
    let stage = Stage::new().await;
    stage.running(1).await;
    let machine = stage.machine(1).await;
    done(stage.plane.sleep(&id(1), by()).await.unwrap()).await;
    stage.stand.befall(Some(Lasting::NoCapacityIn(vec![machine.kind.clone()])));
    done(stage.plane.wake(&id(1), by()).await.unwrap()).await;
    let awake = stage.machine(1).await;
    assert_eq!((awake.id, awake.kind.as_str()), (machine.id, "t3.small"), "the same machine, larger");
}
