//! Users: one for each data set, for as long as it lives, so that nobody has to change the owner of its files when another
//! making of the instance takes it up.
//!
//! `ROOT/.users/UID` names the data set. Group ids are the same numbers.

use std::{
    cell::OnceCell,
    fs::{self, Permissions},
    io,
    ops::RangeInclusive,
    os::{
        fd::OwnedFd,
        unix::fs::{MetadataExt, PermissionsExt},
    },
    path::Path,
};

use provisioner_core::{
    ErrorKind,
    types::{ControlPlaneId, DataId},
};

use rustix::{
    fs::{AtFlags, Dir, FileType, Gid, Mode, OFlags, Uid},
    io::Errno,
};

use crate::{
    data::Owner,
    error::{Problem, Result},
    layout::{self, DataFolder, Layout},
    process,
    reservations::Reservations,
};

/// The capabilities that it takes to give files and processes to other users and to look after them, and their numbers in
/// `capability.h`.
const CAPABILITIES: [(&str, u32); 6] = [
    ("CAP_CHOWN", 0),
    ("CAP_DAC_OVERRIDE", 1),
    ("CAP_FOWNER", 3),
    ("CAP_KILL", 5),
    ("CAP_SETGID", 6),
    ("CAP_SETUID", 7),
];

/// How deep folders may lie in data that is given to another user.
const DEPTH_MAX: usize = 256;

/// The users that this process may give its children to: all of them or none. Root that may not says why, once.
pub(crate) fn usable(range: Option<&RangeInclusive<u32>>) -> Option<RangeInclusive<u32>> {
    let range = range.filter(|_| rustix::process::geteuid().is_root())?;
    let read = |file: &str| fs::read_to_string(format!("/proc/self/{file}")).unwrap_or_default();
    match keeps_from_changing(&read("status"), &read("uid_map"), &read("gid_map"), &read("setgroups"), range) {
        None => Some(range.clone()),
        Some(why) => {
            tracing::warn!(%why, "instances run as the control plane's own user, and are not kept apart by users");
            None
        }
    }
}

/// What keeps root with these files of `/proc/self` from giving its children to these users and groups, if anything.
fn keeps_from_changing(
    status: &str,
    uid_map: &str,
    gid_map: &str,
    setgroups: &str,
    range: &RangeInclusive<u32>,
) -> Option<String> {
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|value| u64::from_str_radix(value.trim(), 16).ok()).unwrap_or(0);
    if let Some((name, _)) = CAPABILITIES.iter().find(|(_, number)| effective & (1 << number) == 0) {
        return Some(format!("this process lacks {name}"));
    }
    for (kind, map) in [("users", uid_map), ("groups", gid_map)] {
        if let Some(missing) = first_unmapped(map, range) {
            let has = map.lines().map(|line| line.split_ascii_whitespace().collect::<Vec<_>>().join(" "));
            let has = has.collect::<Vec<_>>().join(", ");
            return Some(format!(
                "its namespace has no {missing} among its {kind}: it has (first, outside, number) {has}"
            ));
        }
    }
    (setgroups.trim() == "deny").then(|| "its namespace lets nobody leave their groups".into())
}

/// The first of these ids that a namespace does not know: see `user_namespaces(7)`.
fn first_unmapped(map: &str, range: &RangeInclusive<u32>) -> Option<u32> {
    let parts = map.lines().filter_map(|line| {
        let mut numbers = line.split_ascii_whitespace().map(|number| number.parse::<u64>().ok());
        let (first, _, length) = (numbers.next()??, numbers.next()??, numbers.next()??);
        Some(first..first + length)
    });
    let parts: Vec<_> = parts.collect();
    let mut next = u64::from(*range.start());
    while next <= u64::from(*range.end()) {
        match parts.iter().find(|part| part.contains(&next)) {
            Some(part) => next = part.end,
            None => return u32::try_from(next).ok(),
        }
    }
    None
}

/// The user of a data set: the one it has had, or a free one that nothing on this machine is of, neither a process, whoever
/// started it, nor any data of this root. Call with the lock of the root held.
pub(crate) fn claim(
    layout: &Layout,
    control_plane: &ControlPlaneId,
    data: &DataId,
    range: &RangeInclusive<u32>,
) -> Result<u32> {
    let owner = owner_text(control_plane, data);
    // What its mark says, and not the first number that would do: its files are of that user.
    let had = Owner::read(&layout.data(control_plane, data))?.and_then(|owner| owner.user);
    if let Some(user) = had.filter(|user| range.contains(user))
        && all(layout).keep(&owner, user)?
    {
        return Ok(user);
    }
    let start = next(layout, range)?;
    // Looked at once, and only when an id is to be given out. A reservation that somebody has deleted says nothing any more;
    // the files of who sleeps do.
    let used = OnceCell::new();
    let unused = |user| {
        let used = match used.get() {
            Some(used) => used,
            None => {
                let mut found = process::users()?;
                found.extend(owners_of_files(layout)?);
                used.get_or_init(|| found)
            }
        };
        Ok(!used.contains(&user))
    };
    let claimed = all(layout).claim(&owner, start, range, unused, |owner| owner_exists(layout, owner))?;
    let user = claimed.ok_or_else(|| {
        let message = format!("no free user in {} to {}", range.start(), range.end());
        Problem::new(ErrorKind::CapacityExhausted, message)
    })?;
    // A hint: without it a number is given again sooner.
    if let Err(error) = fs::write(layout.last_user(), user.to_string()) {
        tracing::debug!(%error, user, "which user was given last was not noted");
    }
    Ok(user)
}

