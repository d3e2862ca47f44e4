//! A control plane in a process of its own, to be killed.
//!
//! Arguments: the store's file, the backend's root, the address of instances, the product, how many seconds its clock is
//! ahead, at which place to be killed (0: nowhere), and the verb, `idle` to do only what is due by itself, or `drift` to compare everything
//! with the store until nothing differs.
//! Prints one line per fact: `started`, `accepted OPERATION`, `ended STATE`, and how many places it `passed`.

use std::{env, error::Error, sync::Arc, time::Duration};

use provisioner_core::{
    seams::{Clock, KillAt, KillPoints},
    store::Store,
};
use rustix::process::{Signal, getpid, kill_process};
use tests::{
    place::{PORTS, Site, by, cell},
    plane::{AheadClock, Options, Plane, done},
    until,
    verb::Verb,
};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [store, root, address, product, ahead, at, verb] = arguments.as_slice() else {
        return Err("expected seven arguments".into());
    };
    let (store, root, product, address) = (store.into(), root.into(), product.into(), address.parse()?);
    let site = Site { store, root, address, ports: PORTS, product, users: false, groups: true };
    let places = Arc::new(KillAt::new(at.parse()?, kill_this));
    let clock = AheadClock(Duration::from_secs(ahead.parse()?));
    let options = Options {
        kill_points: Arc::clone(&places) as Arc<dyn KillPoints>,
        clock: Arc::new(clock),
        ..Options::default()
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let plane = Plane::start(&site, options).await;
        println!("started");
        if verb == "drift" {
            until("nothing differs from the store", || async {
                let report = plane.plane.check_drift(&cell()).await.ok()?;
                if report.frozen {
                    plane.plane.confirm_drift(&cell(), by()).await.ok()?;
                }
                (report.differing == 0 && report.vanished == 0).then_some(())
            })
            .await;
        } else if verb == "idle" {
            until("nothing is due", || async {
                let due = plane.store.due_incarnations(&cell(), clock.now().after(clock.0), 1).await;
                due.is_ok_and(|due| due.is_empty()).then_some(())
            })
            .await;
        } else {
            let operation = verb.parse::<Verb>()?.ask(&plane.plane, &site).await?;
            println!("accepted {}", operation.operation().id);
            println!("ended {}", done(&operation).await.state.as_str());
        }
        plane.stop().await;
        println!("passed {}", places.passed());
        Ok(())
    })
}

/// Ends this process as a SIGKILL from outside would.
fn kill_this() {
    kill_process(getpid(), Signal::KILL).expect("a process may kill itself");
}
