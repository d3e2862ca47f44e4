//! One making of the thing behind an instance, and the names that derive from it.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::id::{ControlPlaneId, InstanceId};

/// One making of the thing behind an instance: a rising number and a random nonce.
///
/// It is stored before the first call of the making and never used again, not even after the instance was forgotten or
/// the store was restored from an old backup; the nonce sees to that. Written `number-nonce`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Incarnation {
    number: u32,
    nonce: u128,
}

impl Incarnation {
    /// The making with this number and nonce.
    #[must_use]
    pub const fn new(number: u32, nonce: u128) -> Self {
        Self { number, nonce }
    }

    /// Which making of the instance this is: 1 for the first.
    #[must_use]
    pub const fn number(self) -> u32 {
        self.number
    }

    /// What tells it from every other making there ever was.
    #[must_use]
    pub const fn nonce(self) -> u128 {
        self.nonce
    }

    /// The token from which every provider-side name of this making derives: 40 hexadecimal digits, a function of
    /// control plane, instance and incarnation and of nothing else (not of the spec).
    #[must_use]
    pub fn token(self, control_plane: &ControlPlaneId, instance: &InstanceId) -> String {
        hex_digest(&["incarnation", control_plane.as_str(), instance.as_str(), &self.to_string()], 20)
    }
}

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{:032x}", self.number, self.nonce)
    }
}

/// A text is not an incarnation.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not an incarnation: expected a number, a dash and 32 hexadecimal digits")]
pub struct InvalidIncarnation;

impl FromStr for Incarnation {
    type Err = InvalidIncarnation;

    fn from_str(text: &str) -> Result<Self, InvalidIncarnation> {
        let (number, nonce) = text.split_once('-').ok_or(InvalidIncarnation)?;
        let parsed = Self {
            number: number.parse().map_err(|_| InvalidIncarnation)?,
            nonce: u128::from_str_radix(nonce, 16).map_err(|_| InvalidIncarnation)?,
        };
        // One spelling only, so that texts can be compared instead of values.
        if parsed.to_string() == text { Ok(parsed) } else { Err(InvalidIncarnation) }
    }
}

impl TryFrom<String> for Incarnation {
    type Error = InvalidIncarnation;

    fn try_from(text: String) -> Result<Self, InvalidIncarnation> {
        text.parse()
    }
}

impl From<Incarnation> for String {
    fn from(incarnation: Incarnation) -> Self {
        incarnation.to_string()
    }
}

/// The first `bytes` bytes of the SHA-256 of the parts, in hexadecimal. Parts are length-prefixed, so that no two lists
/// of parts read the same.
pub(crate) fn hex_digest(parts: &[&str], bytes: usize) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    hash.finalize().iter().take(bytes).map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_back_what_it_prints_and_only_that() {
        let incarnation = Incarnation::new(3, 0xabc);
        assert_eq!(incarnation.to_string().parse(), Ok(incarnation));
        for bad in ["", "3", "3-", "3-abc", "03-00000000000000000000000000000abc", "x-00000000000000000000000000000abc"]
        {
            assert_eq!(bad.parse::<Incarnation>(), Err(InvalidIncarnation), "{bad}");
        }
    }

    #[test]
    fn tokens_differ_by_control_plane_instance_number_and_nonce() {
        let token = |plane: &str, id: &str, number, nonce| {
            Incarnation::new(number, nonce).token(&ControlPlaneId::new(plane).unwrap(), &InstanceId::new(id).unwrap())
        };
        let tokens = [
            token("a", "b", 1, 1),
            token("b", "b", 1, 1),
            token("a", "a", 1, 1),
            token("a", "b", 2, 1),
            token("a", "b", 1, 2),
        ];
        for (i, one) in tokens.iter().enumerate() {
            assert_eq!(one.len(), 40);
            assert!(tokens.iter().skip(i + 1).all(|other| other != one));
        }
        assert_eq!(tokens[0], token("a", "b", 1, 1), "a token is a function of its parts");
    }
}
