//! What processes tell each other through the database, as lines of text.
//!
//! A notification carries less than 8,000 bytes: what does not fit into a few of them is told as missed, so that everybody
//! looks for himself. <https://www.postgresql.org/docs/current/sql-notify.html>

use std::collections::BTreeSet;

use super::super::Signal;
use crate::types::{CellName, InstanceId};

/// What fits into one notification.
const BYTES_MAX: usize = 7_900;
/// How many notifications one transaction sends.
const NOTICES_MAX: usize = 8;

/// One line of a notification.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Notice {
    /// The position of the last event.
    Position(u64),
    Signal(Signal),
}

/// Signals to be sent, each once.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    due: BTreeSet<CellName>,
    touched: BTreeSet<(u64, InstanceId)>,
    decided: bool,
}

impl Outbox {
    pub(super) fn due(&mut self, cell: &CellName) {
        if !self.due.contains(cell) {
            self.due.insert(cell.clone());
        }
    }

    pub(super) fn touched(&mut self, epoch: u64, instance: &InstanceId) {
        self.touched.insert((epoch, instance.clone()));
    }

    pub(super) fn decided(&mut self) {
        self.decided = true;
    }

    /// The notifications that tell it.
    pub(super) fn notices(&self) -> Vec<String> {
        let decided = self.decided.then(|| "decided".to_owned());
        let due = self.due.iter().map(|cell| format!("due {cell}"));
        let touched = self.touched.iter().map(|(epoch, instance)| format!("touched {epoch} {instance}"));
        let mut notices: Vec<String> = Vec::new();
        for line in decided.into_iter().chain(due).chain(touched) {
            let is_full = notices.len() == NOTICES_MAX;
            match notices.last_mut().filter(|notice| notice.len() + 1 + line.len() <= BYTES_MAX) {
                Some(notice) => {
                    notice.push('\n');
                    notice.push_str(&line);
                }
                None if is_full => return vec!["missed".into()],
                None => notices.push(line),
            }
        }
        notices
    }
}

/// Reads a notification. A line that is not known is of a newer release, which may mean anything.
pub(super) fn read(payload: &str) -> Vec<Notice> {
    payload.lines().map(|line| read_line(line).unwrap_or(Notice::Signal(Signal::Missed))).collect()
}

fn read_line(line: &str) -> Option<Notice> {
    let mut words = line.split(' ');
    let notice = match words.next()? {
        "position" => Notice::Position(words.next()?.parse().ok()?),
        "due" => Notice::Signal(Signal::Due(words.next()?.parse().ok()?)),
        "touched" => Notice::Signal(Signal::Touched {
            epoch: words.next()?.parse().ok()?,
            instance: words.next()?.parse().ok()?,
        }),
        "decided" => Notice::Signal(Signal::Decided),
        "submitted" => Notice::Signal(Signal::Submitted),
        _ => Notice::Signal(Signal::Missed),
    };
    words.next().is_none().then_some(notice)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sent_is_read_as_it_was_meant() {
        let mut outbox = Outbox::default();
        assert!(outbox.notices().is_empty());
        outbox.decided();
        for _ in 0..2 {
            outbox.due(&CellName::new("one").unwrap());
            outbox.touched(7, &InstanceId::new("a").unwrap());
        }
        let notices = outbox.notices();
        assert_eq!(notices, ["decided\ndue one\ntouched 7 a"]);
        let touched = Signal::Touched { epoch: 7, instance: InstanceId::new("a").unwrap() };
        let expected = [Signal::Decided, Signal::Due(CellName::new("one").unwrap()), touched].map(Notice::Signal);
        assert_eq!(read(&notices[0]), expected);
        assert_eq!(read("position 9\nsubmitted"), [Notice::Position(9), Notice::Signal(Signal::Submitted)]);
    }

    #[test]
    fn what_cannot_be_read_is_missed() {
        for bad in ["what", "due", "due A", "due a b", "touched 1", "touched x a", "position -1", "decided now", " "] {
            assert_eq!(read(bad), [Notice::Signal(Signal::Missed)], "{bad}");
        }
    }

    #[test]
    fn what_does_not_fit_is_split_and_too_much_is_told_as_missed() {
        let mut outbox = Outbox::default();
        let mut before = 0;
        for number in 0.. {
            outbox.touched(u64::MAX, &InstanceId::new(format!("i{number:039}")).unwrap());
            let notices = outbox.notices();
            if notices == ["missed"] {
                break;
            }
            assert!(notices.iter().all(|notice| notice.len() < 8_000) && notices.len() <= NOTICES_MAX);
            before = notices.iter().map(|notice| read(notice).len()).sum();
            assert_eq!(before, number + 1);
        }
        assert!(before > 500, "a whole batch fits: {before}");
    }
}
