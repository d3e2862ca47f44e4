//! Words that the service makes up: ids, times and keys.

use std::sync::atomic::{AtomicU64, Ordering};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use sha2::{Digest as _, Sha256, Sha512};

/// The directory that callers are of.
pub(crate) const TENANT: &str = "5d1c7a70-0000-4000-8000-00000000a0a0";

/// An id that nothing else has.
pub(crate) fn unique() -> String {
    static MADE: AtomicU64 = AtomicU64::new(1);
    let number = MADE.fetch_add(1, Ordering::Relaxed);
    format!("59dbff89-35bd-4eac-{:04x}-{number:012x}", std::process::id() & 0xffff)
}

/// A fingerprint in hexadecimal digits, so long.
pub(crate) fn fingerprint(text: &str, length: usize) -> String {
    let digest = Sha256::digest(text);
    let digits: String = digest.iter().map(|byte| format!("{byte:02X}")).collect();
    digits[..length.min(digits.len())].to_owned()
}

/// A key of a storage account.
pub(crate) fn storage_key(of: &str) -> String {
    BASE64_STANDARD.encode(Sha512::digest(of))
}

/// The time, as the service writes it.
pub(crate) fn now() -> String {
    jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S.%3fZ").to_string()
}

/// A region as it is compared: `West Europe` is `westeurope`.
pub(crate) fn region(text: &str) -> String {
    text.chars().filter(|c| !c.is_whitespace()).flat_map(char::to_lowercase).collect()
}