/// Where to look for a free user: after the one that was given last. What an instance left in folders that everybody may
/// write is still its user's when it is gone, so a number is given again as late as can be. The first of all is anywhere, so
/// that two roots whose ranges overlap by mistake rarely meet.
fn next(layout: &Layout, range: &RangeInclusive<u32>) -> Result<u32> {
    let last = layout::read(&layout.last_user())?;
    let last = last.and_then(|text| std::str::from_utf8(&text).ok()?.parse::<u32>().ok());
    Ok(match last.filter(|last| range.contains(last)) {
        Some(last) if last == *range.end() => *range.start(),
        Some(last) => last + 1,
        None => rand::random_range(range.clone()),
    })
}

/// Whose the files of all data are, as the file system tells.
fn owners_of_files(layout: &Layout) -> Result<Vec<u32>> {
    let mut owners = Vec::new();
    for data in layout.everybodys_data()? {
        let files = data.files();
        match fs::symlink_metadata(&files) {
            Ok(files) => owners.push(files.uid()),
            // Deleted by somebody, or no data at all.
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {}
            Err(error) => return Err(Problem::io("look at", &files, error)),
        }
    }
    Ok(owners)
}

/// Whether a user is given to this data set and to nothing else: then all that runs as it is of the instance with the data.
pub(crate) fn is_given(layout: &Layout, control_plane: &ControlPlaneId, data: &DataId, user: u32) -> Result<bool> {
    all(layout).is_given(&owner_text(control_plane, data), user)
}

/// Gives the user of a data set back.
pub(crate) fn release(layout: &Layout, control_plane: &ControlPlaneId, data: &DataId, user: u32) -> Result<()> {
    all(layout).release(&owner_text(control_plane, data), Some(user))
}

/// The users of this control plane whose data is gone, or has another one.
pub(crate) fn stale(layout: &Layout, control_plane: &ControlPlaneId) -> Result<Vec<u32>> {
    let mut stale = Vec::new();
    for (user, owner) in all(layout).all()? {
        let Some((plane, data)) = owner_of(&owner).filter(|(plane, _)| plane == control_plane) else { continue };
        let mark = Owner::read(&layout.data(&plane, &data))?;
        let has_another = mark.and_then(|mark| mark.user).is_some_and(|of| of != user);
        if has_another || !owner_exists(layout, &owner)? {
            stale.push(user);
        }
    }
    Ok(stale)
}

/// Removes a reservation found by [`stale`].
pub(crate) fn remove_stale(layout: &Layout, user: u32) -> Result<()> {
    all(layout).remove(user)
}

fn all(layout: &Layout) -> Reservations {
    Reservations::at(layout.users())
}

fn owner_text(control_plane: &ControlPlaneId, data: &DataId) -> String {
    format!("{control_plane} {data}")
}

fn owner_of(text: &[u8]) -> Option<(ControlPlaneId, DataId)> {
    let (control_plane, data) = std::str::from_utf8(text).ok()?.split_once(' ')?;
    Some((ControlPlaneId::new(control_plane).ok()?, DataId::new(data).ok()?))
}

