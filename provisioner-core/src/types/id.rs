//! The names of things, each parsed once at the edge and trusted from there on.

use std::{borrow::Borrow, fmt, str::FromStr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// Why a text is not the name it was given as: what was expected, in words for a person.
///
/// The offending text is quoted, shortened and with control characters escaped, so that the message is safe to log.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} {found}: expected {expected}")]
pub struct InvalidName {
    what: &'static str,
    found: String,
    expected: &'static str,
}

impl InvalidName {
    fn new(what: &'static str, found: &str, expected: &'static str) -> Self {
        const SHOWN_MAX: usize = 60;
        let mut shown: String = found.chars().take(SHOWN_MAX).collect();
        if found.chars().nth(SHOWN_MAX).is_some() {
            shown.push('…');
        }
        Self { what, found: format!("{shown:?}"), expected }
    }

    /// What would have been accepted.
    #[must_use]
    pub fn expected(&self) -> &'static str {
        self.expected
    }
}

/// Declares a string newtype with a private field, a checking constructor and a borrowing getter.
macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $what:literal, $expected:literal, $check:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Box<str>);

        impl $name {
            /// Checks a text and keeps it.
            ///
            /// # Errors
            #[doc = concat!("[`InvalidName`] unless the text is ", $expected, ".")]
            pub fn new(text: impl AsRef<str>) -> Result<Self, InvalidName> {
                let text = text.as_ref();
                let check: fn(&str) -> bool = $check;
                if check(text) {
                    Ok(Self(text.into()))
                } else {
                    Err(InvalidName::new($what, text, $expected))
                }
            }

            /// The text of it.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = InvalidName;

            fn from_str(text: &str) -> Result<Self, InvalidName> {
                Self::new(text)
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidName;

            fn try_from(text: String) -> Result<Self, InvalidName> {
                Self::new(text)
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0.into()
            }
        }

        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }
    };
}

/// A DNS label (RFC 1035): starts with a letter, ends with a letter or digit, `[a-z0-9-]` between.
fn is_dns_label(text: &str, length_max: usize) -> bool {
    let bytes = text.as_bytes();
    (1..=length_max).contains(&bytes.len())
        && bytes[0].is_ascii_lowercase()
        && bytes[bytes.len() - 1] != b'-'
        && bytes.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-')
}

/// Visible text without control characters, between the given lengths in characters.
fn is_text(text: &str, length_max: usize) -> bool {
    // Marks that turn the direction of writing make a text read as another one.
    let misleads = |c: char| {
        c.is_control() || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    !text.trim().is_empty() && text.chars().count() <= length_max && !text.chars().any(misleads)
}

fn is_host_name(text: &str) -> bool {
    let label = |label: &str| {
        let bytes = label.as_bytes();
        (1..=63).contains(&bytes.len())
            && bytes[0] != b'-'
            && bytes[bytes.len() - 1] != b'-'
            && bytes.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-')
    };
    text.len() <= 253 && text.contains('.') && text.split('.').all(label)
}

fn is_variable(text: &str) -> bool {
    let bytes = text.as_bytes();
    (1..=128).contains(&bytes.len())
        && !bytes[0].is_ascii_digit()
        && bytes.iter().all(|b| b.is_ascii_alphanumeric() || *b == b'_')
}

fn is_label_key(text: &str) -> bool {
    let bytes = text.as_bytes();
    (1..=63).contains(&bytes.len())
        && bytes[0].is_ascii_alphanumeric()
        && bytes[bytes.len() - 1].is_ascii_alphanumeric()
        && bytes.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}

name! {
    /// Names one instance for its whole life.
    InstanceId, "instance id",
    "a DNS label: 1 to 40 characters of a-z, 0-9 and '-', starting with a letter and not ending with '-'",
    |text| is_dns_label(text, 40)
}

name! {
    /// Names the customer who owns instances. Providers only ever see [a hash of it](TenantId::digest).
    TenantId, "tenant",
    "1 to 128 characters without control characters",
    |text| is_text(text, 128)
}

name! {
    /// Names one control plane. It marks all that the control plane makes, so two of them can share a provider account.
    ControlPlaneId, "control plane id",
    "a DNS label: 1 to 40 characters of a-z, 0-9 and '-', starting with a letter and not ending with '-'",
    |text| is_dns_label(text, 40)
}

name! {
    /// Names one cell: a place that holds instances.
    CellName, "cell name",
    "a DNS label: 1 to 40 characters of a-z, 0-9 and '-', starting with a letter and not ending with '-'",
    |text| is_dns_label(text, 40)
}

name! {
    /// A host name under which an instance is reached. Unique in a control plane.
    HostName, "host name",
    "a lower-case DNS name with at least one dot, such as acme.example.com",
    is_host_name
}

name! {
    /// A range of IP addresses.
    Network, "network",
    "a range of IP addresses such as 203.0.113.0/24 or 2001:db8::/32, with no bit set beyond its length",
    |text| text.parse::<IpNet>().is_ok_and(|network| network.trunc().to_string() == text)
}

name! {
    /// The name of an environment variable.
    VariableName, "variable name",
    "1 to 128 characters of A-Z, a-z, 0-9 and '_', not starting with a digit",
    is_variable
}

name! {
    /// The key of a label.
    LabelKey, "label key",
    "1 to 63 characters of A-Z, a-z, 0-9, '-', '_' and '.', starting and ending with a letter or digit",
    is_label_key
}

name! {
    /// The value of a label. May be empty.
    LabelValue, "label value",
    "up to 63 characters of A-Z, a-z, 0-9, '-', '_' and '.', starting and ending with a letter or digit",
    |text| text.is_empty() || is_label_key(text)
}

name! {
    /// One reason to be suspended, such as `unpaid` or `abuse`.
    Hold, "hold",
    "a DNS label: 1 to 40 characters of a-z, 0-9 and '-', starting with a letter and not ending with '-'",
    |text| is_dns_label(text, 40)
}

name! {
    /// Who asks: a user, an operator or a service. Goes into the event log.
    Actor, "actor",
    "1 to 128 characters without control characters",
    |text| is_text(text, 128)
}

name! {
    /// Makes a request repeatable: the same key within 24 hours is the same request.
    IdempotencyKey, "idempotency key",
    "1 to 255 visible ASCII characters",
    |text| (1..=255).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic() || b == b' ')
}

