//! Ports of a test's own: two programs that look for a free port at once may find the same one.

use std::{
    env,
    fs::{self, File},
    net::{Ipv4Addr, TcpListener},
    ops::RangeInclusive,
};

const FIRST: u16 = 20_000;
const EACH: u16 = 16;
const RANGES: u16 = 600;

/// A range of ports of every address that no other test has for as long as this is there.
#[derive(Debug)]
pub struct Ports {
    range: RangeInclusive<u16>,
    /// Locked, and not removed: a removed file could be locked by two who opened it at different times.
    _lock: File,
}

impl Ports {
    /// Takes the first free range: no other test's, and nothing listens there, such as a program that a test left behind.
    ///
    /// # Panics
    /// When all are taken, or files cannot be written.
    #[must_use]
    pub fn take() -> Self {
        let folder = env::temp_dir().join("provisioner-test-ports");
        fs::create_dir_all(&folder).expect("a folder for locks");
        let taken = (0..RANGES).find_map(|at| {
            // Another user's can be locked all the same, and not written to.
            let path = folder.join(at.to_string());
            let lock = File::open(&path).or_else(|_| File::create(&path)).ok()?;
            let first = FIRST + at * EACH;
            lock.try_lock().ok()?;
            let range = first..=first + EACH - 1;
            range.clone().all(is_free).then(|| Self { range, _lock: lock })
        });
        taken.expect("a free range of ports")
    }

    /// The first and the last one, as programs are told them.
    #[must_use]
    pub fn ends(&self) -> [String; 2] {
        [self.range.start(), self.range.end()].map(u16::to_string)
    }

    /// All of them.
    #[must_use]
    pub fn range(&self) -> RangeInclusive<u16> {
        self.range.clone()
    }
}

/// Whether nothing listens there, on any address.
fn is_free(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_in_which_something_listens_is_passed_over() {
        let ports = Ports::take();
        let stranger = TcpListener::bind((Ipv4Addr::new(127, 9, 8, 7), *ports.range().end())).unwrap();
        let taken = ports.range();
        drop(ports);
        for _ in 0..3 {
            assert_ne!(Ports::take().range(), taken);
        }
        drop(stranger);
    }

    #[test]
    fn two_never_have_the_same() {
        let (a, b) = (Ports::take(), Ports::take());
        assert!(a.range().end() < b.range().start() || b.range().end() < a.range().start());
    }
}
