//! Where everything is kept, and how it is written.
//!
//! ```text
//! ROOT/.identity                                     which root this is
//! ROOT/.lock                                         held while ports and data change hands
//! ROOT/.ports/PORT                                   who has this port
//! ROOT/.users/UID                                    whose files belong to this user
//! ROOT/.users/.last                                  the user that was given last
//! ROOT/CONTROL-PLANE/instances/ID.INCARNATION/       one instance
//! ROOT/CONTROL-PLANE/data/DATA-ID/owner.json         whose data it is
//! ROOT/CONTROL-PLANE/data/DATA-ID/files/             the data
//! ROOT/CONTROL-PLANE/removed/                        on its way out
//! ```
//!
//! No control plane is named with a dot in front, so the first four are nobody's folder.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, Permissions, ReadDir, TryLockError},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use provisioner_core::{
    ErrorKind,
    types::{ControlPlaneId, DataId, Incarnation, InstanceId},
};

use crate::error::{Problem, Result};

/// How long one call waits for locks that somebody else holds. What is done under these locks takes milliseconds.
const LOCK_WAIT_MAX: Duration = Duration::from_secs(5);

/// Until when one call waits for locks: one moment for all that it needs, as the waits add up. A lock that is free is taken
/// also after it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience(Instant);

impl Patience {
    /// That of a call which begins now.
    pub(crate) fn from_now() -> Self {
        Self(Instant::now() + LOCK_WAIT_MAX)
    }

    pub(crate) fn end(self) -> Instant {
        self.0
    }
}

/// Names one making of one instance of one control plane.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key {
    pub(crate) control_plane: ControlPlaneId,
    pub(crate) id: InstanceId,
    pub(crate) incarnation: Incarnation,
}

impl Key {
    /// The name of its folder. Ids hold no dot.
    pub(crate) fn folder_name(&self) -> String {
        format!("{}.{}", self.id, self.incarnation)
    }

    /// Reads a folder's name back.
    pub(crate) fn from_folder_name(control_plane: &ControlPlaneId, name: &str) -> Option<Self> {
        let (id, incarnation) = name.split_once('.')?;
        Some(Self {
            control_plane: control_plane.clone(),
            id: InstanceId::new(id).ok()?,
            incarnation: incarnation.parse().ok()?,
        })
    }
}

/// All paths under one root.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    root: PathBuf,
}

impl Layout {
    pub(crate) fn new(root: PathBuf) -> Self {
        Self { root }
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn identity(&self) -> PathBuf {
        self.root.join(".identity")
    }

    pub(crate) fn ports(&self) -> PathBuf {
        self.root.join(".ports")
    }

    pub(crate) fn users(&self) -> PathBuf {
        self.root.join(".users")
    }

    /// Which user was given last.
    pub(crate) fn last_user(&self) -> PathBuf {
        self.users().join(".last")
    }

    pub(crate) fn instances(&self, control_plane: &ControlPlaneId) -> PathBuf {
        self.root.join(control_plane.as_str()).join("instances")
    }

    pub(crate) fn instance(&self, key: &Key) -> InstanceFolder {
        InstanceFolder(self.instances(&key.control_plane).join(key.folder_name()))
    }

    pub(crate) fn all_data(&self, control_plane: &ControlPlaneId) -> PathBuf {
        self.root.join(control_plane.as_str()).join("data")
    }

    pub(crate) fn data(&self, control_plane: &ControlPlaneId, data: &DataId) -> DataFolder {
        DataFolder(self.all_data(control_plane).join(data.as_str()))
    }

    /// The data of all control planes.
    pub(crate) fn everybodys_data(&self) -> Result<Vec<DataFolder>> {
        let mut folders = Vec::new();
        for plane in entries(&self.root)? {
            folders.extend(entries(&plane.join("data"))?.into_iter().map(DataFolder));
        }
        Ok(folders)
    }

    /// Where things are moved before they are deleted, so that nothing half deleted is ever taken for whole.
    pub(crate) fn removed(&self, control_plane: &ControlPlaneId) -> PathBuf {
        self.root.join(control_plane.as_str()).join("removed")
    }

    /// Whether a removal was cut while it deleted what it had moved away: then there is still something to remove.
    pub(crate) fn is_half_removed(&self, key: &Key) -> Result<bool> {
        let path = self.removed(&key.control_plane).join(key.folder_name());
        path.try_exists().map_err(|error| Problem::io("look for", &path, error))
    }

    /// Makes the root, if need be. What is missing above it is made open to everybody, as the users of instances have to
    /// pass through it.
    pub(crate) fn make_root(&self) -> Result<()> {
        let above: Vec<&Path> = self.root.ancestors().skip(1).take_while(|folder| !folder.exists()).collect();
        for folder in above.into_iter().rev() {
            let made = match fs::create_dir(folder) {
                // The mask of this process may take away more than it should.
                Ok(()) => fs::set_permissions(folder, Permissions::from_mode(0o755)),
                // By somebody else meanwhile.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
                Err(error) => Err(error),
            };
            made.map_err(|error| Problem::io("make the folder", folder, error))?;
        }
        make_folder(&self.root)
    }

    /// Takes the lock under which ports and data change hands, between all control planes on this root.
    pub(crate) fn lock(&self, patience: Patience) -> Result<File> {
        self.make_root()?;
        wait_for_lock(&self.root.join(".lock"), patience)
    }
}

/// The folder of one instance.
#[derive(Debug, Clone)]
pub(crate) struct InstanceFolder(PathBuf);

impl InstanceFolder {
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// What it is meant to be.
    pub(crate) fn record(&self) -> PathBuf {
        self.0.join("record.json")
    }

