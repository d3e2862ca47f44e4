//! Damage in the middle of the write-ahead log.
//!
//! SQLite takes a log up to its first bad frame and forgets the rest, which is right for what a crash tears: the end. It
//! also does so when the middle is damaged, and drops commits that were answered. The two can be told apart: every commit
//! is on disk before the next one is begun (`synchronous=FULL`), so a bad frame with two whole commits behind it was
//! good once. The format: <https://www.sqlite.org/fileformat2.html#the_write_ahead_log>.

use std::{
    fs::File,
    io::{self, BufReader, Read},
    path::Path,
};

const HEADER_BYTES: usize = 32;
const FRAME_HEADER_BYTES: usize = 24;
const MAGIC: u32 = 0x377f_0682;

/// A running checksum, and the order of bytes it is taken in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Sum(u32, u32);

impl Sum {
    fn after(self, bytes: &[u8], big_endian: bool) -> Self {
        let word = |bytes: &[u8]| {
            let word = bytes.try_into().expect("four bytes");
            if big_endian { u32::from_be_bytes(word) } else { u32::from_le_bytes(word) }
        };
        bytes.chunks_exact(8).fold(self, |Self(first, second), pair| {
            let first = first.wrapping_add(word(&pair[..4])).wrapping_add(second);
            Self(first, second.wrapping_add(word(&pair[4..])).wrapping_add(first))
        })
    }
}

fn field(bytes: &[u8], index: usize) -> u32 {
    u32::from_be_bytes(bytes[index * 4..][..4].try_into().expect("four bytes"))
}

/// The number of the bad frame that commits follow, counted from 1; 0 for the log's header.
///
/// # Errors
/// When the log cannot be read. A log that is not there has no damage.
pub(super) fn find_damage(path: &Path) -> io::Result<Option<u64>> {
    let mut log = match File::open(path) {
        Ok(file) => BufReader::with_capacity(1 << 20, file),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut header = [0; HEADER_BYTES];
    if !fill(&mut log, &mut header)? {
        return Ok(None);
    }
    let big_endian = field(&header, 0) == MAGIC | 1;
    let page = field(&header, 2) as usize;
    if field(&header, 0) & !1 != MAGIC || !page.is_power_of_two() || !(512..=65_536).contains(&page) {
        // Not one byte can be trusted to say more.
        return Ok(header.iter().any(|byte| *byte != 0).then_some(0));
    }
    let header_is_good = Sum(0, 0).after(&header[..24], big_endian) == Sum(field(&header, 6), field(&header, 7));
    let salts = (field(&header, 4), field(&header, 5));
    let mut before = Sum(field(&header, 6), field(&header, 7));
    let mut bad: Option<u64> = (!header_is_good).then_some(0);
    let mut commits_behind = 0;
    let mut frame = vec![0; FRAME_HEADER_BYTES + page];
    let mut number = 0;
    while fill(&mut log, &mut frame)? {
        number += 1;
        let stored = Sum(field(&frame, 4), field(&frame, 5));
        let sum = before.after(&frame[..8], big_endian).after(&frame[FRAME_HEADER_BYTES..], big_endian);
        let of_this_log = (field(&frame, 2), field(&frame, 3)) == salts;
        before = stored;
        if sum != stored || !of_this_log {
            bad = bad.or(Some(number));
            commits_behind = 0;
        } else if bad.is_some() && field(&frame, 1) != 0 {
            commits_behind += 1;
            if commits_behind == 2 {
                return Ok(bad);
            }
        }
    }
    Ok(None)
}

/// Reads as much as fits; false at the end, where part of a frame may be left.
fn fill(log: &mut impl Read, bytes: &mut [u8]) -> io::Result<bool> {
    match log.read_exact(bytes) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}
