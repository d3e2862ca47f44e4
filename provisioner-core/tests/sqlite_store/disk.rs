//! A disk that is really full: a small file system of its own, in a mount namespace of its own.

use std::{
    fs::{self, File},
    io::Write,
    path::Path,
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

use libtest_mimic::Trial;
use provisioner_core::{store::*, types::*};

use super::file::{beside, copy_files};
use crate::{block_on, fixture::*};

/// Makes a child of the test mount its disk on this folder and fill it.
pub(crate) const CHILD: &str = "STORE_TEST_DISK";

const NAME: &str = "a_full_disk_refuses_truthfully_and_recovers";

pub(crate) fn trial() -> Trial {
    let run = || {
        let folder = tempfile::tempdir().unwrap();
        let output = Command::new("unshare")
            .arg("--mount")
            .arg(std::env::current_exe().unwrap())
            .env(CHILD, folder.path())
            .output()
            .unwrap();
        match output.status.success() {
            true => Ok(()),
            false => Err(format!("{}\n{}", output.status, String::from_utf8_lossy(&output.stderr)).into()),
        }
    };
    match probe() {
        Ok(()) => Trial::test(NAME, run),
        Err(reason) => Trial::test(NAME, run).with_kind(format!("needs to mount: {reason}")).with_ignored_flag(true),
    }
}

/// Whether this process may mount.
fn probe() -> Result<(), String> {
    let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
    let output = Command::new("unshare")
        .args(["--mount", "mount", "-t", "tmpfs", "-o", "size=1m", "none"])
        .arg(folder.path())
        .output()
        .map_err(|error| format!("unshare: {error}"))?;
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()) }
}

pub(crate) fn child(folder: &Path) {
    for mode in [CommitMode::Grouped, CommitMode::Inline] {
        on_a_disk(folder, "size=16m", |disk, outside| block_on(fill_and_recover(disk, outside, mode)));
        on_a_disk(folder, "size=64m", |disk, outside| block_on(fill_behind_the_commit(disk, outside, mode)));
    }
}

/// Runs a test on a disk of this size, with a folder on another disk beside it.
fn on_a_disk(folder: &Path, size: &str, test: impl FnOnce(&Path, &Path)) {
    let outside = tempfile::tempdir().unwrap();
    let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", size, "none"]).arg(folder).status();
    assert!(mounted.unwrap().success());
    let disk = folder.join("disk");
    fs::create_dir(&disk).unwrap();
    test(&disk, outside.path());
    assert!(Command::new("umount").arg(folder).status().unwrap().success());
}

/// What the store answered so far.
#[derive(Default)]
struct Answers {
    accepted: Vec<InstanceId>,
    refused: Vec<InstanceId>,
}

async fn fill_and_recover(disk: &Path, outside: &Path, mode: CommitMode) {
    let path = disk.join("store");
    let store = SqliteStore::open(&path, control_plane(), mode).await.unwrap();
    let mut answers = Answers::default();
    sign_up(&store, 0, 100, &mut answers).await;
    assert!(answers.refused.is_empty(), "there is room");
    // With different amounts of room left the write fails at different places.
    for (round, room) in [0, 5_000, 30_000, 60_000, 200_000].into_iter().enumerate() {
        let ballast = disk.join("ballast");
        fill(&ballast, room);
        let refused_before = answers.refused.len();
        let mut number = 0;
        while answers.refused.len() < refused_before + 20 {
            assert!(number < 20_000, "the disk never got full");
            sign_up(&store, 1_000_000 * (round + 1) + number, 8, &mut answers).await;
            number += 8;
        }
        assert_truth(&*store, &answers).await;
        assert_truth_after_a_crash(&path, &outside.join(format!("copy-{round}")), &answers).await;
        fs::remove_file(&ballast).unwrap();
        recover(&store, round, &mut answers).await;
        assert_truth(&*store, &answers).await;
    }
    drop(store);
    let store = SqliteStore::open(&path, control_plane(), mode).await.unwrap();
    assert_truth(&*store, &answers).await;
}