    /// Which process it is; written by that process itself.
    pub(crate) fn pid(&self) -> PathBuf {
        self.0.join("pid")
    }

    /// Held by the process and its descendants for as long as one of them lives.
    pub(crate) fn life_lock(&self) -> PathBuf {
        self.0.join("lock")
    }

    /// What it prints.
    pub(crate) fn log(&self) -> PathBuf {
        self.0.join("log")
    }

    /// What it printed before the log was turned over.
    pub(crate) fn old_log(&self) -> PathBuf {
        self.0.join("log.1")
    }

    /// How the last start ended, if badly.
    pub(crate) fn outcome(&self) -> PathBuf {
        self.0.join("outcome.json")
    }

    /// There once the process has been ready.
    pub(crate) fn ready(&self) -> PathBuf {
        self.0.join("ready")
    }

    /// Whether the folder is there.
    pub(crate) fn exists(&self) -> Result<bool> {
        self.0.try_exists().map_err(|error| Problem::io("look for", &self.0, error))
    }

    /// Takes the lock under which a verb looks and acts, against other processes on the same root. `None`: the folder
    /// is not there.
    pub(crate) fn turn(&self, patience: Patience) -> Result<Option<File>> {
        let path = self.0.join("turn");
        loop {
            match wait_for_lock(&path, patience) {
                Ok(lock) => {
                    // The folder may have been removed, and made again, while we waited for the lock of the old one.
                    let held = lock.metadata().map_err(|error| Problem::io("read", &path, error))?.ino();
                    match fs::metadata(&path) {
                        Ok(there) if there.ino() == held => return Ok(Some(lock)),
                        Ok(_) => {}
                        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                        Err(error) => return Err(Problem::io("read", &path, error)),
                    }
                }
                Err(_) if !self.exists()? => return Ok(None),
                // Somebody made the folder between the two.
                Err(problem) if problem.is_missing_file() => {}
                Err(problem) => return Err(problem),
            }
        }
    }
}

/// The folder of one data set.
#[derive(Debug, Clone)]
pub(crate) struct DataFolder(PathBuf);

impl DataFolder {
    pub(crate) fn at(path: PathBuf) -> Self {
        Self(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    pub(crate) fn owner(&self) -> PathBuf {
        self.0.join("owner.json")
    }

    /// What the product gets: its own folder beside our marker, so that it cannot overwrite it by accident.
    pub(crate) fn files(&self) -> PathBuf {
        self.0.join("files")
    }
}

/// The names in a folder, a page at a time: nobody loads a fleet into memory. A folder that is not there is empty.
#[derive(Debug)]
pub(crate) struct Names {
    folder: PathBuf,
    entries: Option<ReadDir>,
}

impl Names {
    const PAGE: usize = 64;

    pub(crate) fn new(folder: PathBuf) -> Self {
        Self { folder, entries: None }
    }

    /// The next names. None when there are no more.
    pub(crate) fn page(&mut self) -> Result<Vec<String>> {
        let problem = |error| Problem::io("read", &self.folder, error);
        let entries = match &mut self.entries {
            Some(entries) => entries,
            None => match fs::read_dir(&self.folder) {
                Ok(entries) => self.entries.insert(entries),
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
                Err(error) => return Err(problem(error)),
            },
        };
        let mut names = Vec::new();
        for entry in entries.take(Self::PAGE) {
            // A name that is not text is none of ours; kept empty, so that a page of such names is not taken for the end.
            names.push(entry.map_err(problem)?.file_name().into_string().unwrap_or_default());
        }
        Ok(names)
    }
}

/// What is in a folder, in order. What is not there, or no folder, is empty.
pub(crate) fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let read = match fs::read_dir(folder) {
        Ok(entries) => entries.map(|entry| entry.map(|entry| entry.path())).collect::<io::Result<Vec<_>>>(),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(Vec::new());
        }
        Err(error) => Err(error),
    };
    let mut paths = read.map_err(|error| Problem::io("read", folder, error))?;
    paths.sort_unstable();
    Ok(paths)
}

/// Makes a folder that only its owner may enter, and those above it.
pub(crate) fn make_folder(path: &Path) -> Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|error| Problem::io("make the folder", path, error))
}

