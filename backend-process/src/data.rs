//! Durable data: whose it is, and whether somebody uses it. All of it under the lock of the root.

use std::fs;

use provisioner_core::{
    ErrorKind,
    types::{ControlPlaneId, DataId, DataSource, Incarnation, InstanceId},
};
use serde::{Deserialize, Serialize};

use crate::{
    error::{Problem, Result},
    layout::{DataFolder, Key, Layout, make_folder, remove_folder},
    records::{read_json, schema, write_json},
    users,
};

/// Whose a data set is: the mark beside it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Owner {
    schema: u32,
    pub(crate) tenant: String,
    pub(crate) instance: InstanceId,
    pub(crate) incarnation: Incarnation,
    pub(crate) retained: bool,
    /// The user whose files they are; none: the control plane's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) user: Option<u32>,
}

impl Owner {
    pub(crate) fn read(folder: &DataFolder) -> Result<Option<Self>> {
        read_json(&folder.owner())
    }

    pub(crate) fn is(&self, key: &Key) -> bool {
        (&self.instance, &self.incarnation) == (&key.id, &key.incarnation)
    }

    /// Whether an instance uses the data. An owner that is gone uses nothing, whatever the mark says: it was removed
    /// between two lines of ours.
    pub(crate) fn in_use(&self, layout: &Layout, control_plane: &ControlPlaneId) -> Result<bool> {
        if self.retained {
            return Ok(false);
        }
        let owner =
            Key { control_plane: control_plane.clone(), id: self.instance.clone(), incarnation: self.incarnation };
        layout.instance(&owner).exists()
    }
}

/// Where claimed data comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Claimed {
    /// Made at this moment: nothing was ever started on it.
    Made,
    /// It was there. Something may still run on it, also where it was asked for as fresh: by a start that was cut before
    /// it could be told, and whose folder is gone.
    Found,
}

/// Gives the data to an instance, and makes it if it is fresh. Repeating it changes nothing. Call with the lock of the
/// root held and the instance's folder made: the folder is what keeps the data in use.
pub(crate) fn claim(
    layout: &Layout,
    key: &Key,
    tenant: &str,
    source: &DataSource,
    user: Option<u32>,
) -> Result<Claimed> {
    let folder = layout.data(&key.control_plane, source.id());
    let wanted = Owner {
        user,
        schema: schema(),
        tenant: tenant.into(),
        instance: key.id.clone(),
        incarnation: key.incarnation,
        retained: false,
    };
    match (Owner::read(&folder)?, source) {
        (Some(owner), _) if owner.tenant != tenant => {
            Err(Problem::conflict("data", format!("data {} belongs to another tenant", source.id())))
        }
        (Some(owner), _) if !owner.is(key) && owner.in_use(layout, &key.control_plane)? => {
            let message = format!("data {} is in use by {} {}", source.id(), owner.instance, owner.incarnation);
            Err(Problem::conflict("data", message))
        }
        (Some(_), _) if !is_whole(&folder)? => Err(missing(source.id())),
        (Some(owner), _) if owner == wanted => Ok(Claimed::Found),
        (Some(_), _) => write_json(&folder.owner(), &wanted).map(|()| Claimed::Found),
        (None, DataSource::Existing(id)) => Err(missing(id)),
        (None, DataSource::Fresh(id)) => make(&folder, id, &wanted).map(|()| Claimed::Made),
    }
}

/// Makes it complete under another name first, so that data is never without its mark.
fn make(folder: &DataFolder, id: &DataId, owner: &Owner) -> Result<()> {
    if folder.path().try_exists().map_err(|error| Problem::io("look for", folder.path(), error))? {
        // Not made here, or its mark was lost. Starting on it, or beside it, could both be wrong.
        return Err(Problem::conflict("data", format!("data {id} is there without a mark of its owner")));
    }
    let new = DataFolder::at(folder.path().with_extension("new"));
    remove_folder(new.path())?;
    make_folder(&new.files())?;
    write_json(&new.owner(), owner)?;
    let named = || {
        fs::rename(new.path(), folder.path())?;
        folder.path().parent().map_or(Ok(()), |parent| fs::File::open(parent)?.sync_all())
    };
    named().map_err(|error| Problem::io("make", folder.path(), error))
}

/// Whether the data itself is there.
pub(crate) fn is_whole(folder: &DataFolder) -> Result<bool> {
    let files = folder.files();
    files.try_exists().map_err(|error| Problem::io("look for", &files, error))
}

