//! PostgreSQL's programs, which distributions keep away from PATH.

use std::{
    cmp::Reverse,
    env, fmt, fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// The oldest version that does.
pub const VERSION_MIN: u32 = 13;

const INITDB: &str = "initdb";
const POSTGRES: &str = "postgres";
const BASE_BACKUP: &str = "pg_basebackup";

/// Where packages put them: a folder, what the names in it begin with before the version, and what follows below.
const PLACES: [(&str, &str, &str); 5] = [
    ("/usr/lib/postgresql", "", "bin"),
    ("/usr", "pgsql-", "bin"),
    ("/opt/homebrew/opt", "postgresql@", "bin"),
    ("/usr/local/opt", "postgresql@", "bin"),
    ("/home/linuxbrew/.linuxbrew/opt", "postgresql@", "bin"),
];

/// The programs of one version of PostgreSQL that is new enough.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Programs {
    folder: PathBuf,
    version: u32,
}

impl fmt::Display for Programs {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "PostgreSQL {} in {}", self.version, self.folder.display())
    }
}

impl Programs {
    /// Finds them on PATH, else where packages put them, the newest first.
    ///
    /// # Errors
    /// Where there are none, or only older ones, with what to install.
    pub fn find() -> Result<Self, String> {
        let path = env::var_os("PATH").unwrap_or_default();
        let packaged = PLACES.iter().flat_map(|(place, before, below)| newest_first(Path::new(place), before, below));
        Self::among(env::split_paths(&path).chain(packaged))
    }

    /// The first ones in these folders that are new enough.
    fn among(folders: impl Iterator<Item = PathBuf>) -> Result<Self, String> {
        let mut old = None;
        for folder in folders {
            let Some(found) = Self::in_folder(&folder) else { continue };
            if found.version >= VERSION_MIN {
                return Ok(found);
            }
            old.get_or_insert(found);
        }
        let found = old.map_or_else(String::new, |old| format!(", but only {old}"));
        Err(format!(
            "PostgreSQL {VERSION_MIN} or newer is not here{found}: {INITDB} and {POSTGRES} are neither on PATH nor in \
             /usr/lib/postgresql/*/bin (on Debian: apt-get install postgresql; cargo xtask peers does that as root)"
        ))
    }

    fn in_folder(folder: &Path) -> Option<Self> {
        if ![INITDB, POSTGRES].iter().all(|name| folder.join(name).is_file()) {
            return None;
        }
        let said = Command::new(folder.join(POSTGRES)).arg("--version").stdin(Stdio::null()).output().ok()?;
        let version = version(&String::from_utf8_lossy(&said.stdout))?;
        Some(Self { folder: folder.to_owned(), version })
    }

    /// The folder that holds them, and others that come with them.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The program that makes a new folder of data.
    pub(super) fn initdb(&self) -> PathBuf {
        self.folder.join(INITDB)
    }

    /// The server.
    pub(super) fn postgres(&self) -> PathBuf {
        self.folder.join(POSTGRES)
    }

    /// The program that copies a server, which is a client and may be missing where the server is.
    ///
    /// # Errors
    /// Where it is missing, with what to install.
    pub fn base_backup(&self) -> Result<PathBuf, String> {
        // What is on PATH may be a link to it.
        let server = fs::canonicalize(self.postgres()).unwrap_or_else(|_| self.postgres());
        let folders = [Some(self.folder.as_path()), server.parent()];
        let mut programs = folders.into_iter().flatten().map(|folder| folder.join(BASE_BACKUP));
        programs
            .find(|program| program.is_file())
            .ok_or_else(|| format!("{BASE_BACKUP} is not in {}, where the server is", self.folder.display()))
    }

    /// Names the major version.
    #[must_use]
    pub const fn version(&self) -> u32 {
        self.version
    }
}

/// Of `postgres (PostgreSQL) 15.13 (Debian 15.13-0+deb12u1)` and of `postgres (PostgreSQL) 18beta1`, the major version.
fn version(said: &str) -> Option<u32> {
    number(said.split_once("(PostgreSQL) ")?.1)
}

/// The number that a text begins with.
fn number(text: &str) -> Option<u32> {
    text.split(|character: char| !character.is_ascii_digit()).next()?.parse().ok()
}

/// The folders `PLACE/BEFORE<VERSION>/BELOW`, the newest version first.
fn newest_first(place: &Path, before: &str, below: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(place).into_iter().flatten().flatten();
    let versions =
        entries.filter_map(|entry| Some((number(entry.file_name().to_str()?.strip_prefix(before)?)?, entry)));
    let mut versions: Vec<_> = versions.map(|(version, entry)| (version, entry.path().join(below))).collect();
    versions.sort_by_key(|(version, _)| Reverse(*version));
    versions.into_iter().map(|(_, folder)| folder).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// A folder with programs that only know their version.
    fn installed(place: &Path, name: &str, version: &str) -> PathBuf {
        let folder = place.join(name).join("bin");
        fs::create_dir_all(&folder).unwrap();
        for program in [INITDB, POSTGRES] {
            let file = folder.join(program);
            fs::write(&file, format!("#!/bin/sh\necho '{program} (PostgreSQL) {version}'\n")).unwrap();
            fs::set_permissions(&file, PermissionsExt::from_mode(0o755)).unwrap();
        }
        folder
    }

    #[test]
    fn versions_are_read_of_releases_and_of_what_comes_before_them() {
        assert_eq!(version("postgres (PostgreSQL) 15.13 (Debian 15.13-0+deb12u1)\n"), Some(15));
        assert_eq!(version("postgres (PostgreSQL) 18beta1\n"), Some(18));
        assert_eq!(version("postgres (PostgreSQL) 9.6.24\n"), Some(9));
        assert_eq!(version("something else 15\n"), None);
    }

    #[test]
    fn of_packages_the_newest_comes_first() {
        let place = tempfile::tempdir().unwrap();
        for name in ["pgsql-9.6", "pgsql-15", "pgsql-13", "pgsql-latest", "other-17"] {
            fs::create_dir(place.path().join(name)).unwrap();
        }
        let expected = ["pgsql-15", "pgsql-13", "pgsql-9.6"].map(|name| place.path().join(name).join("bin"));
        assert_eq!(newest_first(place.path(), "pgsql-", "bin"), expected);
        assert_eq!(newest_first(&place.path().join("nowhere"), "", "bin"), [""; 0].map(PathBuf::from));
    }

    #[test]
    fn the_first_that_is_new_enough_is_taken() {
        let place = tempfile::tempdir().unwrap();
        let old = installed(place.path(), "old", "12.22");
        let oldest = installed(place.path(), "oldest", "13.0");
        let newest = installed(place.path(), "newest", "17.5");
        let empty = place.path().join("empty");
        let found = Programs::among([&empty, &old, &oldest, &newest].map(PathBuf::clone).into_iter()).unwrap();
        assert_eq!((found.version(), found.postgres()), (13, oldest.join(POSTGRES)));
    }

    #[test]
    fn where_there_is_none_the_reason_says_what_to_install() {
        let place = tempfile::tempdir().unwrap();
        let none = Programs::among(std::iter::empty()).unwrap_err();
        assert!(none.contains("PostgreSQL 13") && none.contains("apt-get install postgresql"), "{none}");
        let old = Programs::among([installed(place.path(), "old", "12.22")].into_iter()).unwrap_err();
        assert!(old.contains("only PostgreSQL 12 in"), "{old}");
    }
}