fn owner_exists(layout: &Layout, text: &[u8]) -> Result<bool> {
    let Some((control_plane, data)) = owner_of(text) else { return Ok(false) };
    // Also while it is being deleted: until then something may still run as its user.
    for path in [layout.data(&control_plane, &data).path(), &layout.removed(&control_plane).join(data.as_str())] {
        if path.try_exists().map_err(|error| Problem::io("look for", path, error))? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Makes the data the user's own, and lets the user through to it. Changes nothing where it is so already.
///
/// # Errors
/// When a folder above the root keeps users out: that is for an operator to change.
pub(crate) fn hand_over(layout: &Layout, control_plane: &ControlPlaneId, data: &DataFolder, user: u32) -> Result<()> {
    if let Some(closed) = layout.root().ancestors().skip(1).find(|folder| !lets_through(folder)) {
        let message = format!("users of instances may not enter {}, which is above the root", closed.display());
        return Err(Problem::new(ErrorKind::Unauthorized, message));
    }
    let all_data = layout.all_data(control_plane);
    let above = [layout.root(), all_data.parent().unwrap_or(&all_data), &all_data, data.path()];
    for folder in above {
        if !lets_through(folder) {
            // To pass through, not to look around: names in there hold random parts.
            fs::set_permissions(folder, Permissions::from_mode(0o711))
                .map_err(|error| Problem::io("open to users", folder, error))?;
        }
    }
    let files = data.files();
    let owner = fs::symlink_metadata(&files).map_err(|error| Problem::io("look at", &files, error))?.uid();
    if owner == user { Ok(()) } else { give_all(&files, user) }
}

/// Gives a folder, and all in it that is of the same owner, to a user; itself last, so that a cut change is seen and done
/// again. Whoever has it may still run and change it meanwhile: so folders are entered by their descriptors and never through a
/// link, and what is somebody else's, as behind a hard link, stays that.
fn give_all(path: &Path, user: u32) -> Result<()> {
    let given = || {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let folder = rustix::fs::open(path, flags, Mode::empty())?;
        let owner = rustix::fs::fstat(&folder)?.st_uid;
        give_entries(&folder, owner, user, 0)?;
        rustix::fs::fchown(&folder, Some(Uid::from_raw(user)), Some(Gid::from_raw(user)))
    };
    given().map_err(|error| Problem::io("give to its user", path, error.into()))
}

fn give_entries(folder: &OwnedFd, owner: u32, user: u32, depth: usize) -> rustix::io::Result<()> {
    if depth > DEPTH_MAX {
        return Err(Errno::NAMETOOLONG);
    }
    for entry in Dir::read_from(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        if [c".", c".."].contains(&name) {
            continue;
        }
        // Held from the look to the change: by then the name may be something else's.
        let held = rustix::fs::openat(folder, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
        let what = rustix::fs::fstat(&held)?;
        if FileType::from_raw_mode(what.st_mode) == FileType::Directory {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let below = rustix::fs::openat(&held, c".", flags, Mode::empty())?;
            give_entries(&below, owner, user, depth + 1)?;
        }
        if what.st_uid == owner {
            let (user, group) = (Uid::from_raw(user), Gid::from_raw(user));
            rustix::fs::chownat(&held, c"", Some(user), Some(group), AtFlags::EMPTY_PATH)?;
        }
    }
    Ok(())
}

/// Whether everybody may enter this folder.
fn lets_through(folder: &Path) -> bool {
    fs::metadata(folder).is_ok_and(|folder| folder.mode() & 0o001 != 0)
}

/// What keeps a user who owns nothing from executing this program, if anything.
pub(crate) fn keeps_from_executing(program: &Path) -> Option<String> {
    // What links name counts, not the way there.
    let program = program.canonicalize().ok()?;
    if let Some(closed) = program.ancestors().skip(1).find(|folder| !lets_through(folder)) {
        return Some(format!("users of instances may not enter {}", closed.display()));
    }
    let mode = program.metadata().ok()?.mode();
    (mode & 0o001 == 0).then(|| "only some may execute it: expected a program that everybody may execute".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: &str = "         0          0 4294967295\n";
    const ROOT: &str = "Name:\tx\nCapPrm:\t0000000000000000\nCapEff:\t000001ffffffffff\nCapBnd:\t000001ffffffffff\n";
    const RANGE: RangeInclusive<u32> = 1_900_000_000..=1_900_065_535;

    #[test]
    fn ids_are_usable_only_where_the_namespace_has_all_of_them() {
        assert_eq!(first_unmapped(ALL, &RANGE), None);
        // As `unshare --map-root-user` and containers without root write it.
        assert_eq!(first_unmapped("         0          0          1\n", &RANGE), Some(1_900_000_000));
        let container = "         0       1000          1\n         1     100000      65536\n";
        assert_eq!(first_unmapped(container, &RANGE), Some(1_900_000_000));
        assert_eq!(first_unmapped(container, &(1..=65_536)), None);
        assert_eq!(first_unmapped(container, &(0..=65_536)), None, "in two parts");
        assert_eq!(first_unmapped(container, &(60_000..=65_537)), Some(65_537));
        assert_eq!(first_unmapped("", &RANGE), Some(1_900_000_000));
    }

    #[test]
    fn root_may_give_users_away_only_with_its_capabilities() {
        let keeps = |status: &str, uids, gids, groups| keeps_from_changing(status, uids, gids, groups, &RANGE);
        assert_eq!(keeps(ROOT, ALL, ALL, "allow\n"), None);
        // Of a container with what Docker gives by default, and the same with one dropped.
        let container = |bits: u64| format!("CapInh:\t0000000000000000\nCapEff:\t{bits:016x}\n");
        assert_eq!(keeps(&container(0xa804_25fb), ALL, ALL, "allow\n"), None);
        for (name, number) in CAPABILITIES {
            let told = keeps(&container(0xa804_25fb & !(1 << number)), ALL, ALL, "allow\n").unwrap();
            assert!(told.contains(name), "{told}");
        }
        assert!(keeps("", ALL, ALL, "").unwrap().contains("CAP_CHOWN"));
        let few = "0 1000 1\n1 100000 65536\n";
        assert!(keeps(ROOT, few, ALL, "allow\n").unwrap().contains("1900000000 among its users"));
        assert!(
            keeps(ROOT, ALL, few, "allow\n")
                .unwrap()
                .contains("among its groups: it has (first, outside, number) 0 1000 1, 1")
        );
        assert!(keeps(ROOT, ALL, ALL, "deny\n").is_some());
    }
}
