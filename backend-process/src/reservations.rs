//! Numbers that are given to one owner each: ports and users. A file `FOLDER/NUMBER` names the owner; all of it happens under
//! the lock of the root.

use std::{fs, io, ops::RangeInclusive, path::PathBuf};

use crate::{
    error::{Problem, Result},
    layout::{self, make_folder, remove_file},
};

/// The numbers of one kind on a root.
#[derive(Debug)]
pub(crate) struct Reservations {
    folder: PathBuf,
}

impl Reservations {
    pub(crate) fn at(folder: PathBuf) -> Self {
        Self { folder }
    }

    /// The number that this owner has, or one that is free: neither given away nor, by `usable`, in use by somebody who did
    /// not ask. `None`: there is none left. The search begins at `start`, and goes round.
    pub(crate) fn claim(
        &self,
        owner: &str,
        start: u32,
        range: &RangeInclusive<u32>,
        usable: impl Fn(u32) -> Result<bool>,
        owner_exists: impl Fn(&[u8]) -> Result<bool>,
    ) -> Result<Option<u32>> {
        make_folder(&self.folder)?;
        let mut taken = Vec::new();
        for number in starting_at(range, start) {
            match layout::read(&self.file(number))? {
                Some(of) if of == owner.as_bytes() => return Ok(Some(number)),
                Some(of) => taken.push((number, of)),
                None if usable(number)? => return self.give(number, owner),
                None => {}
            }
        }
        // Full. What crashes have left behind is looked for only now, as it costs a look at every owner.
        for (number, of) in taken {
            if !owner_exists(&of)? && usable(number)? {
                return self.give(number, owner);
            }
        }
        Ok(None)
    }

    /// Whether this owner has this number.
    pub(crate) fn is_given(&self, owner: &str, number: u32) -> Result<bool> {
        Ok(layout::read(&self.file(number))?.is_some_and(|of| of == owner.as_bytes()))
    }

    /// Whether this owner still has a number that it had, or can have it again.
    pub(crate) fn keep(&self, owner: &str, number: u32) -> Result<bool> {
        match layout::read(&self.file(number))? {
            Some(of) => Ok(of == owner.as_bytes()),
            None => {
                make_folder(&self.folder)?;
                self.give(number, owner).map(|_| true)
            }
        }
    }

    /// Takes an owner's number back. With none named, as nothing is left that tells it, all are looked at.
    pub(crate) fn release(&self, owner: &str, number: Option<u32>) -> Result<()> {
        let given = match number {
            Some(number) => layout::read(&self.file(number))?.map(|of| (number, of)).into_iter().collect(),
            None => self.all()?,
        };
        let own = given.into_iter().filter(|(_, of)| of == owner.as_bytes());
        own.map(|(number, _)| number).try_for_each(|number| self.remove(number))
    }

    /// All that are given away, with their owners, in order.
    pub(crate) fn all(&self) -> Result<Vec<(u32, Vec<u8>)>> {
        let entries = match fs::read_dir(&self.folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(Problem::io("read", &self.folder, error)),
        };
        let mut all = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|error| Problem::io("read", &self.folder, error))?;
            if let Some(number) = entry.file_name().to_str().and_then(|name| name.parse().ok())
                && let Some(owner) = layout::read(&entry.path())?
            {
                all.push((number, owner));
            }
        }
        all.sort_unstable();
        Ok(all)
    }

    /// Takes a number back, whoever has it.
    pub(crate) fn remove(&self, number: u32) -> Result<()> {
        remove_file(&self.file(number))
    }

    fn give(&self, number: u32, owner: &str) -> Result<Option<u32>> {
        layout::write_durably(&self.file(number), owner.as_bytes())?;
        Ok(Some(number))
    }

    fn file(&self, number: u32) -> PathBuf {
        self.folder.join(number.to_string())
    }
}

/// All numbers of the range, from this one on.
fn starting_at(range: &RangeInclusive<u32>, start: u32) -> impl Iterator<Item = u32> + use<> {
    (start..=*range.end()).chain(*range.start()..start)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_has_one_owner_and_the_search_goes_round() {
        let root = tempfile::tempdir().unwrap();
        let numbers = Reservations::at(root.path().join("numbers"));
        let range = 10..=11;
        let claim = |owner: &str, gone: &'static str| {
            numbers.claim(owner, 11, &range, |_| Ok(true), move |of| Ok(of != gone.as_bytes())).unwrap()
        };
        assert_eq!((claim("a", ""), claim("a", "")), (Some(11), Some(11)), "asking again changes nothing");
        assert_eq!(claim("b", ""), Some(10));
        assert_eq!(claim("c", ""), None);
        numbers.release("a", Some(10)).unwrap();
        assert_eq!(claim("c", ""), None, "nobody gives away what is another's");
        assert_eq!(claim("c", "b"), Some(10), "whose owner is gone");
        assert_eq!(numbers.all().unwrap(), [(10, b"c".to_vec()), (11, b"a".to_vec())]);
        numbers.release("a", None).unwrap();
        assert_eq!(numbers.all().unwrap(), [(10, b"c".to_vec())]);
    }

    #[test]
    fn what_somebody_else_uses_is_passed_over() {
        let root = tempfile::tempdir().unwrap();
        let numbers = Reservations::at(root.path().join("numbers"));
        let claimed = numbers.claim("a", 1, &(1..=3), |number| Ok(number == 3), |_| Ok(true));
        assert_eq!(claimed.unwrap(), Some(3));
    }
}
