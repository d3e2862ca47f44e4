//! The pages, in one SQLite file.

use std::{
    path::Path,
    sync::{Mutex, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rusqlite::{Connection, OptionalExtension, Row, params};
use serde::{Deserialize, Serialize};

/// The longest title, in characters.
pub(crate) const TITLE_MAX: usize = 200;
/// The longest text, in bytes.
pub(crate) const TEXT_MAX: usize = 256 * 1024;

/// The pages, in one SQLite file.
#[derive(Debug)]
pub(crate) struct Notebook(Mutex<Connection>);

/// One page.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Page {
    /// Its number.
    pub(crate) id: i64,
    /// What it is about.
    pub(crate) title: String,
    /// What it says.
    pub(crate) text: String,
    /// Rises with every edit. An edit names the one that it is based on.
    pub(crate) revision: i64,
    /// When it was last written, in seconds since the Unix epoch.
    pub(crate) written_at: i64,
}

/// What somebody wants a page to say.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Draft {
    /// What it is about.
    pub(crate) title: String,
    /// What it says.
    #[serde(default)]
    pub(crate) text: String,
}

/// What became of an edit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Edit {
    /// It is written.
    Written(Page),
    /// Somebody else wrote this page since; nothing was changed.
    Overtaken(Page),
    /// There is no such page.
    Missing,
}

impl Draft {
    /// The draft with its title trimmed and its line ends made plain, or what is wrong with it.
    pub(crate) fn checked(mut self) -> Result<Self, &'static str> {
        self.title = self.title.trim().to_owned();
        // Browsers send forms with the line ends of the 1970s.
        self.text = self.text.replace("\r\n", "\n");
        if self.title.is_empty() {
            return Err("A page needs a title.");
        }
        if self.title.chars().count() > TITLE_MAX {
            return Err("The title is too long: at most 200 characters.");
        }
        if self.title.chars().any(char::is_control) {
            return Err("The title has a control character in it.");
        }
        if self.text.len() > TEXT_MAX {
            return Err("The text is too long: at most 256 KiB.");
        }
        Ok(self)
    }
}

impl Notebook {
    /// Opens the notebook in this folder, and makes it when there is none.
    pub(crate) fn open(folder: &Path) -> rusqlite::Result<Self> {
        let connection = Connection::open(folder.join("notebook.db"))?;
        connection.busy_timeout(Duration::from_secs(5))?;
        // FULL: a page that was saved is still there after a power cut.
        connection.execute_batch(
            "PRAGMA journal_mode = WAL;
             PRAGMA synchronous = FULL;
             CREATE TABLE IF NOT EXISTS page (
                 id INTEGER PRIMARY KEY AUTOINCREMENT,
                 title TEXT NOT NULL,
                 text TEXT NOT NULL,
                 revision INTEGER NOT NULL,
                 written_at INTEGER NOT NULL
             ) STRICT;",
        )?;
        Ok(Self(Mutex::new(connection)))
    }

    /// Whether the file can be read.
    pub(crate) fn check(&self) -> rusqlite::Result<()> {
        self.with(|db| db.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(())))
    }

    /// The pages, last written first, up to `limit`.
    pub(crate) fn pages(&self, limit: u32) -> rusqlite::Result<Vec<Page>> {
        self.with(|db| {
            db.prepare_cached(
                "SELECT id, title, text, revision, written_at FROM page ORDER BY written_at DESC, id DESC LIMIT ?1",
            )?
            .query_map([limit], Page::of)?
            .collect()
        })
    }

    /// One page.
    pub(crate) fn page(&self, id: i64) -> rusqlite::Result<Option<Page>> {
        self.with(|db| find(db, id))
    }

    /// Writes a new page.
    pub(crate) fn create(&self, draft: &Draft) -> rusqlite::Result<Page> {
        self.with(|db| {
            db.query_row(
                "INSERT INTO page (title, text, revision, written_at) VALUES (?1, ?2, 1, ?3)
                 RETURNING id, title, text, revision, written_at",
                params![draft.title, draft.text, now()],
                Page::of,
            )
        })
    }

    /// Writes a page anew, unless somebody else did since `revision`.
    pub(crate) fn edit(&self, id: i64, revision: i64, draft: &Draft) -> rusqlite::Result<Edit> {
        self.with(|db| {
            let written = db
                .query_row(
                    "UPDATE page SET title = ?3, text = ?4, revision = revision + 1, written_at = ?5
                     WHERE id = ?1 AND revision = ?2 RETURNING id, title, text, revision, written_at",
                    params![id, revision, draft.title, draft.text, now()],
                    Page::of,
                )
                .optional()?;
            Ok(match written {
                Some(page) => Edit::Written(page),
                None => find(db, id)?.map_or(Edit::Missing, Edit::Overtaken),
            })
        })
    }

    /// Tears a page out. Whether there was one.
    pub(crate) fn delete(&self, id: i64) -> rusqlite::Result<bool> {
        self.with(|db| Ok(db.execute("DELETE FROM page WHERE id = ?1", [id])? == 1))
    }

    fn with<T>(&self, work: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> rusqlite::Result<T> {
        // A panic in the midst of a statement leaves no open transaction behind: each call is one statement's work.
        work(&self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Page {
    fn of(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            id: row.get(0)?,
            title: row.get(1)?,
            text: row.get(2)?,
            revision: row.get(3)?,
            written_at: row.get(4)?,
        })
    }
}

fn find(db: &Connection, id: i64) -> rusqlite::Result<Option<Page>> {
    db.query_row("SELECT id, title, text, revision, written_at FROM page WHERE id = ?1", [id], Page::of).optional()
}

fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}
