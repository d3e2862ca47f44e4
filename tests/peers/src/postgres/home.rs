//! The folder that a server lives in, and the keeper that ends the server and removes the folder when this process is gone.

use std::{
    env,
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, PipeWriter, Read, Seek, SeekFrom, Write},
    os::unix::{
        fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, chown},
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{self, Child, Command, Stdio},
    time::Duration,
};

use super::{
    Durability,
    processes::{signal, until},
    user::User,
};

const KEEPER: &str = include_str!("keeper.sh");
/// How long the keeper may take for what little is left to do when the server is down.
const KEEPER_MAX: Duration = Duration::from_secs(30);
/// How much of the log an error shows.
const LOG_LINES: usize = 20;
/// How many of one process there may be, with those that an earlier process of its number left.
const FOLDERS_MAX: u32 = 1000;

/// A folder of its own. Removed when dropped, and by its keeper when this process ends before that.
#[derive(Debug)]
pub(super) struct Home {
    folder: PathBuf,
    /// As whom the server runs, if not as this process.
    user: Option<User>,
    keeper: Child,
    /// The keeper waits at its other end. No other process inherits it.
    held: Option<PipeWriter>,
}

impl Home {
    pub(super) fn make(parent: &Path) -> Result<Self, String> {
        let problem = |error: io::Error| format!("no folder for PostgreSQL in {}: {error}", parent.display());
        // As the server tells it.
        let parent = fs::canonicalize(parent).map_err(problem)?;
        let folder = (0..FOLDERS_MAX).find_map(|number| {
            let folder = parent.join(format!("provisioner-postgres-{}-{number}", process::id()));
            match DirBuilder::new().mode(0o700).create(&folder) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => None,
                made => Some(made.map(|()| folder)),
            }
        });
        let folder = folder.unwrap_or_else(|| Err(io::ErrorKind::AlreadyExists.into())).map_err(problem)?;
        let (keeper, held) = keeper(&folder).inspect_err(|_| {
            // There is nothing in it yet.
            let _ = fs::remove_dir(&folder);
        })?;
        let mut home = Self { folder, user: None, keeper, held: Some(held) };
        // What this process makes is its user's.
        if fs::metadata(&home.folder).map_err(problem)?.uid() == 0 {
            let user = User::find()?;
            chown(&home.folder, Some(user.uid), Some(user.gid)).map_err(problem)?;
            home.user = Some(user);
        }
        Ok(home)
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    pub(super) fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    fn log(&self) -> PathBuf {
        self.folder.join("log")
    }

