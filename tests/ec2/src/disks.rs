//! The folders of a stand: machines, volumes that outlive them, snapshots, secrets, and the shims.

use std::{
    fs,
    io::{self, Read},
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
};

use base64::{Engine, prelude::BASE64_STANDARD};
use flate2::read::GzDecoder;

use crate::stand::Stand;

/// What a machine runs instead of what concerns the whole machine.
const SHIMS: [(&str, &str); 10] = [
    ("aws", include_str!("shims/aws")),
    ("blkid", include_str!("shims/blkid")),
    ("findmnt", include_str!("shims/findmnt")),
    ("head", include_str!("shims/head")),
    ("lsblk", include_str!("shims/lsblk")),
    ("mkfs.ext4", include_str!("shims/mkfs.ext4")),
    ("mount", include_str!("shims/mount")),
    ("mountpoint", include_str!("shims/mountpoint")),
    ("resize2fs", include_str!("shims/resize2fs")),
    ("systemctl", include_str!("shims/systemctl")),
];

pub(crate) fn prepare(folder: &Path) -> io::Result<()> {
    for name in ["machines", "volumes", "secrets", "shims"] {
        fs::create_dir(folder.join(name))?;
    }
    for (name, text) in SHIMS {
        let path = shims(folder).join(name);
        fs::write(&path, text)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    }
    Ok(())
}

pub(crate) fn shims(folder: &Path) -> PathBuf {
    folder.join("shims")
}

/// What there is of a machine. Its `disk` leads to the volume that is attached, its `root` is what it sees.
pub(crate) fn machine(folder: &Path, id: &str) -> PathBuf {
    folder.join("machines").join(id)
}

/// User data as it was before it was sent; empty when it is no user data.
pub(crate) fn unpacked(user_data: &str) -> Vec<u8> {
    let bytes = BASE64_STANDARD.decode(user_data).unwrap_or_default();
    let mut plain = Vec::new();
    match GzDecoder::new(&*bytes).read_to_end(&mut plain) {
        Ok(_) => plain,
        Err(_) => bytes,
    }
}

/// Removes a file or a link. There may be none.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

impl Stand {
    /// The folder of a volume or of a snapshot.
    fn disk(&self, id: &str) -> PathBuf {
        self.folder.join("volumes").join(id)
    }

    /// Has a machine see a volume.
    pub(crate) fn attach(&self, machine_id: &str, volume: &str) -> Result<(), String> {
        let disk = self.disk(volume);
        let link = machine(&self.folder, machine_id).join("disk");
        let attached = fs::create_dir_all(&disk)
            .and_then(|()| fs::create_dir_all(machine(&self.folder, machine_id)))
            .and_then(|()| remove(&link))
            .and_then(|()| symlink(disk, link));
        attached.map_err(|error| format!("{volume} is not attached: {error}"))
    }

    /// Takes a volume from whatever machine sees it.
    pub(crate) fn detach(&self, volume: &str) -> Result<(), String> {
        let disk = self.disk(volume);
        let machines = fs::read_dir(self.folder.join("machines")).map_err(|error| error.to_string())?;
        for machine in machines.flatten() {
            let link = machine.path().join("disk");
            if fs::read_link(&link).is_ok_and(|leads_to| leads_to == disk) {
                remove(&link).map_err(|error| format!("{volume} is not detached: {error}"))?;
            }
        }
        Ok(())
    }

    /// Removes what a machine has mounted.
    pub(crate) fn unmount(&self, id: &str) -> Result<(), String> {
        let list = machine(&self.folder, id).join("mounts");
        let mounts = fs::read_to_string(&list).unwrap_or_default();
        let removed = mounts.lines().try_for_each(|mount| remove(Path::new(mount))).and_then(|()| remove(&list));
        removed.map_err(|error| format!("{id}: {error}"))
    }

    /// Copies a volume to a snapshot, or a snapshot to a volume.
    pub(crate) fn copy(&self, from: &str, to: &str) -> Result<(), String> {
        let (from, to) = (self.disk(from), self.disk(to));
        if !from.exists() {
            return Ok(());
        }
        let copied = std::process::Command::new("cp").arg("-a").arg(&from).arg(&to).status();
        match copied {
            Ok(status) if status.success() => Ok(()),
            Ok(status) => Err(format!("{} is not copied: {status}", from.display())),
            Err(error) => Err(format!("{} is not copied: {error}", from.display())),
        }
    }

    pub(crate) fn delete_disk(&self, id: &str) {
        // Nothing was on it when there is no folder.
        let _ = fs::remove_dir_all(self.disk(id));
    }

    pub(crate) fn console(&self, id: &str) -> String {
        let text = fs::read(machine(&self.folder, id).join("console")).unwrap_or_default();
        String::from_utf8_lossy(&text).into_owned()
    }

    pub(crate) fn set_secret(&self, scheme: &str, path: &str, value: &str) -> io::Result<()> {
        let folder = self.folder.join("secrets").join(scheme).join(path.trim_start_matches('/'));
        fs::create_dir_all(&folder)?;
        fs::write(folder.join("value"), value)
    }
}