pub(crate) fn missing(id: &DataId) -> Problem {
    Problem::new(ErrorKind::DataMissing, format!("data {id} is not on this machine"))
}

/// Leaves the data for a later instance of the same tenant. Data of somebody else, or none, is left alone.
pub(crate) fn retain(layout: &Layout, key: &Key, id: &DataId) -> Result<()> {
    let folder = layout.data(&key.control_plane, id);
    match Owner::read(&folder)? {
        Some(owner) if owner.is(key) && !owner.retained => {
            write_json(&folder.owner(), &Owner { retained: true, ..owner })
        }
        _ => Ok(()),
    }
}

/// Takes the data out of its place, at once and for good, to be deleted by [`delete_taken`]: after it, without the lock, and
/// before it too, as what an earlier attempt left there would be in the way. Data of somebody else is left alone.
pub(crate) fn take(layout: &Layout, key: &Key, id: &DataId) -> Result<()> {
    let folder = layout.data(&key.control_plane, id);
    match Owner::read(&folder)? {
        Some(owner) if owner.is(key) => {
            move_out(layout, &key.control_plane, id)?;
            // What is left of its files lies where no user comes.
            owner.user.map_or(Ok(()), |user| users::release(layout, &key.control_plane, id, user))
        }
        _ => Ok(()),
    }
}

/// The same whoever had it last, but for its user.
pub(crate) fn move_out(layout: &Layout, control_plane: &ControlPlaneId, id: &DataId) -> Result<()> {
    let (from, removed) = (layout.data(control_plane, id), layout.removed(control_plane));
    make_folder(&removed)?;
    match fs::rename(from.path(), removed.join(id.as_str())) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Problem::io("remove", from.path(), error)),
        _ => Ok(()),
    }
}

/// Undoes a claim of a start that never was: what is empty goes, anything else stays for a later instance. Like
/// [`take`], to be followed by [`delete_taken`].
pub(crate) fn disown(layout: &Layout, key: &Key, id: &DataId) -> Result<()> {
    let files = layout.data(&key.control_plane, id).files();
    let empty = fs::read_dir(&files).is_ok_and(|mut entries| entries.next().is_none());
    if empty { take(layout, key, id) } else { retain(layout, key, id) }
}

/// Deletes what was taken. May take as long as there are files, so never with the lock of the root held.
pub(crate) fn delete_taken(layout: &Layout, control_plane: &ControlPlaneId, id: &DataId) -> Result<()> {
    remove_folder(&layout.removed(control_plane).join(id.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(id: &str) -> Key {
        Key {
            control_plane: ControlPlaneId::new("plane").unwrap(),
            id: InstanceId::new(id).unwrap(),
            incarnation: Incarnation::new(1, 1),
        }
    }

    #[test]
    fn data_goes_to_one_owner_at_a_time_and_to_no_other_tenant() {
        let root = tempfile::tempdir().unwrap();
        let layout = Layout::new(root.path().into());
        let (one, two) = (key("one"), key("two"));
        let id = DataId::from_random(1);
        let kind = |result: Result<Claimed>| result.unwrap_err().during("create", None).kind();

        assert_eq!(kind(claim(&layout, &one, "t", &DataSource::Existing(id.clone()), None)), ErrorKind::DataMissing);
        make_folder(layout.instance(&one).path()).unwrap();
        let fresh = || claim(&layout, &one, "t", &DataSource::Fresh(id.clone()), None).unwrap();
        assert_eq!((fresh(), fresh()), (Claimed::Made, Claimed::Found));
        let existing = DataSource::Existing(id.clone());
        assert_eq!(kind(claim(&layout, &two, "t", &existing, None)), ErrorKind::Conflict, "in use");
        retain(&layout, &one, &id).unwrap();
        assert_eq!(kind(claim(&layout, &two, "u", &existing, None)), ErrorKind::Conflict, "another tenant");
        claim(&layout, &two, "t", &existing, None).unwrap();
        // The old owner has lost all say.
        retain(&layout, &one, &id).unwrap();
        take(&layout, &one, &id).unwrap();
        assert!(Owner::read(&layout.data(&one.control_plane, &id)).unwrap().unwrap().is(&two));
        take(&layout, &two, &id).unwrap();
        assert_eq!(kind(claim(&layout, &two, "t", &existing, None)), ErrorKind::DataMissing);
    }
}
