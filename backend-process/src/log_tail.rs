//! The end of a log, without the values that must not be told.

use std::{
    fs::File,
    io::{Read, Seek, SeekFrom},
};

use provisioner_core::secret::{ExposeSecret, SecretString};

use crate::layout::InstanceFolder;

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

/// The last lines of what was printed after the first `from` bytes of the log. Empty when there are none, or the log
/// cannot be read: it is an extra.
pub(crate) fn read(folder: &InstanceFolder, from: u64, values: &Values) -> String {
    let tail = || -> std::io::Result<String> {
        let mut file = File::open(folder.log())?;
        let length = file.metadata()?.len();
        // So much more than is shown that no value at the edge is seen only in part.
        let wanted = (TAIL_BYTES_MAX + values.longest()) as u64;
        let start = from.max(length.saturating_sub(wanted)).min(length);
        file.seek(SeekFrom::Start(start))?;
        let mut text = Vec::new();
        file.take(wanted).read_to_end(&mut text)?;
        let shown = text.len().saturating_sub(TAIL_BYTES_MAX);
        Ok(values.strike(&text, shown))
    };
    let text = tail().unwrap_or_default();
    let lines = text.lines().map(str::trim_end).filter(|line| !line.is_empty());
    lines.collect::<Vec<_>>().join(" | ").chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
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

    #[test]
    fn only_the_end_of_this_start_is_read() {
        let root = tempfile::tempdir().unwrap();
        let key = crate::layout::Key {
            control_plane: "plane".parse().unwrap(),
            id: "acme".parse().unwrap(),
            incarnation: provisioner_core::types::Incarnation::new(1, 1),
        };
        let folder = crate::layout::Layout::new(root.path().into()).instance(&key);
        assert_eq!(read(&folder, 0, &Values::default()), "");
        crate::layout::make_folder(folder.path()).unwrap();
        std::fs::write(folder.log(), "old\nnew\n\nlast\n").unwrap();
        assert_eq!(read(&folder, 4, &Values::default()), "new | last");
        std::fs::write(folder.log(), "x".repeat(100_000)).unwrap();
        assert_eq!(read(&folder, 0, &Values::default()).len(), TAIL_BYTES_MAX);
    }
}
