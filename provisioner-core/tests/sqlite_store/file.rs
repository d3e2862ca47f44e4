//! The file: what it survives, who may open it, and which files are refused.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use provisioner_core::{store::*, types::*};

use crate::{block_on, fixture::*, tests};

tests! {
    everything_survives_a_reopen,
    a_copy_of_the_files_is_a_whole_store,
    a_file_is_open_in_one_place_at_a_time,
    a_missing_folder_is_named,
    files_are_for_their_owner_alone,
    an_empty_file_and_an_unfinished_one_are_no_obstacle,
    a_log_without_its_file_is_refused,
    a_foreign_file_is_refused_and_left_as_it_was,
    a_damaged_file_is_refused_and_left_as_it_was,
    a_refused_file_keeps_its_log,
    a_log_that_is_damaged_before_its_end_is_refused_and_one_that_is_torn_is_taken,
    a_backup_is_a_whole_store_and_replaces_no_file,
    debug_shows_the_path_alone,
}

async fn open(path: &Path, mode: CommitMode) -> Arc<SqliteStore> {
    SqliteStore::open(path, control_plane(), mode).await.unwrap()
}

async fn refusal(path: &Path) -> String {
    match SqliteStore::open(path, control_plane(), CommitMode::Grouped).await {
        Err(StoreError::Refused(words)) => words,
        other => panic!("expected a refusal, found {other:?}"),
    }
}

/// Some hundreds of instances with specs and events, enough for a file of many pages.
async fn fill(store: &dyn Store) {
    for number in 0..300 {
        let name = format!("i-{number}");
        let mut spec = InstanceSpec::new(Workload::new("1"));
        spec.environment.insert(VariableName::new("TEXT").unwrap(), "x".repeat(1000));
        let change = Change {
            specs: vec![(Generation(1), Arc::new(spec))],
            reservation: Some(reservation(&[&format!("{name}.example.com")])),
            operations: vec![operation(number, Some(&name), at(0))],
            incarnations: vec![making(number as u32, IncarnationState::Live, None)],
            data: vec![data_row(number.into(), DataState::Used)],
            strangers: vec![stranger(number as u32)],
            events: vec![happened(&name, at(0))],
            frozen: Some(true),
            ..insert(row(&name))
        };
        store.commit(change).await.unwrap();
    }
}

fn everything_survives_a_reopen() {
    for (first, second) in [(CommitMode::Grouped, CommitMode::Inline), (CommitMode::Inline, CommitMode::Grouped)] {
        block_on(async {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("store");
            let store = open(&path, first).await;
            let session = store.open_session("first", at(0)).await.unwrap();
            fill(&*store).await;
            let version = store.instance(&id("i-7")).await.unwrap().unwrap().version;
            store.commit(delete("i-7", version)).await.unwrap();
            let before = everything(&*store).await;
            drop(store);
            let store = open(&path, second).await;
            assert_eq!(everything(&*store).await, before);
            assert_eq!(*store.positions().borrow(), 300);
            assert_eq!(store.commit(with_event(happened("a", at(0)))).await.unwrap().position, 301);
            assert!(store.commit(insert(row("i-7"))).await.unwrap().version > version);
            let next = store.open_session("second", at(0)).await.unwrap();
            assert!(next.epoch > session.epoch);
            assert!(matches!(
                store.commit(Change { epoch: Some(session.epoch), ..Change::default() }).await,
                Err(StoreError::SessionLost)
            ));
        });
    }
}

fn a_copy_of_the_files_is_a_whole_store() {
    block_on(async {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("store");
        let store = open(&path, CommitMode::Grouped).await;
        fill(&*store).await;
        let copy = folder.path().join("copy");
        copy_files(&path, &copy);
        assert!(fs::metadata(beside(&copy, "-wal")).unwrap().len() > 0, "this is about what is only in the log yet");
        let copied = open(&copy, CommitMode::Grouped).await;
        assert_eq!(everything(&*copied).await, everything(&*store).await);
    });
}

fn a_file_is_open_in_one_place_at_a_time() {
    block_on(async {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("store");
        for mode in [CommitMode::Grouped, CommitMode::Inline] {
            let store = open(&path, mode).await;
            store.commit(Change::default()).await.unwrap();
            let other_name = folder.path().join("other-name");
            let _ = fs::remove_file(&other_name);
            std::os::unix::fs::symlink(&path, &other_name).unwrap();
            for path in [&path, &other_name] {
                let words = refusal(path).await;
                assert!(words.contains("store is in use: another control plane process"), "{words}");
            }
            drop(store);
        }
        open(&path, CommitMode::Grouped).await;
    });
}

fn a_missing_folder_is_named() {
    block_on(async {
        let folder = tempfile::tempdir().unwrap();
        let words = refusal(&folder.path().join("missing").join("store")).await;
        assert!(words.contains("the folder of ") && words.contains("missing/store"), "{words}");
        let words = refusal(folder.path()).await;
        assert!(words.contains("is not a file"), "{words}");
    });
}

