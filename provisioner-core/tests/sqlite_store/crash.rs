//! A process that is killed in the middle of its commits.

use std::{
    collections::BTreeSet,
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Command, Stdio},
    sync::Arc,
};

use provisioner_core::store::*;

use crate::{block_on, fixture::*, tests};

/// Makes a child of the test write to the store at this path until it is killed.
pub(crate) const CHILD: &str = "STORE_TEST_WRITE_UNTIL_KILLED";

tests! {
    what_was_accepted_before_a_kill_is_there_afterwards_whole,
}

/// Commits from many tasks, printing each instance once its commit was answered.
pub(crate) fn child(path: &Path) {
    block_on(async {
        let store = SqliteStore::open(path, control_plane(), CommitMode::Grouped).await.unwrap();
        let life = store.open_session("child", at(0)).await.unwrap().epoch;
        let writers: Vec<_> = (0..32)
            .map(|writer| {
                let store = Arc::clone(&store);
                tokio::spawn(async move {
                    for number in 0.. {
                        let name = format!("i-{life}-{writer}-{number}");
                        let change = Change {
                            epoch: Some(life),
                            reservation: Some(reservation(&[&format!("{name}.example.com")])),
                            events: vec![happened(&name, at(0))],
                            ..insert(row(&name))
                        };
                        store.commit(change).await.unwrap();
                        let _ = writeln!(std::io::stdout().lock(), "{name}");
                    }
                })
            })
            .collect();
        for writer in writers {
            writer.await.unwrap();
        }
    });
}

fn what_was_accepted_before_a_kill_is_there_afterwards_whole() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store");
    let mut accepted = BTreeSet::new();
    for kill_after in [1, 500, 3000] {
        let mut child =
            Command::new(std::env::current_exe().unwrap()).env(CHILD, &path).stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        for _ in 0..kill_after {
            accepted.insert(lines.next().expect("the child goes on until it is killed").unwrap());
        }
        child.kill().unwrap();
        // What it had printed before it died counts as well; its last line may be cut.
        accepted.extend(lines.map_while(Result::ok).filter(|line| line.starts_with("i-")));
        child.wait().unwrap();
        block_on(assert_whole(&path, &accepted));
    }
}

async fn assert_whole(path: &Path, accepted: &BTreeSet<String>) {
    let store = SqliteStore::open(path, control_plane(), CommitMode::Grouped).await.unwrap();
    let instances = store.instances(&InstanceFilter::default(), None, 1_000_000).await.unwrap();
    let present: BTreeSet<String> = instances.iter().map(|record| record.row.id.to_string()).collect();
    let lost: Vec<_> = accepted.difference(&present).filter(|name| !is_cut(name, &present)).collect();
    assert!(lost.is_empty(), "accepted and lost: {lost:?}");
    let events = store.events(None, 0, 1_000_000).await.unwrap();
    let told: BTreeSet<String> =
        events.iter().filter_map(|event| event.event.instance.as_ref()).map(ToString::to_string).collect();
    assert_eq!(told, present, "every instance with its event, and no event without its instance");
    assert!(events.iter().zip(1..).all(|(event, position)| event.position == position), "without gaps");
    assert_eq!(store.usage(&cell("one")).await.unwrap().instances, present.len() as u64);
}

/// Whether this is the beginning of a name: a line that the kill cut.
fn is_cut(name: &str, present: &BTreeSet<String>) -> bool {
    present.range(name.to_owned()..).next().is_some_and(|other| other.starts_with(name))
}
