//! Whose a listening socket is: what answers on an instance's port need not be the instance.

use std::{
    fs::File,
    io::{self, BufRead, BufReader},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::Path,
};

use crate::{
    error::{Problem, Result},
    process::{self, Process},
};

/// Who gets a connection to an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Listener {
    /// Nobody that could be found: whoever listened may be gone again.
    Nobody,
    /// The instance.
    Own,
    /// Somebody else.
    Stranger,
}

/// What tells a socket of an instance from others.
#[derive(Debug)]
pub(crate) struct Whose<'a> {
    /// The user that it alone runs as; it tells all.
    pub(crate) user: Option<u32>,
    pub(crate) leader: Process,
    pub(crate) data_path: &'a str,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Socket {
    user: u32,
    inode: u64,
}

/// Finds out who listens at an address. `members` tells the processes of the instance, and is asked only where its leader
/// is not the one.
pub(crate) fn at(
    address: SocketAddr,
    whose: &Whose<'_>,
    members: impl FnOnce() -> Result<Vec<Process>>,
) -> Result<Listener> {
    let sockets = listening(address)?;
    if sockets.is_empty() {
        return Ok(Listener::Nobody);
    }
    if let Some(user) = whose.user {
        let own = sockets.iter().all(|socket| socket.user == user);
        return Ok(if own { Listener::Own } else { Listener::Stranger });
    }
    let foreign = |by: &[Process]| -> Vec<Socket> {
        let held = |socket: &Socket| by.iter().any(|process| process::holds_socket(process.pid(), socket.inode));
        sockets.iter().copied().filter(|socket| !held(socket)).collect()
    };
    if foreign(&[whose.leader]).is_empty() {
        return Ok(Listener::Own);
    }
    let left = foreign(&members()?);
    if left.is_empty() {
        return Ok(Listener::Own);
    }
    // Without a control group a process can leave all that counts as the instance and be of it none the less.
    let own_user = rustix::process::geteuid().as_raw();
    let mut found = Listener::Own;
    for socket in left {
        match process::holder_of_socket(socket.inode, whose.data_path)? {
            Some(true) => {}
            Some(false) => return Ok(Listener::Stranger),
            // Others do not show to everybody what they have open.
            None if own_user != 0 && socket.user != own_user => return Ok(Listener::Stranger),
            None => found = Listener::Nobody,
        }
    }
    Ok(found)
}

/// The sockets that a connection to this address can end at. More than one when they share the port.
fn listening(address: SocketAddr) -> Result<Vec<Socket>> {
    let mut found: Vec<(usize, Socket)> = Vec::new();
    for path in ["/proc/net/tcp", "/proc/net/tcp6"].map(Path::new) {
        let problem = |error| Problem::io("read", path, error);
        let table = match File::open(path) {
            Ok(table) => BufReader::new(table),
            // A kernel without IPv6.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(problem(error)),
        };
        for line in table.lines().skip(1) {
            let line = line.map_err(problem)?;
            // All that listen come first: <https://docs.kernel.org/networking/proc_net_tcp.html>. The rest can be long.
            let Some((at, socket)) = parse(&line) else { break };
            if at.port() == address.port()
                && let Some(rank) = rank(at.ip(), address.ip())
            {
                found.push((rank, socket));
            }
        }
    }
    let best = found.iter().map(|(rank, _)| *rank).min();
    Ok(found.into_iter().filter(|(rank, _)| Some(*rank) == best).map(|(_, socket)| socket).collect())
}

/// In which order the kernel considers a socket that listens at `at` for a connection to `to`; `None`: not at all.
fn rank(at: IpAddr, to: IpAddr) -> Option<usize> {
    let mapped = |ip: Ipv4Addr| IpAddr::V6(ip.to_ipv6_mapped());
    let order = match to {
        IpAddr::V4(v4) => {
            vec![to, mapped(v4), Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()]
        }
        IpAddr::V6(_) => vec![to, Ipv6Addr::UNSPECIFIED.into()],
    };
    order.iter().position(|candidate| *candidate == at)
}

