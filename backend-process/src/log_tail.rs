//! The end of a log, without the values that must not be told.

use std::{
    fs::File,
    io::{Read, Seek, SeekFrom},
    path::Path,
};

use provisioner_core::secret::{ExposeSecret, SecretString};

use crate::{layout::InstanceFolder, turn_over::TurnedOver};

/// How much of a log goes into a reason, in bytes.
const TAIL_BYTES_MAX: usize = 1024;
/// Shorter parts of a value are ordinary words, and striking them out would leave no text.
const PART_BYTES_MIN: usize = 4;
const STRUCK: &str = "[...]";

/// The values that a process was started with, to strike them out of what it prints. Kept while the process is watched;
/// wiped when dropped.
#[derive(Debug, Default)]
pub(crate) struct Values(Vec<SecretString>);

impl Values {
    /// Takes a value, and its lines: a log has it line by line.
    pub(crate) fn add(&mut self, value: &str) {
        for part in std::iter::once(value).chain(value.lines()) {
            if part.trim().len() >= PART_BYTES_MIN {
                self.0.push(part.trim().into());
            }
        }
    }

    /// Takes a secret of whatever length.
    pub(crate) fn add_secret(&mut self, value: &SecretString) {
        self.add(value.expose_secret());
        if !value.expose_secret().is_empty() {
            self.0.push(value.clone());
        }
    }

    fn longest(&self) -> usize {
        self.0.iter().map(|value| value.expose_secret().len()).max().unwrap_or(0)
    }

    /// The text from `from` on, with every value struck out, also one that starts before.
    fn strike(&self, text: &[u8], from: usize) -> String {
        let mut struck = vec![false; text.len()];
        for value in &self.0 {
            let value = value.expose_secret().as_bytes();
            for (at, window) in text.windows(value.len()).enumerate() {
                if window == value {
                    struck[at..at + value.len()].fill(true);
                }
            }
        }
        let mut kept = Vec::new();
        for (at, byte) in text.iter().enumerate().skip(from) {
            if !struck[at] {
                kept.push(*byte);
            } else if at == from || !struck[at - 1] {
                kept.extend_from_slice(STRUCK.as_bytes());
            }
        }
        String::from_utf8_lossy(&kept).into_owned()
    }
}

/// Where in the logs a start begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LogStart {
    /// Bytes before it: in the log, or in the old one where it was turned over since.
    at: u64,
    turned: bool,
}

impl LogStart {
    /// After so many bytes of the log.
    pub(crate) fn after(at: u64) -> Self {
        Self { at, turned: false }
    }

    /// The same after the log was turned over.
    pub(crate) fn turned(self, how: TurnedOver) -> Self {
        match how {
            TurnedOver::Kept { dropped } => {
                // All of a log that was begun since is of this start.
                let at = if self.turned { 0 } else { self.at };
                Self { at: at.saturating_sub(dropped), turned: true }
            }
            TurnedOver::Lost => Self::after(0),
        }
    }
}

/// The last lines of what was printed since a start, in the old log too while there is little in the new one. Empty when
/// there are none, or the log cannot be read: it is an extra.
pub(crate) fn read(folder: &InstanceFolder, start: LogStart, values: &Values) -> String {
    // So much more than is shown that no value at the edge is seen only in part.
    let wanted = TAIL_BYTES_MAX + values.longest();
    let new = end_of(&folder.log(), if start.turned { 0 } else { start.at }, wanted).unwrap_or_default();
    let room = wanted - new.len();
    let old = if start.turned { end_of(&folder.old_log(), start.at, room).unwrap_or_default() } else { Vec::new() };
    // Together, as a value may begin in one and end in the other.
    let text = [old, new].concat();
    let text = values.strike(&text, text.len().saturating_sub(TAIL_BYTES_MAX));
    let lines = text.lines().map(str::trim_end).filter(|line| !line.is_empty());
    lines.collect::<Vec<_>>().join(" | ").chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// The end of a file after its first `from` bytes.
fn end_of(path: &Path, from: u64, bytes_max: usize) -> std::io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    let start = from.max(length.saturating_sub(bytes_max as u64)).min(length);
    file.seek(SeekFrom::Start(start))?;
    let mut text = Vec::new();
    // It may grow while it is read.
    file.take(bytes_max as u64).read_to_end(&mut text)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_struck_out_also_at_the_edge_and_line_by_line() {
        let mut values = Values::default();
        values.add("canary-value");
        values.add("first line\nsecond line");
        values.add("1");
        values.add_secret(&"xy".into());
        let text = b"a canary-value b xy\nsecond line 1";
        assert_eq!(values.strike(text, 0), "a [...] b [...]\n[...] 1");
        assert_eq!(values.strike(text, 6), "[...] b [...]\n[...] 1");
        assert!(!format!("{values:?}").contains("canary"));
    }

    fn folder(root: &tempfile::TempDir) -> InstanceFolder {
        let key = crate::layout::Key {
            control_plane: "plane".parse().unwrap(),
            id: "acme".parse().unwrap(),
            incarnation: provisioner_core::types::Incarnation::new(1, 1),
        };
        crate::layout::Layout::new(root.path().into()).instance(&key)
    }

    #[test]
    fn only_the_end_of_this_start_is_read() {
        let root = tempfile::tempdir().unwrap();
        let folder = folder(&root);
        let all = LogStart::after(0);
        assert_eq!(read(&folder, all, &Values::default()), "");
        crate::layout::make_folder(folder.path()).unwrap();
        std::fs::write(folder.log(), "old\nnew\n\nlast\n").unwrap();
        assert_eq!(read(&folder, LogStart::after(4), &Values::default()), "new | last");
        std::fs::write(folder.old_log(), "of an earlier start\n").unwrap();
        assert_eq!(read(&folder, all, &Values::default()), "old | new | last");
        std::fs::write(folder.log(), "x".repeat(100_000)).unwrap();
        assert_eq!(read(&folder, all, &Values::default()).len(), TAIL_BYTES_MAX);
    }

    #[test]
    fn what_was_turned_over_is_read_as_long_as_there_is_little_else() {
        let root = tempfile::tempdir().unwrap();
        let folder = folder(&root);
        crate::layout::make_folder(folder.path()).unwrap();
        let turn = |start: LogStart, bytes_max| {
            start.turned(crate::turn_over::turn_over(&folder, bytes_max).unwrap().expect("it has grown"))
        };
        let append = |text: &str| {
            use std::io::Write;
            let mut log = std::fs::OpenOptions::new().create(true).append(true).open(folder.log()).unwrap();
            log.write_all(text.as_bytes()).unwrap();
        };
        let mut values = Values::default();
        values.add("canary-value");
        append("old\n");
        let start = LogStart::after(4);
        append("one\ncanary-");
        // Two bytes of what was before are dropped, and two are kept.
        let start = turn(start, 13);
        append("value\ntwo\n");
        assert_eq!(read(&folder, start, &values), "one | [...] | two");
        // Again, and all that it has is of this start.
        let start = turn(start, 4);
        assert_eq!(read(&folder, start, &values), "two");
        append(&"x".repeat(100_000));
        assert_eq!(read(&folder, start, &values).len(), TAIL_BYTES_MAX);
        // The old one could not be kept: what is there is not of this start.
        std::fs::create_dir(folder.old_log().with_extension("new")).unwrap();
        let start = turn(start, 10);
        append("last\n");
        assert_eq!(read(&folder, start, &values), "last");
    }
}
