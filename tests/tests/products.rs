//! Products that nobody here wrote, hosted by their specs alone: those in `examples/specs/`.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::{
    fs,
    path::{Path, PathBuf},
};

use libtest_mimic::{Arguments, Failed, Trial};
use provisioner_core::{
    control_plane::NewInstance,
    types::{DataDisposition, InstanceSpec, Phase, SpecFormat},
};
use tests::{
    http,
    place::{Place, by, id, tenant},
    plane::{Options, Plane, done},
    until,
};

/// Where `cargo xtask peers` puts them, open to every user, as `/opt` would be.
const PEERS: &str = "/var/tmp/provisioner-peers";
/// What somebody who logs in as `acme` sends.
const LOGIN: (&str, &str) = ("authorization", "Basic YWNtZTphbnk=");

fn main() {
    let arguments = Arguments::from_args();
    let trials = vec![
        trial("datasette_is_hosted_by_its_spec_alone", "datasette", || run(datasette())),
        trial("radicale_is_hosted_by_its_spec_alone", "radicale", || run(radicale())),
    ];
    libtest_mimic::run(&arguments, trials).exit();
}

/// Ignored where the product is missing, with the reason; a failure where it is required.
fn trial(name: &str, product: &'static str, test: fn() -> Result<(), Failed>) -> Trial {
    let is_here = Path::new(PEERS).join(product).join("bin").join(product).exists();
    let required = std::env::var("REQUIRED_PEERS").unwrap_or_default();
    if is_here || required.split(',').any(|peer| peer.trim() == product) {
        return Trial::test(name, test);
    }
    let reason = format!("{product} is not here; cargo xtask peers installs it");
    Trial::test(name, test).with_kind(reason).with_ignored_flag(true)
}

fn run(test: impl Future<Output = ()>) -> Result<(), Failed> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap().block_on(test);
    Ok(())
}

/// A spec as it is in the examples, but for where the product is installed.
fn spec(product: &str) -> InstanceSpec {
    let file = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../examples/specs").join(format!("{product}.toml"));
    SpecFormat::Toml.read(&fs::read_to_string(file).unwrap().replace("/opt/", &format!("{PEERS}/"))).unwrap()
}

/// A control plane with two customers of a product, on a place that users can get to.
async fn two_customers(product: &str) -> (Place, Plane) {
    let place = Place::for_users("/bin/sh");
    let plane = Plane::start(&place, Options::default()).await;
    for name in ["acme", "umbrella"] {
        let new = NewInstance::new(id(name), tenant(), spec(product));
        done(&plane.plane.create(new, by()).await.unwrap()).await;
    }
    (place, plane)
}

async fn sleep_and_wake(plane: &Plane, name: &str) {
    done(&plane.plane.sleep(&id(name), by()).await.unwrap()).await;
    assert_eq!(plane.get(name).await.phase, Some(Phase::Zero));
    done(&plane.plane.wake(&id(name), by()).await.unwrap()).await;
}

async fn end(place: &Place, plane: Plane) {
    for name in ["acme", "umbrella"] {
        done(&plane.plane.destroy(&id(name), DataDisposition::Delete, by()).await.unwrap()).await;
    }
    assert!(place.names("data").is_empty() && place.products().is_empty());
    plane.stop().await;
}

async fn datasette() {
    let (place, plane) = two_customers("datasette").await;
    let query = "/customer.json?sql=select+6*7+as+answer&_shape=array";
    assert_eq!(http::text(&plane.endpoint("acme").await, query).await, r#"[{"answer": 42}]"#);
    // Nothing can be written through it, so that what it keeps is told by the file that it has made.
    let file = || {
        let data = place.root.join(tests::place::control_plane().as_str()).join("data");
        let mut files = fs::read_dir(data).unwrap().map(|data| data.unwrap().path().join("files/customer.db"));
        files.next().map(|file| fs::metadata(file).unwrap().modified().unwrap())
    };
    let before = file();
    assert!(before.is_some());
    sleep_and_wake(&plane, "acme").await;
    assert_eq!(http::text(&plane.endpoint("acme").await, query).await, r#"[{"answer": 42}]"#);
    assert_eq!(file(), before);
    end(&place, plane).await;
}

async fn radicale() {
    let (place, plane) = two_customers("radicale").await;
    let event = "BEGIN:VCALENDAR\r\nVERSION:2.0\r\nPRODID:-//tests//EN\r\nBEGIN:VEVENT\r\nUID:1\r\n\
                 DTSTAMP:20260101T000000Z\r\nDTSTART:20260101T000000Z\r\nSUMMARY:kept\r\nEND:VEVENT\r\nEND:VCALENDAR\r\n";
    let endpoint = plane.endpoint("acme").await;
    for (method, path, body, expected) in [
        ("PROPFIND", "/", "", 207),
        ("MKCALENDAR", "/acme/meetings/", "", 201),
        ("PUT", "/acme/meetings/1.ics", event, 201),
    ] {
        let (status, text) = http::ask(&endpoint, method, path, &[LOGIN], body).await.unwrap();
        assert_eq!(status, expected, "{method} {path}: {text}");
    }
    let read = |endpoint: String| async move {
        let (status, text) = http::ask(&endpoint, "GET", "/acme/meetings/1.ics", &[LOGIN], "").await.unwrap();
        (status, text.contains("SUMMARY:kept"))
    };
    sleep_and_wake(&plane, "acme").await;
    assert_eq!(read(plane.endpoint("acme").await).await, (200, true), "it was kept");
    assert_eq!(
        read(plane.endpoint("umbrella").await).await,
        (404, false),
        "the other customer has calendars of its own"
    );
    // Killed by an outsider, it is told why and started again on its data.
    let before = place.products();
    for pid in &before {
        rustix::process::kill_process(rustix::process::Pid::from_raw(*pid).unwrap(), rustix::process::Signal::KILL)
            .unwrap();
    }
    until("both run anew", || async {
        let now = place.products();
        (now.len() == before.len() && now.iter().all(|pid| !before.contains(pid))).then_some(())
    })
    .await;
    plane.until("acme", |instance| instance.settled && instance.phase == Some(Phase::Running)).await;
    assert_eq!(read(plane.endpoint("acme").await).await, (200, true));
    end(&place, plane).await;
}
