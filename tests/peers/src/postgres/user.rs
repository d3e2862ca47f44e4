//! As whom the server runs: PostgreSQL refuses root.

use std::fs;

/// Who is taken, the first that there is.
const NAMES: [&str; 2] = ["postgres", "nobody"];

/// A user that is not root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct User {
    pub(super) uid: u32,
    pub(super) gid: u32,
}

impl User {
    /// Finds one for root to run the server as.
    pub(super) fn find() -> Result<Self, String> {
        let users = fs::read_to_string("/etc/passwd").map_err(|error| format!("/etc/passwd: {error}"))?;
        Self::among(&users)
    }

    fn among(users: &str) -> Result<Self, String> {
        let found = NAMES.iter().find_map(|name| users.lines().find_map(|line| Self::named(name, line)));
        found.ok_or_else(|| {
            format!("PostgreSQL refuses to run as root, and of the users {} there is none", NAMES.join(" and "))
        })
    }

    /// Of `NAME:PASSWORD:UID:GID:...`, the user of this name.
    fn named(name: &str, line: &str) -> Option<Self> {
        let mut fields = line.split(':');
        if fields.next()? != name {
            return None;
        }
        let mut number = || fields.next()?.parse().ok();
        // The password comes before them.
        let _ = number();
        let user = Self { uid: number()?, gid: number()? };
        (user.uid != 0).then_some(user)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const USERS: &str = "root:x:0:0:root:/root:/bin/bash\nnobody:x:65534:65533:nobody:/:/usr/sbin/nologin\n";

    #[test]
    fn its_own_user_comes_before_nobody() {
        assert_eq!(User::among(USERS), Ok(User { uid: 65534, gid: 65533 }));
        let own = "postgres:x:101:104:PostgreSQL administrator,,,:/var/lib/postgresql:/bin/bash\n";
        assert_eq!(User::among(&format!("{USERS}{own}")), Ok(User { uid: 101, gid: 104 }));
    }

    #[test]
    fn another_name_of_root_is_none() {
        let error = User::among("postgres:x:0:0::/:/bin/sh\nnobodys:x:7:7::/:/bin/sh\nbroken\n").unwrap_err();
        assert!(error.contains("postgres and nobody"), "{error}");
    }
}
