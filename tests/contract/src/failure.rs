//! How a rule says what it saw instead.

use std::fmt;

use provisioner_core::{Chain, Error};

/// What a rule saw instead of what the contract says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure(String);

/// What comes of a rule, or of a step of one.
pub type Outcome<T = ()> = Result<T, Failure>;

impl Failure {
    /// A failure in these words.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let (retry, effect) = (error.retry(), error.effect());
        Self(format!("{} [retry {retry:?}, effect {effect:?}]", Chain(&error)))
    }
}

impl From<String> for Failure {
    fn from(text: String) -> Self {
        Self(text)
    }
}

/// Says in which part of a rule something failed.
pub(crate) trait During<T> {
    /// The same with the part in front.
    fn during(self, part: impl fmt::Display) -> Outcome<T>;
}

impl<T, E: Into<Failure>> During<T> for Result<T, E> {
    fn during(self, part: impl fmt::Display) -> Outcome<T> {
        self.map_err(|error| Failure(format!("{part}: {}", error.into())))
    }
}

/// Fails the rule with this text unless the condition holds.
macro_rules! ensure {
    ($condition:expr, $($text:tt)+) => {
        if !$condition {
            return Err($crate::Failure::new(format!($($text)+)));
        }
    };
}
pub(crate) use ensure;