/// Opens a file for appending that only its owner may read, and makes it if need be.
pub(crate) fn open_private(path: &Path) -> Result<File> {
    OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(path)
        .map_err(|error| Problem::io("open", path, error))
}

/// Replaces a file's content so that a crash at any moment leaves the old or the new, never a mixture.
pub(crate) fn write_durably(path: &Path, content: &[u8]) -> Result<()> {
    let new = path.with_extension("new");
    let written = (|| {
        let mut file = OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&new, path)?;
        path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
    })();
    written.map_err(|error| Problem::io("write", path, error))
}

/// Removes a file. Removing what is absent succeeds.
pub(crate) fn remove_file(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Problem::io("remove", path, error)),
        _ => Ok(()),
    }
}

/// Removes a folder with all that is in it. Removing what is absent succeeds.
pub(crate) fn remove_folder(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Problem::io("remove", path, error)),
        _ => Ok(()),
    }
}

/// Reads a file; `None` when it is not there.
pub(crate) fn read(path: &Path) -> Result<Option<Vec<u8>>> {
    match fs::read(path) {
        Ok(content) => Ok(Some(content)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Problem::io("read", path, error)),
    }
}

/// Takes an exclusive lock at once, or tells that somebody else has it.
pub(crate) fn try_lock(path: &Path) -> Result<Option<File>> {
    let file = open_private(path)?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(Problem::io("lock", path, error)),
    }
}

fn wait_for_lock(path: &Path, patience: Patience) -> Result<File> {
    let mut delay = Duration::from_micros(200);
    loop {
        if let Some(lock) = try_lock(path)? {
            return Ok(lock);
        }
        if Instant::now() > patience.end() {
            return Err(Problem::new(ErrorKind::Unavailable, format!("{} stays locked", path.display())));
        }
        std::thread::sleep(delay);
        delay = (delay * 2).min(Duration::from_millis(10));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folder_names_read_back() {
        let control_plane = ControlPlaneId::new("plane").unwrap();
        let key = Key {
            control_plane: control_plane.clone(),
            id: InstanceId::new("acme-1").unwrap(),
            incarnation: Incarnation::new(3, 7),
        };
        assert_eq!(Key::from_folder_name(&control_plane, &key.folder_name()), Some(key));
        for foreign in ["lost+found", "acme", "acme.1", ".acme.1-0"] {
            assert_eq!(Key::from_folder_name(&control_plane, foreign), None, "{foreign}");
        }
    }

    #[test]
    fn what_is_missing_above_the_root_is_made_open_and_the_root_is_not() {
        let there = tempfile::tempdir().unwrap();
        let layout = Layout::new(there.path().join("a/b/root"));
        let mode = |path: &str| fs::metadata(there.path().join(path)).unwrap().mode() & 0o777;
        let before = mode("");
        layout.make_root().unwrap();
        assert_eq!((mode("a"), mode("a/b"), mode("a/b/root")), (0o755, 0o755, 0o700));
        assert_eq!(mode(""), before, "what was there is left alone");
        fs::set_permissions(there.path().join("a"), Permissions::from_mode(0o700)).unwrap();
        layout.make_root().unwrap();
        assert_eq!(mode("a"), 0o700);
    }

    #[test]
    fn a_removed_folder_has_no_turn() {
        let root = tempfile::tempdir().unwrap();
        let folder = InstanceFolder(root.path().join("a"));
        assert!(folder.turn(Patience::from_now()).unwrap().is_none());
        make_folder(folder.path()).unwrap();
        assert!(folder.turn(Patience::from_now()).unwrap().is_some());
    }
}
