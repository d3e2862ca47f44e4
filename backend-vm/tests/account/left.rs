//! What is left in the account, as another client sees it; and a life on the server without the proxy.

use futures::future::join_all;
use test_ec2::{Ec2, Options};

use crate::stage::{Stage, backend, by, create, destroy, done, id, plane, spec};

/// Lists, with boto3, all that an account pays for, and the tags of each.
const LISTING: &str = include_str!("listing.py");

/// What boto3 lists: a line for each thing, with its owner tag or a dash.
async fn listed(endpoint: &str) -> Vec<String> {
    let mut python = tokio::process::Command::new(test_ec2::python());
    let output = python.args(["-c", LISTING, endpoint]).output().await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

pub(crate) async fn by_another_client() {
    const LIVES: usize = 12;

    let stage = Stage::new().await;
    // What a new account has already: the interfaces and addresses of nobody's.
    let before = listed(stage.stand.endpoint()).await;
    join_all((0..LIVES).map(|n| stage.running(n))).await;
    let mut made = listed(stage.stand.endpoint()).await;
    made.retain(|thing| !before.contains(thing));
    let untagged: Vec<_> = made.iter().filter(|thing| !thing.ends_with(" stage")).collect();
    assert!(untagged.is_empty(), "{untagged:?}");
    // A machine, its root, its data and its interface.
    assert_eq!(made.len(), 4 * LIVES, "{made:?}");
    for n in 0..LIVES {
        // Half of them from their sleep.
        if n % 2 == 0 {
            done(stage.plane.sleep(&id(n), by()).await.unwrap()).await;
        }
    }
    let gone = join_all((0..LIVES).map(|n| destroy(&stage.plane, n))).await;
    join_all(gone.into_iter().map(done)).await;
    let mut left = listed(stage.stand.endpoint()).await;
    left.retain(|thing| !before.contains(thing));
    assert_eq!(left, Vec::<String>::new());
}

/// Without tokens and with states that change at once: as far as a single caller can tell it is the same, but for
/// new user data, which it takes only when it is encoded twice.
pub(crate) async fn on_the_bare_server() {
    let stand = Ec2::start(Options::default()).await.unwrap();
    let image = stand.image().await;
    let plane = plane(backend(stand.moto(), stand.subnets(), |config| config.root_gib = Some(8))).await;
    done(create(&plane, 1, spec(&image)).await).await;
    done(plane.sleep(&id(1), by()).await.unwrap()).await;
    done(plane.wake(&id(1), by()).await.unwrap()).await;
    done(destroy(&plane, 1).await).await;
    let mut left = listed(stand.moto()).await;
    left.retain(|thing| thing.ends_with(" stage"));
    assert_eq!(left, Vec::<String>::new());
    assert_eq!(stand.calls(), 0, "nothing went through the proxy");
}
