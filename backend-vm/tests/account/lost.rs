//! Requests whose answers are lost: before they are carried out, after that, or for too long.

use std::time::Duration;

use test_ec2::Once;

use crate::stage::{OWNER, Stage, create, destroy, done};

pub(crate) async fn launches() {
    let stage = Stage::new().await;
    let faults =
        [Once::LostBefore, Once::LostAfter, Once::MalformedXml, Once::Html500, Once::Delay(Duration::from_secs(2))];
    for (n, fault) in faults.into_iter().enumerate() {
        stage.stand.once("RunInstances", fault);
        done(create(&stage.plane, n, stage.spec()).await).await;
        // One machine, also among those that have ended.
        let all = stage.stand.machines(("provisioner:instance", crate::stage::id(n).as_str())).await;
        assert_eq!(all.len(), 1, "{all:?}");
        assert_eq!(stage.makings(n).await, 1);
    }
}

pub(crate) async fn removals() {
    let stage = Stage::new().await;
    let actions = ["CreateTags", "TerminateInstances", "DeleteVolume", "DescribeInstances", "DescribeVolumes"];
    for fault in [Once::LostBefore, Once::LostAfter] {
        for (n, action) in actions.into_iter().enumerate() {
            stage.running(n).await;
            stage.stand.once(action, fault.clone());
            done(destroy(&stage.plane, n).await).await;
            assert_eq!(stage.stand.left((OWNER, "stage")).await, Vec::<String>::new(), "{action} {fault:?}");
        }
    }
}