/// Reads a line; `None`: it is of no socket that listens.
fn parse(line: &str) -> Option<(SocketAddr, Socket)> {
    const LISTENS: &str = "0A";
    let fields: Vec<&str> = line.split_ascii_whitespace().collect();
    if *fields.get(3)? != LISTENS {
        return None;
    }
    let (ip, port) = fields.get(1)?.split_once(':')?;
    // Words of four bytes, each in the order of the network, printed as numbers of this machine.
    let word = |at: usize| Some(u32::from_str_radix(ip.get(at * 8..at * 8 + 8)?, 16).ok()?.to_ne_bytes());
    let ip: IpAddr = if ip.len() == 8 {
        Ipv4Addr::from(word(0)?).into()
    } else {
        let mut bytes = [0; 16];
        for (at, part) in bytes.chunks_exact_mut(4).enumerate() {
            part.copy_from_slice(&word(at)?);
        }
        Ipv6Addr::from(bytes).into()
    };
    let port = u16::from_str_radix(port, 16).ok()?;
    let socket = Socket { user: fields.get(7)?.parse().ok()?, inode: fields.get(9)?.parse().ok()? };
    Some((SocketAddr::new(ip, port), socket))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    fn whose(data_path: &str) -> Whose<'_> {
        Whose { user: None, leader: Process::of(std::process::id()).unwrap(), data_path }
    }

    #[test]
    fn the_listener_is_found_whatever_address_it_listens_at() {
        let user = rustix::process::geteuid().as_raw();
        for (listens_at, asked) in [
            ("127.0.0.1:0", "127.0.0.1"),
            ("0.0.0.0:0", "127.0.0.1"),
            ("[::]:0", "127.0.0.1"),
            ("[::ffff:127.0.0.1]:0", "127.0.0.1"),
            ("[::1]:0", "::1"),
        ] {
            let Ok(listener) = TcpListener::bind(listens_at) else {
                println!("not tried: {listens_at}, as this machine has no IPv6");
                continue;
            };
            let address = SocketAddr::new(asked.parse().unwrap(), listener.local_addr().unwrap().port());
            let ask = |whose: &Whose<'_>| at(address, whose, || Ok(Vec::new())).unwrap();
            assert_eq!(ask(&whose("")), Listener::Own, "{listens_at}");
            assert_eq!(ask(&Whose { user: Some(user), ..whose("") }), Listener::Own, "{listens_at}");
            assert_eq!(ask(&Whose { user: Some(user + 1), ..whose("") }), Listener::Stranger, "{listens_at}");
            let init = Process::of(1).unwrap();
            assert_eq!(ask(&Whose { leader: init, ..whose("") }), Listener::Stranger, "{listens_at}");
            drop(listener);
            assert_eq!(ask(&whose("")), Listener::Nobody, "{listens_at}");
        }
    }

    #[test]
    fn the_one_that_is_asked_first_counts() {
        let ranks = |to: &str, at: &[&str]| -> Vec<Option<usize>> {
            at.iter().map(|at| rank(at.parse().unwrap(), to.parse().unwrap())).collect()
        };
        let v4 = ranks("127.0.0.1", &["127.0.0.1", "::ffff:127.0.0.1", "0.0.0.0", "::", "127.0.0.2", "::1"]);
        assert_eq!(v4, [Some(0), Some(1), Some(2), Some(3), None, None]);
        assert_eq!(ranks("::1", &["::1", "::", "0.0.0.0"]), [Some(0), Some(1), None]);
    }

    #[test]
    fn only_what_listens_is_read() {
        let line = |state: &str| {
            format!(
                "   0: 0100007F:4E20 00000000:0000 {state} 00000000:00000000 00:00000000 00000000  1000        0 77 1"
            )
        };
        if cfg!(target_endian = "little") {
            let expected = ("127.0.0.1:20000".parse().unwrap(), Socket { user: 1000, inode: 77 });
            assert_eq!(parse(&line("0A")), Some(expected));
        }
        assert_eq!(parse(&line("01")), None);
        assert_eq!(parse("garbage"), None);
    }
}
