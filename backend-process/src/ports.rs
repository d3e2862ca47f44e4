//! Ports: one for each instance, awake or not, over all control planes on a root. It has the same one for its whole life,
//! unless somebody else listens there when it is to start.
//!
//! `ROOT/.ports/PORT` names the owner.

use std::{
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
    os::fd::OwnedFd,
};

use provisioner_core::{ErrorKind, types::ControlPlaneId};
use rustix::{
    io::Errno,
    net::{AddressFamily, SocketFlags, SocketType, bind, socket_with, sockopt::set_socket_reuseaddr},
};

use crate::{
    error::{Problem, Result},
    layout::{Key, Layout},
    reservations::Reservations,
};

/// Reserves a port for an instance: the one it had if nobody else listens there, or a free one. Call with the lock of the root held and the
/// instance's folder made: a reservation whose owner has no folder is up for grabs.
pub(crate) fn claim(
    layout: &Layout,
    key: &Key,
    had: Option<u16>,
    address: IpAddr,
    range: &RangeInclusive<u16>,
) -> Result<u16> {
    if let Some(port) = had {
        if all(layout).keep(&owner_text(key), port.into())? && is_free(address, port) {
            return Ok(port);
        }
        // Every one that it has: a start may have been cut before it wrote down which.
        release(layout, key, None)?;
        tracing::info!(instance = %key.id, port, "somebody else has this port: another one is taken");
    }
    let wide = u32::from(*range.start())..=u32::from(*range.end());
    // Spread over the range, and the same on every attempt.
    let token = key.incarnation.token(&key.control_plane, &key.id);
    let offset = u32::from_str_radix(&token[..8], 16).unwrap_or(0) % (wide.end() - wide.start() + 1);
    let usable = |port: u32| Ok(u16::try_from(port).is_ok_and(|port| is_free(address, port)));
    let claimed = all(layout)
        .claim(&owner_text(key), wide.start() + offset, &wide, usable, |owner| owner_exists(layout, owner))?;
    claimed.and_then(|port| u16::try_from(port).ok()).ok_or_else(|| {
        let message = format!("no free port in {} to {}", range.start(), range.end());
        Problem::new(ErrorKind::CapacityExhausted, message)
    })
}

/// Gives an instance's port back. With no port named, as nothing is left that tells it, all reservations are looked at.
pub(crate) fn release(layout: &Layout, key: &Key, port: Option<u16>) -> Result<()> {
    all(layout).release(&owner_text(key), port.map(u32::from))
}

/// Whether nobody listens on the port.
pub(crate) fn is_free(address: IpAddr, port: u16) -> bool {
    // Anything else (no such address, no right to bind a low port) is the product's to tell.
    !matches!(try_bind(address, port), Err(Errno::ADDRINUSE))
}

/// Binds and does not listen. A process that is forked meanwhile, to become another instance, has this socket too until its
/// program begins: were it listening, the product that is to have the port could not.
fn try_bind(address: IpAddr, port: u16) -> std::result::Result<OwnedFd, Errno> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    // As servers do: what is left of ended connections is in nobody's way, and neither is this.
    set_socket_reuseaddr(&socket, true)?;
    bind(&socket, &SocketAddr::new(address, port))?;
    Ok(socket)
}

/// The reservations of this control plane whose owner is gone.
pub(crate) fn stale(layout: &Layout, control_plane: &ControlPlaneId) -> Result<Vec<u32>> {
    let mut stale = Vec::new();
    for (port, owner) in all(layout).all()? {
        let ours = owner_of(&owner).is_some_and(|key| key.control_plane == *control_plane);
        if ours && !owner_exists(layout, &owner)? {
            stale.push(port);
        }
    }
    Ok(stale)
}

/// Removes a reservation found by [`stale`].
pub(crate) fn remove_stale(layout: &Layout, port: u32) -> Result<()> {
    all(layout).remove(port)
}

fn all(layout: &Layout) -> Reservations {
    Reservations::at(layout.ports())
}

fn owner_text(key: &Key) -> String {
    format!("{} {}", key.control_plane, key.folder_name())
}

fn owner_of(text: &[u8]) -> Option<Key> {
    let (control_plane, folder) = std::str::from_utf8(text).ok()?.split_once(' ')?;
    Key::from_folder_name(&ControlPlaneId::new(control_plane).ok()?, folder)
}

