//! Takes up what a killed control plane left, and looks at everything there is.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use provisioner_core::{
    ErrorKind,
    store::{DataState, EventKind, IncarnationState, OperationState, Store},
    types::{OperationId, OwnedKind, Phase},
};
use tests::{
    http,
    place::{by, cell, id, tenant},
    plane::{AheadClock, Options, Plane, done},
    processes, until,
    verb::{NAME, Verb},
};

use crate::life::{Before, Life, NOTE};

/// How the backend tells of an end that it has not seen.
const UNSEEN: &str = "nobody saw how it ended";

/// Starts again without a kill, with a clock that is so far ahead, and waits until the request is done.
pub(crate) async fn recover(life: Life, ahead: Duration) {
    let options = Options { clock: Arc::new(AheadClock(ahead)), ..Options::default() };
    let plane = Plane::start(&life.place, options).await;
    if let Some(accepted) = &life.accepted {
        // By itself: nobody has to ask again for what was accepted.
        let operation = plane.plane.operation(&OperationId::new(accepted).unwrap()).await.unwrap();
        done(&operation).await;
    }
    let operation = life.verb.ask(&plane.plane, &life.place).await.unwrap();
    let ended = done(&operation).await;
    if let Some(accepted) = &life.accepted {
        assert_eq!(ended.id.as_str(), accepted, "the key is the operation's for ever");
    }
    check_events(&plane, &life, &ended.id).await;
    match life.verb {
        Verb::Delete | Verb::Retain => check_removed(&plane, &life).await,
        _ => check_there(&plane, &life).await,
    }
    check_rest(&plane).await;
    check_data(&plane, &life).await;
    plane.stop().await;
    let left = processes::mentioning(life.place.folder());
    assert_eq!(left, life.place.products(), "processes that are no instance's");
}

/// The store and the provider tell the same, and nothing of nobody is anywhere.
async fn check_rest(plane: &Plane) {
    let found = plane.plane.check_drift(&cell()).await.unwrap();
    let differences = (found.differing, found.vanished, found.remnants, found.strangers);
    assert_eq!(differences, (0, 0, 0, 0), "{found:?}");
    assert!(plane.plane.strangers().await.unwrap().is_empty());
}

/// Accepted once, ended once, one making begun.
async fn check_events(plane: &Plane, life: &Life, operation: &OperationId) {
    let (verb, kills) = (life.verb, life.kills);
    let all = plane.events(Some(&id(NAME))).await;
    let events: Vec<_> = all.iter().map(|event| event.event.what.clone()).collect();
    for event in &all {
        if let EventKind::Accepted { operation, .. } = &event.event.what {
            let accepted = plane.store.operation(operation).await.unwrap().expect("an operation is kept");
            assert!(accepted.state.is_ended(), "accepted and never ended: {accepted:?}");
        }
    }
    let told = events.iter().map(|what| format!("\n{what:?}")).collect::<String>();
    let count = |is: &dyn Fn(&EventKind) -> bool| events.iter().filter(|what| is(what)).count();
    let gone = matches!(verb, Verb::Delete | Verb::Retain);
    if gone {
        // Of what is forgotten nothing else is kept.
        assert_eq!(count(&|what| matches!(what, EventKind::Forgotten { .. })), 1, "{told}");
    } else {
        let accepted = |what: &EventKind| matches!(what, EventKind::Accepted { verb: of, .. } if *of == verb.kind());
        assert_eq!(count(&accepted), 1, "{told}");
        let ended = |what: &EventKind| {
            matches!(what, EventKind::OperationEnded { operation: of, state }
                if of == operation && *state == OperationState::Done)
        };
        assert_eq!(count(&ended), 1, "{told}");
        assert_eq!(count(&|what| matches!(what, EventKind::IncarnationStarted { .. })), 1, "{told}");
        assert_eq!(count(&|what| matches!(what, EventKind::IncarnationEnded { .. })), 0, "{told}");
    }
    // What failed before the request was made to fail.
    let since = life.before.as_ref().map_or(0, |before| before.position);
    let events: Vec<_> = all.into_iter().filter(|event| event.position > since).map(|event| event.event.what).collect();
    let count = |is: &dyn Fn(&EventKind) -> bool| events.iter().filter(|what| is(what)).count();
    for bad in ["Parked", "Drifted"] {
        assert_eq!(count(&|what| format!("{what:?}").starts_with(bad)), 0, "{told}");
    }
    // Whether a start that was cut ever came to its program, nobody can tell afterwards: that is one failure. No other is.
    let cut =
        |what: &EventKind| matches!(what, EventKind::Retrying { failure, .. } if failure.message.contains(UNSEEN));
    assert_eq!(count(&|what| matches!(what, EventKind::Retrying { .. })), count(&cut), "{told}");
    assert!(count(&cut) <= kills, "{told}");
}