name! {
    /// Names one durable data set. Outlives the incarnations that use it. Made by the engine: 32 hexadecimal digits.
    DataId, "data id",
    "32 hexadecimal digits",
    is_hex_128
}

name! {
    /// Names one accepted request. Made by the control plane: 32 hexadecimal digits, the first twelve its time,
    /// so that ids sort by age.
    OperationId, "operation id",
    "32 hexadecimal digits",
    is_hex_128
}

fn is_hex_128(text: &str) -> bool {
    text.len() == 32 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

impl TenantId {
    /// The form in which a tenant appears at providers: 16 hexadecimal digits of a SHA-256.
    #[must_use]
    pub fn digest(&self) -> String {
        super::incarnation::hex_digest(&["tenant", self.as_str()], 8)
    }
}

impl DataId {
    /// Makes an id of 128 random bits.
    #[must_use]
    pub fn from_random(bits: u128) -> Self {
        Self(format!("{bits:032x}").into())
    }
}

impl OperationId {
    /// Makes an id of a time in milliseconds and 80 random bits.
    #[must_use]
    pub fn from_parts(unix_ms: u64, bits: u128) -> Self {
        Self(format!("{:012x}{:020x}", unix_ms & 0xffff_ffff_ffff, bits & ((1 << 80) - 1)).into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instance_ids_are_dns_labels_of_up_to_40_characters() {
        for good in ["a", "acme", "a-1", "acme-2", &"a".repeat(40)] {
            assert_eq!(InstanceId::new(good).unwrap().as_str(), good);
        }
        for bad in
            ["", &"a".repeat(41), "Acme", "a.b", "acme-", "-acme", "1acme", "ácme", "../x", "a/b", "a b", "a\n", "a\0"]
        {
            let error = InstanceId::new(bad).unwrap_err().to_string();
            assert!(error.contains("expected a DNS label"), "{bad:?}: {error}");
        }
    }

    #[test]
    fn a_hostile_name_is_quoted_short_and_escaped() {
        let error = InstanceId::new("\u{1b}[2J".repeat(500)).unwrap_err().to_string();
        assert!(!error.contains('\u{1b}') && error.len() < 700, "{error}");
    }

    #[test]
    fn tenants_are_any_text_that_reads_as_what_it_is() {
        for good in ["Acme Inc.", "Ümläut & Söhne", "株式会社", "شركة"] {
            assert!(TenantId::new(good).is_ok(), "{good}");
        }
        for bad in ["", "  ", "a\nb", "gpj.\u{202e}evil", &"x".repeat(129)] {
            assert!(TenantId::new(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn networks_are_written_in_one_way() {
        for good in ["203.0.113.0/24", "10.0.0.1/32", "0.0.0.0/0", "2001:db8::/32"] {
            assert!(Network::new(good).is_ok(), "{good}");
        }
        for bad in
            ["", "203.0.113.7/24", "203.0.113.0", "10.0.0.0/33", "2001:DB8::/32", "2001:db8:0::/32", " 10.0.0.0/8"]
        {
            assert!(Network::new(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn host_names_need_a_dot_and_lower_case() {
        assert!(HostName::new("acme.example.com").is_ok());
        for bad in ["acme", "Acme.example.com", "a..b", ".a.b", "a.b.", "a b.c", &format!("{}.com", "a".repeat(64))] {
            assert!(HostName::new(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn operation_ids_sort_by_age() {
        assert!(OperationId::from_parts(1, u128::MAX) < OperationId::from_parts(2, 0));
        assert!(OperationId::new(OperationId::from_parts(u64::MAX, u128::MAX).as_str()).is_ok());
    }
}
