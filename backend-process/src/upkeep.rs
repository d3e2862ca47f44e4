//! What concerns the whole root: who it is, what is on it, and what crashes have left.

use std::{fs, path::PathBuf, sync::Arc};

use futures::{Stream, StreamExt, stream::BoxStream};
use provisioner_core::types::{ControlPlaneId, DataId, Generation, Observed, Owned, OwnedKind, Phase, Present, Reason};

use crate::{
    convert,
    data::Owner,
    error::Result,
    instance::Shared,
    layout::{self, Key, Names, Patience},
    ports,
    stop::blocking,
    users,
};

/// Which machine and which root this is. The root has a random id of its own: a disk that is not mounted looks like an
/// empty root, and must not be taken for one whose instances have all vanished.
pub(crate) fn identity(shared: &Shared) -> Result<String> {
    let layout = &shared.layout;
    let machine = fs::read_to_string("/etc/machine-id").unwrap_or_default();
    let path = layout.identity();
    let root = match layout::read(&path)? {
        Some(id) => String::from_utf8_lossy(&id).into_owned(),
        None => {
            let _lock = layout.lock(Patience::from_now())?;
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
    // Not the path: a folder that was moved holds the same instances.
    Ok(format!("process:{}:{root}", machine.trim()))
}

/// Everything of a control plane, read a page at a time.
pub(crate) fn list(shared: &Arc<Shared>, control_plane: &ControlPlaneId) -> BoxStream<'static, Result<Owned>> {
    let (of, own) = (control_plane.clone(), Arc::clone(shared));
    let instances = names(shared.layout.instances(control_plane)).filter_map(move |name| {
        let (of, own) = (of.clone(), Arc::clone(&own));
        async move { try_map(name, |name| async move { instance_of(&own, &of, &name).await }).await }
    });
    let (of, own) = (control_plane.clone(), Arc::clone(shared));
    let data = names(shared.layout.all_data(control_plane)).filter_map(move |name| {
        let (of, own) = (of.clone(), Arc::clone(&own));
        async move { try_map(name, |name| blocking(move || data_of(&own, &of, &name))).await }
    });
    instances.chain(data).boxed()
}

async fn try_map<F: Future<Output = Result<Option<Owned>>>>(
    name: Result<String>,
    look: impl FnOnce(String) -> F,
) -> Option<Result<Owned>> {
    match name {
        Ok(name) => look(name).await.transpose(),
        Err(problem) => Some(Err(problem)),
    }
}

/// The names in a folder. Ends after an error.
fn names(folder: PathBuf) -> impl Stream<Item = Result<String>> + Send + 'static {
    let pages = futures::stream::unfold(Some(Names::new(folder)), |names| async move {
        let mut names = names?;
        let read = blocking(move || Ok((names.page()?, names)));
        match read.await {
            Ok((page, _)) if page.is_empty() => None,
            Ok((page, names)) => Some((page.into_iter().map(Ok).collect::<Vec<_>>(), Some(names))),
            Err(problem) => Some((vec![Err(problem)], None)),
        }
    });
    pages.flat_map(futures::stream::iter)
}

async fn instance_of(shared: &Arc<Shared>, control_plane: &ControlPlaneId, name: &str) -> Result<Option<Owned>> {
    let Some(key) = Key::from_folder_name(control_plane, name) else {
        tracing::debug!(name, "not an instance; passed over");
        return Ok(None);
    };
    let view = shared.instance(&key).look_in_turn(shared, None).await?;
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
    if !layout.instances(control_plane).exists() {
        return Ok(actions);
    }
    let lock = layout.lock(Patience::from_now())?;
    for port in ports::stale(layout, control_plane)? {
        if !plan_only {
            ports::remove_stale(layout, port)?;
        }
        actions.push(format!("free port {port}, whose instance is gone"));
    }
    for user in users::stale(layout, control_plane)? {
        if !plan_only {
            users::remove_stale(layout, user)?;
        }
        actions.push(format!("free user {user}, which no data has"));
    }
    drop(lock);
    for name in shared.groups.names() {
        let Some(key) = shared.of_group(&name).filter(|key| key.control_plane == *control_plane) else { continue };
        // For each of them anew: what runs there takes its time to end, and others need the lock.
        let _lock = layout.lock(Patience::from_now())?;
        if layout.instance(&key).exists()? || shared.watches(&key) {
            continue;
        }
        if !plan_only {
            shared.groups.end(&name)?;
        }
        actions.push(format!("end what is left of {} {}, whose folder is gone", key.id, key.incarnation));
    }
    // Nobody takes up again what lies there, and deleting it takes as long as there are files.
    for path in layout::entries(&layout.removed(control_plane))? {
        if !plan_only {
            layout::remove_folder(&path)?;
        }
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        actions.push(format!("delete the rest of {name}"));
    }
    Ok(actions)
}
