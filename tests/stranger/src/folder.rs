//! What is on disk.
//!
//! ```text
//! ROOT/CONTROL-PLANE/sites/ID.INCARNATION/record   what it should be
//! ROOT/CONTROL-PLANE/live/ID.INCARNATION           a link to its data, while it is served
//! ROOT/CONTROL-PLANE/data/DATA-ID/owner            whose data it is, and who had it last
//! ROOT/CONTROL-PLANE/data/DATA-ID/files/           the data
//! ```

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use provisioner_core::types::{ControlPlaneId, DataId, Generation, Incarnation, InstanceId, Phase};

/// What a site should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) generation: Generation,
    pub(crate) phase: Phase,
    pub(crate) data: DataId,
    pub(crate) version: String,
}

/// Whose data it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Owner {
    pub(crate) tenant: String,
    pub(crate) id: InstanceId,
    pub(crate) incarnation: Incarnation,
}

/// The folder of one control plane.
#[derive(Debug, Clone)]
pub(crate) struct Plane(pub(crate) PathBuf);

impl Plane {
    pub(crate) fn new(root: &Path, owner: &ControlPlaneId) -> Self {
        Self(root.join(owner.as_str()))
    }

    pub(crate) fn site(&self, name: &str) -> PathBuf {
        self.0.join("sites").join(name)
    }

    pub(crate) fn link(&self, name: &str) -> PathBuf {
        self.0.join("live").join(name)
    }

    pub(crate) fn data(&self, data: &DataId) -> PathBuf {
        self.0.join("data").join(data.as_str())
    }

    pub(crate) fn record(&self, name: &str) -> io::Result<Option<Record>> {
        let Some(text) = read(&self.site(name).join("record"))? else { return Ok(None) };
        let mut lines = text.splitn(4, '\n');
        let mut next = || lines.next().ok_or(io::ErrorKind::UnexpectedEof);
        let generation = next()?.parse().map_err(io::Error::other)?;
        let phase = next()?;
        let phase = Phase::ALL.into_iter().find(|known| known.as_str() == phase).ok_or(io::ErrorKind::InvalidData)?;
        let data = DataId::new(next()?).map_err(io::Error::other)?;
        Ok(Some(Record { generation: Generation(generation), phase, data, version: next()?.to_owned() }))
    }

    pub(crate) fn write_record(&self, name: &str, record: &Record) -> io::Result<()> {
        let Record { generation, phase, data, version } = record;
        fs::create_dir_all(self.site(name))?;
        write(&self.site(name).join("record"), &format!("{generation}\n{phase}\n{data}\n{version}"))
    }

    /// Serves the data under the site's name.
    pub(crate) fn serve(&self, name: &str, data: &DataId) -> io::Result<()> {
        fs::create_dir_all(self.0.join("live"))?;
        match std::os::unix::fs::symlink(self.data(data).join("files"), self.link(name)) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
            _ => Ok(()),
        }
    }

    pub(crate) fn serve_no_more(&self, name: &str) -> io::Result<()> {
        forgive(fs::remove_file(self.link(name)))
    }

    pub(crate) fn is_served(&self, name: &str) -> bool {
        self.link(name).symlink_metadata().is_ok()
    }

    /// Whose the data is; none when it is not there.
    pub(crate) fn owner(&self, data: &DataId) -> io::Result<Option<Owner>> {
        if !self.data(data).join("files").exists() {
            return Ok(None);
        }
        let Some(text) = read(&self.data(data).join("owner"))? else { return Ok(None) };
        let mut lines = text.lines();
        let mut next = || lines.next().ok_or(io::ErrorKind::UnexpectedEof);
        let tenant = next()?.to_owned();
        let id = InstanceId::new(next()?).map_err(io::Error::other)?;
        Ok(Some(Owner { tenant, id, incarnation: next()?.parse().map_err(io::Error::other)? }))
    }

    pub(crate) fn write_owner(&self, data: &DataId, owner: &Owner) -> io::Result<()> {
        let Owner { tenant, id, incarnation } = owner;
        fs::create_dir_all(self.data(data).join("files"))?;
        write(&self.data(data).join("owner"), &format!("{tenant}\n{id}\n{incarnation}"))
    }

    pub(crate) fn remove(&self, path: &Path) -> io::Result<()> {
        forgive(fs::remove_dir_all(path))
    }

    /// The names in one of the folders, in order.
    pub(crate) fn names(&self, folder: &str) -> io::Result<Vec<String>> {
        let entries = match fs::read_dir(self.0.join(folder)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let names = entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
        let mut names = names.collect::<io::Result<Vec<_>>>()?;
        names.sort_unstable();
        Ok(names)
    }
}

/// The name of a site's folder. Ids hold no dot.
pub(crate) fn name(id: &InstanceId, incarnation: Incarnation) -> String {
    format!("{id}.{incarnation}")
}

/// Reads a site's name back.
pub(crate) fn parse_name(name: &str) -> Option<(InstanceId, Incarnation)> {
    let (id, incarnation) = name.split_once('.')?;
    Some((InstanceId::new(id).ok()?, incarnation.parse().ok()?))
}

fn read(path: &Path) -> io::Result<Option<String>> {
    match fs::read_to_string(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        text => text.map(Some),
    }
}

/// Whole or not at all.
fn write(path: &Path, text: &str) -> io::Result<()> {
    let new = path.with_extension("new");
    fs::write(&new, text)?;
    fs::rename(new, path)
}

fn forgive(done: io::Result<()>) -> io::Result<()> {
    match done {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}