async fn check_there(plane: &Plane, life: &Life) {
    let site = &life.place;
    let instance = plane.get(NAME).await;
    let (phase, version, starts) = match life.verb {
        Verb::Create => (Phase::Running, "1.0", 1),
        Verb::Sleep => (Phase::Zero, "1.0", 1),
        Verb::Suspend => (Phase::Suspended, "1.0", 1),
        Verb::Update => (Phase::Running, "2.0", 2),
        _ => (Phase::Running, "1.0", 2),
    };
    assert_eq!(instance.phase, Some(phase), "{instance:#?}");
    assert!(instance.settled && !instance.parked && instance.operation.is_none(), "{instance:#?}");
    assert_eq!(instance.applied_version.as_deref(), Some(version), "{instance:#?}");

    // One making in the store, at the backend and on the disk.
    let incarnation = instance.incarnation.unwrap();
    assert_eq!(incarnation.number(), 1);
    let known = plane.store.incarnations(&[incarnation]).await.unwrap();
    assert_eq!(known[0].as_ref().unwrap().state, IncarnationState::Live);
    let expected = [(OwnedKind::Instance, incarnation, Some(phase))];
    until("it is listed once and as it is", || async {
        let listed = plane.listed().await;
        let things = listed.iter().map(|owned| (owned.kind, owned.incarnation, owned.observed.phase()));
        // What was adopted a moment ago has not been asked yet whether it is ready.
        let things: Vec<_> = things.collect();
        assert!(things.len() == 1 && things[0].1 == incarnation, "{things:?}");
        (things == expected).then_some(())
    })
    .await;
    assert_eq!(site.names("instances"), BTreeSet::from([format!("{NAME}.{incarnation}")]));
    assert_eq!(site.names("data"), BTreeSet::from([instance.data.to_string()]));
    assert_eq!(site.ports().len(), 1);

    // One process of it when it should run, and none otherwise.
    let products = site.products();
    let running = phase == Phase::Running;
    assert_eq!(products.len(), usize::from(running), "{products:?}");
    let file = |name: &str| site.data_file(instance.data.as_str(), name);
    let started = file("starts").unwrap();
    assert_eq!(started.lines().count(), starts, "each start is one that was asked for");
    assert_eq!(file("doubled"), None, "two processes at once");
    if running {
        assert_eq!(started.lines().last().unwrap(), products[0].to_string());
        let endpoint = instance.endpoint.unwrap();
        assert_eq!(http::text(endpoint.as_str(), "/version").await, version);
        let note = if life.before.is_some() { NOTE } else { "" };
        assert_eq!(http::text(endpoint.as_str(), "/note").await, note);
    }
    if life.verb == Verb::Restart {
        assert!(!life.before.as_ref().unwrap().products.contains(&products[0]));
    }
}

async fn check_removed(plane: &Plane, life: &Life) {
    let site = &life.place;
    assert_eq!(plane.plane.get(&id(NAME)).await.unwrap_err().kind(), ErrorKind::NotFound);
    assert!(site.products().is_empty());
    assert!(site.names("instances").is_empty() && site.ports().is_empty());
    assert_eq!(site.names("removed"), BTreeSet::new(), "half removed");
    assert!(plane.listed().await.iter().all(|owned| owned.kind == OwnedKind::Data));
}

/// What the customer wrote is there, or gone, or kept, as asked.
async fn check_data(plane: &Plane, life: &Life) {
    let rows = plane.plane.data(Some(&tenant()), None, 10).await.unwrap().items;
    let rows: Vec<_> = rows.into_iter().map(|row| (row.id, row.state)).collect();
    let Some(Before { data, .. }) = &life.before else {
        return assert!(matches!(rows[..], [(_, DataState::Used)]), "{rows:?}");
    };
    let note = life.place.data_file(data.as_str(), "note");
    match life.verb {
        Verb::Delete => {
            assert_eq!((rows, life.place.names("data")), (Vec::new(), BTreeSet::new()));
            assert!(plane.listed().await.is_empty());
        }
        Verb::Retain => {
            assert_eq!(rows, [(data.clone(), DataState::Retained)]);
            let listed = plane.listed().await;
            assert_eq!(listed.iter().map(|owned| owned.data.as_ref()).collect::<Vec<_>>(), [Some(data)]);
            assert_eq!(note.as_deref(), Some(NOTE));
            // A later instance may have it.
            let later = life.place.new_instance("later").on_data(data.clone());
            done(&plane.plane.create(later, by()).await.unwrap()).await;
            assert_eq!(http::text(&plane.endpoint("later").await, "/note").await, NOTE);
        }
        _ => {
            assert_eq!(rows, [(data.clone(), DataState::Used)]);
            assert_eq!(note.as_deref(), Some(NOTE));
        }
    }
}