fn owner_exists(layout: &Layout, text: &[u8]) -> Result<bool> {
    owner_of(text).map_or(Ok(false), |key| layout.instance(&key).exists())
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpListener};

    use provisioner_core::types::{Incarnation, InstanceId};

    use super::*;
    use crate::layout::{self, make_folder};

    const ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    fn key(layout: &Layout, plane: &str, id: &str) -> Key {
        let key = Key {
            control_plane: ControlPlaneId::new(plane).unwrap(),
            id: InstanceId::new(id).unwrap(),
            incarnation: Incarnation::new(1, 1),
        };
        make_folder(layout.instance(&key).path()).unwrap();
        key
    }

    #[test]
    fn a_port_has_one_owner_and_a_gone_owner_has_none() {
        let root = tempfile::tempdir().unwrap();
        let layout = Layout::new(root.path().into());
        let range = 19_801..=19_802;
        let (a, b, c) = (key(&layout, "p", "a"), key(&layout, "q", "b"), key(&layout, "p", "c"));
        let first = claim(&layout, &a, None, ADDRESS, &range).unwrap();
        assert_eq!(claim(&layout, &a, None, ADDRESS, &range).unwrap(), first, "asking again changes nothing");
        let second = claim(&layout, &b, None, ADDRESS, &range).unwrap();
        assert_ne!(first, second);
        let full = claim(&layout, &c, None, ADDRESS, &range).unwrap_err().during("create", None);
        assert_eq!(full.kind(), ErrorKind::CapacityExhausted);
        release(&layout, &a, Some(second)).unwrap();
        release(&layout, &c, None).unwrap();
        assert!(claim(&layout, &c, None, ADDRESS, &range).is_err(), "nobody gives away what is another's");
        layout::remove_folder(layout.instance(&b).path()).unwrap();
        assert!(stale(&layout, &a.control_plane).unwrap().is_empty());
        assert_eq!(stale(&layout, &b.control_plane).unwrap(), [u32::from(second)]);
        assert_eq!(claim(&layout, &c, None, ADDRESS, &range).unwrap(), second);
        release(&layout, &c, None).unwrap();
        assert_eq!(claim(&layout, &b, None, ADDRESS, &range).unwrap(), second, "what was given back is free");
    }

    #[test]
    fn a_port_that_somebody_listens_on_is_passed_over() {
        let root = tempfile::tempdir().unwrap();
        let layout = Layout::new(root.path().into());
        let listener = TcpListener::bind((ADDRESS, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let key = key(&layout, "p", "a");
        assert!(!is_free(ADDRESS, port));
        assert!(claim(&layout, &key, None, ADDRESS, &(port..=port)).is_err());
    }

    #[test]
    fn a_look_at_a_port_that_a_fork_has_copied_is_in_no_products_way() {
        let port = TcpListener::bind((ADDRESS, 0)).unwrap().local_addr().unwrap().port();
        let copied = try_bind(ADDRESS, port).unwrap();
        assert!(is_free(ADDRESS, port), "nor in that of another look");
        let product = TcpListener::bind((ADDRESS, port)).unwrap();
        assert!(!is_free(ADDRESS, port));
        drop((copied, product));
        assert!(is_free(ADDRESS, port));
    }

    #[test]
    fn a_port_is_kept_unless_somebody_else_has_or_uses_it() {
        let root = tempfile::tempdir().unwrap();
        let layout = Layout::new(root.path().into());
        let range = 19_811..=19_813;
        let (a, b) = (key(&layout, "p", "a"), key(&layout, "p", "b"));
        let had = claim(&layout, &a, None, ADDRESS, &range).unwrap();
        assert_eq!(claim(&layout, &a, Some(had), ADDRESS, &range).unwrap(), had);
        all(&layout).remove(had.into()).unwrap();
        assert_eq!(claim(&layout, &a, Some(had), ADDRESS, &range).unwrap(), had, "deleted by an outsider");
        let listener = TcpListener::bind((ADDRESS, had)).unwrap();
        let now = claim(&layout, &a, Some(had), ADDRESS, &range).unwrap();
        assert_ne!(now, had);
        drop(listener);
        assert_eq!(all(&layout).all().unwrap().len(), 1, "the old one is given back");
        // The start was cut before it wrote down the new one, and somebody has the old one.
        all(&layout).keep(&owner_text(&b), had.into()).unwrap();
        let again = claim(&layout, &a, Some(had), ADDRESS, &range).unwrap();
        assert_ne!(again, had);
        assert_eq!(all(&layout).all().unwrap().len(), 2);
    }
}