    /// Prepares to run one of PostgreSQL's programs, as the right user, with what it says going to the log.
    pub(super) fn command(&self, program: &Path) -> Result<Command, String> {
        let problem = |error: io::Error| format!("{}: {error}", self.log().display());
        let log = OpenOptions::new().create(true).append(true).open(self.log()).map_err(problem)?;
        let mut command = Command::new(program);
        // A folder that its user may enter.
        command.current_dir(&self.folder);
        // Settings for clients that the server would take for its own.
        for (name, _) in env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("PG")) {
            command.env_remove(name);
        }
        // In English, as its messages are read.
        command.env("LC_ALL", "C");
        command.stdin(Stdio::null()).stdout(log.try_clone().map_err(problem)?).stderr(log);
        // What ends the tests at a terminal is not for the server: it would end before them.
        command.process_group(0);
        if let Some(user) = self.user {
            command.uid(user.uid).gid(user.gid);
        }
        Ok(command)
    }

    /// Adds to the settings of the data.
    pub(super) fn configure(&self, settings: &str) -> Result<(), String> {
        let file = self.data().join("postgresql.conf");
        let added =
            OpenOptions::new().append(true).open(&file).and_then(|mut file| file.write_all(settings.as_bytes()));
        added.map_err(|error| format!("{}: {error}", file.display()))
    }

    /// Makes a file among the data that nobody but the server may read.
    pub(super) fn keep_private(&self, name: &str, content: &str) -> Result<PathBuf, String> {
        let file = self.data().join(name);
        let problem = |error: io::Error| format!("{}: {error}", file.display());
        let mut made =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&file).map_err(problem)?;
        made.write_all(content.as_bytes()).map_err(problem)?;
        if let Some(user) = self.user {
            chown(&file, Some(user.uid), Some(user.gid)).map_err(problem)?;
        }
        Ok(file)
    }

    pub(super) fn log_length(&self) -> u64 {
        fs::metadata(self.log()).map_or(0, |log| log.len())
    }

    /// What the log got since it had this length.
    pub(super) fn log_since(&self, length: u64) -> String {
        let read = || -> io::Result<Vec<u8>> {
            let mut log = File::open(self.log())?;
            log.seek(SeekFrom::Start(length))?;
            let mut text = Vec::new();
            log.read_to_end(&mut text)?;
            Ok(text)
        };
        String::from_utf8_lossy(&read().unwrap_or_default()).into_owned()
    }

    /// An error with the end of the log.
    pub(super) fn with_log(&self, error: &str) -> String {
        let log = self.log_since(0);
        let lines: Vec<_> = log.lines().collect();
        let end = lines[lines.len().saturating_sub(LOG_LINES)..].join("\n");
        if end.is_empty() { error.to_owned() } else { format!("{error}; its log ends with:\n{end}") }
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        drop(self.held.take());
        let ended = until(KEEPER_MAX, || self.keeper.try_wait().ok().flatten());
        if ended.is_none() {
            let _ = self.keeper.kill();
            let _ = self.keeper.wait();
        }
        match fs::remove_dir_all(&self.folder) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                eprintln!("{} is left: {error}", self.folder.display());
            }
            _ => {}
        }
    }
}

/// Starts the keeper of a folder; with it, the end of the pipe that has to be held.
fn keeper(folder: &Path) -> Result<(Child, PipeWriter), String> {
    let problem = |error: io::Error| format!("no shell to keep {}: {error}", folder.display());
    let (reader, writer) = io::pipe().map_err(problem)?;
    let mut command = Command::new("/bin/sh");
    command.args(["-c", KEEPER, "keeper"]).arg(folder).current_dir("/");
    // A runner waits for whoever holds the output of a test.
    command.stdin(reader).stdout(Stdio::null()).stderr(Stdio::null());
    // A runner may kill the group of a test that takes too long.
    command.process_group(0);
    Ok((command.spawn().map_err(problem)?, writer))
}

/// Runs a program to its end, for so long.
pub(super) fn done(command: &mut Command, max: Duration) -> Result<(), String> {
    let program = Path::new(command.get_program()).display().to_string();
    let mut child = command.spawn().map_err(|error| format!("{program} does not start: {error}"))?;
    match until(max, || child.try_wait().ok().flatten()) {
        Some(status) if status.success() => Ok(()),
        Some(status) => Err(format!("{program} failed: {status}")),
        None => {
            // What it leaves is removed with the folder.
            signal("KILL", &[child.id()])?;
            let _ = child.wait();
            Err(format!("{program} is not over after {max:?}"))
        }
    }
}

/// Where servers live: for a durable one, where files are on a disk on every machine.
pub(super) fn parent(durability: Durability) -> Result<PathBuf, String> {
    let (own, disk, any) = (env::temp_dir(), PathBuf::from("/var/tmp"), PathBuf::from("/tmp"));
    let mut folders = match durability {
        Durability::Fast => [own, disk, any],
        Durability::Durable => [disk, own, any],
    };
    // Root's own folder for temporary files may be closed to the user of the server.
    let found = folders.iter_mut().find(|folder| is_open_to_all(folder));
    found.map(std::mem::take).ok_or_else(|| "no folder for temporary files is open to all".to_owned())
}

/// Whether every user may enter a folder.
fn is_open_to_all(folder: &Path) -> bool {
    const ENTER: u32 = 0o001;
    let may_enter = |folder: &Path| fs::metadata(folder).is_ok_and(|folder| folder.mode() & ENTER != 0);
    fs::canonicalize(folder).is_ok_and(|folder| folder.ancestors().all(may_enter))
}
