//! Why a call to an account failed, and how that is told.

use provisioner_core::{Effect, Error, ErrorKind, Retry, types::InstanceId};

use crate::{GivenUp, NotSent};

/// What was being done when something failed.
#[derive(Debug, Clone, Copy)]
pub struct During<'a> {
    /// Which operation of the contract.
    pub operation: &'static str,
    /// Which instance, where it is one.
    pub instance: Option<&'a InstanceId>,
}

impl During<'_> {
    /// An error of it.
    #[must_use]
    pub fn error(self, kind: ErrorKind) -> Error {
        let error = Error::new(kind, self.operation);
        match self.instance {
            Some(instance) => error.with_instance(instance),
            None => error,
        }
    }
}

/// Why a call failed. Cheap to share among those who waited for the same call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// What kind of failure.
    pub kind: ErrorKind,
    /// When to try again, where that is not as usual for the kind.
    pub retry: Option<Retry>,
    /// Whether it may have acted, if it was one that changes something.
    pub may_have_acted: bool,
    /// The provider's code.
    pub code: Option<String>,
    /// The provider's id of the request.
    pub request_id: Option<String>,
    /// For operators.
    pub message: String,
    /// The field of the spec that it is about.
    pub field: Option<&'static str>,
}

impl From<GivenUp> for Failure {
    fn from(why: GivenUp) -> Self {
        let kind = match why {
            GivenUp::TooLate => ErrorKind::Timeout,
            GivenUp::Cancelled => ErrorKind::Cancelled,
            GivenUp::Unanswered => ErrorKind::Internal,
        };
        Self::new(kind, "no answer yet").in_doubt()
    }
}

impl Failure {
    /// Of a call that was not sent.
    #[must_use]
    pub fn not_sent(why: NotSent, call: &str) -> Self {
        match why {
            // By us, so that the service need not.
            NotSent::TooLate => Self::new(ErrorKind::Throttled, format!("{call}: too many wait for their turn")),
            NotSent::Cancelled => Self::new(ErrorKind::Cancelled, format!("{call}: given up before it was sent")),
        }
    }

    /// Of a caller whose turn did not come. `who` is at it.
    #[must_use]
    pub fn no_turn(why: NotSent, who: &str) -> Self {
        match why {
            NotSent::TooLate => Self::new(ErrorKind::Timeout, who),
            NotSent::Cancelled => Self::new(ErrorKind::Cancelled, who),
        }
    }

    /// One that did not act, to be told as usual for its kind.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        let message = message.into();
        Self { kind, retry: None, may_have_acted: false, code: None, request_id: None, message, field: None }
    }

    /// The same, and nobody knows whether it acted.
    #[must_use]
    pub fn in_doubt(self) -> Self {
        Self { may_have_acted: true, ..self }
    }

    /// The same about a field of the spec.
    #[must_use]
    pub fn about(self, field: &'static str) -> Self {
        Self { field: Some(field), ..self }
    }

    /// The public error. `mutating`: the call was one that changes something.
    #[must_use]
    pub fn during(self, during: During<'_>, mutating: bool) -> Error {
        let effect = if mutating && self.may_have_acted { Effect::Unknown } else { Effect::None };
        let mut error = during.error(self.kind).with_effect(effect).with_message(self.message);
        if let Some(retry) = self.retry {
            error = error.with_retry(retry);
        }
        if let Some(field) = self.field {
            error = error.with_field(field);
        }
        if let Some(code) = self.code {
            error = error.with_code(code);
        }
        if let Some(id) = self.request_id {
            error = error.with_request_id(id);
        }
        error
    }
}