/// Lets the room end after a commit is whole in the log and before SQLite has taken note of it, which it does in
/// another file: that one grows by eight pages for the first time with this frame of the log.
async fn fill_behind_the_commit(disk: &Path, outside: &Path, mode: CommitMode) {
    const FRAMES_NOTED: u64 = 4062;
    const FRAME_BYTES: u64 = 24 + 4096;
    let path = disk.join("store");
    let ballast = disk.join("ballast");
    let store = SqliteStore::open(&path, control_plane(), mode).await.unwrap();
    let mut answers = Answers::default();
    let frames = || fs::metadata(beside(&path, "-wal")).unwrap().len() / FRAME_BYTES;
    let (mut number, mut largest) = (0, 0);
    while frames() < FRAMES_NOTED - 40 {
        let before = frames();
        sign_up(&store, number, 1, &mut answers).await;
        number += 1;
        // Not the first ones, whose pages are new.
        largest = if number < 20 { 0 } else { (frames() - before).max(largest) };
    }
    assert!(answers.refused.is_empty() && frames() < FRAMES_NOTED, "{} frames", frames());
    while answers.refused.is_empty() {
        assert!(frames() < FRAMES_NOTED + 100, "the disk never got full");
        // Each time room for what one commit adds to the log, and for little else.
        let _ = fs::remove_file(&ballast);
        fill(&ballast, (largest + 3) * FRAME_BYTES);
        sign_up(&store, number, 1, &mut answers).await;
        number += 1;
    }
    assert_truth(&*store, &answers).await;
    assert_truth_after_a_crash(&path, &outside.join("copy"), &answers).await;
    fs::remove_file(&ballast).unwrap();
    recover(&store, 1, &mut answers).await;
    assert_truth(&*store, &answers).await;
}

/// Asks for this many instances at once, and notes the answers. Only a full disk is a reason to refuse.
async fn sign_up(store: &Arc<SqliteStore>, first: usize, count: usize, answers: &mut Answers) {
    let attempt = |number: usize| {
        let store = Arc::clone(store);
        let name = format!("i-{number}");
        let mut spec = InstanceSpec::new(Workload::new("1"));
        spec.environment.insert(VariableName::new("TEXT").unwrap(), "x".repeat(number % 7 * 1000));
        let change = Change {
            specs: vec![(Generation(1), Arc::new(spec))],
            reservation: Some(reservation(&[&format!("{name}.example.com")])),
            events: vec![happened(&name, at(0))],
            ..insert(row(&name))
        };
        (id(name), tokio::spawn(async move { store.commit(change).await }))
    };
    let attempts: Vec<_> = (first..first + count).map(attempt).collect();
    for (id, attempt) in attempts {
        match attempt.await.unwrap() {
            Ok(_) => answers.accepted.push(id),
            Err(StoreError::Full(_)) => answers.refused.push(id),
            Err(error) => panic!("expected to hear that the disk is full, heard {error:?}"),
        }
    }
}

async fn recover(store: &Arc<SqliteStore>, round: usize, answers: &mut Answers) {
    let deadline = Instant::now() + Duration::from_secs(10);
    let mut number = 1_000_000 * (round + 1) + 900_000;
    loop {
        let refused = answers.refused.len();
        sign_up(store, number, 1, answers).await;
        if answers.refused.len() == refused {
            return;
        }
        assert!(Instant::now() < deadline, "there is room again, and the store does not take it");
        number += 1;
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Everything accepted is there, whole; nothing refused is.
async fn assert_truth(store: &dyn Store, answers: &Answers) {
    let mut expected = answers.accepted.clone();
    expected.sort();
    let records = store.instances(&InstanceFilter::default(), None, usize::MAX >> 1).await.unwrap();
    let present: Vec<_> = records.iter().map(|record| record.row.id.clone()).collect();
    assert!(present == expected, "{} are there, {} were accepted", present.len(), expected.len());
    assert!(records.iter().all(|record| record.specs.len() == 1));
    let events = store.events(None, 0, usize::MAX >> 1).await.unwrap();
    let mut told: Vec<_> = events.iter().filter_map(|event| event.event.instance.clone()).collect();
    told.sort();
    assert!(told == expected, "one event each");
    assert!(events.iter().zip(1..).all(|(event, position)| event.position == position), "without gaps");
    assert_eq!(store.usage(&cell("one")).await.unwrap().instances, expected.len() as u64);
}

/// What a crash at this moment would leave says the same.
async fn assert_truth_after_a_crash(path: &Path, copy: &Path, answers: &Answers) {
    copy_files(path, copy);
    let copied = SqliteStore::open(copy, control_plane(), CommitMode::Inline).await.unwrap();
    assert_truth(&*copied, answers).await;
}

/// Takes all the room there is but this much.
fn fill(ballast: &Path, room: u64) {
    let mut file = File::create(ballast).unwrap();
    let mut piece = vec![0_u8; 64 * 1024];
    while !piece.is_empty() {
        if file.write_all(&piece).is_err() {
            piece.truncate(piece.len() / 2);
        }
    }
    let length = file.metadata().unwrap().len();
    file.set_len(length.saturating_sub(room)).unwrap();
}
