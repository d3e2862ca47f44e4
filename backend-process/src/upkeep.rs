//! What concerns the whole root: who it is, what is on it, and what crashes have left.

use std::{
    collections::VecDeque,
    fs::{self, ReadDir},
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use futures::{StreamExt, stream::BoxStream};
use provisioner_core::types::{ControlPlaneId, DataId, Generation, Observed, Owned, OwnedKind, Phase, Present, Reason};

use crate::{
    convert,
    data::Owner,
    error::{Problem, Result},
    instance::Shared,
    layout::{self, Key},
    ports,
    stop::blocking,
};

/// How many entries of a folder are looked at in one go.
const PAGE: usize = 64;

/// Which machine and which root this is. The root has a random id of its own: a disk that is not mounted looks like an
/// empty root, and must not be taken for one whose instances have all vanished.
pub(crate) fn identity(shared: &Shared) -> Result<String> {
    let layout = &shared.layout;
    let machine = fs::read_to_string("/etc/machine-id").unwrap_or_default();
    let path = layout.identity();
    let root = match layout::read(&path)? {
        Some(id) => String::from_utf8_lossy(&id).into_owned(),
        None => {
            let _lock = layout.lock()?;
            match layout::read(&path)? {
                Some(id) => String::from_utf8_lossy(&id).into_owned(),
                None => {
                    let id = format!("{:032x}", rand::random::<u128>());
                    layout::write_durably(&path, id.as_bytes())?;
                    id
                }
            }
        }
    };
    Ok(format!("process:{}:{}:{root}", machine.trim(), layout.root().display()))
}

/// Everything of a control plane, read a page at a time.
pub(crate) fn list(shared: Arc<Shared>, control_plane: ControlPlaneId) -> BoxStream<'static, Result<Owned>> {
    let pages = [
        Pages::new(shared.layout.instances(&control_plane), instance_of),
        Pages::new(shared.layout.all_data(&control_plane), data_of),
    ];
    let start = (shared, control_plane, VecDeque::from(pages));
    futures::stream::unfold(start, |(shared, control_plane, mut pages)| async move {
        let mut page = pages.pop_front()?;
        let (read_with, of) = (Arc::clone(&shared), control_plane.clone());
        let read = blocking(move || {
            let (found, more) = page.read(&read_with, &of);
            Ok((found, more.then_some(page)))
        });
        let found = match read.await {
            Ok((found, more)) => {
                if let Some(page) = more {
                    pages.push_front(page);
                }
                found
            }
            Err(problem) => vec![Err(problem)],
        };
        Some((futures::stream::iter(found), (shared, control_plane, pages)))
    })
    .flatten()
    .boxed()
}

type Read = fn(&Arc<Shared>, &ControlPlaneId, &str) -> Result<Option<Owned>>;

/// A folder that is read a page at a time.
struct Pages {
    folder: PathBuf,
    entries: Option<ReadDir>,
    read: Read,
}

impl Pages {
    fn new(folder: PathBuf, read: Read) -> Self {
        Self { folder, entries: None, read }
    }

    /// The next page, and whether there may be more.
    fn read(&mut self, shared: &Arc<Shared>, control_plane: &ControlPlaneId) -> (Vec<Result<Owned>>, bool) {
        let entries = match &mut self.entries {
            Some(entries) => entries,
            None => match fs::read_dir(&self.folder) {
                Ok(entries) => self.entries.insert(entries),
                Err(error) if error.kind() == io::ErrorKind::NotFound => return (Vec::new(), false),
                Err(error) => return (vec![Err(Problem::io("read", &self.folder, error))], false),
            },
        };
        let mut found = Vec::new();
        for _ in 0..PAGE {
            match entries.next() {
                None => return (found, false),
                Some(Err(error)) => {
                    found.push(Err(Problem::io("read", &self.folder, error)));
                    return (found, false);
                }
                Some(Ok(entry)) => {
                    let name = entry.file_name();
                    let owned = name.to_str().map_or(Ok(None), |name| (self.read)(shared, control_plane, name));
                    found.extend(owned.transpose());
                }
            }
        }
        (found, true)
    }
}

fn instance_of(shared: &Arc<Shared>, control_plane: &ControlPlaneId, name: &str) -> Result<Option<Owned>> {
    let Some(key) = Key::from_folder_name(control_plane, name) else {
        tracing::debug!(name, "not an instance; passed over");
        return Ok(None);
    };
    let view = shared.instance(&key).look(shared)?;
    let observed = convert::observed(view.as_ref(), key.incarnation, |port| endpoint(shared, port));
    // Removed since the page was read.
    if observed == Observed::Absent {
        return Ok(None);
    }
    let data = view.as_ref().and_then(|view| view.record.as_ref()).map(|record| record.data.clone());
    Ok(Some(Owned { id: key.id, incarnation: key.incarnation, kind: OwnedKind::Instance, data, observed }))
}

fn data_of(shared: &Arc<Shared>, control_plane: &ControlPlaneId, name: &str) -> Result<Option<Owned>> {
    let Ok(id) = DataId::new(name) else {
        return Ok(None);
    };
    let Some(owner) = Owner::read(&shared.layout.data(control_plane, &id))? else {
        return Ok(None);
    };
    if owner.in_use(&shared.layout, control_plane)? {
        return Ok(None);
    }
    let present = Present::new(Phase::Zero, Generation(0), owner.incarnation)
        .with_reason(Reason::new("retained", "data that no instance uses"));
    let (kind, data) = (OwnedKind::Data, Some(id));
    Ok(Some(Owned { id: owner.instance, incarnation: owner.incarnation, kind, data, observed: present.into() }))
}

/// Where an instance with this port answers.
pub(crate) fn endpoint(shared: &Shared, port: u16) -> String {
    format!("http://{}", shared.address(port))
}

/// Clears away what crashes have left of a control plane: half-deleted folders, ports of nobody.
pub(crate) fn maintain(shared: &Shared, control_plane: &ControlPlaneId, plan_only: bool) -> Result<Vec<String>> {
    let layout = &shared.layout;
    let mut actions = Vec::new();
    if !layout.root().exists() {
        return Ok(actions);
    }
    let _lock = layout.lock()?;
    for port in ports::stale(layout, control_plane)? {
        if !plan_only {
            ports::remove_stale(layout, port)?;
        }
        actions.push(format!("free port {port}, whose instance is gone"));
    }
    for path in entries(&layout.removed(control_plane))? {
        if !plan_only {
            layout::remove_folder(&path)?;
        }
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        actions.push(format!("delete the rest of {name}"));
    }
    Ok(actions)
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let read = match fs::read_dir(folder) {
        Ok(entries) => entries.map(|entry| entry.map(|entry| entry.path())).collect::<io::Result<Vec<_>>>(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => Err(error),
    };
    let mut paths = read.map_err(|error| Problem::io("read", folder, error))?;
    paths.sort_unstable();
    Ok(paths)
}
