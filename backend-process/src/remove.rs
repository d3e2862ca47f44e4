//! Removes instances and data. Blocking.

use std::{fs, io, sync::Arc};

use provisioner_core::{
    ErrorKind,
    types::{ControlPlaneId, DataDisposition, DataId},
};

use crate::{
    data::{self, Owner},
    error::{Problem, Result},
    instance::{Instance, Motion, Removal, Shared},
    layout::{Patience, make_folder, remove_folder},
    ports, process,
    records::{Intended, Record},
    stop, users,
};

/// Begins the removal of an instance, or of what a cut making or removal left of it. Call in its turn.
pub(crate) fn destroy(
    shared: &Arc<Shared>,
    instance: &Arc<Instance>,
    data: &DataId,
    disposition: DataDisposition,
    patience: Patience,
) -> Result<()> {
    let told = Removal { data: data.clone(), disposition, recorded: true };
    let turn = instance.folder.turn(patience)?;
    let Some(view) = instance.look(shared)? else {
        // Its files may have been left half deleted, and its data made before its folder was lost.
        return remove(shared, instance, &told, patience);
    };
    let removal = match &view.record {
        Some(record) => {
            let intended = Intended::Destroying(disposition);
            let written = if record.intended != intended && turn.is_some() {
                record.with_intended(intended).write(&instance.folder)
            } else {
                Ok(())
            };
            let recorded = match written {
                Ok(()) => true,
                // A removal is what makes room. Cut short, it is begun again by whoever asked for it.
                Err(problem) if problem.is_full() => {
                    tracing::warn!(instance = %record.id, %problem, "removed without a record of it");
                    false
                }
                Err(problem) => return Err(problem),
            };
            Removal { data: record.data.clone(), disposition, recorded }
        }
        None => told,
    };
    // In the background also when nothing runs: deleting takes as long as there are files.
    stop::begin(shared, instance, view.record.as_ref(), Motion { removal: Some(removal), ..Motion::default() });
    Ok(())
}

/// Removes what is known to be dead. Each step can be repeated; the folder goes last, as without it the rest would not be
/// looked for.
pub(crate) fn remove(shared: &Shared, instance: &Instance, removal: &Removal, patience: Patience) -> Result<()> {
    let (layout, key) = (&shared.layout, &instance.key);
    // Nothing was ever made here: a removal makes no folders to look into.
    let instances = layout.instances(&key.control_plane);
    if !instances.try_exists().map_err(|error| Problem::io("look for", &instances, error))? {
        return Ok(());
    }
    shared.groups.end(&shared.group(key))?;
    let data = layout.data(&key.control_plane, &removal.data);
    // Without a folder, nothing but its environment may tell of what runs.
    if !instance.folder.exists()? && Owner::read(&data)?.is_some_and(|owner| owner.is(key)) {
        process::end_strays(&data.files().to_string_lossy())?;
    }
    // What has left all else that tells whose it is.
    shared.user(&key.control_plane, &removal.data, Some(key))?.map_or(Ok(()), process::end_user)?;
    if removal.disposition == DataDisposition::Delete {
        data::delete_taken(layout, &key.control_plane, &removal.data)?;
    }
    {
        let _lock = layout.lock(patience)?;
        match removal.disposition {
            DataDisposition::Delete => data::take(layout, key, &removal.data)?,
            DataDisposition::Retain => data::retain(layout, key, &removal.data)?,
        }
    }
    if removal.disposition == DataDisposition::Delete {
        data::delete_taken(layout, &key.control_plane, &removal.data)?;
    }
    let removed = layout.removed(&key.control_plane).join(key.folder_name());
    remove_folder(&removed)?;
    let lock = layout.lock(patience)?;
    // The record may have been lost, with its folder or alone, or was not written yet when a start was cut.
    let port = Record::read(&instance.folder, key).ok().flatten().map(|record| record.port);
    ports::release(layout, key, port)?;
    make_folder(&layout.removed(&key.control_plane))?;
    match fs::rename(instance.folder.path(), &removed) {
        Ok(()) => {
            // Others need it, and deleting takes its time.
            drop(lock);
            remove_folder(&removed)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(Problem::io("remove", instance.folder.path(), error)),
    }
}

/// Removes data that no instance uses.
pub(crate) fn delete_data(shared: &Shared, control_plane: &ControlPlaneId, id: &DataId) -> Result<()> {
    let layout = &shared.layout;
    if !layout.removed(control_plane).exists() && !layout.data(control_plane, id).path().exists() {
        return Ok(());
    }
    data::delete_taken(layout, control_plane, id)?;
    let user = {
        let _lock = layout.lock(Patience::from_now())?;
        if let Some(owner) = Owner::read(&layout.data(control_plane, id))?
            && owner.in_use(layout, control_plane)?
        {
            let message = format!("data {id} is in use by {} {}", owner.instance, owner.incarnation);
            return Err(Problem::new(ErrorKind::Conflict, message));
        }
        let user = shared.user(control_plane, id, None)?;
        data::move_out(layout, control_plane, id)?;
        user
    };
    // Nobody starts anything on it any more, so nobody has to wait until all that runs on it has ended.
    process::end_strays(&layout.data(control_plane, id).files().to_string_lossy())?;
    if let Some(user) = user {
        process::end_user(user)?;
        let _lock = layout.lock(Patience::from_now())?;
        users::release(layout, control_plane, id, user)?;
    }
    data::delete_taken(layout, control_plane, id)
}