fn files_are_for_their_owner_alone() {
    block_on(async {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("store");
        let store = open(&path, CommitMode::Grouped).await;
        store.commit(insert(row("a"))).await.unwrap();
        store.backup(&folder.path().join("backup")).await.unwrap();
        let mut names = Vec::new();
        for entry in fs::read_dir(folder.path()).unwrap() {
            let entry = entry.unwrap();
            assert_eq!(entry.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{entry:?}");
            names.push(entry.file_name().into_string().unwrap());
        }
        names.sort();
        assert_eq!(names, ["backup", "store", "store-shm", "store-wal", "store.lock"]);
    });
}

fn an_empty_file_and_an_unfinished_one_are_no_obstacle() {
    block_on(async {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("store");
        fs::write(&path, "").unwrap();
        for suffix in [".new", ".new-wal"] {
            fs::write(beside(&path, suffix), "left by a crash").unwrap();
        }
        let store = open(&path, CommitMode::Grouped).await;
        store.commit(insert(row("a"))).await.unwrap();
        assert!(!beside(&path, ".new").exists() && !beside(&path, ".new-wal").exists());
    });
}

fn a_log_without_its_file_is_refused() {
    block_on(async {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("store");
        fs::write(beside(&path, "-wal"), "accepted requests").unwrap();
        let words = refusal(&path).await;
        assert!(words.contains("is missing or empty") && words.contains("store-wal"), "{words}");
        assert_eq!(fs::read(beside(&path, "-wal")).unwrap(), b"accepted requests");
        assert!(!path.exists());
    });
}

fn a_foreign_file_is_refused_and_left_as_it_was() {
    block_on(async {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("store");
        let edit = |sql: &str| rusqlite::Connection::open(&path).unwrap().execute_batch(sql).unwrap();
        let fresh = async || {
            for suffix in ["", "-wal", "-shm"] {
                let _ = fs::remove_file(beside(&path, suffix));
            }
        };
        edit("CREATE TABLE cookies (a, b); INSERT INTO cookies VALUES (1, 2)");
        assert_refused(&path, &["another application", "0x00000000", "0x50726f76"]).await;
        edit("PRAGMA application_id = 1196444487");
        assert_refused(&path, &["another application", "0x47504b47", "0x50726f76"]).await;
        fresh().await;
        fill(&*open(&path, CommitMode::Grouped).await).await;
        edit("PRAGMA user_version = 7");
        assert_refused(&path, &["newer release", "found schema 7", "expected up to 1"]).await;
        fresh().await;
        SqliteStore::open(&path, ControlPlaneId::new("somebody-else").unwrap(), CommitMode::Inline).await.unwrap();
        assert_refused(&path, &["another control plane", "found somebody-else", "expected contract"]).await;
        fresh().await;
        fs::write(&path, random_bytes(100_000)).unwrap();
        assert_refused(&path, &["is not a SQLite file"]).await;
        fs::write(&path, "dear diary").unwrap();
        assert_refused(&path, &["is not a SQLite file", "dear diary", "SQLite format 3"]).await;
    });
}

fn a_damaged_file_is_refused_and_left_as_it_was() {
    block_on(async {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("store");
        fill(&*open(&path, CommitMode::Grouped).await).await;
        let whole = fs::read(&path).unwrap();
        let pages = whole.len() / 4096;
        assert!(pages > 100, "{pages} pages");
        let damage = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut bytes = whole.clone();
            change(&mut bytes);
            fs::write(&path, bytes).unwrap();
        };
        damage(&|bytes| bytes[3] ^= 0xff);
        assert_refused(&path, &["is not a SQLite file, or its beginning is damaged"]).await;
        damage(&|bytes| bytes[16..60].fill(0xff));
        assert_refused(&path, &["is damaged"]).await;
        for page in [1, pages / 4, pages / 2, pages - 1] {
            damage(&|bytes| bytes[page * 4096..][..4096].copy_from_slice(&random_bytes(4096)));
            assert_refused(&path, &["is damaged"]).await;
        }
        for length in [50, 4096, whole.len() / 2, whole.len() - 4096, whole.len() - 100] {
            damage(&|bytes| bytes.truncate(length));
            assert_refused(&path, &["damaged"]).await;
        }
        fs::write(&path, &whole).unwrap();
        open(&path, CommitMode::Grouped).await;
    });
}

fn a_refused_file_keeps_its_log() {
    block_on(async {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("store");
        let store = open(&path, CommitMode::Grouped).await;
        fill(&*store).await;
        let copy = folder.path().join("copy");
        copy_files(&path, &copy);
        let log = fs::read(beside(&copy, "-wal")).unwrap();
        let other = ControlPlaneId::new("somebody-else").unwrap();
        let before = fs::read(&copy).unwrap();
        let opened = SqliteStore::open(&copy, other, CommitMode::Grouped).await;
        assert!(matches!(opened, Err(StoreError::Refused(_))), "{opened:?}");
        assert!(fs::read(&copy).unwrap() == before, "the file is as it was");
        assert!(fs::read(beside(&copy, "-wal")).unwrap() == log, "the log is as it was");
        assert_eq!(everything(&*open(&copy, CommitMode::Grouped).await).await, everything(&*store).await);
    });
}

