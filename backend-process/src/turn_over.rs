//! Bounds logs. A process writes its log by itself, so that it goes on without a control plane: so a log that has grown is
//! copied and cut, rather than renamed. What is printed between the two is lost.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Seek, SeekFrom},
    os::unix::fs::OpenOptionsExt,
    time::Duration,
};

use crate::{
    error::{Problem, Result},
    layout::InstanceFolder,
};

/// How often the logs of what runs are looked at.
pub(crate) const INTERVAL: Duration = Duration::from_secs(10);

/// What became of a log that was turned over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TurnedOver {
    /// It is the old one, without so many bytes of its beginning.
    Kept { dropped: u64 },
    /// It is gone.
    Lost,
}

/// Turns the log over when it is longer than this: its end becomes the old one. `None`: it is not.
pub(crate) fn turn_over(folder: &InstanceFolder, bytes_max: u64) -> Result<Option<TurnedOver>> {
    let path = folder.log();
    let length = match fs::metadata(&path) {
        Ok(log) => log.len(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Problem::io("look at", &path, error)),
    };
    if length <= bytes_max {
        return Ok(None);
    }
    let old = folder.old_log();
    let new = old.with_extension("new");
    let kept = (|| {
        let mut log = File::open(&path)?;
        log.seek(SeekFrom::Start(length - bytes_max))?;
        let mut copy = OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(&new)?;
        // It grows while it is read.
        io::copy(&mut io::Read::take(&mut log, bytes_max), &mut copy)?;
        fs::rename(&new, &old)
    })();
    // With no room for the old one, room is what is needed most.
    let turned = match kept {
        Ok(()) => TurnedOver::Kept { dropped: length - bytes_max },
        Err(error) => {
            tracing::warn!(path = %old.display(), %error, "not kept: a log was cut");
            let _ = fs::remove_file(&new);
            TurnedOver::Lost
        }
    };
    // Whoever writes it appends, so the next line is its first.
    let cut = OpenOptions::new().write(true).open(&path).and_then(|log| log.set_len(0));
    cut.map(|()| Some(turned)).map_err(|error| Problem::io("cut", &path, error))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use provisioner_core::types::{ControlPlaneId, Incarnation, InstanceId};

    use super::*;
    use crate::layout::{Key, Layout, make_folder, open_private};

    #[test]
    fn a_log_that_has_grown_becomes_the_old_one_and_whoever_writes_goes_on() {
        let root = tempfile::tempdir().unwrap();
        let key = Key {
            control_plane: ControlPlaneId::new("plane").unwrap(),
            id: InstanceId::new("acme").unwrap(),
            incarnation: Incarnation::new(1, 1),
        };
        let folder = Layout::new(root.path().into()).instance(&key);
        assert_eq!(turn_over(&folder, 10).unwrap(), None, "there is none");
        make_folder(folder.path()).unwrap();
        let mut log = open_private(&folder.log()).unwrap();
        log.write_all(b"0123456789").unwrap();
        assert_eq!(turn_over(&folder, 10).unwrap(), None);
        log.write_all(b"abc").unwrap();
        assert_eq!(turn_over(&folder, 10).unwrap(), Some(TurnedOver::Kept { dropped: 3 }));
        log.write_all(b"next").unwrap();
        assert_eq!(fs::read(folder.old_log()).unwrap(), b"3456789abc");
        assert_eq!(fs::read(folder.log()).unwrap(), b"next");
    }
}
