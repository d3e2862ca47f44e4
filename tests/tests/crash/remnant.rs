//! What a call made that came too late is found and removed, also when the control plane is killed while it does that.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use provisioner_core::{
    OpContext, ProvisionerExt,
    store::{EventKind, IncarnationState, Store},
    types::{DataSource, Generation, Incarnation, Target, Timestamp},
};
use tests::{
    PATIENCE,
    place::{Place, cell, control_plane, id, tenant},
    plane::{AheadClock, Options, Plane, done},
    until,
    verb::{NAME, Verb},
};

use crate::life::{End, PRODUCT, run};

/// By then no call can be under way any more.
const LATER: Duration = Duration::from_secs(3600);
const PLACES_MAX: u64 = 100;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_late_call_made_is_removed_whatever_place_the_control_plane_is_killed_at() {
    for at in 1..=PLACES_MAX {
        let (place, incarnation) = late_call().await;
        let (lines, end) = run(&place, "idle", LATER, at).await;
        // The first places may come before it says so.
        assert!(end == End::Killed || lines.first().is_some_and(|line| line == "started"), "{lines:?}");
        let options = Options { clock: Arc::new(AheadClock(LATER)), ..Options::default() };
        let plane = Plane::start(&place, options).await;
        until("the making is over", || async {
            let row = plane.store.incarnations(&[incarnation]).await.unwrap().remove(0).unwrap();
            (row.state == IncarnationState::Ended && row.due_at.is_none()).then_some(())
        })
        .await;
        assert_eq!(plane.store.next_due(&cell(), Timestamp::from_unix_ms(0)).await.unwrap(), None);
        assert!(place.products().is_empty() && plane.listed().await.is_empty(), "killed at {at}");
        for folder in ["instances", "data", "removed"] {
            assert_eq!(place.names(folder), BTreeSet::new(), "{folder} after a kill at {at}");
        }
        let found = plane.count(NAME, |what| matches!(what, EventKind::RemnantFound { .. })).await;
        assert_eq!(found, 1, "told once; killed at {at}");
        plane.stop().await;
        if end == End::Survived {
            assert!(at > 8, "only {at} places");
            return println!("remnants: {} places", at - 1);
        }
    }
    panic!("more than {PLACES_MAX} places to be killed at: raise the bound");
}

/// An instance that was removed, and a call of its life that arrives only then.
async fn late_call() -> (Place, Incarnation) {
    let place = Place::new(PRODUCT);
    let plane = Plane::start(&place, Options::default()).await;
    done(&Verb::Create.ask(&plane.plane, &place).await.unwrap()).await;
    let instance = plane.get(NAME).await;
    done(&Verb::Delete.ask(&plane.plane, &place).await.unwrap()).await;
    let target = Target {
        id: id(NAME),
        tenant: tenant(),
        incarnation: instance.incarnation.unwrap(),
        generation: Generation::FIRST,
        spec: Arc::new(instance.spec),
        data: DataSource::Fresh(instance.data),
    };
    let made = plane.backend.create_and_wait(&OpContext::new(control_plane()), &target, PATIENCE).await;
    made.expect("a late call finds nothing that keeps it from making");
    assert_eq!(place.products().len(), 1);
    plane.stop().await;
    (place, target.incarnation)
}