fn a_log_that_is_damaged_before_its_end_is_refused_and_one_that_is_torn_is_taken() {
    block_on(async {
        let folder = tempfile::tempdir().unwrap();
        let (path, copy) = (folder.path().join("store"), folder.path().join("copy"));
        let store = open(&path, CommitMode::Inline).await;
        for number in 0..20 {
            store.commit(with_event(happened("a", at(number)))).await.unwrap();
        }
        copy_files(&path, &copy);
        let log = fs::read(beside(&copy, "-wal")).unwrap();
        let damage = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut bytes = log.clone();
            change(&mut bytes);
            fs::copy(&path, &copy).unwrap();
            fs::write(beside(&copy, "-wal"), &bytes).unwrap();
            bytes
        };
        for at in [0, 10, 24, 32, 32 + 8, 32 + 24, 32 + 4000, log.len() / 2, log.len() * 2 / 3] {
            let bytes = damage(&|bytes| bytes[at] ^= 0x40);
            let words = refusal(&copy).await;
            assert!(words.contains("copy-wal is damaged: frame"), "byte {at}: {words}");
            assert!(fs::read(beside(&copy, "-wal")).unwrap() == bytes, "the log is as it was");
        }
        damage(&|bytes| bytes[log.len() / 3..][..200].fill(0x5a));
        assert!(refusal(&copy).await.contains("copy-wal is damaged"));
        // What a crash leaves: a log that ends in the middle of a frame, or whose last frame is not whole.
        for torn in [1, 100, 4096, 5000] {
            damage(&|bytes| bytes.truncate(log.len() - torn));
            let events = open(&copy, CommitMode::Inline).await.events(None, 0, 100).await.unwrap().len();
            assert!((17..20).contains(&events), "{events}");
        }
        damage(&|bytes| bytes[log.len() - 10] ^= 1);
        assert_eq!(open(&copy, CommitMode::Inline).await.events(None, 0, 100).await.unwrap().len(), 19);
    });
}

fn a_backup_is_a_whole_store_and_replaces_no_file() {
    for mode in [CommitMode::Grouped, CommitMode::Inline] {
        block_on(async {
            let folder = tempfile::tempdir().unwrap();
            let store = open(&folder.path().join("store"), mode).await;
            fill(&*store).await;
            let before = everything(&*store).await;
            let backup = folder.path().join("backup");
            store.backup(&backup).await.unwrap();
            store.commit(insert(row("later"))).await.unwrap();
            let bytes = fs::read(&backup).unwrap();
            let again = store.backup(&backup).await.unwrap_err();
            assert!(matches!(&again, StoreError::Refused(words) if words.contains("backup exists")), "{again:?}");
            assert!(fs::read(&backup).unwrap() == bytes);
            let missing = store.backup(&folder.path().join("missing").join("backup")).await.unwrap_err();
            assert!(matches!(missing, StoreError::Failed(_)), "{missing:?}");
            let restored = open(&backup, mode).await;
            assert_eq!(everything(&*restored).await, before);
            assert_eq!(restored.commit(with_event(happened("a", at(0)))).await.unwrap().position, 301);
        });
    }
}

fn debug_shows_the_path_alone() {
    block_on(async {
        let folder = tempfile::tempdir().unwrap();
        let path = fs::canonicalize(folder.path()).unwrap().join("store");
        let store = open(&path, CommitMode::Inline).await;
        assert_eq!(format!("{store:?}"), format!("SqliteStore {{ path: {path:?}, .. }}"));
    });
}

async fn assert_refused(path: &Path, words: &[&str]) {
    let before = fs::read(path).unwrap();
    let said = refusal(path).await;
    for word in words {
        assert!(said.contains(word), "expected {word:?} in {said:?}");
    }
    assert!(said.contains(path.file_name().unwrap().to_str().unwrap()), "{said}");
    assert!(fs::read(path).unwrap() == before, "the file is as it was");
    assert_eq!(refusal(path).await, said, "and the next start finds the same");
}

/// Copies a store while nothing is written to it: what a crash at this moment would leave.
pub(crate) fn copy_files(from: &Path, to: &Path) {
    for suffix in ["", "-wal"] {
        fs::copy(beside(from, suffix), beside(to, suffix)).unwrap();
    }
}

pub(crate) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

fn random_bytes(count: usize) -> Vec<u8> {
    let random = provisioner_core::seams::Random::from_seed(1);
    std::iter::repeat_with(|| random.bits() as u8).take(count).collect()
}
